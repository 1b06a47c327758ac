"""What a teacher says of a data set, read from its cache: accuracy, confidence, confused classes, hard samples.

Seeds are read one after another, and their shards as blocks of dask arrays, so memory holds a few shards and a few
numbers per image, however many seeds there are.
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
from torch import Tensor

from logitcache.format.spec import Spec
from logitcache.store.reader import CacheReader
from logitcache.teacher.completion import Completion
from logitcache.teacher.sparse import ListedTargets, SparseTeacher
from logitcache.teacher.spool import decode_shard
from logitcache.views.alignment import align_images
from logitcache.views.images import Images

Numbers = npt.NDArray[np.float64]

BINS = 20
LEAST_TAIL = 1e-10  # smaller tail masses are counted in the first bin
COMPLETED, ROWS = 4096, 256  # rows of a shard whose tail is completed for their entropy, so many at a time
MOST_PAIRS = 1 << 22  # of classes, the likeliest: 64 MB


@dataclass(frozen=True)
class SeedStats(Spec):
    """Means over the views of one seed.

    `top1` is the share of labelled views that the teacher gets right; `top5` the share with the label among its first
    five, None if the cache lists fewer. `confidence` is the top-1 probability, `entropy` is in nats, `tail_mass` the
    probability outside the listed classes, all at T = 1. Where class statistics complete the tail, `entropy` is that
    of some views, 4,096 of each shard.
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
    """A class, another one, and the mean probability of the other in views of the first."""

    of: int
    other: int
    probability: float


@dataclass(frozen=True)
class Hard(Spec):
    """A hard sample, its label (−1: none) and the teacher's class under the last seed.

    `probability` is the label's, or without a label the top class's; the mean over seeds.
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
        agreement: share of samples with the same top class under two successive seeds; None for a single seed.
        entropy_bins: counts of the views that `SeedStats.entropy` is of, in 20 bins of entropy from 0 to log C.
        tail_bins: counts of views in 20 bins of log10 tail mass from −10 (and less) to 0; empty when k = C.
        neighbours: the pairs of classes that the teacher confuses most, by falling probability.
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
    on_progress: Callable[[int, int], None] | None = None,
) -> StatsReport:
    """Compute the statistics of complete seeds of a cache, reading each once.

    Args:
        reader: the cache.
        images: the images that it was made of, for labels and names; it works without.
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
    chosen = sorted(reader.choose_complete(seeds))
    n, classes = reader.spec.dataset.n, reader.spec.dataset.num_classes
    labels = np.full(n, -1) if images is None else images.labels
    statistics = reader.statistics()
    completion = None if statistics is None else Completion.of(statistics)
    by_seed: list[SeedStats] = []
    entropy_bins, tail_bins = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    probability, views, top = np.zeros(n), np.zeros(n, np.int64), np.full(n, -1)  # of each sample
    pairs, class_views = _Pairs(), np.zeros(classes, np.int64)
    agreeing, compared = 0, 0
    for number, seed in enumerate(chosen):
        one = _Seed(reader, seed, labels, completion)
        by_seed.append(one.stats)
        entropy_bins += one.entropy_bins
        tail_bins += one.tail_bins
        both = one.valid & (views > 0)
        agreeing, compared = agreeing + int((one.top[both] == top[both]).sum()), compared + int(both.sum())
        probability[one.valid] += one.probability[one.valid]
        top[one.valid] = one.top[one.valid]
        views += one.valid
        class_views += one.class_views
        pairs.add(one.pairs)
        if on_progress:
            on_progress(number + 1, len(chosen))
    mean = np.where(views > 0, probability / np.maximum(views, 1), np.inf)
    hardest = [int(i) for i in np.argsort(mean, kind="stable")[:most] if views[i]]
    return StatsReport(
        path=str(reader.path),
        num_classes=classes,
        k=reader.spec.k,
        seeds=tuple(by_seed),
        agreement=agreeing / compared if compared else None,
        entropy_bins=tuple(entropy_bins.tolist()),
        tail_bins=tuple(tail_bins.tolist()) if reader.spec.tail_size else (),
        neighbours=pairs.likeliest(most, class_views),
        hardest=tuple(
            Hard(
                i,
                images.describe(i) if images else f"sample {i}",
                int(labels[i]),
                int(top[i]),
                float(mean[i]),
            )
            for i in hardest
        ),
    )


# One seed -----------------------------------------------------------------------------------------------

TOP, PROBABILITY, TOP5, CONFIDENCE, ENTROPY, TAIL = range(6)  # columns of a view's numbers


