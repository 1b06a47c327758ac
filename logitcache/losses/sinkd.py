"""Sinkhorn distance between a batch of students' and a batch of teachers' distributions."""

from typing import Literal

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.kd import apply_tail_policy
from logitcache.losses.student_logits import upcast
from logitcache.teacher.sparse import SparseTeacher


def sinkd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 2.0,
    strength: float = 0.1,
    iterations: int = 20,
    tail: Literal["ghost", "renorm"] = "ghost",
) -> Tensor:
    """Batch-wise optimal transport: (1/B) Σ_il P_il W_il, W_il = Σ_j |q_ij − p_lj|, q = softmax(s/T).

    P is exp(−W / strength), its rows and columns normalised in turn. As both sides sum to one, W = 2 Σ_j
    max(p_lj − q_ij, 0), which for k < C needs the student on the teacher's support only, and of the tail its mass
    as one class (`ghost`) or nothing (`renorm`). Time and memory are O(B² k).

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.
        strength: of the entropy that smooths the transport plan, > 0.
        iterations: of Sinkhorn's algorithm, at least 1.
        tail: as above.

    Raises:
        OptionError: an option is out of range.

    Source: Cui et al. 2024 (SinKD, arXiv 2402.17110; batch-wise: 2402.17110v1, section 3.3), with its defaults.
    """
    if tail not in ("ghost", "renorm"):
        raise OptionError(f"tail must be ghost or renorm for sinkd, found {tail!r}")
    if not strength > 0 or iterations < 1:
        raise OptionError(
            f"strength must be above 0 and iterations 1 or more, found {strength}, {iterations}"
        )
    log_p, log_mass = apply_tail_policy(teacher.at(temperature), tail)
    q = (upcast(student_logits) / temperature).softmax(1)
    rows = len(teacher)
    at = q[:, teacher.ids.flatten()].view(rows, rows, teacher.k)  # student i on the support of teacher l
    cost = 2 * (log_p.exp() - at).relu().sum(2)
    if tail == "ghost" and teacher.tail_size:
        cost = cost + 2 * (log_mass.exp() - 1 + at.sum(2)).relu()

    log_plan = -cost / strength
    for _ in range(iterations):
        log_plan = log_plan.log_softmax(1)
        log_plan = log_plan.log_softmax(0)
    return torch.sum(log_plan.exp() * cost) / rows
