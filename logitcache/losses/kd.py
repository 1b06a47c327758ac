"""Divergences between the softened distributions: KL (the classic), reverse KL and Jensen-Shannon."""

import math
from typing import Literal

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.student_logits import TailSum, split, upcast
from logitcache.teacher.sparse import SoftTargets, SparseTeacher

Tail = Literal["uniform", "ghost", "renorm"]
"""What stands for the C − k classes that the teacher does not list: their mass spread evenly (`uniform`), one
class of their mass against the student's mass there (`ghost`), or nothing, the rest renormalised (`renorm`)."""

_STUDENT_SUM: dict[str, TailSum] = {"uniform": "log", "ghost": "mass", "renorm": "none"}


def kd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    tail: Tail = "uniform",
) -> Tensor:
    """Softened KL divergence: T² · mean_i KL(p_i ‖ q_i), p = softmax(t/T), q = softmax(s/T).

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.
        tail: what stands for the classes that the teacher does not list.

    Raises:
        OptionError: the temperature is not positive, or the tail policy unknown.

    Source: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2; the tail policies are ours.
    """
    return kl_rows(student_logits, teacher.at(temperature), tail).mean() * temperature**2


def kl_rows(
    student_logits: Tensor, soft: SoftTargets, tail: Tail, student_temperature: float | None = None
) -> Tensor:
    """(B,) KL(p ‖ q) under a tail policy; the student at the teacher's temperature unless another is given."""
    teacher = soft.teacher
    log_p, log_mass = apply_tail_policy(soft, tail)
    log_q, rest = split(
        student_logits, teacher.ids, student_temperature or soft.temperature, _STUDENT_SUM[tail]
    )
    rows = (log_p.exp() * (log_p - log_q)).sum(1)
    if tail == "renorm" or not teacher.tail_size:
        return rows
    size = teacher.tail_size if tail == "uniform" else 1
    return rows + log_mass.exp() * (log_mass - math.log(size) - rest)


def reverse_kl(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    tail: Literal["uniform", "ghost"] = "uniform",
) -> Tensor:
    """Mode-seeking KL divergence: T² · mean_i KL(q_i ‖ p_i), p = softmax(t/T), q = softmax(s/T).

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.
        tail: as in `kd`; `renorm` is not to be had, as mass where the teacher has none would cost infinity.

    Raises:
        OptionError: the temperature is not positive, or the tail policy not one of the two.

    Source: Gu et al. 2024 (MiniLLM, arXiv 2306.08543), equation 1.
    """
    if tail not in ("uniform", "ghost"):
        raise OptionError(f"tail must be uniform or ghost for reverse_kl, found {tail!r}")
    log_p, log_mass = apply_tail_policy(teacher.at(temperature), tail)
    if tail == "ghost" or not teacher.tail_size:
        log_q, rest = split(student_logits, teacher.ids, temperature, "mass")
        rows = (log_q.exp() * (log_q - log_p)).sum(1)
        if teacher.tail_size:
            rows = rows + rest.exp() * (rest - log_mass)
    else:
        log_q = (upcast(student_logits) / temperature).log_softmax(1)
        log_share = log_mass - math.log(teacher.tail_size)
        expected = (log_q.exp() * (log_q - log_share[:, None])).sum(1)
        rows = expected - (log_q.gather(1, teacher.ids).exp() * (log_p - log_share[:, None])).sum(1)
    return rows.mean() * temperature**2


def js(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    tail: Tail = "uniform",
) -> Tensor:
    """Jensen-Shannon divergence: T² · mean_i ½ [KL(p_i ‖ m_i) + KL(q_i ‖ m_i)], m = (p + q) / 2.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.
        tail: as in `kd`.

    Raises:
        OptionError: the temperature is not positive, or the tail policy unknown.

    Source: Lin 1991; for distillation, Agarwal et al. 2024 (GKD, arXiv 2306.13649), section 2, β = ½.
    """
    log_p, log_mass = apply_tail_policy(teacher.at(temperature), tail)
    if tail == "uniform" and teacher.tail_size:
        log_q = (upcast(student_logits) / temperature).log_softmax(1)
        log_share = (log_mass - math.log(teacher.tail_size))[:, None]
        rows = _js_parts(log_p, log_q.gather(1, teacher.ids)).sum(1)
        elsewhere = log_q.scatter(1, teacher.ids, log_share.expand(-1, teacher.k))  # no part where q = share
        rows = rows + _js_parts(log_share, elsewhere).sum(1)
    else:
        log_q, rest = split(student_logits, teacher.ids, temperature, "mass")
        rows = _js_parts(log_p, log_q).sum(1)
        if tail == "ghost" and teacher.tail_size:
            rows = rows + _js_parts(log_mass, rest)
        elif teacher.tail_size:
            rows = rows + rest.exp() * (math.log(2) / 2)
    return rows.mean() * temperature**2


def _js_parts(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)) / 2


def apply_tail_policy(soft: SoftTargets, tail: Tail) -> tuple[Tensor, Tensor]:
    """Return a teacher's (B, k) log-probabilities of its support, and the (B,) log mass of its tail, under a policy.

    Raises:
        OptionError: there is no such policy.
    """
    if tail not in _STUDENT_SUM:
        raise OptionError(f"tail must be uniform, ghost or renorm, found {tail!r}")
    if tail == "renorm":
        return soft.log_probs.log_softmax(1), torch.full_like(soft.lse, -math.inf)
    return soft.log_probs, soft.log_tail_mass
