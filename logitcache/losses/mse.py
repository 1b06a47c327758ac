"""Regression of the teacher's logits."""

from torch import Tensor

from logitcache.losses.student_logits import upcast
from logitcache.teacher.sparse import SparseTeacher


def mse(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    centred: bool = False,
) -> Tensor:
    """Mean squared difference of the logits that the teacher lists: mean_i mean_{j ∈ support} (s_ij − t_ij)².

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        centred: take the mean over the support from both sides first, so that the student's offset is free.

    Source: Ba and Caruana 2014 (arXiv 1312.6184), equation 1; Kim et al. 2021 (arXiv 2105.08919), section 3.
    """
    s, t = upcast(student_logits).gather(1, teacher.ids), teacher.logits
    if centred:
        s, t = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    return (s - t).square().mean()
