"""How much each loss costs, against plain dense KD: forward and backward on the same student logits."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from logitcache.bench.compare import Comparison, Seconds, device_clock, time_interleaved
from logitcache.format.class_statistics import ClassStatistics
from logitcache.losses.objective import LOSSES
from logitcache.losses.soft_ranks import blondel_ranks, laplace_ranks
from logitcache.teacher.completion import Completion
from logitcache.teacher.sparse import SparseTeacher

TEMPERATURE = 4.0  # of dense KD, and `kd`'s own
STRENGTH = 0.25  # of the soft ranks
FACTORS, SCALE = 256, 3.0  # of the class statistics, as many as there can be
WANTED = {("kd", 1000): 1.3, ("kd", 21841): 1.3, ("logits at k = 8", 1000): 3.0}  # times of dense KD, at most
MOST_CLASSES = {"sinkd": 1000}  # it is O(B² C)


Step = Callable[[int], object]


def measure(
    *,
    batch: int = 256,
    classes: Sequence[int] = (1000, 21841),
    ks: Sequence[int] = (8, 100),
    ranked: int = 1000,
    rounds: int = 20,
    device: torch.device | str = "cpu",
) -> list[Comparison]:
    """Time every loss against dense KD, and the rank operators against each other, in interleaved rounds.

    The losses are given the teacher's logits; what it takes to complete them, once per batch, is measured apart.

    Args:
        batch: rows.
        classes: numbers of classes C.
        ks: numbers of classes that the teacher lists, of whose logits the others are completed.
        ranked: length of the rows of the rank operators.
        rounds: how often each function runs; one more is not counted.
        device: where.
    """
    rows: list[Comparison] = []
    clock = device_clock(torch.device(device))
    generator = torch.Generator().manual_seed(0)
    for c in classes:
        student = (torch.randn(batch, c, generator=generator) * 2).to(device)
        target = torch.randint(c, (batch,), generator=generator).to(device)
        logits, completion = _made_up(batch, c, generator)
        logits, completion = logits.to(device), completion.to(device)
        sparse = {f"logits at k = {k}": SparseTeacher.from_logits(logits, k, completion) for k in ks}
        teacher = next(iter(sparse.values()))
        log_p = teacher.at(TEMPERATURE).log_probs
        steps: dict[str, Step] = {"dense kd": _step(partial(_dense_kd, log_p=log_p), student)}
        for name, loss in LOSSES.items():
            if c <= MOST_CLASSES.get(name, c):
                inputs = student if loss.heads == 1 else torch.stack([student, student], 1)
                steps[name] = _step(partial(loss.function, teacher=teacher, target=target), inputs)
        for name, one in sparse.items():
            steps[name] = partial(_complete, one)
        times = time_interleaved(steps, rounds, clock)
        rows += [
            _row(times, name, "dense kd", c, WANTED.get((name, c))) for name in steps if name != "dense kd"
        ]
    values = torch.randn(batch, ranked, generator=generator).to(device)
    times = time_interleaved(
        {
            "laplace": _step(lambda x: _weighted_sum(laplace_ranks(x, STRENGTH)), values),
            "plain laplace": _step(lambda x: _weighted_sum(_plain_laplace(x, STRENGTH)), values),
            "blondel": _step(lambda x: _weighted_sum(blondel_ranks(x, STRENGTH)), values),
        },
        max(3, rounds // 4),
        clock,
    )
    rows.append(_row(times, "laplace", "plain laplace", ranked, 0.5))
    rows.append(_row(times, "laplace", "blondel", ranked, 1.0))
    return rows


def _made_up(rows: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Completion]:
    """Draw (rows, C) logits from a normal model; return them, and what completes them."""
    count = min(FACTORS, classes)
    factors = SCALE * torch.randn(classes, count, generator=generator) / count**0.5
    logits = torch.randn(rows, count, generator=generator) @ factors.T
    logits = logits + torch.randn(rows, classes, generator=generator)
    statistics = ClassStatistics(np.zeros(classes, np.float32), factors.numpy(), 1.0, 1)
    return logits, Completion.of(statistics)


def _dense_kd(student: Tensor, log_p: Tensor) -> Tensor:
    """Return plain KD; the dense teacher's softened log-probabilities are given, and not timed."""
    log_q = (student / TEMPERATURE).log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * TEMPERATURE**2


def _complete(teacher: SparseTeacher, _: int) -> Tensor:
    """Complete the tail, once more: a teacher keeps its logits."""
    return replace(teacher).logits


def _plain_laplace(x: Tensor, strength: float) -> Tensor:
    """Rank as one would write it for autograd: by cumulative log-sum-exps in sorted order."""
    y, order = (x / (strength * x.std(1, correction=0, keepdim=True))).sort(1)
    left = (y.logcumsumexp(1) - y).exp()
    right = ((-y).flip(1).logcumsumexp(1).flip(1) + y).exp()
    hard = torch.arange(1, x.shape[1] + 1, device=x.device)
    return torch.zeros_like(y).scatter(1, order, hard + (right - left) / 2)


def _weighted_sum(ranks: Tensor) -> Tensor:
    return (ranks * torch.linspace(-1, 1, ranks.shape[1], device=ranks.device)).sum()


def _step(loss: Callable[[Tensor], Tensor], inputs: Tensor) -> Callable[[int], None]:
    leaf = inputs.clone().requires_grad_()

    def step(_: int) -> None:
        leaf.grad = None
        loss(leaf).backward()  # type: ignore[no-untyped-call]

    return step


def _row(times: dict[str, Seconds], name: str, against: str, c: int, wanted: float | None) -> Comparison:
    return Comparison.between({"loss": name, "C": c}, against, times[name], times[against], wanted)
