"""Logit standardisation: any other loss, between z-scored logits."""

from torch import Tensor

from logitcache.losses.arguments import upcast, warn_of_even_tail
from logitcache.losses.kd import kd
from logitcache.losses.registry import Loss, Term
from logitcache.losses.soft_ranks import floored_std
from logitcache.teacher.sparse import SparseTeacher

DEFAULT_TERM = Term("kd", Loss(kd), {"temperature": 2.0})


def logit_std(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    loss: Term = DEFAULT_TERM,
    progress: float = 0.0,
) -> Tensor:
    """Another loss between z-scores: loss((s − mean s) / std s, (t − mean t) / std t), over all C classes.

    Args:
        student_logits: (B, C) float; a row whose deviation is below 0.01 is divided by 0.01.
        teacher: B rows over the same C classes.
        target: passed on.
        loss: any loss for one head, with its options; in an expression ``logit_std(loss=dkd(beta=2.0))``.
        progress: passed on.

    Source: Sun et al. 2024 (arXiv 2403.01427), algorithm 1; temperature 2 and weight 9 as in the authors' code
    for KD, where cross-entropy has 0.1.
    """
    warn_of_even_tail(teacher, "logit_std")
    s = upcast(student_logits)
    s = (s - s.mean(1, keepdim=True)) / floored_std(s)
    return loss(s, teacher.standardise(), target, progress)
