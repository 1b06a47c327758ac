"""Pearson correlation of rows or columns, differentiable on one side."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FLAT = 1e-2
"""A row whose logits at T spread by less than this counts as flat: its correlation goes to 0 smoothly, and
the gradient (which grows as 1 / spread) stays bounded, as for a student whose head starts at zero."""

Floor = float | Tensor


def pearson(x: Tensor, y: Tensor, x_floor: Floor, y_floor: Floor, dim: int = 1) -> Tensor:
    """Pearson correlation along a dimension of two (B, n) tensors; y carries no gradient.

    It tends to 0 where a centred norm is below the floor, a number or one for each row or column, (B, 1) or (1, n).
    """
    y = y.detach().to(x.dtype)
    y = y - y.mean(dim, keepdim=True)
    y /= torch.linalg.vector_norm(y, dim=dim, keepdim=True).clamp_(min=y_floor)
    rho: Tensor = _Pearson.apply(x, y, x_floor, dim)
    return rho.squeeze(dim)


def probability_pearson(q: Tensor, p: Tensor) -> Tensor:
    """(B,) Pearson correlation of the rows of two (B, C) tensors of probabilities; p carries no gradient."""
    floor = FLAT / q.shape[1] ** 0.5
    return pearson(q, p, floor, floor)


class _Pearson(torch.autograd.Function):
    """x against a y that is centred and of norm 1. The gradient is made beside the value, and is all that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, floor: Floor, dim: int) -> Tensor:
        x = x - x.mean(dim, keepdim=True)
        norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
        held = norm.clamp(min=floor)
        rho: Tensor = (x * y).sum(dim, keepdim=True) / held
        if ctx.needs_input_grad[0]:
            along = torch.where(norm >= held, -rho / held, 0.0)
            ctx.save_for_backward(x.mul_(along).add_(y).div_(held))
        return rho

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (g,) = ctx.saved_tensors
        return g * grad, None, None, None
