"""Regression of the teacher's logits."""

from torch import Tensor

from logitcache.losses.arguments import upcast, warn_of_even_tail
from logitcache.teacher.sparse import SparseTeacher


def mse(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    centred: bool = False,
) -> Tensor:
    """Mean squared difference of logits over all classes: mean_i mean_j (s_ij − t_ij)².

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        centred: take each row's mean from both sides first, so that the student's offset is free.

    Source: Ba and Caruana 2014 (arXiv 1312.6184), equation 1; Kim et al. 2021 (arXiv 2105.08919), section 3.
    """
    warn_of_even_tail(teacher, "mse")
    difference = upcast(student_logits) - teacher.logits
    if centred:
        difference = difference - difference.mean(1, keepdim=True)
    return difference.square().mean()
