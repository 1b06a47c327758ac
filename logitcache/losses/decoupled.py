"""Losses that treat the label apart from the other classes: decoupled KD and normalised KD.

Both need the teacher's probability of the label. Where the label is among the classes that the teacher does not
list it gets the tail's mean share, so their tail is always spread evenly.
"""

import math

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.student_logits import split
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
    parts = _Parts(student_logits, teacher, _labels("dkd", target), temperature)
    label = parts.log_p_label.exp() * (parts.log_p_label - parts.log_q_label)
    others = parts.log_p_others.exp() * (parts.log_p_others - parts.log_q_others)
    rows = alpha * (label + others) + beta * (parts.cross_entropy - parts.entropy)
    return parts.mean(rows) * temperature**2


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
    target = _labels("nkd", target)
    parts = _Parts(student_logits, teacher, target, temperature)
    label, _ = split(student_logits, target.clamp(min=0)[:, None], 1.0, "none")
    rows = -teacher.at(1.0).prob_of(target.clamp(min=0)) * label[:, 0]
    return parts.mean(rows + gamma * temperature**2 * parts.cross_entropy)


class _Parts:
    """Teacher and student at T, label and other classes apart; the others renormalised.

    cross_entropy is −Σ_{j≠y} p̂_j log q̂_j and entropy −Σ_{j≠y} p̂_j log p̂_j, both (B,).
    """

    def __init__(self, student: Tensor, teacher: SparseTeacher, target: Tensor, temperature: float) -> None:
        self.labelled = target >= 0
        label = target.clamp(min=0)[:, None]
        listed = teacher.ids == label
        in_tail = ~listed.any(1)
        tail_size = teacher.tail_size - in_tail.to(
            teacher.top.dtype
        )  # classes of the tail other than the label

        # The teacher: (B, k) support without the label, and the tail without the label.
        soft = teacher.at(temperature)
        log_share = soft.log_tail_share
        support = soft.log_probs.masked_fill(listed, -math.inf)
        tail = torch.where(tail_size > 0, log_share + tail_size.log(), -math.inf)
        self.log_p_label = soft.log_prob_of(label)[:, 0]
        self.log_p_others = torch.logaddexp(support.logsumexp(1), tail)
        support = support - self.log_p_others[:, None]
        tail = tail - self.log_p_others
        share = log_share - self.log_p_others

        # The student: log q on the support, mean log q over the tail, log q of the label and of all others.
        log_q, mean_log_q = split(student, teacher.ids, temperature, "log")
        at_label, log_q_others = split(student, label, temperature, "mass")
        self.log_q_label, self.log_q_others = at_label[:, 0], log_q_others
        without = (teacher.tail_size * mean_log_q - self.log_q_label) / tail_size.clamp(min=1)
        mean_log_q = torch.where(in_tail, without, mean_log_q)

        p, mass = support.exp(), tail.exp()
        none = torch.zeros_like(mass)
        self.cross_entropy = (
            log_q_others - (p * log_q).sum(1) - torch.where(mass > 0, mass * mean_log_q, none)
        )
        self.entropy = -torch.where(p > 0, p * support, 0.0).sum(1) - torch.where(
            mass > 0, mass * share, none
        )

    def mean(self, rows: Tensor) -> Tensor:
        """Mean of (B,) over the labelled rows; 0 when there is none."""
        return torch.where(self.labelled, rows, 0.0).sum() / self.labelled.sum().clamp(min=1)


def _labels(name: str, target: Tensor | None) -> Tensor:
    if target is None:
        raise OptionError(f"loss {name} needs labels; give a target")
    return target


def _check_weights(**weights: float) -> None:
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise OptionError(f"{name} must be 0 or more, found {value}")
