"""Sinkhorn distance between a batch of students' and a batch of teachers' distributions."""

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.arguments import upcast
from logitcache.teacher.sparse import SparseTeacher


def sinkd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 2.0,
    strength: float = 0.1,
    iterations: int = 20,
) -> Tensor:
    """Batch-wise optimal transport: (1/B) Σ_il P_il W_il, W_il = Σ_j |q_ij − p_lj|, q = softmax(s/T).

    P is exp(−W / strength), its rows and columns normalised in turn. Time is O(B² C).

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.
        strength: of the entropy that smooths the transport plan, > 0.
        iterations: of Sinkhorn's algorithm, at least 1.

    Raises:
        OptionError: an option is out of range.

    Source: Cui et al. 2024 (SinKD, arXiv 2402.17110; batch-wise: 2402.17110v1, section 3.3), with its defaults.
    """
    if not strength > 0 or iterations < 1:
        raise OptionError(
            f"strength must be above 0 and iterations 1 or more, found {strength}, {iterations}"
        )
    q = (upcast(student_logits) / temperature).softmax(1)
    cost = torch.cdist(q, teacher.at(temperature).probs.to(q.dtype), p=1.0)
    log_plan = -cost / strength
    for _ in range(iterations):
        log_plan = log_plan.log_softmax(1)
        log_plan = log_plan.log_softmax(0)
    return torch.sum(log_plan.exp() * cost) / len(q)