class _Seed:
    """The statistics of one seed; `top`, `probability` and `valid` are (n,), by sample."""

    def __init__(
        self, reader: CacheReader, seed: int, labels: npt.NDArray[Any], completion: Completion | None
    ) -> None:
        spec = reader.spec
        parts = [
            delayed(_read, nout=2)(reader, seed, shard, labels, completion)
            for shard in range(spec.layout.shards)
        ]

        def block(shard: int) -> Any:
            shape = (6, len(spec.layout.samples_of(shard)))
            return da.from_delayed(parts[shard][0], shape, np.float64)  # type: ignore[no-untyped-call]

        blocks = [block(shard) for shard in range(spec.layout.shards)]
        # (6, n), NaN where a sample has no teacher
        columns = da.concatenate(blocks, axis=1)  # type: ignore[no-untyped-call]
        entropy = columns[ENTROPY] / np.log(spec.dataset.num_classes)
        tail = da.log10(da.clip(columns[TAIL], LEAST_TAIL, 1.0))
        (self.top, self.probability, top5, entropy_bins, tail_bins, means, pairs) = compute(  # type: ignore[no-untyped-call]
            columns[TOP],
            columns[PROBABILITY],
            columns[TOP5],
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
        labelled = self.valid & (labels >= 0) & (not spec.recipe.mix_steps)  # a mixed view has two labels
        right = float((self.top[labelled] == labels[labelled]).mean()) if labelled.any() else None
        five_listed = spec.k >= min(5, spec.dataset.num_classes)
        among_five = float(top5[labelled].mean()) if labelled.any() and five_listed else None
        confidence, mean_entropy, mean_tail = map(float, means)
        views = int(self.valid.sum())
        self.stats = SeedStats(seed, views, right, among_five, confidence, mean_entropy, mean_tail)
        of = np.where(labels >= 0, labels, np.nan_to_num(self.top))[self.valid].astype(np.int64)
        self.class_views = np.bincount(of, minlength=spec.dataset.num_classes)


def _histogram(values: Any, low: float, high: float) -> Any:
    valid = values[~da.isnan(values)]
    return da.histogram(valid, bins=BINS, range=(low, high))[0]  # type: ignore[no-untyped-call]


def _read(
    reader: CacheReader, seed: int, shard: int, labels: npt.NDArray[Any], completion: Completion | None
) -> tuple[Numbers, "_Pairs"]:
    """Decode a shard; return (6, rows) columns, and its pairs of classes."""
    spec, teacher = reader.spec, decode_shard(reader, seed, shard, completion)
    samples = spec.layout.samples_of(shard)
    valid = ~teacher.top.isnan().numpy()
    columns = np.full((6, len(valid)), np.nan)
    label = torch.from_numpy(labels[samples.start : samples.stop][valid])
    teacher = teacher[torch.from_numpy(valid)]
    soft = teacher.listed_at(1.0)
    probs, tops = soft.probs, teacher.ids[:, 0]
    of = torch.where(label >= 0, label, tops)
    columns[TOP, valid] = tops.numpy()
    columns[PROBABILITY, valid] = _prob_of(teacher, soft, of).numpy()
    columns[TOP5, valid] = (teacher.ids[:, :5] == of[:, None]).any(1).numpy()
    columns[CONFIDENCE, valid] = probs[:, 0].numpy()
    columns[ENTROPY, valid] = _entropy(teacher, soft).numpy()
    columns[TAIL, valid] = soft.tail_mass.numpy()
    keys = (of[:, None] * spec.dataset.num_classes + teacher.ids)[teacher.ids != of[:, None]]
    weights = probs[teacher.ids != of[:, None]]
    return columns, _Pairs.of(keys.numpy(), weights.double().numpy(), spec.dataset.num_classes)


def _prob_of(teacher: SparseTeacher, soft: ListedTargets, classes: Tensor) -> Tensor:
    """(B,) probability of one class per row; of one that is not listed as the completed tail has it, if it can be."""
    probs = soft.prob_of(classes)
    if teacher.completion is not None:
        others = (teacher.ids != classes[:, None]).all(1).nonzero()[:, 0]
        for rows in others.split(ROWS):  # type: ignore[no-untyped-call]
            probs[rows] = teacher[rows].at(1.0).prob_of(classes[rows])
    return probs


def _entropy(teacher: SparseTeacher, soft: ListedTargets) -> Tensor:
    """(B,) entropy in nats; where the tail is to be completed, of some rows evenly spaced, and NaN of the others."""
    if teacher.completion is None:
        return soft.entropy()
    entropy = torch.full_like(teacher.top, torch.nan)
    some = torch.arange(0, len(entropy), -(-len(entropy) // COMPLETED) if len(entropy) else 1)
    for rows in some.split(ROWS):  # type: ignore[no-untyped-call]
        entropy[rows] = teacher[rows].at(1.0).entropy()
    return entropy


class _Pairs:
    """Probability summed by ordered pair of classes, of the pairs that occur."""

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
        """Add the sums of another; of more than `MOST_PAIRS` pairs, drop those of the smallest sums."""
        keys, sums = np.concatenate([self.keys, other.keys]), np.concatenate([self.sums, other.sums])
        both = self.of(keys, sums, other.classes)
        self.keys, self.sums, self.classes = both.keys, both.sums, both.classes
        if len(self.keys) > MOST_PAIRS:
            largest = np.sort(np.argpartition(-self.sums, MOST_PAIRS)[:MOST_PAIRS])
            self.keys, self.sums = self.keys[largest], self.sums[largest]

    def likeliest(self, count: int, class_views: npt.NDArray[np.int64]) -> tuple[Neighbours, ...]:
        """List the pairs with the largest mean probability, given how many views each class has."""
        of, other = self.keys // self.classes, self.keys % self.classes
        mean = self.sums / np.maximum(class_views[of], 1)
        order = np.lexsort((self.keys, -mean))[:count]
        return tuple(Neighbours(int(of[i]), int(other[i]), float(mean[i])) for i in order)
