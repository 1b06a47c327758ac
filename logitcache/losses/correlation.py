"""Pearson correlation of rows, and of what two rows of logits say as probabilities."""

from torch import Tensor

FLAT = 1e-2
"""A row whose logits at T spread by less than this counts as flat: its correlation goes to 0 smoothly, and
the gradient (which grows as 1 / spread) stays bounded, as for a student whose head starts at zero."""


def pearson(x: Tensor, y: Tensor, floor: float = 1e-6) -> Tensor:
    """(B,) Pearson correlation of the rows of two (B, n) tensors; 0 for rows of a norm far below `floor`."""
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return (x * y).sum(1) / (_norm(x.square().sum(1), floor) * _norm(y.square().sum(1), floor))


def probability_pearson(p: Tensor, q: Tensor) -> Tensor:
    """(B,) Pearson correlation of the rows of two (B, C) tensors of probabilities."""
    return pearson(p, q, FLAT / p.shape[1] ** 0.5)


def _norm(square: Tensor, floor: float) -> Tensor:
    return square.clamp(min=floor * floor).sqrt()
