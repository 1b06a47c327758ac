"""Pearson correlation: of plain rows, and of a sparse teacher's row with a dense student's."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logitcache.errors import OptionError
from logitcache.losses.kd import apply_tail_policy
from logitcache.losses.student_logits import upcast
from logitcache.teacher.sparse import SoftTargets

CorrelationTail = Literal["uniform", "renorm"]
"""The tail policies of `kd` that keep all C classes apart. A `ghost` class, far larger than any other, would rule
the correlation (measured: gradient cosine 0.7 to 0.9 with the dense loss)."""

FLAT = 1e-2
"""A row whose logits at T spread by less than this counts as flat: its correlation goes to 0 smoothly, and
the gradient (which grows as 1 / spread) stays bounded, as for a student whose head starts at zero."""


def pearson(x: Tensor, y: Tensor, floor: float = 1e-6) -> Tensor:
    """(B,) Pearson correlation of the rows of two (B, n) tensors; 0 for rows of a norm far below `floor`."""
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return (x * y).sum(1) / (_norm(x.square().sum(1), floor) * _norm(y.square().sum(1), floor))


def sparse_pearson(x: Tensor, ids: Tensor, y: Tensor, elsewhere: Tensor, floor: float) -> Tensor:
    """(B,) Pearson correlation of a (B, C) tensor with rows that are y on `ids` and constant elsewhere.

    Args:
        x: (B, C) float.
        ids: (B, k) int64.
        y: (B, k) values on the ids.
        elsewhere: (B,) or 0-d, the value of the other C − k.
        floor: rows of x whose centred norm is far below tend to 0.
    """
    x = x - x.mean(1, keepdim=True)
    cov = (_scaled(y, elsewhere, x.shape[1], 1e-6) * x.gather(1, ids)).sum(1)
    return cov / _norm(x.square().sum(1), floor)


def probability_pearson(
    student_logits: Tensor, soft: SoftTargets, tail: CorrelationTail = "uniform"
) -> tuple[Tensor, Tensor]:
    """Correlate a teacher's p = softmax(t/T), its tail as the policy says, with q = softmax(s/T).

    ρ = (Σ_j p_j q_j − 1/C) / (‖p − 1/C‖ · ‖q − 1/C‖), over all C classes.

    Returns:
        (B,) ρ; (B, k) student logits on the support. Both carry gradients.
    """
    check_correlation_tail(tail)
    teacher, temperature = soft.teacher, soft.temperature
    log_p, log_mass = apply_tail_policy(soft, tail)
    floor = FLAT / teacher.num_classes**0.5
    w = _scaled(log_p.exp(), log_mass.exp() / max(1, teacher.tail_size), teacher.num_classes, floor)
    rho, gathered = _SparsePearson.apply(student_logits, teacher.ids, w, temperature, floor)
    return rho, gathered


def check_correlation_tail(tail: str) -> None:
    """Raise OptionError for a tail policy that correlations over all C classes cannot have."""
    if tail not in ("uniform", "renorm"):
        raise OptionError(f"tail must be uniform or renorm for a correlation, found {tail!r}")


def _scaled(y: Tensor, elsewhere: Tensor, num_classes: int, floor: float) -> Tensor:
    """What rows that are y on k classes and constant elsewhere, scaled to norm 1, have over that constant."""
    elsewhere = elsewhere.expand(len(y))
    rest = num_classes - y.shape[1]
    mean = (y.sum(1) + rest * elsewhere) / num_classes
    square = (y - mean[:, None]).square().sum(1) + rest * (elsewhere - mean).square()
    return (y - elsewhere[:, None]) / _norm(square, floor)[:, None]


def _norm(square: Tensor, floor: float) -> Tensor:
    return square.clamp(min=floor * floor).sqrt()


class _SparsePearson(torch.autograd.Function):
    """ρ = Σ_support w_j (q_j − 1/C) / max(‖q − 1/C‖, floor), w as `_scaled` gives it; and s on the support.

    The teacher's scaled row is w plus a constant, and q − 1/C sums to zero, so that the constant falls out.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, ids: Tensor, w: Tensor, temperature: float, floor: float
    ) -> tuple[Tensor, Tensor]:
        gathered = upcast(student).gather(1, ids)
        q = (upcast(student) * (1.0 / temperature)).softmax(1)
        even = 1.0 / student.shape[1]
        q_support = q.gather(1, ids)
        exact = torch.linalg.vector_norm(q - even, dim=1)
        norm = exact.clamp(min=floor)
        rho = (w * (q_support - even)).sum(1) / norm
        curve = torch.where(exact > floor, rho / norm.square(), 0.0)
        ctx.save_for_backward(q, ids, w, q_support, norm, curve, exact.square() + even)
        ctx.temperature, ctx.dtype = temperature, student.dtype
        return rho, gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rho: Tensor, grad_gathered: Tensor) -> tuple[Tensor, None, None, None, None]:
        # dρ/dq_j = w_j / norm − (ρ / norm²) q_j up to a constant, then through the softmax.
        q, ids, w, q_support, norm, curve, square = ctx.saved_tensors
        a, c = grad_rho / (norm * ctx.temperature), grad_rho * curve / ctx.temperature
        sparse = w * q_support * a[:, None]
        mean = sparse.sum(1) - c * square
        grad = (q * -c[:, None]).sub_(mean[:, None]).mul_(q)
        grad.scatter_add_(1, ids, sparse + grad_gathered)
        return grad.to(ctx.dtype), None, None, None, None
