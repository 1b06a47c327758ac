"""Differentiable ranks: 1 for the smallest of a row to n for the largest, ties sharing their mean rank.

Two operators behind one signature, `(x (B, n), strength) -> ranks (B, n)`. The strength is relative to the spread
of each row, so ranks do not change when a row is shifted or scaled, and they become the true ranks as it goes to
0. `docs/losses.md` derives both.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logitcache.errors import OptionError
from logitcache.losses.correlation import FLAT, pearson

RankOperator = Literal["laplace", "blondel"]


def laplace_ranks(x: Tensor, strength: float) -> Tensor:
    """Ranks by the Laplace distribution: r_i = 1/2 + Σ_j F((x_i − x_j) / τ), τ = strength · std(x), exactly.

    F(u) = e^u / 2 for u < 0 and 1 − e^−u / 2 otherwise. In sorted order the sum is the hard rank, less half of
    what decays from the left, plus half of what decays from the right: two linear recurrences, O(n log n).

    Args:
        x: (B, n) float.
        strength: > 0.

    Returns:
        (B, n) float from 1/2 to n + 1/2, with a gradient that is nowhere cut to zero.

    Source: ours; a sum of pairwise CDFs as in Qin, Liu, Li 2010, with a kernel that can be scanned.
    """
    z = (x - x.detach().mean(1, keepdim=True)) / (_positive(strength) * floored_std(x))
    ranks: Tensor = _Laplace.apply(z, _reach(x.shape[1], strength))
    return ranks


def blondel_ranks(x: Tensor, strength: float) -> Tensor:
    """Ranks by projection: the point of the permutahedron of (1, …, n) next to x / ε, ε = strength · ε_max(x).

    ε_max = max_k (mean of the k largest − mean of all) / ((n − k) / 2) is the strength from which all values pool,
    ranks are x itself shifted and scaled, and Spearman *is* Pearson.

    Args:
        x: (B, n) float.
        strength: > 0; from 1 on there is a warning that the ranks say nothing new.

    Returns:
        (B, n) float from 1 to n; the gradient is zero for values that pool with no other.

    Source: Blondel et al. 2020 (arXiv 2002.08871), proposition 3, L2; the relative strength is ours.
    """
    if _positive(strength) >= 1:
        warnings.warn(
            f"blondel ranks of strength {strength} are the values themselves, so that Spearman is Pearson; "
            "give a strength below 1",
            stacklevel=2,
        )
    ranks: Tensor = _Blondel.apply(x / (strength * _pooling_strength(x)))
    return ranks


RANKS: dict[RankOperator, Callable[[Tensor, float], Tensor]] = {
    "laplace": laplace_ranks,
    "blondel": blondel_ranks,
}


def soft_spearman(x: Tensor, y: Tensor, strength: float, operator: RankOperator = "laplace") -> Tensor:
    """(B,) Pearson correlation of the soft ranks of two (B, n) tensors; tends to 0 where a row of x is flat.

    y carries no gradient.
    """
    y = y.detach().to(x.dtype)
    if operator == "laplace":
        rho: Tensor = _LaplaceSpearman.apply(x, y, _positive(strength))
        return rho
    rank, floor = RANKS[operator], rank_floor(x.shape[1])
    return pearson(rank(x, strength), rank(y, strength), floor, floor) * steepness(x)[:, 0]


def floored_std(x: Tensor) -> Tensor:
    """(B, 1) standard deviation of each row, at least `FLAT`."""
    return _std(x).clamp(min=FLAT)


def steepness(x: Tensor) -> Tensor:
    """(B, 1) std / FLAT of each row, at most 1: what keeps the gradient of a scale-free loss bounded."""
    return (_std(x) / FLAT).clamp(max=1.0)


def rank_floor(n: int) -> float:
    """Norm of n centred ranks below which a row has no order."""
    return 1e-3 * math.sqrt(n)


def sort_rows(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """(B, n) values in rising order, in a dtype, and where each was.

    On the CPU NumPy sorts, with vector instructions, which torch lacks. A float32 as float64 ends in 29 zero bits:
    there goes its place, so that what is sorted are plain numbers.
    """
    dtype = dtype or x.dtype
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        y, order = x.sort(1)
        return y.to(dtype, copy=True), order
    both = x.numpy().astype(np.float64)
    bits = both.view(np.int64)
    bits |= np.arange(x.shape[1])
    both.sort(1)
    return torch.from_numpy(both).to(dtype), torch.from_numpy(bits & (2**29 - 1))


def _std(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)).square().mean(1, keepdim=True).clamp(min=1e-12).sqrt()


def _positive(strength: float) -> float:
    if not strength > 0:
        raise OptionError(f"strength must be above 0, found {strength}")
    return strength


# Laplace ------------------------------------------------------------------------------------------------


class _Laplace(torch.autograd.Function):
    """Ranks at τ = 1 of rows whose values lie within `reach` of 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reach: float) -> Tensor:
        y, order = sort_rows(x.detach(), _dtype_for(x, reach))
        kernel = _kernel(y, reach)
        ranks, weight = _laplace(kernel, y)
        ctx.save_for_backward(order, *kernel, weight)
        ranks = ranks.add_((x.shape[1] + 1) / 2).to(x.dtype)
        return torch.empty_like(x).scatter_(1, order, ranks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        order, *kernel, weight = ctx.saved_tensors
        g = _laplace_backward(grad.gather(1, order).to(weight.dtype), kernel, weight).div_(2)
        return torch.empty_like(grad).scatter_(1, order, g.to(grad.dtype)), None


class _LaplaceSpearman(torch.autograd.Function):
    """`soft_spearman`, in one piece: for small n it is dispatch that costs, for large n memory.

    Each row's value depends on that row alone, so its gradient is made beside it, and is all that is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, strength: float) -> Tensor:
        rho, grad = x.new_empty(len(x)), torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for rows in _blocks(x):
            block = None if grad is None else grad[rows]
            rho[rows] = _laplace_spearman(x[rows], y[rows], strength, block)
        if grad is not None:
            ctx.save_for_backward(grad)
        return rho

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (g,) = ctx.saved_tensors
        return g * grad[:, None], None, None


def _laplace_spearman(x: Tensor, y: Tensor, strength: float, grad: Tensor | None) -> Tensor:
    """(B,) correlations of soft ranks; their gradient with respect to x is written to `grad`."""
    n = x.shape[1]
    y_ranks, y_norm, y_order, *_ = _ranks_of_rows(y, strength)
    ranks, norm, order, kernel, weight, z, std, scale = _ranks_of_rows(x, strength)
    y_ranks = torch.empty_like(y_ranks).scatter_(1, y_order, y_ranks).gather(1, order)
    rho = (ranks * y_ranks).sum(1, keepdim=True).div_(norm * y_norm)
    steep = (std / FLAT).clamp_(max=1.0)
    if grad is not None:
        factor = steep / (2 * norm * scale)
        g = y_ranks.mul_(factor / y_norm).addcmul_(ranks, -rho * factor / norm)
        g = _laplace_backward(g, kernel, weight)
        # Through x / std, and through the steepness where a row is flat; g sums to zero over a row.
        along = torch.mul(g, z, out=ranks).sum(1, keepdim=True).mul_(strength**2 / n)
        along = torch.where(std < FLAT, rho * (-strength / n) / std, along).masked_fill_(std <= 1e-6, 0.0)
        grad.scatter_(1, order, g.addcmul_(z, -along).to(grad.dtype))
    damped: Tensor = rho * steep
    return damped[:, 0].to(x.dtype)


def _ranks_of_rows(x: Tensor, strength: float) -> tuple[Any, ...]:
    """In sorted order: ranks less their mean, their norm, the order, what the backward needs; values, their scale."""
    n = x.shape[1]
    reach = _reach(n, strength)
    z, order = sort_rows(x, _dtype_for(x, reach))
    z -= z.mean(1, keepdim=True)
    std = torch.linalg.vector_norm(z, dim=1, keepdim=True).div_(math.sqrt(n)).clamp_(min=1e-6)
    scale = std.clamp(min=FLAT).mul_(strength)
    z *= scale.reciprocal()
    kernel = _kernel(z, reach)
    ranks, weight = _laplace(kernel, z)
    norm = torch.linalg.vector_norm(ranks, dim=1, keepdim=True).clamp_(min=rank_floor(n))
    return ranks, norm, order, kernel, weight, z, std, scale


# Numbers that are ranked at once on the CPU: what is made of them stays in its cache, and in one thread (torch shares
# larger tensors among threads, which wait for each other where loader workers take the cores).
BLOCK = 1 << 15


def _blocks(x: Tensor) -> list[slice]:
    """Divide rows into blocks."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(None)]
    size = max(1, BLOCK // x.shape[1])
    return [slice(at, at + size) for at in range(0, len(x), size)]


def _laplace(kernel: list[Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks less their mean of sorted (B, n) rows, and for the backward the kernel's sum for each value."""
    n = y.shape[1]
    left, right = _sums(None, kernel, y)
    hard = torch.arange(n, dtype=y.dtype, device=y.device) - (n - 1) / 2
    weight = left + right
    return torch.add(hard, right.sub_(left), alpha=0.5), weight


def _laplace_backward(g: Tensor, kernel: list[Tensor], weight: Tensor) -> Tensor:
    # dr_i/dx_j = −e^−|x_i − x_j| / 2 for i ≠ j, so each x_m gets Σ_j (g_m − g_j) e^−|x_m − x_j| / 2; here twice that.
    left, right = _sums(g, kernel, g)
    return (g * weight).sub_(left).sub_(right)


# Sums that decay from either end, Σ_{j≤i} v_j e^−(y_i − y_j) and the same over j ≥ i. Where no value lies further
# than NEAR from its row's mean, the exponential of the difference is a product of two that its dtype can hold, and
# the sum a cumulative one.

NEAR = {torch.float32: 64.0, torch.float64: 640.0}


def _reach(n: int, strength: float) -> float:
    """How far at most one of n values lies from their mean, in units of strength · their standard deviation."""
    return math.sqrt(max(1, n - 1)) / strength


def _dtype_for(x: Tensor, reach: float) -> torch.dtype:
    wide = reach > NEAR[torch.float32] and x.device.type != "mps"  # Metal has no float64
    return torch.float64 if wide else x.dtype


def _kernel(y: Tensor, reach: float) -> list[Tensor]:
    """What `_sums` needs of sorted (B, n) rows."""
    if reach <= NEAR[y.dtype]:
        up = y.exp()
        return [up, up.reciprocal()]
    y = y.t().contiguous()
    return list(_chains((y[:-1] - y[1:]).exp_()))


def _sums(v: Tensor | None, kernel: list[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n) sums from the left and from the right, each value itself included; v of None is of ones."""
    up, down = kernel
    if up.dim() > 2:
        left, right = _from_both_sides((torch.ones_like(like) if v is None else v).t().contiguous(), up, down)
        return left.t(), right.t()
    left = (up.cumsum(1) if v is None else (v * up).cumsum_(1)).mul_(down)
    right = (down if v is None else v * down).flip(1).cumsum_(1).flip(1).mul_(up)
    return left, right


# Otherwise they obey h_i = a_i h_{i−1} + v_i. It is solved in blocks of about √n values: within all blocks at once,
# then from block to block. Nothing is divided, so that nothing can overflow, and what underflows is what does not
# matter; the work is O(n), in about 3√n steps along contiguous memory.


def _chains(decay: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks, size, 2, B) decays from (n − 1, B), from either end, and their products from each block's start."""
    n, batch = decay.shape[0] + 1, decay.shape[1]
    size = max(1, round((n / 2) ** 0.5))
    a = decay.new_zeros(-(-n // size), size, 2, batch)
    flat = a.view(-1, 2, batch)
    flat[1:n, 0], flat[1:n, 1] = decay, decay.flip(0)
    chain = a.clone()
    for i in range(1, size):
        chain[:, i] *= chain[:, i - 1]
    return a, chain


def _from_both_sides(v: Tensor, a: Tensor, chain: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_{j≤i} v_j e^−(y_i − y_j) and the same over j ≥ i, for v and both results (n, B)."""
    h = torch.zeros_like(a)
    flat = h.view(-1, 2, v.shape[1])[: v.shape[0]]
    flat[:, 0], flat[:, 1] = v, v.flip(0)
    for i in range(1, h.shape[1]):
        h[:, i].addcmul_(a[:, i], h[:, i - 1])
    last, link = h[:, -1], chain[:, -1]
    for block in range(1, h.shape[0]):
        last[block].addcmul_(link[block], last[block - 1])
    h[1:, :-1].addcmul_(chain[1:, :-1], last[:-1, None])
    return flat[:, 0], flat[:, 1].flip(0)


# Blondel ------------------------------------------------------------------------------------------------


def _pooling_strength(x: Tensor) -> Tensor:
    """(B, 1) ε_max of each row, floored as `floored_std` is."""
    n = x.shape[1]
    if n == 1:
        return torch.ones_like(x)
    size = torch.arange(1, n, dtype=x.dtype, device=x.device)
    centred = (x - x.mean(1, keepdim=True)).sort(1, descending=True).values
    excess = centred.cumsum(1)[:, :-1] / size
    return (excess / ((n - size) / 2)).amax(1, keepdim=True).clamp(min=2 * FLAT / n)


class _Blondel(torch.autograd.Function):
    """Ranks at ε = 1: x less the isotonic regression of what it exceeds the ranks by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, order = x.sort(1, descending=True)
        hard = torch.arange(x.shape[1], 0, -1, dtype=y.dtype, device=y.device)
        block = _pooled_blocks(y - hard)
        excess = _block_means(y - hard, block)
        ctx.save_for_backward(order, block)
        return torch.empty_like(y).scatter_(1, order, y - excess)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        order, block = ctx.saved_tensors
        g = grad.gather(1, order)
        return torch.empty_like(g).scatter_(1, order, g - _block_means(g, block))


def _pooled_blocks(x: Tensor) -> Tensor:
    """(B, n) number of the block that each element falls in under the decreasing isotonic regression of x.

    Pool adjacent violators, all at once: neighbouring blocks whose means rise belong together, whatever happens
    elsewhere, so every round merges all of them in all rows until none is left.
    """
    rows, n = x.shape
    flat = x.reshape(-1)
    starts = torch.arange(rows * n, device=x.device) % n == 0
    opens = torch.ones_like(starts)
    while True:
        block = opens.cumsum(0) - 1
        mean = _block_means(flat[None], block[None])[0]
        falls = torch.cat([starts[:1], mean[1:] <= mean[:-1]]) | starts
        if bool(falls.all()):
            return block.view(rows, n)
        opens = opens & falls


def _block_means(x: Tensor, block: Tensor) -> Tensor:
    flat, index = x.reshape(-1), block.reshape(-1)
    total = torch.zeros_like(flat).scatter_add_(0, index, flat)
    count = torch.zeros_like(flat).scatter_add_(0, index, torch.ones_like(flat))
    return (total / count.clamp(min=1))[index].view_as(x)
