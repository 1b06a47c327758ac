"""Cross-entropy with the labels, the term every objective has."""

import torch.nn.functional as F
from torch import Tensor

from logitcache.losses.student import widened


def ce(student_logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the labelled rows of −log softmax(s)_y; 0, with zero gradient, when none is labelled.

    Args:
        student_logits: (B, C) float.
        target: (B,) int64, −1 where there is no label.
        label_smoothing: mass in [0, 1] taken from the label and spread evenly over all classes.
    """
    labelled = (target >= 0).sum().clamp(min=1)
    total = F.cross_entropy(
        widened(student_logits), target, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    return total / labelled
