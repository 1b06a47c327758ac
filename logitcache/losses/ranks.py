"""Differentiable ranks: 1 for the smallest of a row to n for the largest, ties sharing their mean rank.

Two operators behind one signature, `(x (B, n), strength) -> ranks (B, n)`; both become the true ranks as the
strength goes to 0. `docs/losses.md` derives them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def laplace_ranks(x: Tensor, strength: float) -> Tensor:
    """Ranks by the Laplace distribution: r_i = 1/2 + Σ_j F((x_i − x_j) / τ), exact in O(n log n).

    F(u) = e^u / 2 for u < 0 and 1 − e^−u / 2 otherwise. In sorted order the sum is the hard rank, less half
    of what decays from the left, plus half of what decays from the right: two linear recurrences.

    Args:
        x: (B, n) float.
        strength: τ > 0, in the units of x.

    Returns:
        (B, n) float, in [1/2, n + 1/2], with a gradient that is nowhere zero by construction.

    Source: ours; the sum of CDFs is the pairwise rank of Qin, Liu, Li 2010 with a Laplace kernel.
    """
    ranks: Tensor = _Laplace.apply(x, strength)
    return ranks


class _Laplace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        y, order = x.sort(1)
        decay = _decay(y, strength)
        ones = torch.ones_like(y)
        left, right = _from_both_sides(ones, decay)
        hard = torch.arange(1, x.shape[1] + 1, dtype=y.dtype, device=y.device)
        ctx.save_for_backward(decay, order, left + right)
        ctx.strength = strength
        return torch.empty_like(y).scatter_(1, order, hard + (right - left) / 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # dr_i/dx_j = −e^(−|x_i − x_j|/τ) / 2τ, so each x_m gets Σ_j (g_m − g_j) e^(−|x_m − x_j|/τ) / 2τ.
        decay, order, weight = ctx.saved_tensors
        g = grad.gather(1, order)
        left, right = _from_both_sides(g, decay)
        out = (g * weight - left - right) / (2 * ctx.strength)
        return torch.empty_like(out).scatter_(1, order, out), None


def _decay(y: Tensor, strength: float) -> Tensor:
    """(B, n − 1) e^(−gap/τ) between neighbours in sorted order."""
    return ((y[:, :-1] - y[:, 1:]) / strength).exp()


def _from_both_sides(v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_{j<i} v_j e^(−(y_i − y_j)/τ) and the same over j > i, both (B, n)."""
    zero = torch.zeros_like(v[:, :1])
    a = torch.cat([zero, decay], 1)
    mirrored = torch.cat([zero, decay.flip(1)], 1)
    totals = _recurrence(torch.stack([v, v.flip(1)]), torch.stack([a, mirrored]))
    return totals[0] - v, totals[1].flip(1) - v


def _recurrence(v: Tensor, a: Tensor) -> Tensor:
    """Solve h_i = a_i h_{i−1} + v_i along the last dimension, by doubling: log₂ n steps, no division."""
    step, n = 1, v.shape[-1]
    while step < n:
        head, tail = v[..., :step], v[..., step:] + a[..., step:] * v[..., :-step]
        v = torch.cat([head, tail], -1)
        a = torch.cat([torch.zeros_like(a[..., :step]), a[..., step:] * a[..., :-step]], -1)
        step *= 2
    return v
