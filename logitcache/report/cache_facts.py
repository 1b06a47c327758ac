"""Facts of a cache, for the page: statistics of the teacher's answers, what fewer logits would lose, bytes."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.audit.stats import StatsReport, compute_stats
from logitcache.audit.summary import summarize
from logitcache.dump.calibration import is_no_farther
from logitcache.format.class_statistics import ClassStatistics
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.report.charts import take_evenly
from logitcache.store import CacheReader
from logitcache.store.derive import derive_spec, reduce_shard
from logitcache.teacher.completion import FEWEST, HELD_OUT, Completion, fit_statistics
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.images import Images

TEMPERATURES = (1.0, 2.0, 4.0)
MOST_SEEDS = 8  # for the statistics
SAMPLED_SEEDS, SAMPLED_SHARDS, SAMPLED_VIEWS = 3, 4, 256  # a shard, to compare numbers of logits on

Arrays = dict[str, npt.NDArray[Any]]
OnSeedRead = Callable[[int, int], None]  # called with (seeds read, seeds to read)


@dataclass(frozen=True)
class FirstLogits(Spec):
    """What the first `k` of the cached logits tell: means over views, at T = 1, 2, 4.

    Attributes:
        k: how many.
        mass: probability of these classes.
        kl: KL in nats from what the cache holds to what a cache of `k` logits would; 0 where the cache has no more.
    """

    k: int
    mass: tuple[float, ...]
    kl: tuple[float, ...]


@dataclass(frozen=True)
class CacheFacts(Spec):
    """One cache.

    Attributes:
        about: as `audit.summary.summarize` returns it.
        stats: as `audit.stats.compute_stats` returns them, of at most 8 complete seeds, evenly chosen.
        complete: number of complete seeds.
        kept: by rising k; the last is the cache's own.
        tried: number of views that `kept` are means over.
        array_bytes: bytes per view of each array's shards, by name; empty where the host does not say.
        dump_seconds: how long its dump took; None where that is not known.
    """

    about: dict[str, Any]
    stats: StatsReport
    complete: int
    kept: tuple[FirstLogits, ...]
    tried: int
    array_bytes: dict[str, float]
    dump_seconds: float | None = None

    @property
    def of_test_images(self) -> bool:
        """Is it of test images?"""
        return bool(self.about["dataset"]["split"] == "test")

    def accuracy(self, name: str) -> float | None:
        """Return the teacher's accuracy, "top1" or "top5": mean over the seeds; None where it is unknown."""
        values = [value for seed in self.stats.seeds if (value := getattr(seed, name)) is not None]
        return statistics.fmean(values) if values else None


def read_cache(
    reader: CacheReader,
    images: Images | None = None,
    *,
    most: int = 12,
    on_progress: OnSeedRead | None = None,
) -> CacheFacts:
    """Read the facts of a cache.

    Args:
        reader: the cache.
        images: those it was made of, for labels and names.
        most: how many confused classes and hard samples to list.
        on_progress: called with (seeds read, seeds to read).

    Raises:
        IncompleteError: no seed is complete.
        MismatchError: the images are others than the cache's.
        FormatError: a shard is damaged.
    """
    complete = reader.choose_complete()
    kept, tried = _compare_numbers_of_logits(reader, take_evenly(complete, SAMPLED_SEEDS))
    return CacheFacts(
        about=summarize(reader, open_data=False),
        stats=compute_stats(
            reader, images, take_evenly(complete, MOST_SEEDS), most=most, on_progress=on_progress
        ),
        complete=len(complete),
        kept=kept,
        tried=tried,
        array_bytes=_array_bytes(reader, complete[0]),
    )


# What fewer logits would lose -----------------------------------------------------------------------------


