"""Filling shards: views in, the teacher's compressed logits into the cache, whole shards at a time.

Views come from DataLoader workers, logits are compressed on the device, pieces travel back asynchronously, and
a writer thread commits whole shards, so that the accelerator waits for nobody. Batches are cut inside a shard
and a seed's batches are the same whichever other seeds share the pass: what a shard holds depends neither on
where a run started or stopped nor on who fills it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.dump.pipeline import Pipeline, load_pipeline
from logitcache.dump.settings import DumpConfig
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.models.build import Model
from logitcache.models.forward import BatchHalver
from logitcache.store import SeedWriter
from logitcache.teacher.reach import (
    count_unmasked,
    describe_split_tails,
    find_outliers,
    outlier_error,
    split_tails,
    sum_to_one,
)
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews, Pair, ViewBatch
from logitcache.views.loader import report_worker_deaths
from logitcache.views.maker import digest


@dataclass(frozen=True)
class ViewsDone:
    """A progress event: so many views are done, of so many."""

    done: int
    total: int


OnViewsDone = Callable[[ViewsDone], None]


@dataclass(frozen=True)
class ShardTask(Spec):
    """The unit of work: one shard, and the seeds of one pass that lack it."""

    shard: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class ShardReport(Spec):
    """A committed shard of one seed.

    Attributes:
        seed, shard: which.
        commit: its digest.
        views: number of views in it.
        bad: its samples without a teacher.
        labelled: number of the other samples that have a label.
        right: number of these that the teacher puts into the class of their label.
    """

    seed: int
    shard: int
    commit: int
    views: int
    bad: tuple[int, ...]
    labelled: int
    right: int


@dataclass(frozen=True, eq=False)
class Filler:
    """Fills shards of a cache, with views and the teacher loaded once.

    Attributes:
        spec: of the cache.
        pipeline: its views, in its order, and its teacher.
        on_note: called with a line for people, where answers look like probabilities, or an even tail would give mass
            to masked classes.
    """

    spec: CacheSpec
    pipeline: Pipeline
    on_note: Callable[[str], None] | None = None

    @classmethod
    def load(
        cls,
        spec: CacheSpec,
        views: KeyedViews,
        teacher: Model,
        config: DumpConfig,
        on_note: Callable[[str], None] | None = None,
    ) -> Self:
        """Put the teacher on its device, ready to fill shards of the cache."""
        precision = spec.teacher.precision
        pipeline = load_pipeline(views, teacher, precision, config, on_note, compile=config.compile)
        return cls(spec, pipeline, on_note)

    @report_worker_deaths()
    def fill(
        self,
        writers: Mapping[int, SeedWriter],
        tasks: Sequence[ShardTask],
        on_progress: OnViewsDone | None = None,
    ) -> list[ShardReport]:
        """Fill shards, and commit each as it is full; one that is committed meanwhile is left as it is.

        Args:
            writers: by seed.
            tasks: which shards, of which seeds.
            on_progress: called at the beginning and after every batch.

        Raises:
            DataError: an image does not decode.
            NonFiniteError: the teacher gave NaN, infinity, or what is no logit.
            StorageError: the disk said no.
            LogitCacheError: a worker that makes views died.
        """
        if not tasks:
            return []
        pipeline, device = self.pipeline, self.pipeline.device
        batches = pipeline.batches(_Batches(self.spec, tasks, pipeline.batch_size))
        done, total = 0, count_views(self.spec, tasks)
        if on_progress:
            on_progress(ViewsDone(done, total))
        in_flight: deque[_InFlight] = deque()
        on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with on_device, _ShardBuilder(self.spec, writers, pipeline.views, self.on_note) as builder:
            for batch in batches:
                in_flight.append(_run_teacher(pipeline.model, batch, self.spec, device))
                done += len(batch.samples)
                if len(in_flight) > 2:
                    builder.add(in_flight.popleft())
                if on_progress:
                    on_progress(ViewsDone(done, total))
            for pieces in in_flight:
                builder.add(pieces)
        return builder.reports


def report_shard(
    spec: CacheSpec,
    images: Images,
    seed: int,
    shard: int,
    commit: int,
    arrays: Mapping[str, npt.NDArray[Any]],
) -> ShardReport:
    """Report on a committed shard of a cache of these images that holds these arrays."""
    samples = spec.layout.samples_of(shard)
    without_teacher = np.isnan(arrays["top"])
    labels = np.asarray(images.labels[samples.start : samples.stop])
    labelled = (labels >= 0) & ~without_teacher & (not spec.recipe.mix_steps)  # a mixed view has two labels
    right = labelled & (arrays["ids"][:, 0] == labels)
    bad = tuple((np.flatnonzero(without_teacher) + samples.start).tolist())
    return ShardReport(seed, shard, commit, len(samples), bad, int(labelled.sum()), int(right.sum()))


def count_views(spec: CacheSpec, tasks: Sequence[ShardTask]) -> int:
    """Count the views of some tasks."""
    return sum(len(spec.layout.samples_of(task.shard)) * len(task.seeds) for task in tasks)


class _Batches:
    """Pairs of each forward: up to `batch_size` samples of one shard, each under every seed of the pass."""

    def __init__(self, spec: CacheSpec, tasks: Sequence[ShardTask], batch_size: int) -> None:
        self.spec, self.tasks, self.batch_size = spec, tasks, batch_size

    def __iter__(self) -> Iterator[list[Pair]]:
        for task in self.tasks:
            samples = self.spec.layout.samples_of(task.shard)
            for start in range(0, len(samples), self.batch_size):
                yield [(i, seed) for i in samples[start : start + self.batch_size] for seed in task.seeds]

    def __len__(self) -> int:
        return sum(-(-len(self.spec.layout.samples_of(t.shard)) // self.batch_size) for t in self.tasks)


# From the teacher -----------------------------------------------------------------------------------------


class _InFlight(NamedTuple):
    """A batch on its way back to the host: pieces by seed, which are there once `ready` has happened."""

    batch: ViewBatch
    pieces: dict[int, dict[str, Tensor]]
    ready: torch.cuda.Event | None


@torch.inference_mode()
def _run_teacher(model: BatchHalver, batch: ViewBatch, spec: CacheSpec, device: torch.device) -> _InFlight:
    """Run the teacher on a batch, seed by seed so that each forward is what a pass of one seed would run."""
    pieces = {}
    seeds = list(dict.fromkeys(batch.seeds.tolist()))  # pairs go sample by sample, each under every seed
    for number, seed in enumerate(seeds):
        views = batch.views[number :: len(seeds)] if len(seeds) > 1 else batch.views
        logits = model(views.to(device, non_blocking=True))
        teacher = SparseTeacher.from_logits(logits, spec.k)
        parts = {
            "ids": teacher.ids.int(),
            "gap": teacher.gap,
            "top": teacher.top,
            "tail_lse": teacher.tail_lse,
            "tail_mean": teacher.tail_mean,
            "tail_var": None if spec.calibrated else teacher.tail_var,
            "unmasked": None if spec.calibrated or not spec.tail_size else count_unmasked(logits),
        }
        pieces[seed] = {name: _to_host(part) for name, part in parts.items() if part is not None}
    ready = None
    if device.type == "cuda":
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(torch.cuda.current_stream(device))  # of the copies, which need not be the current GPU's
    return _InFlight(batch, pieces, ready)


def _to_host(piece: Tensor) -> Tensor:
    if not piece.is_cuda:
        return piece
    host = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=True)
    return host.copy_(piece, non_blocking=True)


def _look_like_probabilities(spec: CacheSpec, parts: Mapping[str, Tensor]) -> bool:
    top = parts["top"]
    tail_sum = spec.tail_size * (top + parts["tail_mean"]) if spec.tail_size else torch.zeros_like(top)
    return len(top) > 0 and sum_to_one(top[:, None] - parts["gap"], tail_sum)


# Into shards ----------------------------------------------------------------------------------------------


@dataclass
class _Buffer:
    """One shard of one seed while it fills."""

    arrays: dict[str, npt.NDArray[Any]]
    filled: int = 0


@dataclass
class _ShardBuilder:
    """Puts batches together into shards, which a thread writes as they fill; one shard waits at most."""

    spec: CacheSpec
    writers: Mapping[int, SeedWriter]
    views: KeyedViews
    on_note: Callable[[str], None] | None
    reports: list[ShardReport] = field(default_factory=list)
    _noted: bool = False
    _open: dict[tuple[int, int], _Buffer] = field(default_factory=dict)
    _writing: deque[Future[ShardReport]] = field(default_factory=deque)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "writer"))

    def __enter__(self) -> "_ShardBuilder":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._wait(0)
        finally:
            self._thread.shutdown()  # after an error, what was handed over is still written and committed

    def add(self, in_flight: _InFlight) -> None:
        """Wait until a batch is on the host, and put its rows where they belong."""
        batch, pieces, ready = in_flight
        if ready is not None:
            ready.synchronize()
        for number, (seed, parts) in enumerate(pieces.items()):
            rows = slice(number, None, len(pieces))
            self._add_rows(seed, batch.samples[rows], batch.valid[rows], batch.views[rows], parts)

    def _add_rows(
        self, seed: int, samples: Tensor, valid: Tensor, views: Tensor, parts: dict[str, Tensor]
    ) -> None:
        if (wrong := valid & find_outliers(parts["top"])).any():
            raise outlier_error(
                float(parts["top"][wrong][0]),
                f"{self.views.images.describe(int(samples[wrong][0]))} under seed {seed}",
                half=self.spec.teacher.precision != "float32",
                class_=int(parts["ids"][wrong][0, 0]),
                so_far="nothing of this shard was committed; ",
            )
        if self.on_note:
            self._note({name: part[valid] for name, part in parts.items()})
        first = int(samples[0])
        shard = self.spec.layout.shard_of(first)
        buffer = self._open.setdefault((shard, seed), _Buffer(self._zeros(shard)))
        at = first - self.spec.layout.samples_of(shard).start
        here = slice(at, at + len(samples))
        bad = ~valid.numpy()
        for name in buffer.arrays.keys() & parts.keys():
            buffer.arrays[name][here] = parts[name].numpy()
            buffer.arrays[name][here][bad] = 0  # not the logits of a blank picture
        buffer.arrays["top"][here][bad] = np.nan
        for position, canary in enumerate(self.spec.layout.canary_samples(shard)):
            if 0 <= (row := canary - first) < len(samples) and valid[row]:
                buffer.arrays["canary"][0, position] = digest(views[row])
        buffer.filled += len(samples)
        if buffer.filled == len(self.spec.layout.samples_of(shard)):
            del self._open[shard, seed]
            self._wait(1)
            self._writing.append(self._thread.submit(self._write, seed, shard, buffer.arrays))

    def _note(self, parts: Mapping[str, Tensor]) -> None:
        """Tell what is odd about a teacher's answers: of the first batch, or once of any."""
        assert self.on_note is not None
        if not self._noted and _look_like_probabilities(self.spec, parts):
            self.on_note(
                "the teacher's answers look like probabilities, which distillation would soften once more; leave "
                "the softmax out of it"
            )
        self._noted = True
        unmasked = parts.get("unmasked")
        if unmasked is None:
            self.on_note = None  # the first batch has told
            return
        split = split_tails(unmasked, self.spec.k, self.spec.dataset.num_classes)
        if split.any():
            problem = describe_split_tails(int(unmasked[split].max()))
            self.on_note(f"in {int(split.sum()):,} of {len(split):,} views {problem}")
            self.on_note = None

    def _write(self, seed: int, shard: int, arrays: Mapping[str, npt.NDArray[Any]]) -> ShardReport:
        commit = self.writers[seed].write_if_missing(shard, arrays)
        return report_shard(self.spec, self.views.images, seed, shard, commit, arrays)

    def _wait(self, most: int) -> None:
        while len(self._writing) > most:
            self.reports.append(self._writing.popleft().result())

    def _zeros(self, shard: int) -> dict[str, npt.NDArray[Any]]:
        rows = len(self.spec.layout.samples_of(shard))
        dtypes = {"ids": np.int32, "canary": np.uint32}
        return {
            a.name: np.zeros(
                (rows if a.dimensions[0] == "sample" else 1, *a.shape[1:]), dtypes.get(a.name, np.float32)
            )
            for a in self.spec.arrays()
        }
