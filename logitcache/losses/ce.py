"""Cross-entropy with the labels, the term every objective has."""

import torch
import torch.nn.functional as F
from torch import Tensor

from logitcache.losses.arguments import upcast
from logitcache.views.mixing import MixedLabels


def ce(student_logits: Tensor, target: Tensor | MixedLabels, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the labelled rows of −log softmax(s)_y; 0, with zero gradient, when none is labelled.

    A mixed view counts with each of its labels by its share.

    Args:
        student_logits: (B, C) float.
        target: (B,) int64, −1 where there is no label; or the labels of mixed views.
        label_smoothing: mass in [0, 1] taken from the label and spread evenly over all classes.
    """

    def rows(labels: Tensor) -> Tensor:
        return F.cross_entropy(
            upcast(student_logits),
            labels,
            ignore_index=-1,
            reduction="none",
            label_smoothing=label_smoothing,
        )

    if isinstance(target, Tensor):
        return rows(target).sum() / (target >= 0).sum().clamp(min=1)
    own, other, share = target
    total = (share * rows(own) + (1 - share) * rows(other)).sum()
    labelled = (share * (own >= 0) + (1 - share) * (other >= 0)).sum()
    return total / torch.where(labelled > 0, labelled, 1.0)
