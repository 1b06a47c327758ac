"""How much a loss costs, against the plain dense one: forward and backward on the same student logits."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from logitcache.bench.compare import Comparison, Seconds, device_clock, time_interleaved
from logitcache.losses.cmkd import cmkd
from logitcache.losses.kd import kd
from logitcache.losses.soft_ranks import blondel_ranks, laplace_ranks, soft_spearman
from logitcache.teacher.sparse import SparseTeacher

TEMPERATURE = 4.0
STRENGTH = 0.25  # of the soft ranks


def measure(
    *,
    batch: int = 256,
    classes: Sequence[int] = (1000, 21841),
    ks: Sequence[int] = (16, 100),
    ranked: int = 1000,
    rounds: int = 20,
    device: torch.device | str = "cpu",
) -> list[Comparison]:
    """Time the losses against dense KD, and the rank operators against each other, in interleaved rounds.

    Args:
        batch: rows.
        classes: numbers of classes C.
        ks: numbers of classes that the teacher lists.
        ranked: length of the rows of the rank operators.
        rounds: how often each function runs; one more is not counted.
        device: where.
    """
    rows: list[Comparison] = []
    clock = device_clock(torch.device(device))
    generator = torch.Generator().manual_seed(0)
    for c in classes:
        student = (torch.randn(batch, c, generator=generator) * 2).to(device)
        logits = (torch.randn(batch, c, generator=generator) * 3).to(device)
        p = (logits / TEMPERATURE).softmax(1)
        for k in ks:
            teacher = SparseTeacher.from_logits(logits, k)
            times = time_interleaved(
                {
                    "dense kd": _step(partial(_dense_kd, p=p), student),
                    "softmax": _step(lambda s: s.softmax(1)[:, 0].sum(), student),
                    "kd": _step(partial(kd, teacher=teacher, temperature=TEMPERATURE), student),
                    "cmkd": _step(partial(cmkd, teacher=teacher), student),
                    "rank term": _step(partial(_rank_term, teacher=teacher), student[:, :k]),
                },
                rounds,
                clock,
            )
            rows += [
                _row(times, name, against, c, k, wanted)
                for name, against, wanted in (
                    ("kd", "dense kd", 1.2),
                    ("cmkd", "dense kd", 2.0),
                    ("rank term", "softmax", 1.0),
                )
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
    rows.append(_row(times, "laplace", "plain laplace", ranked, ranked, 0.5))
    rows.append(_row(times, "laplace", "blondel", ranked, ranked, 1.0))
    return rows


def _dense_kd(student: Tensor, p: Tensor) -> Tensor:
    """Return plain KD; the dense teacher's softened probabilities are given, and not timed."""
    log_q = (student / TEMPERATURE).log_softmax(1)
    return F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2


def _rank_term(x: Tensor, teacher: SparseTeacher) -> Tensor:
    return soft_spearman(x, -teacher.gap, STRENGTH, falling=True).mean()


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


def _row(times: dict[str, Seconds], name: str, against: str, c: int, k: int, wanted: float) -> Comparison:
    return Comparison.between({"loss": name, "C": c, "k": k}, against, times[name], times[against], wanted)
