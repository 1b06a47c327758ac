"""Kullback-Leibler distillation: the teacher's softened probabilities against the student's."""

import math
from typing import Literal

from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.student import TailSum, split
from logitcache.sparse import SparseTeacher

Tail = Literal["uniform", "ghost", "renorm"]
_SUMS: dict[str, TailSum] = {"uniform": "log", "ghost": "mass", "renorm": "none"}


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
        tail: what stands for the C − k classes that the teacher does not list: "uniform" spreads their mass
            evenly, "ghost" compares it with the student's mass there as one class, "renorm" drops it.

    Raises:
        OptionError: the temperature is not positive, or the tail policy unknown.

    Source: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2; the tail policies are ours.
    """
    return kl_rows(student_logits, teacher, temperature, tail).mean() * temperature**2


def kl_rows(student_logits: Tensor, teacher: SparseTeacher, temperature: float, tail: Tail) -> Tensor:
    """(B,) KL(p ‖ q) at T under a tail policy, without the factor T²."""
    check_tail(tail)
    log_p = teacher.log_probs(temperature)
    if tail == "renorm":
        log_p = log_p.log_softmax(1)
    log_q, rest = split(student_logits, teacher.ids, temperature, _SUMS[tail])
    rows = (log_p.exp() * (log_p - log_q)).sum(1)
    if tail == "renorm" or not teacher.tail_size:
        return rows
    log_mass = teacher.log_tail_mass(temperature)
    log_tail = log_mass if tail == "ghost" else log_mass - math.log(teacher.tail_size)
    return rows + log_mass.exp() * (log_tail - rest)


def check_tail(tail: str) -> None:
    """Refuse a tail policy that there is not."""
    if tail not in _SUMS:
        raise OptionError(f"tail must be uniform, ghost or renorm, found {tail!r}")
