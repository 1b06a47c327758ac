"""How much a loss costs, against the plain dense one: forward and backward on the same student logits."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from logitcache.bench.compare import Comparison, Seconds, device_clock, time_interleaved
from logitcache.losses.cmkd import cmkd
from logitcache.losses.kd import kd
from logitcache.losses.soft_ranks import blondel_ranks, laplace_ranks, soft_spearman
from logitcache.teacher.completion import Completion, fit_statistics
from logitcache.teacher.sparse import SparseTeacher

TEMPERATURE = 4.0
STRENGTH = 0.25  # of the soft ranks
SEEN, FACTORS = 128, 32  # views that class statistics are of, and how many ways their classes vary in
WANTED = {"kd": 1.3, "cmkd": None, "rank term": None}  # times of dense KD, at most


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
        answers = _teacher_logits(SEEN + batch, c, generator)
        completion = Completion.of(fit_statistics(answers[:SEEN])).to(device)
        logits = answers[SEEN:].to(device)
        log_p = (logits / TEMPERATURE).log_softmax(1)
        whole = SparseTeacher.from_logits(logits, c)
        sparse = {k: SparseTeacher.from_logits(logits, k, completion) for k in ks}
        times = time_interleaved(
            {
                "dense kd": _step(partial(_dense_kd, log_p=log_p), student),
                "kd": _step(partial(kd, teacher=whole, temperature=TEMPERATURE), student),
                "cmkd": _step(partial(cmkd, teacher=whole), student),
                "rank term": _step(partial(_rank_term, teacher=whole), student),
                **{f"logits at k = {k}": partial(_complete, teacher) for k, teacher in sparse.items()},
            },
            rounds,
            clock,
        )
        rows += [_row(times, name, "dense kd", c, wanted) for name, wanted in WANTED.items()]
        rows += [_row(times, f"logits at k = {k}", "dense kd", c, None) for k in ks]
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


def _teacher_logits(rows: int, classes: int, generator: torch.Generator) -> Tensor:
    factors = torch.randn(FACTORS, classes, generator=generator) / FACTORS**0.5
    related = torch.randn(rows, FACTORS, generator=generator) @ factors
    logits: Tensor = 3 * related + torch.randn(rows, classes, generator=generator)
    return logits


def _dense_kd(student: Tensor, log_p: Tensor) -> Tensor:
    """Return plain KD; the dense teacher's softened log-probabilities are given, and not timed."""
    log_q = (student / TEMPERATURE).log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * TEMPERATURE**2


def _rank_term(student: Tensor, teacher: SparseTeacher) -> Tensor:
    return soft_spearman(student, teacher.logits, STRENGTH).mean()


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
