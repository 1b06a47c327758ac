"""Pearson correlation of rows, and of a sparse teacher's probabilities with a student's in one pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logitcache.losses.student import widened
from logitcache.sparse import SparseTeacher

FLAT = 1e-2
"""A row whose logits at T spread by less than this counts as flat: its correlation goes to 0 smoothly, and
the gradient (which grows as 1 / spread) stays bounded, as for a student whose head starts at zero."""


def pearson(x: Tensor, y: Tensor, floor: float = 1e-6) -> Tensor:
    """(B,) Pearson correlation of the rows of two (B, n) tensors; 0 for rows of a norm far below `floor`."""
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    scale = _norm(x.square().sum(1), floor) * _norm(y.square().sum(1), floor)
    return (x * y).sum(1) / scale


def probability_pearson(
    student_logits: Tensor, teacher: SparseTeacher, temperature: float
) -> tuple[Tensor, Tensor]:
    """Correlate softmax(t/T), the teacher's tail spread evenly, with softmax(s/T), over all C classes.

    ρ = (Σ_j p_j q_j − 1/C) / (‖p − 1/C‖ · ‖q − 1/C‖), where Σ_tail p_j q_j = share · (1 − Σ_support q).

    Returns:
        (B,) ρ; (B, k) student logits on the support. Both carry gradients, in one backward pass.
    """
    num_classes = teacher.num_classes
    p = teacher.probs(temperature)
    share = teacher.tail_mass(temperature) / max(1, teacher.tail_size)
    spread = (p - 1 / num_classes).square().sum(1) + teacher.tail_size * (share - 1 / num_classes).square()
    floor = FLAT / num_classes**0.5
    sparse = (p - share[:, None]) / _norm(spread, floor)[:, None]
    rho, gathered = _SparsePearson.apply(student_logits, teacher.ids, sparse, temperature, floor)
    return rho, gathered


def _norm(square: Tensor, floor: float) -> Tensor:
    return square.clamp(min=floor * floor).sqrt()


class _SparsePearson(torch.autograd.Function):
    """ρ = Σ_support w_j (q_j − 1/C) / max(‖q − 1/C‖, floor).

    w: what the teacher's row, scaled to norm 1, has over its tail: the row is w plus a constant,
    and q − 1/C sums to zero, so that constant falls out.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, ids: Tensor, w: Tensor, temperature: float, floor: float
    ) -> tuple[Tensor, Tensor]:
        gathered = widened(student).gather(1, ids)
        q = (widened(student) * (1.0 / temperature)).softmax(1)
        even = 1.0 / student.shape[1]
        q_support = q.gather(1, ids)
        square = (q - even).square_().sum(1)
        norm = _norm(square, floor)
        rho = (w * (q_support - even)).sum(1) / norm
        curve = torch.where(square > floor * floor, rho / norm.square(), 0.0)
        ctx.save_for_backward(q, ids, w, q_support, norm, curve)
        ctx.temperature, ctx.dtype = temperature, student.dtype
        return rho, gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rho: Tensor, grad_gathered: Tensor) -> tuple[Tensor, None, None, None, None]:
        # dρ/dq_j = w_j / norm − (ρ / norm²) q_j up to a constant, then through the softmax.
        q, ids, w, q_support, norm, curve = ctx.saved_tensors
        a, c = grad_rho / (norm * ctx.temperature), grad_rho * curve / ctx.temperature
        sparse = w * q_support * a[:, None]
        mean = sparse.sum(1) - c * torch.linalg.vecdot(q, q)
        grad = (q * c[:, None]).add_(mean[:, None]).mul_(q).neg_()
        grad.scatter_add_(1, ids, sparse + grad_gathered)
        return grad.to(ctx.dtype), None, None, None, None
