"""What a cache holds, for the page: what the teacher says, what its top k keep, where the bytes go."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.audit.stats import StatsReport, stats
from logitcache.audit.summary import glance
from logitcache.errors import IncompleteError
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.report.charts import spaced
from logitcache.store import CacheReader, seed_list
from logitcache.store.derive import derived_spec, reduced
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.datasets import Images

TEMPERATURES = (1.0, 2.0, 4.0)
MOST_SEEDS = 8  # read whole
TRIED_SEEDS, TRIED_SHARDS, TRIED_VIEWS = 3, 4, 256  # of each shard, for what smaller k would keep

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Kept(Spec):
    """What the first `k` of the cached logits keep: means over views, at T = 1, 2, 4.

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
        about: as `audit.glance` tells.
        stats: as `audit.stats` tells, of at most 8 complete seeds, evenly chosen.
        complete: how many seeds are complete.
        kept: by rising k; the last is the cache's own.
        tried: how many views these are means of.
        array_bytes: bytes per view of each array's shards, by name; empty where the host does not tell.
    """

    about: dict[str, Any]
    stats: StatsReport
    complete: int
    kept: tuple[Kept, ...]
    tried: int
    array_bytes: dict[str, float]

    @property
    def tests(self) -> bool:
        """Is it of test images?"""
        return bool(self.about["dataset"]["split"] == "test")

    def right(self, name: str) -> float | None:
        """Return how often the teacher is right, "top1" or "top5": mean over the seeds; None where nobody knows."""
        found = [value for seed in self.stats.seeds if (value := getattr(seed, name)) is not None]
        return statistics.fmean(found) if found else None


def read_cache(
    reader: CacheReader,
    images: Images | None = None,
    *,
    most: int = 12,
    on_progress: Callable[[int, int], None] | None = None,
) -> CacheFacts:
    """Read what a page says of a cache.

    Args:
        reader: the cache.
        images: what it was made of, for labels and names.
        most: how many confused classes and hard samples to list.
        on_progress: called with (seeds done, seeds to do).

    Raises:
        IncompleteError: no seed is complete.
        MismatchError: the images are others than the cache's.
        FormatError: a shard is damaged.
    """
    complete = reader.complete()
    if not complete:
        begun = seed_list(reader.seeds())
        raise IncompleteError(f"{reader.path} has no complete seed (begun: {begun}); finish its dump first")
    kept, tried = _kept(reader, spaced(complete, TRIED_SEEDS))
    return CacheFacts(
        about=glance(reader),
        stats=stats(reader, images, spaced(complete, MOST_SEEDS), most=most, on_progress=on_progress),
        complete=len(complete),
        kept=kept,
        tried=tried,
        array_bytes=_array_bytes(reader, complete[0]),
    )


# What fewer logits would keep -----------------------------------------------------------------------------


def _kept(reader: CacheReader, seeds: Sequence[int]) -> tuple[tuple[Kept, ...], int]:
    spec = reader.spec
    ks = sorted({k for p in range(32) for k in (1 << p, 3 << p) if k < spec.k} | {spec.k})
    sums, views = torch.zeros(len(ks), 2, len(TEMPERATURES), dtype=torch.float64), 0
    for stored in _samples(reader, seeds):
        whole = _teacher(reduced(stored, spec, spec), spec)
        views += len(whole)
        for number, k in enumerate(ks):
            fewer = whole if k == spec.k else _teacher(reduced(stored, spec, _of_fewer(spec, k)), spec)
            for at, temperature in enumerate(TEMPERATURES):
                sums[number, 0, at] += whole.at(temperature).probs[:, :k].sum()
                sums[number, 1, at] += _kl(whole, fewer, temperature).sum()
    means = (sums / max(1, views)).tolist()
    return tuple(Kept(k, tuple(mass), tuple(kl)) for k, (mass, kl) in zip(ks, means, strict=True)), views


def _samples(reader: CacheReader, seeds: Sequence[int]) -> Iterator[Arrays]:
    """Yield rows of a few shards of each seed, evenly chosen, those without a teacher left out."""
    names = [array.name for array in reader.spec.arrays() if array.dimensions[0] == "sample"]
    for seed in seeds:
        for shard in spaced(range(reader.spec.layout.shards), TRIED_SHARDS):
            arrays = reader.read(seed, shard)
            valid = np.flatnonzero(~np.isnan(arrays["top"]))
            if len(valid):
                rows = valid[:: -(-len(valid) // TRIED_VIEWS)]
                yield {name: arrays[name][rows] for name in names}


def _of_fewer(spec: CacheSpec, k: int) -> CacheSpec:
    return derived_spec(spec, k, "default" if spec.profile.name == "exact" else None)


def _teacher(arrays: Arrays, spec: CacheSpec) -> SparseTeacher:
    def column(name: str) -> Tensor | None:
        return torch.from_numpy(arrays[name].astype(np.float64)) if name in arrays else None

    gap, top = column("gap"), column("top")
    assert gap is not None
    assert top is not None
    ids = torch.from_numpy(arrays["ids"].astype(np.int64))
    tail = (column("tail_lse"), column("tail_mean"), column("tail_var"))
    return SparseTeacher(ids, gap, top, *tail, spec.dataset.num_classes)


def _kl(whole: SparseTeacher, fewer: SparseTeacher, temperature: float) -> Tensor:
    """(B,) KL(whole ‖ fewer) in nats; `fewer` lists the first classes of `whole`, tails spread evenly."""
    p, q = whole.at(temperature), fewer.at(temperature)
    share = q.log_tail_share[:, None].expand(-1, whole.k - fewer.k)
    kl = (p.log_probs.exp() * (p.log_probs - torch.cat([q.log_probs, share], 1))).sum(1)
    if whole.tail_size:
        kl += p.log_tail_mass.exp() * (p.log_tail_share - q.log_tail_share)
    return kl.clamp(min=0)


def _array_bytes(reader: CacheReader, seed: int) -> dict[str, float]:
    spec = reader.spec
    arrays = [*spec.arrays(), spec.commit_array()]
    sizes = reader.place.each(
        lambda name: reader.place.at(f"seed-{seed}/{name}/c").size(), [a.name for a in arrays]
    )
    return {a.name: size / spec.dataset.n for a, size in zip(arrays, sizes, strict=True) if size is not None}
