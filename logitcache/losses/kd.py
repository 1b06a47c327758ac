"""Divergences between the softened distributions: KL (the classic), reverse KL and Jensen-Shannon."""

import math

import torch
from torch import Tensor

from logitcache.losses.arguments import upcast
from logitcache.teacher.sparse import SparseTeacher


def kd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
) -> Tensor:
    """Softened KL divergence: T² · mean_i KL(p_i ‖ q_i), p = softmax(t/T), q = softmax(s/T).

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.

    Raises:
        OptionError: the temperature is not positive.

    Source: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2.
    """
    log_p = teacher.at(temperature).log_probs
    log_q = (upcast(student_logits) / temperature).log_softmax(1)
    return kl_rows(log_p, log_q).mean() * temperature**2


def reverse_kl(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
) -> Tensor:
    """Mode-seeking KL divergence: T² · mean_i KL(q_i ‖ p_i), p = softmax(t/T), q = softmax(s/T).

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.

    Raises:
        OptionError: the temperature is not positive.

    Source: Gu et al. 2024 (MiniLLM, arXiv 2306.08543), equation 1.
    """
    log_p = teacher.at(temperature).log_probs
    log_q = (upcast(student_logits) / temperature).log_softmax(1)
    return kl_rows(log_q, log_p).mean() * temperature**2


def js(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
) -> Tensor:
    """Jensen-Shannon divergence: T² · mean_i ½ [KL(p_i ‖ m_i) + KL(q_i ‖ m_i)], m = (p + q) / 2.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.

    Raises:
        OptionError: the temperature is not positive.

    Source: Lin 1991; for distillation, Agarwal et al. 2024 (GKD, arXiv 2306.13649), section 2, β = ½.
    """
    log_p = teacher.at(temperature).log_probs
    log_q = (upcast(student_logits) / temperature).log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (kl_rows(log_p, log_m) + kl_rows(log_q, log_m)).mean() * temperature**2 / 2


def kl_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(B,) KL(p ‖ q) of the rows of two (B, C) tensors of finite log-probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(1)
