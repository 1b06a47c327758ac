"""What a cache's teacher says of each sample, over its seeds: how sure it is, and whether its seeds agree.

Shards are read one after another, each under all seeds, so memory holds one shard and a few numbers per sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.store.reader import CacheReader
from logitcache.teacher.completion import Completion
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import decode_shard

Scores = npt.NDArray[np.float64]
ROWS = 256  # whose tail is completed at a time


@dataclass(frozen=True, eq=False)
class SampleScores:
    """A teacher's answers for n samples at T = 1, as means over seeds; NaN of samples that have no teacher.

    Attributes:
        seeds: S of them.
        confidence: (n,) float64, the top class's probability.
        margin: (n,) float64, by how much that is above the second's.
        agreement: (n,) float64, share of the seeds whose top class is `top`.
        top: (n,) int64, the class that most seeds have on top, of several the first; −1 without a teacher.
        entropy: (n,) float64, in nats, of all classes; None where it was not asked for.
    """

    seeds: tuple[int, ...]
    confidence: Scores
    margin: Scores
    agreement: Scores
    top: npt.NDArray[np.int64]
    entropy: Scores | None = None


def score_samples(
    reader: CacheReader,
    seeds: Sequence[int] = (),
    *,
    entropy: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> SampleScores:
    """Read complete seeds of a cache once.

    Args:
        reader: the cache.
        seeds: which; all complete ones by default.
        entropy: compute it, for which every tail is completed.
        on_progress: called with (shards read, shards to read), each seed's counted.

    Raises:
        IncompleteError: seeds are not complete, or none is.
        FormatError: a shard is damaged.
    """
    chosen = sorted(reader.choose_complete(seeds))
    layout, statistics = reader.spec.layout, reader.statistics()
    completion = None if statistics is None else Completion.of(statistics)
    means, tops, agreements = [], [], []
    for shard in range(layout.shards):
        sums = np.zeros((3, len(layout.samples_of(shard))))
        top = np.full((sums.shape[1], len(chosen)), -1)
        for number, seed in enumerate(chosen):
            teacher = decode_shard(reader, seed, shard, completion)
            valid = ~teacher.top.isnan()
            columns = _measure(teacher[valid], entropy).numpy()
            sums[:, valid.numpy()] += columns
            top[valid.numpy(), number] = teacher.ids[valid, 0].numpy()
            if on_progress:
                on_progress(shard * len(chosen) + number + 1, layout.shards * len(chosen))
        views = (top >= 0).sum(1).astype(np.float64)
        views[views == 0] = np.nan
        mode, times = _find_modes(top)
        means.append(sums / views)
        tops.append(mode)
        agreements.append(times / views)
    confidence, margin, entropies = np.concatenate(means, 1)
    return SampleScores(
        tuple(chosen),
        confidence,
        margin,
        np.concatenate(agreements),
        np.concatenate(tops),
        entropies if entropy else None,
    )


def _measure(teacher: SparseTeacher, entropy: bool) -> Tensor:
    """(3, B) float64: probability of the top class, its lead on the second, and the entropy, 0 if not asked for."""
    listed = teacher.listed_at(1.0).probs.double()
    numbers = torch.zeros(3, len(teacher), dtype=torch.float64)
    numbers[0] = listed[:, 0]
    if teacher.k > 1:
        numbers[1] = listed[:, 0] - listed[:, 1]
    for start in range(0, len(teacher), ROWS) if entropy or teacher.k == 1 else ():
        rows = slice(start, start + ROWS)
        soft = teacher[rows].at(1.0)
        if teacher.k == 1:
            first, second = soft.probs.double().topk(2, dim=1).values.T
            numbers[1, rows] = first - second
        if entropy:
            numbers[2, rows] = soft.entropy().double()
    return numbers


def _find_modes(top: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return what occurs most often in each row of (B, S), and how often; −1 is nothing, of several the least."""
    ordered = np.sort(top, axis=1)
    mode, most = np.full(len(top), -1), np.zeros(len(top), np.int64)
    run, before = np.zeros(len(top), np.int64), np.full(len(top), -1)
    for column in ordered.T:
        run = np.where(column < 0, 0, np.where(column == before, run + 1, 1))
        more = run > most
        mode[more], most[more], before = column[more], run[more], column
    return mode, most
