"""What a teacher says of a data set, read from its cache: how right and how sure, where it wavers, what is hard.

Seeds are read one after another and their shards as blocks of dask arrays, so that memory holds a few shards and a
few numbers per image, however many seeds there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import torch
from dask.base import compute
from dask.delayed import delayed

from logitcache.errors import IncompleteError
from logitcache.format.spec import Spec
from logitcache.store import CacheReader, seed_list
from logitcache.teacher.spool import decode_shard
from logitcache.views.alignment import align_images
from logitcache.views.images import Images

Numbers = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]

BINS = 20
LEAST_TAIL = 1e-10  # smaller tail masses fall into the first bin
MOST_PAIRS = 1 << 22  # of classes, of which the least likely are forgotten: 64 MB


@dataclass(frozen=True)
class SeedStats(Spec):
    """One seed: means over its views. `top1` is the share of labelled views that the teacher gets right.

    `top5` is the share with the label among its first five; None where the cache lists fewer. Entropy is in nats,
    tail mass the probability outside the listed classes, both at T = 1.
    """

    seed: int
    views: int
    top1: float | None
    top5: float | None
    confidence: float
    entropy: float
    tail_mass: float


@dataclass(frozen=True)
class Neighbours(Spec):
    """A class and another that the teacher sees in its views: mean probability of the other."""

    of: int
    other: int
    probability: float


@dataclass(frozen=True)
class Hard(Spec):
    """A sample, its label (−1: none), the class the teacher names under the last seed, how sure it is of the label.

    `probability` is the mean over seeds of the label's probability; without labels, of the top class's.
    """

    sample: int
    name: str
    label: int
    teacher: int
    probability: float


@dataclass(frozen=True)
class StatsReport(Spec):
    """What a cache says of its data.

    Attributes:
        path, num_classes, k: of the cache.
        seeds: one by one.
        agreement: share of samples that two successive seeds give the same top class; None for a single seed.
        entropy_bins: counts of views in 20 bins of entropy from 0 to log C.
        tail_bins: counts of views in 20 bins of log10 tail mass from −10 (and less) to 0; empty when k = C.
        neighbours: pairs of classes that the teacher confuses most, by falling probability.
        hardest: samples by rising probability.
    """

    path: str
    num_classes: int
    k: int
    seeds: tuple[SeedStats, ...]
    agreement: float | None
    entropy_bins: tuple[int, ...]
    tail_bins: tuple[int, ...]
    neighbours: tuple[Neighbours, ...]
    hardest: tuple[Hard, ...]


def compute_stats(
    reader: CacheReader,
    images: Images | None = None,
    seeds: Sequence[int] = (),
    *,
    most: int = 20,
    on_progress: Progress | None = None,
) -> StatsReport:
    """Read complete seeds of a cache once and sum up what the teacher says.

    Args:
        reader: the cache.
        images: what it was made of, for labels and names; None does without.
        seeds: which; all complete ones by default.
        most: how many neighbours and hard samples to list.
        on_progress: called with (seeds done, seeds to do).

    Raises:
        IncompleteError: seeds are not complete, or none is.
        MismatchError: the images are others than the cache's.
        FormatError: a shard is damaged.
    """
    if images is not None:
        images = align_images(reader, images)
    chosen = sorted(set(seeds)) or reader.complete()
    reader.require(list(chosen))
    if not chosen:
        raise IncompleteError(f"{reader.path} has no complete seed (begun: {seed_list(reader.seeds())})")
    n, classes = reader.spec.dataset.n, reader.spec.dataset.num_classes
    labels = np.full(n, -1) if images is None else images.labels
    found: list[SeedStats] = []
    entropy_bins, tail_bins = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    sure, seen, named = np.zeros(n), np.zeros(n, np.int64), np.full(n, -1)
    pairs, of_class = _Pairs(), np.zeros(classes, np.int64)
    agreeing, compared = 0, 0
    for number, seed in enumerate(chosen):
        one = _Seed(reader, seed, labels)
        found.append(one.stats)
        entropy_bins += one.entropy_bins
        tail_bins += one.tail_bins
        both = one.valid & (seen > 0)
        agreeing, compared = agreeing + int((one.top[both] == named[both]).sum()), compared + int(both.sum())
        sure[one.valid] += one.sure[one.valid]
        named[one.valid] = one.top[one.valid]
        seen += one.valid
        of_class += one.of_class
        pairs.add(one.pairs)
        if on_progress:
            on_progress(number + 1, len(chosen))
    mean = np.where(seen > 0, sure / np.maximum(seen, 1), np.inf)
    hardest = [int(i) for i in np.argsort(mean, kind="stable")[:most] if seen[i]]
    return StatsReport(
        path=str(reader.path),
        num_classes=classes,
        k=reader.spec.k,
        seeds=tuple(found),
        agreement=agreeing / compared if compared else None,
        entropy_bins=tuple(entropy_bins.tolist()),
        tail_bins=tuple(tail_bins.tolist()) if reader.spec.tail_size else (),
        neighbours=pairs.most(most, of_class),
        hardest=tuple(
            Hard(
                i,
                images.describe(i) if images else f"sample {i}",
                int(labels[i]),
                int(named[i]),
                float(mean[i]),
            )
            for i in hardest
        ),
    )


# One seed -----------------------------------------------------------------------------------------------

TOP, SURE, FIVE, CONFIDENCE, ENTROPY, TAIL = range(6)


class _Seed:
    """One seed, summed up; `top`, `sure` and `valid` are (n,), by sample."""

    def __init__(self, reader: CacheReader, seed: int, labels: npt.NDArray[Any]) -> None:
        spec = reader.spec
        parts = [delayed(_read, nout=2)(reader, seed, shard, labels) for shard in range(spec.layout.shards)]

        def block(shard: int) -> Any:
            shape = (6, len(spec.layout.samples_of(shard)))
            return da.from_delayed(parts[shard][0], shape, np.float64)  # type: ignore[no-untyped-call]

        blocks = [block(shard) for shard in range(spec.layout.shards)]
        # (6, n), NaN where a sample has no teacher
        columns = da.concatenate(blocks, axis=1)  # type: ignore[no-untyped-call]
        entropy = columns[ENTROPY] / np.log(spec.dataset.num_classes)
        tail = da.log10(da.clip(columns[TAIL], LEAST_TAIL, 1.0))
        (self.top, self.sure, five, entropy_bins, tail_bins, means, pairs) = compute(  # type: ignore[no-untyped-call]
            columns[TOP],
            columns[SURE],
            columns[FIVE],
            _histogram(entropy, 0.0, 1.0),
            _histogram(tail, np.log10(LEAST_TAIL), 0.0),
            da.nanmean(columns[CONFIDENCE:], axis=1),
            [part[1] for part in parts],
            scheduler="threads",
        )
        self.valid = ~np.isnan(self.top)
        self.entropy_bins, self.tail_bins = entropy_bins.astype(np.int64), tail_bins.astype(np.int64)
        self.pairs = _Pairs()
        for part in pairs:
            self.pairs.add(part)
        told = self.valid & (labels >= 0) & (not spec.recipe.mix_steps)  # a mixed view has two labels
        right = float((self.top[told] == labels[told]).mean()) if told.any() else None
        listed = spec.k >= min(5, spec.dataset.num_classes)
        among = float(five[told].mean()) if told.any() and listed else None
        confidence, mean_entropy, mean_tail = map(float, means)
        views = int(self.valid.sum())
        self.stats = SeedStats(seed, views, right, among, confidence, mean_entropy, mean_tail)
        of = np.where(labels >= 0, labels, np.nan_to_num(self.top))[self.valid].astype(np.int64)
        self.of_class = np.bincount(of, minlength=spec.dataset.num_classes)


def _histogram(values: Any, low: float, high: float) -> Any:
    known = values[~da.isnan(values)]
    return da.histogram(known, bins=BINS, range=(low, high))[0]  # type: ignore[no-untyped-call]


def _read(reader: CacheReader, seed: int, shard: int, labels: npt.NDArray[Any]) -> tuple[Numbers, "_Pairs"]:
    """Decode a shard; (6, rows) columns by sample, and its pairs of classes."""
    spec, teacher = reader.spec, decode_shard(reader, seed, shard)
    own = labels[spec.layout.samples_of(shard).start : spec.layout.samples_of(shard).stop]
    valid = ~teacher.top.isnan().numpy()
    columns = np.full((6, len(valid)), np.nan)
    teacher, label = teacher[torch.from_numpy(valid)], torch.from_numpy(own[valid])
    soft = teacher.at(1.0)
    probs, tops = soft.probs, teacher.ids[:, 0]
    of = torch.where(label >= 0, label, tops)
    columns[TOP, valid] = tops.numpy()
    columns[SURE, valid] = soft.prob_of(of).numpy()
    columns[FIVE, valid] = (teacher.ids[:, :5] == of[:, None]).any(1).numpy()
    columns[CONFIDENCE, valid] = probs[:, 0].numpy()
    columns[ENTROPY, valid] = soft.entropy().numpy()
    columns[TAIL, valid] = soft.tail_mass.numpy()
    keys = (of[:, None] * spec.dataset.num_classes + teacher.ids)[teacher.ids != of[:, None]]
    weights = probs[teacher.ids != of[:, None]]
    return columns, _Pairs.of(keys.numpy(), weights.double().numpy(), spec.dataset.num_classes)


class _Pairs:
    """Probability summed by ordered pair of classes, kept for pairs that occur."""

    def __init__(self) -> None:
        self.keys, self.sums, self.classes = np.zeros(0, np.int64), np.zeros(0), 1

    @classmethod
    def of(cls, keys: npt.NDArray[np.int64], weights: Numbers, classes: int) -> "_Pairs":
        """Sum weights by key, class · C + other."""
        pairs = cls()
        pairs.keys, index = np.unique(keys, return_inverse=True)
        pairs.sums = np.bincount(index, weights, len(pairs.keys)).astype(np.float64)
        pairs.classes = classes
        return pairs

    def add(self, other: "_Pairs") -> None:
        """Add the sums of another, forgetting the least where there are too many."""
        keys, sums = np.concatenate([self.keys, other.keys]), np.concatenate([self.sums, other.sums])
        both = self.of(keys, sums, other.classes)
        self.keys, self.sums, self.classes = both.keys, both.sums, both.classes
        if len(self.keys) > MOST_PAIRS:
            kept = np.sort(np.argpartition(-self.sums, MOST_PAIRS)[:MOST_PAIRS])
            self.keys, self.sums = self.keys[kept], self.sums[kept]

    def most(self, count: int, of_class: npt.NDArray[np.int64]) -> tuple[Neighbours, ...]:
        """List the pairs of the largest mean probability."""
        of, other = self.keys // self.classes, self.keys % self.classes
        mean = self.sums / np.maximum(of_class[of], 1)
        order = np.lexsort((self.keys, -mean))[:count]
        return tuple(Neighbours(int(of[i]), int(other[i]), float(mean[i])) for i in order)
