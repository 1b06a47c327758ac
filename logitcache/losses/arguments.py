"""What losses ask of what they are given: student logits in float32, and a teacher that tells the tail apart."""

import warnings

import torch
from torch import Tensor

from logitcache.teacher.sparse import SparseTeacher


def upcast(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32, others as they are: no loss is computed in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def warn_of_even_tail(teacher: SparseTeacher, loss: str) -> None:
    """Warn that a loss reads single logits of the tail where a teacher can only spread it evenly."""
    if not teacher.is_whole:
        warnings.warn(
            f"{loss} compares single logits of all {teacher.num_classes} classes, of which the teacher lists "
            f"{teacher.k} and knows no order among the others (docs/losses.md); `logitcache calibrate CACHE` adds "
            "that; where it keeps none, as an even tail is nearer to the teacher, take kd or dist",
            stacklevel=3,
        )