def _compare_numbers_of_logits(
    reader: CacheReader, seeds: Sequence[int]
) -> tuple[tuple[FirstLogits, ...], int]:
    """Compare caches of fewer logits with this one, on some of its views; returns the number of these too.

    From all logits `derive` makes class statistics: they are estimated from three quarters of the views, and tried on
    the others.
    """
    spec, statistics = reader.spec, reader.statistics()
    samples = list(_read_samples(reader, seeds))
    if not spec.tail_size:
        statistics, samples = _hold_out(samples, spec)
    completion = None if statistics is None else Completion.of(statistics)
    ks = sorted({k for p in range(32) for k in (1 << p, 3 << p) if k < spec.k} | {spec.k})
    sums, views = torch.zeros(len(ks), 3, len(TEMPERATURES), dtype=torch.float64), 0
    for arrays in samples:
        full = _teacher(reduce_shard(arrays, spec, spec), spec, completion if spec.tail_size else None)
        views += len(full)
        for number, k in enumerate(ks):
            completed = even = full
            if k < spec.k:
                fewer = _of_fewer(spec, k)
                completed = _teacher(reduce_shard(arrays, spec, fewer), fewer, completion)
                even = replace(completed, completion=None) if not spec.tail_size else completed
            for at, temperature in enumerate(TEMPERATURES):
                sums[number, 0, at] += full.listed_at(temperature).probs[:, :k].sum()
                sums[number, 1, at] += _kl(full, completed, temperature).sum()
                sums[number, 2, at] += _kl(full, even, temperature).sum()
    means = (sums / max(1, views)).tolist()
    return tuple(
        FirstLogits(k, tuple(mass), tuple(completed if is_no_farther(completed, even) else even))
        for k, (mass, completed, even) in zip(ks, means, strict=True)
    ), views


def _hold_out(samples: Sequence[Arrays], spec: CacheSpec) -> tuple[ClassStatistics | None, list[Arrays]]:
    """Return class statistics from three quarters of some rows with all logits, and the other rows."""
    logits = torch.cat([_teacher(arrays, spec, None).logits for arrays in samples])
    held_out = np.arange(len(logits)) % HELD_OUT == 0
    if (~held_out).sum() < FEWEST:
        return None, list(samples)
    ends = np.cumsum([len(arrays["top"]) for arrays in samples])[:-1]
    rows = np.split(held_out, ends)
    others = [{name: a[r] for name, a in arrays.items()} for arrays, r in zip(samples, rows, strict=True)]
    return fit_statistics(logits[torch.from_numpy(~held_out)]), others


def _read_samples(reader: CacheReader, seeds: Sequence[int]) -> Iterator[Arrays]:
    """Yield rows of a few shards of each seed, evenly chosen, those without a teacher left out."""
    names = [array.name for array in reader.spec.arrays() if array.dimensions[0] == "sample"]
    for seed in seeds:
        for shard in take_evenly(range(reader.spec.layout.shards), SAMPLED_SHARDS):
            arrays = reader.read(seed, shard)
            valid = np.flatnonzero(~np.isnan(arrays["top"]))
            if len(valid):
                rows = valid[:: -(-len(valid) // SAMPLED_VIEWS)]
                yield {name: arrays[name][rows] for name in names}


def _of_fewer(spec: CacheSpec, k: int) -> CacheSpec:
    """Return the spec of a cache derived with k logits."""
    return derive_spec(spec, k, "default" if spec.profile.name == "exact" else None)


def _teacher(arrays: Arrays, spec: CacheSpec, completion: Completion | None) -> SparseTeacher:
    def column(name: str) -> Tensor | None:
        return torch.from_numpy(arrays[name].astype(np.float64)) if name in arrays else None

    gap, top = column("gap"), column("top")
    assert gap is not None
    assert top is not None
    ids = torch.from_numpy(arrays["ids"].astype(np.int64))
    tail = (column("tail_lse"), column("tail_mean"), column("tail_var"))
    return SparseTeacher(ids, gap, top, *tail, spec.dataset.num_classes, completion)


def _kl(full: SparseTeacher, fewer: SparseTeacher, temperature: float) -> Tensor:
    """(B,) KL(full ‖ fewer) in nats; `fewer` lists the first classes of `full`, tails completed or spread evenly."""
    if fewer.completion is not None:
        log_p, log_q = full.at(temperature).log_probs, fewer.at(temperature).log_probs
        return (log_p.exp() * (log_p - log_q)).sum(1).clamp(min=0)
    p, q = full.listed_at(temperature), fewer.listed_at(temperature)
    share = q.log_tail_share[:, None].expand(-1, full.k - fewer.k)
    kl = (p.log_probs.exp() * (p.log_probs - torch.cat([q.log_probs, share], 1))).sum(1)
    if full.tail_size:
        kl += p.log_tail_mass.exp() * (p.log_tail_share - q.log_tail_share)
    return kl.clamp(min=0)


def _array_bytes(reader: CacheReader, seed: int) -> dict[str, float]:
    spec = reader.spec
    arrays = [*spec.arrays(), spec.commit_array()]
    sizes = reader.place.map(
        lambda name: reader.place.at(f"seed-{seed}/{name}/c").size(), [a.name for a in arrays]
    )
    return {a.name: size / spec.dataset.n for a, size in zip(arrays, sizes, strict=True) if size is not None}
