"""The whole teacher from a handful of logits: what a row does not list, told by how the classes vary together.

Centred logits of a teacher are modelled as normal, N(m, F Fᵀ + noise · I): `ClassStatistics`. What a row lists is
then evidence about all other classes. With I the listed classes and y their centred logits (exact, as the tail's mean
is stored), the posterior mean of the factors is x = (noise · I + F_Iᵀ F_I)⁻¹ F_Iᵀ (y − m_I), and of the logits
m + F x, give or take the posterior's deviation.

Three things are known of the tail besides: its mean, its log-sum-exp, and that none of it lies above the last listed
logit. All three hold exactly in what is returned: the tail is written as distances below the last listed logit,

    last − t_j = c · u_j^β,

u_j > 0 being the distance that the posterior expects, softened where that is none. The scale c makes the mean right,
and β the log-sum-exp, by one equation in one unknown: from β → 0, where all distances are equal, to β → ∞, where one
class has all of the distance, it takes every value that a tail of that mean can have. Where the model is good, β is
near 1.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.format.class_statistics import ClassStatistics

SOFTENING = 0.5  # of the least deviation that k logits can leave: a distance of 0 becomes that
LEAST = 1e-6  # distance, and what a log-sum-exp may differ from its least
FIRST_STEPS = 3  # of Newton's method, over about FIRST_CLASSES of the classes
FIRST_CLASSES = 200
STEPS = 2  # after them, over all classes
MORE_STEPS = 14  # of rows whose last step was larger than CLOSE
MORE_STEPS_ON_DEVICE = 5  # of all rows, on a GPU, which is not to wait for an answer
CLOSE = 5e-3
FARTHEST = (
    60.0  # distance that counts: e^−60 is nothing beside the others, and not yet subnormal, which is slow
)
BLOCK = 1 << 18  # numbers of a (rows, C) block that is completed at once on the CPU: they stay in its cache
BLOCK_ON_DEVICE = 1 << 26
COVARIANCE_CLASSES = 2048  # so many at most have their covariance in memory; of 1,000 it is 4 MB


@dataclass(frozen=True, eq=False)
class Completion:
    """Class statistics as tensors, ready to complete rows.

    Attributes:
        mean: (C,) float.
        factors: (C, r) float.
        noise: variance outside the factors.
        spectrum: (r,) falling eigenvalues of F Fᵀ.
        covariance: (C, C) float, F Fᵀ, by which few listed classes are quicker; None where C is too large.
    """

    mean: Tensor
    factors: Tensor
    noise: float
    spectrum: tuple[float, ...]
    covariance: Tensor | None

    @classmethod
    def of(cls, statistics: ClassStatistics) -> Self:
        """Return the completion by class statistics, on the CPU, float32."""
        mean, factors = (
            torch.from_numpy(np.ascontiguousarray(array, np.float32))
            for array in (statistics.mean, statistics.factors)
        )
        wide = factors.double()
        with on_one_thread():
            spectrum = torch.linalg.eigvalsh(wide.T @ wide).flip(0).clamp(min=0.0)
            covariance = (wide @ wide.T).float() if len(mean) <= COVARIANCE_CLASSES else None
        return cls(mean, factors, statistics.noise, tuple(spectrum.tolist()), covariance)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move to a device, or to another dtype."""
        if torch.device(device) == self.mean.device and dtype in (None, self.mean.dtype):
            return self
        mean, factors = self.mean.to(device, dtype), self.factors.to(device, dtype)
        covariance = None if self.covariance is None else self.covariance.to(device, dtype)
        return type(self)(mean, factors, self.noise, self.spectrum, covariance)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.mean.shape[0]

    def variance_left(self, k: int) -> float:
        """Return the least variance of a class, a mean over all, that k logits can leave: of all directions but k."""
        return self.noise + sum(self.spectrum[k:]) / self.num_classes

    @torch.no_grad()
    def complete(self, ids: Tensor, gap: Tensor, tail_lse: Tensor, tail_mean: Tensor) -> Tensor:
        """Return (B, C) logits relative to the largest; those listed are as they are.

        A row's result depends on that row alone.

        Args:
            ids: (B, k) int64, k < C, the listed classes by falling logit.
            gap: (B, k) float, top logit minus this one.
            tail_lse: (B,) float, log-sum-exp of the other logits relative to the top.
            tail_mean: (B,) float, their mean.
        """
        on_cpu = gap.device.type == "cpu"
        most = BLOCK if on_cpu else BLOCK_ON_DEVICE
        widest = max(self.num_classes, ids.shape[1] * self.factors.shape[1] // 4)
        rows = max(1, most // widest)
        result = gap.new_empty(len(ids), self.num_classes)
        with torch.autocast(gap.device.type, enabled=False):
            for at in range(0, len(ids), rows):
                block = slice(at, at + rows)
                self._complete(result[block], ids[block], gap[block], tail_lse[block], tail_mean[block])
        return result

    def _complete(self, out: Tensor, ids: Tensor, gap: Tensor, tail_lse: Tensor, tail_mean: Tensor) -> None:
        classes, k = self.num_classes, ids.shape[1]
        size = classes - k
        row_mean = (size * tail_mean - gap.sum(1)) / classes
        last = -gap[:, -1:]
        self._expect(out, ids, -gap - row_mean[:, None])
        below = out.sub_(last - row_mean[:, None]).neg_()
        softening = (2 * SOFTENING) ** 2 * self.variance_left(k)
        distance = below.square().add_(softening).sqrt_().add_(below).clamp_(min=2 * LEAST)
        log_distance = distance.scatter_(1, ids, LEAST).div_(distance.amax(1, keepdim=True)).log_()
        log_distance.scatter_(1, ids, 0.0)

        mean = (last[:, 0] - tail_mean).clamp(min=0.0)
        goal = (tail_lse - last[:, 0] - math.log(size) + mean).clamp(min=LEAST)
        beta = _solve(log_distance, ids, mean, goal)
        torch.mul(log_distance, beta[:, None], out=out).exp_().scatter_(1, ids, 0.0)
        out.mul_((-size * mean / out.sum(1))[:, None]).add_(last).scatter_(1, ids, -gap)

    def _expect(self, out: Tensor, ids: Tensor, listed: Tensor) -> None:
        """Write (B, C) expected centred logits to `out`, given (B, k) of the listed classes.

        By the smaller of two systems, k × k or r × r, which are the same by Woodbury's identity.
        """
        beyond = (listed - self.mean[ids])[:, :, None]
        if ids.shape[1] > self.factors.shape[1]:
            factors = self.factors[ids]
            x = self._solve_system(factors.mT @ factors, factors.mT @ beyond)
            torch.addmm(self.mean, x, self.factors.T, out=out)
        elif self.covariance is None:
            factors = self.factors[ids]
            weights = self._solve_system(factors @ factors.mT, beyond)
            torch.addmm(self.mean, (factors.mT @ weights[:, :, None])[:, :, 0], self.factors.T, out=out)
        else:
            weights = self._solve_system(self.covariance[ids[:, :, None], ids[:, None]], beyond)
            posterior = F.embedding_bag(ids, self.covariance, per_sample_weights=weights, mode="sum")
            torch.add(self.mean, posterior, out=out)

    def _solve_system(self, system: Tensor, right: Tensor) -> Tensor:
        """Return (B, n) solutions of (B, n, n) systems, the noise on their diagonals, and (B, n, 1) right sides."""
        system.diagonal(dim1=1, dim2=2).add_(self.noise)
        return torch.cholesky_solve(right, torch.linalg.cholesky_ex(system)[0])[:, :, 0]


def _solve(log_distance: Tensor, ids: Tensor, mean: Tensor, goal: Tensor) -> Tensor:
    """(B,) β for which the tail's log-sum-exp exceeds by `goal` the least that its mean allows.

    As functions of log β, its logarithm is nearly a line: Newton's method there needs few steps.

    Args:
        log_distance: (B, C), at most 0; what it says of listed classes does not matter.
        ids: (B, k), the listed classes.
        mean: (B,) mean distance of the tail.
        goal: (B,) > 0.
    """
    beta = torch.ones_like(mean)
    first = log_distance[:, :: max(1, log_distance.shape[1] // FIRST_CLASSES)].contiguous()
    if first.shape[1] < log_distance.shape[1]:
        beta, _ = _newton(beta, first, None, mean, goal, FIRST_STEPS)
        beta, step = _newton(beta, log_distance, ids, mean, goal, STEPS)
    else:
        beta, step = _newton(beta, log_distance, ids, mean, goal, FIRST_STEPS + STEPS)
    if beta.device.type != "cpu":
        return _newton(beta, log_distance, ids, mean, goal, MORE_STEPS_ON_DEVICE)[0]
    if len(far := (step.abs() > CLOSE).nonzero()[:, 0]):
        beta[far], _ = _newton(beta[far], log_distance[far], ids[far], mean[far], goal[far], MORE_STEPS)
    return beta


def _newton(
    beta: Tensor, log_distance: Tensor, ids: Tensor | None, mean: Tensor, goal: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Return (B,) β after so many steps, and the last step of log β."""
    size = log_distance.shape[1] - (0 if ids is None else ids.shape[1])
    least = math.log(size) - mean
    nearest = log_distance.amin(1)
    distance, other = (torch.empty_like(log_distance) for _ in range(2))  # few, to stay in the cache
    step = torch.zeros_like(beta)
    for _ in range(steps):
        torch.mul(log_distance, beta[:, None], out=distance).exp_()
        if ids is not None:
            distance.scatter_(1, ids, 0.0)
        total = distance.sum(1)
        centre = torch.mul(distance, log_distance, out=other).sum(1) / total
        scale = size * mean / total
        shortest = (nearest * beta).exp() * scale
        distance.mul_(scale[:, None])
        likelihood = torch.sub(shortest[:, None], distance, out=other).clamp_(min=-FARTHEST).exp_()
        if ids is not None:
            likelihood.scatter_(1, ids, 0.0)
        total = likelihood.sum(1)
        expected = distance.mul_(likelihood).sum(1)
        slope = beta * (centre * expected - distance.mul_(log_distance).sum(1)) / total
        excess = (total.log() - shortest - least).clamp(min=LEAST / 10)
        step = ((goal / excess).log() * excess / slope.clamp(min=1e-9)).clamp(-1.0, 1.0)
        beta = beta * step.exp()
        if beta.device.type == "cpu" and bool((step.abs() < CLOSE).all()):
            break
    return beta, step


# The statistics -----------------------------------------------------------------------------------------

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # numbers of factors to choose from
ENOUGH = 2e-3  # nats per class of held-out likelihood that twice as many factors must be worth
FLATTENING = 0.5  # power of the factors' variances
HELD_OUT = 4  # one in so many rows
LEAST_NOISE = 1e-4  # of a class's variance: rounding of what is listed must not be read as a message
FEWEST = 8  # rows


def fit_statistics(logits: Tensor) -> ClassStatistics:
    """Estimate how classes vary together from (N, C) logits of N ≥ 8 views; the same input gives the same bytes.

    Probabilistic principal components. A quarter of the rows is held out: their likelihood chooses how many factors,
    and what the factors of the other rows do not explain of them is the noise (the others themselves would show too
    little of it where N is small). Mean and factors are then those of all rows.

    The factors' variances are flattened to their square roots, of the same sum. The model takes the listed classes
    for any classes; but they are listed for being the largest, and the strongest factors would then explain too much.
    On every teacher tried that took a tenth to a third off the divergence (docs/completion.md).

    Raises:
        OptionError: there are fewer than 8 rows or 2 classes, or they are not finite.

    Source: Tipping and Bishop 1999, "Probabilistic principal component analysis", section 3.2; flattening is ours.
    """
    if logits.dim() != 2 or len(logits) < FEWEST or logits.shape[1] < 2:
        raise OptionError(f"class statistics need logits (N ≥ {FEWEST}, C ≥ 2), found {tuple(logits.shape)}")
    if not logits.isfinite().all():
        raise OptionError("class statistics need finite logits")
    rows = logits.double().cpu()
    rows = rows - rows.mean(1, keepdim=True)
    held_out = torch.arange(len(rows)) % HELD_OUT == HELD_OUT - 1
    with on_one_thread():
        rank, noise = _choose_rank(rows[~held_out], rows[held_out])
        mean, variances, directions = _principal(rows, rank)
    flat = variances**FLATTENING
    flat = flat * (variances.sum() / flat.sum().clamp(min=1e-300))
    factors = directions * (flat - noise).clamp(min=0.0).sqrt()
    return ClassStatistics(mean.float().numpy(), factors.float().contiguous().numpy(), noise, len(rows))


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Have torch use one thread meanwhile: linear algebra differs in the last bits by their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _choose_rank(fit: Tensor, held_out: Tensor) -> tuple[int, float]:
    """Return how many factors of some rows suit the held-out ones, and the noise that is left in these.

    It is the smallest number that is good enough: each factor costs memory and time in every batch.
    """
    classes = fit.shape[1]
    ranks = [rank for rank in RANKS if rank < min(len(fit), classes)] or [1]
    mean, variances, directions = _principal(fit, ranks[-1])
    apart = held_out - mean
    along = (apart @ directions).square().mean(0)
    total = apart.square().sum(1).mean().item()
    least = max(LEAST_NOISE * total / classes, 1e-12)
    choices = []
    for rank in ranks:
        noise = max((total - along[:rank].sum().item()) / max(1, classes - rank), least)
        variance = variances[:rank].clamp(min=noise)
        cost = (variance.log() + along[:rank] / variance).sum().item()
        choices.append(((cost + (classes - rank) * (math.log(noise) + 1)) / 2, rank, noise))
    best = min(choices)[0]
    return next((rank, noise) for cost, rank, noise in choices if cost <= best + ENOUGH * classes)


def _principal(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (C,) mean, (count,) largest variances, (C, count) unit directions, the largest entry of each > 0."""
    mean = rows.mean(0)
    apart = (rows - mean) / len(rows) ** 0.5
    if len(rows) < rows.shape[1]:
        values, vectors = torch.linalg.eigh(apart @ apart.T)
        vectors = apart.T @ vectors[:, -count:]
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=0).clamp(min=1e-300)
    else:
        values, vectors = torch.linalg.eigh(apart.T @ apart)
        vectors = vectors[:, -count:]
    vectors = vectors.flip(1)
    sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return mean, values[-count:].flip(0).clamp(min=0.0), vectors * torch.where(sign == 0, 1.0, sign)
