"""Kendall's tau on the classes that the teacher lists, made differentiable."""

from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.arguments import upcast
from logitcache.losses.soft_ranks import floored_std
from logitcache.teacher.sparse import SparseTeacher


def kendall(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    strength: float = 0.5,
) -> Tensor:
    """Mean_i 1 − τ_i, where τ = Σ_{a<b} tanh((s_a − s_b) / (strength · σ)) / #pairs, a before b in the teacher.

    Of the k classes that the teacher lists alone, whatever is known of the others: time and memory are O(B k²).
    σ is the standard deviation of the student's logits there. Pairs that the teacher ties are left out; as the
    strength goes to 0, τ is Kendall's.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        strength: > 0, relative to the spread of the row.

    Raises:
        OptionError: the strength is not positive.

    Source: Kendall 1938; the smooth sign is ours.
    """
    if not strength > 0:
        raise OptionError(f"strength must be above 0, found {strength}")
    s = upcast(student_logits).gather(1, teacher.ids)
    s = s / (strength * floored_std(s))
    ahead = teacher.gap[:, None, :] > teacher.gap[:, :, None]  # (B, k, k): a is above b in the teacher
    agreement = ((s[:, :, None] - s[:, None, :]).tanh() * ahead).sum((1, 2))
    return (1 - agreement / ahead.sum((1, 2)).clamp(min=1)).mean()
