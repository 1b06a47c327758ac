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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.errors import NonFiniteError
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.models.forward import InPieces
from logitcache.store import SeedWriter
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.datasets import Images
from logitcache.views.loader import KeyedViews, Pair, ViewBatch, deaths_named, loaded, view_loader
from logitcache.views.maker import digest

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Work(Spec):
    """One shard, and the seeds of one pass that lack it."""

    shard: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Receipt(Spec):
    """One shard of one seed is committed.

    Attributes:
        seed, shard: which.
        commit: its digest.
        views: in it.
        bad: its samples without a teacher.
        labelled: of the others, those that have a label.
        right: of these, those that the teacher puts into the class of their label.
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
    """What fills shards of a cache, loaded once: views, and the teacher on its device.

    Attributes:
        spec: the cache's.
        views: of its images, in its order, by its recipe.
        model: the teacher, on `device`.
        device: where it runs.
        batch_size: samples per forward.
        workers: as `loader.view_loader` takes them.
        start_method: likewise.
    """

    spec: CacheSpec
    views: KeyedViews
    model: InPieces
    device: torch.device
    batch_size: int
    workers: int = -1
    start_method: str | None = None

    @deaths_named()
    def fill(
        self,
        writers: Mapping[int, SeedWriter],
        work: Sequence[Work],
        on_progress: Progress | None = None,
    ) -> list[Receipt]:
        """Fill shards, and commit each as it is full; one that is committed meanwhile is left as it is.

        Args:
            writers: by seed.
            work: which shards, of which seeds.
            on_progress: called with (views done, views to do) at the beginning and after every batch.

        Raises:
            DataError: an image does not decode.
            NonFiniteError: the teacher gave NaN or infinity.
            StorageError: the disk said no.
            LogitCacheError: a worker that makes views died.
        """
        if not work:
            return []
        loader = view_loader(
            self.views,
            _Batches(self.spec, work, self.batch_size),
            workers=self.workers,
            device=self.device,
            start_method=self.start_method,
        )
        total = views_of(self.spec, work)
        done = 0
        if on_progress:
            on_progress(done, total)
        in_flight: deque[_Answered] = deque()
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with on_device, _Gatherer(self.spec, writers, self.views) as gatherer:
            for made in loaded(loader):
                in_flight.append(_answer(self.model, made, self.spec.k, self.device))
                done += len(made.samples)
                if len(in_flight) > 2:
                    gatherer.take(in_flight.popleft())
                if on_progress:
                    on_progress(done, total)
            for answered in in_flight:
                gatherer.take(answered)
        return gatherer.receipts


def receipt(
    spec: CacheSpec,
    images: Images,
    seed: int,
    shard: int,
    commit: int,
    arrays: Mapping[str, npt.NDArray[Any]],
) -> Receipt:
    """Return the receipt of a shard of a cache of these images that holds these arrays."""
    samples = spec.layout.samples_of(shard)
    unanswered = np.isnan(arrays["top"])
    labels = np.asarray(images.labels[samples.start : samples.stop])
    labelled = (labels >= 0) & ~unanswered & (not spec.recipe.mix_steps)  # a mixed view has two labels
    right = labelled & (arrays["ids"][:, 0] == labels)
    bad = tuple((np.flatnonzero(unanswered) + samples.start).tolist())
    return Receipt(seed, shard, commit, len(samples), bad, int(labelled.sum()), int(right.sum()))


def views_of(spec: CacheSpec, work: Sequence[Work]) -> int:
    """Count the views of some work."""
    return sum(len(spec.layout.samples_of(w.shard)) * len(w.seeds) for w in work)


class _Batches:
    """Pairs of each forward: up to `batch_size` samples of one shard, each under every seed of the pass."""

    def __init__(self, spec: CacheSpec, work: Sequence[Work], batch_size: int) -> None:
        self.spec, self.work, self.batch_size = spec, work, batch_size

    def __iter__(self) -> Iterator[list[Pair]]:
        for part in self.work:
            samples = self.spec.layout.samples_of(part.shard)
            for start in range(0, len(samples), self.batch_size):
                yield [(i, seed) for i in samples[start : start + self.batch_size] for seed in part.seeds]

    def __len__(self) -> int:
        return sum(-(-len(self.spec.layout.samples_of(w.shard)) // self.batch_size) for w in self.work)


# The teacher's answers ------------------------------------------------------------------------------------


class _Answered(NamedTuple):
    """One batch on its way back: pieces by seed, on the host once `ready` has happened."""

    batch: ViewBatch
    pieces: dict[int, dict[str, Tensor]]
    ready: torch.cuda.Event | None


@torch.inference_mode()
def _answer(model: InPieces, batch: ViewBatch, k: int, device: torch.device) -> _Answered:
    """Run the teacher on a batch, seed by seed so that each forward is what a pass of one seed would run."""
    pieces = {}
    seeds = list(dict.fromkeys(batch.seeds.tolist()))  # pairs go sample by sample, each under every seed
    for number, seed in enumerate(seeds):
        views = batch.views[number :: len(seeds)] if len(seeds) > 1 else batch.views
        logits = model(views.to(device, non_blocking=True))
        teacher = SparseTeacher.from_logits(logits, k)
        parts = {
            "ids": teacher.ids.int(),
            "gap": teacher.gap,
            "top": teacher.top,
            "tail_lse": teacher.tail_lse,
            "tail_mean": teacher.tail_mean,
            "tail_var": teacher.tail_var,
            "finite": logits.isfinite().all(1),
        }
        pieces[seed] = {name: _to_host(part) for name, part in parts.items() if part is not None}
    ready = None
    if device.type == "cuda":
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(
            torch.cuda.current_stream(device)
        )  # that of the copies, which need not be the current GPU
    return _Answered(batch, pieces, ready)


def _to_host(piece: Tensor) -> Tensor:
    if not piece.is_cuda:
        return piece
    host = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=True)
    return host.copy_(piece, non_blocking=True)


# Into shards ----------------------------------------------------------------------------------------------


@dataclass
class _Buffer:
    """One shard of one seed while it fills."""

    arrays: dict[str, npt.NDArray[Any]]
    filled: int = 0


@dataclass
class _Gatherer:
    """Gathers answers into shards and has a thread write each as it fills; one shard waits at most."""

    spec: CacheSpec
    writers: Mapping[int, SeedWriter]
    views: KeyedViews
    receipts: list[Receipt] = field(default_factory=list)
    _open: dict[tuple[int, int], _Buffer] = field(default_factory=dict)
    _writing: deque[Future[Receipt]] = field(default_factory=deque)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "writer"))

    def __enter__(self) -> "_Gatherer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._wait(0)
        finally:
            self._thread.shutdown()  # after an error, what was handed over is still written and committed

    def take(self, answered: _Answered) -> None:
        """Put one batch's answers where they belong."""
        batch, pieces, ready = answered
        if ready is not None:
            ready.synchronize()
        for number, (seed, parts) in enumerate(pieces.items()):
            rows = slice(number, None, len(pieces))
            self._put(seed, batch.samples[rows], batch.valid[rows], batch.views[rows], parts)

    def _put(
        self, seed: int, samples: Tensor, valid: Tensor, views: Tensor, parts: dict[str, Tensor]
    ) -> None:
        if (wrong := valid & ~parts.pop("finite")).any():
            sample = int(samples[wrong][0])
            raise NonFiniteError(
                f"the teacher's logits for {self.views.images.describe(sample)} under seed {seed} are not finite; "
                "nothing of this shard was committed; try --precision float32, or check the weights"
            )
        first = int(samples[0])
        shard = self.spec.layout.shard_of(first)
        buffer = self._open.setdefault((shard, seed), _Buffer(self._empty(shard)))
        at = first - self.spec.layout.samples_of(shard).start
        here = slice(at, at + len(samples))
        bad = ~valid.numpy()
        for name, part in parts.items():
            buffer.arrays[name][here] = part.numpy()
            buffer.arrays[name][here][bad] = 0  # not what the teacher says of a blank picture
        buffer.arrays["top"][here][bad] = np.nan
        for position, canary in enumerate(self.spec.layout.canary_samples(shard)):
            if 0 <= (row := canary - first) < len(samples) and valid[row]:
                buffer.arrays["canary"][0, position] = digest(views[row])
        buffer.filled += len(samples)
        if buffer.filled == len(self.spec.layout.samples_of(shard)):
            del self._open[shard, seed]
            self._wait(1)
            self._writing.append(self._thread.submit(self._write, seed, shard, buffer.arrays))

    def _write(self, seed: int, shard: int, arrays: Mapping[str, npt.NDArray[Any]]) -> Receipt:
        commit = self.writers[seed].settle(shard, arrays)
        return receipt(self.spec, self.views.images, seed, shard, commit, arrays)

    def _wait(self, most: int) -> None:
        while len(self._writing) > most:
            self.receipts.append(self._writing.popleft().result())

    def _empty(self, shard: int) -> dict[str, npt.NDArray[Any]]:
        rows = len(self.spec.layout.samples_of(shard))
        dtypes = {"ids": np.int32, "canary": np.uint32}
        return {
            a.name: np.zeros(
                (rows if a.dimensions[0] == "sample" else 1, *a.shape[1:]), dtypes.get(a.name, np.float32)
            )
            for a in self.spec.arrays()
        }
