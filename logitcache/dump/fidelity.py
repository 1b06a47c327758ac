"""What is left of the teacher in rows of a cache, measured against all of its logits."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from logitcache.dump.calibration import ROWS, TEMPERATURES
from logitcache.teacher.sparse import SparseTeacher


class Fidelity(NamedTuple):
    """What is left of the teacher: see `plan.Choice`."""

    kl: tuple[float, ...]
    pearson: tuple[float, ...]
    order: float
    tail_mass: float


def measure_fidelity(logits: Tensor, parts: Sequence[SparseTeacher]) -> Fidelity:
    """Compare rows of a cache with all logits of the same views: means over all."""
    sums, done = torch.zeros(2 * len(TEMPERATURES) + 2, dtype=torch.float64), 0
    for teacher in parts:
        for start in range(0, len(teacher), ROWS):
            part = teacher[slice(start, start + ROWS)].to("cpu", torch.float64)
            z = logits[done : done + len(part)].double()
            done += len(part)
            kl, pearson = [], []
            for temperature in TEMPERATURES:
                p, log_q = (z / temperature).log_softmax(1), part.at(temperature).log_probs
                kl.append((p.exp() * (p - log_q)).sum(1).clamp(min=0).sum())  # below 0 is rounding
                pearson.append(_pearson(p.exp(), log_q.exp()).sum())
            order = _order(z.gather(1, part.ids), -part.gap).sum()
            sums += torch.stack([*kl, *pearson, order, part.listed_at(1.0).tail_mass.sum()])
    means, t = (sums / done).tolist(), len(TEMPERATURES)
    return Fidelity(tuple(means[:t]), tuple(means[t : 2 * t]), means[-2], means[-1])


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
    return (x * y).sum(1) / norms.clamp(min=1e-300)


def _order(true: Tensor, stored: Tensor) -> Tensor:
    """Return (B,) the share of pairs of columns that `stored` puts in the order of `true`; 1 without any pair."""
    k = true.shape[1]
    if k == 1:
        return torch.ones(len(true), dtype=torch.float64)
    first, second = torch.triu_indices(k, k, 1)
    agreeing = torch.zeros(len(true), dtype=torch.float64)
    for pairs in range(0, len(first), 1 << 14):
        i, j = first[pairs : pairs + (1 << 14)], second[pairs : pairs + (1 << 14)]
        same = (true[:, i] - true[:, j]).sign() == (stored[:, i] - stored[:, j]).sign()
        agreeing += same.double().sum(1)
    return agreeing / len(first)
