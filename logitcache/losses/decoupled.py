"""Losses that treat the label apart from the other classes: decoupled KD and normalised KD."""

import math

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.arguments import upcast
from logitcache.losses.kd import kl_rows
from logitcache.teacher.sparse import SparseTeacher


def dkd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled KD: T² · mean over labelled rows of α · KL([p_y, 1 − p_y] ‖ [q_y, 1 − q_y]) + β · KL(p̂ ‖ q̂).

    p̂ and q̂ are the probabilities at T of the classes other than the label y, renormalised.

    Args:
        student_logits: (B, C) float, C ≥ 2.
        teacher: B rows over the same C classes.
        target: (B,) int64, −1 where there is no label.
        temperature: T > 0.
        alpha: weight of the label's part.
        beta: weight of the others' part; the paper tunes it between 1 and 8 by teacher, 0.5 on ImageNet.

    Raises:
        OptionError: there is no target, or an option is out of range.

    Source: Zhao et al. 2022 (arXiv 2203.08679), equation 7.
    """
    _check_weights(alpha=alpha, beta=beta)
    labelled, label = _labels("dkd", target)
    log_p = teacher.at(temperature).log_probs
    log_q = (upcast(student_logits) / temperature).log_softmax(1)
    binary = kl_rows(_label_or_not(log_p, label), _label_or_not(log_q, label))
    others = kl_rows(_others(log_p, label).log_softmax(1), _others(log_q, label).log_softmax(1))
    return _mean(alpha * binary + beta * others, labelled) * temperature**2


def nkd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> Tensor:
    """Normalised KD: mean over labelled rows of −p_y log q_y − γ T² Σ_{j≠y} p̂_j log q̂_j.

    p_y, q_y are at T = 1; p̂, q̂ are the other classes' probabilities at T, renormalised.

    Args:
        student_logits: (B, C) float, C ≥ 2.
        teacher: B rows over the same C classes.
        target: (B,) int64, −1 where there is no label.
        temperature: T > 0, of the other classes.
        gamma: weight of the other classes.

    Raises:
        OptionError: there is no target, or an option is out of range.

    Source: Yang et al. 2023 (arXiv 2303.13005), equation 5; γ = 1.5, T = 1 as there for ImageNet.
    """
    _check_weights(gamma=gamma)
    labelled, label = _labels("nkd", target)
    s = upcast(student_logits)
    own = teacher.at(1.0).prob_of(label[:, 0]) * s.log_softmax(1).gather(1, label)[:, 0]
    p = _others(teacher.at(temperature).log_probs, label).softmax(1)
    others = (p * _others(s / temperature, label).log_softmax(1)).sum(1)
    return _mean(-own - gamma * temperature**2 * others, labelled)


def _others(logits: Tensor, label: Tensor) -> Tensor:
    """(B, C) logits without the label's, which gets a finite −∞: no NaN comes of its probability of 0."""
    return logits.scatter(1, label, torch.finfo(logits.dtype).min / 4)


def _label_or_not(log_p: Tensor, label: Tensor) -> Tensor:
    """(B, 2) log-probabilities of the label, and of all other classes together."""
    return torch.cat([log_p.gather(1, label), _others(log_p, label).logsumexp(1, keepdim=True)], 1)


def _mean(rows: Tensor, labelled: Tensor) -> Tensor:
    """Mean of (B,) over the labelled rows; 0 when there is none."""
    return torch.where(labelled, rows, 0.0).sum() / labelled.sum().clamp(min=1)


def _labels(name: str, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B,) whether a row has a label; (B, 1) the label, 0 where there is none."""
    if target is None:
        raise OptionError(f"loss {name} needs labels; give a target")
    return target >= 0, target.clamp(min=0)[:, None]


def _check_weights(**weights: float) -> None:
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise OptionError(f"{name} must be 0 or more, found {value}")
