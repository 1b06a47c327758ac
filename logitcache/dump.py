"""Stage one: every view once through the teacher, its compressed logits into the cache, shard by shard.

Views come from DataLoader workers, logits are compressed on the device, pieces travel back asynchronously, and
a writer thread commits whole shards, so that the accelerator waits for nobody. Batches are cut inside a shard
and a seed's batches are the same whichever other seeds share the pass: what a shard holds does not depend on
where a run started or stopped.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.datasets import Images
from logitcache.errors import BusyError, MismatchError, NonFiniteError, OptionError
from logitcache.forward import ViewModel, choose_device, choose_precision
from logitcache.loader import (
    KeyedViews,
    OnBadImage,
    Pair,
    ViewBatch,
    deaths_named,
    loaded,
    view_loader,
)
from logitcache.models import Model
from logitcache.order import in_cache_order
from logitcache.replay import prove_replay
from logitcache.schema import DATA, CacheSpec, RecipeSpec, Spec, TeacherSpec
from logitcache.sparse import SparseTeacher
from logitcache.store import CacheReader, CacheWriter, SeedWriter
from logitcache.views import digest, library_versions

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DumpConfig(Spec):
    """How stage one runs. What identifies the cache is k, profile, precision; the rest is only speed.

    Attributes:
        seeds: augmentation seeds to dump.
        top_k: logits to keep per view; capped at the class count.
        profile: "default", "compact", "archive" or "exact".
        batch_size: views per forward; 0 takes 64 on the CPU and 256 on CUDA.
        precision: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda", "cuda:N".
        workers: processes that make views, one by one; −1: as fits, 0: none (see `loader.view_loader`).
        seeds_per_pass: seeds that share one decoding of each image.
        on_bad_image: "error" stops; "skip" marks the sample as one without a teacher.
        shard_samples: samples per shard; 0 fits it to the data set, or takes that of the cache.
        start_method: of the workers; None takes the platform's.
        grow: append images that the cache has not yet; without, data that has grown is refused.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    top_k: int = 16
    profile: str = "default"
    batch_size: int = 0
    precision: str = "auto"
    device: str = "auto"
    workers: int = -1
    seeds_per_pass: int = 1
    on_bad_image: OnBadImage = "error"
    shard_samples: int = 0
    start_method: str | None = None
    grow: bool = False


@dataclass(frozen=True)
class DumpReport(Spec):
    """What a dump did: its seeds and those left to other processes, views made now and in all, how fast."""

    path: str
    seeds: tuple[int, ...]
    skipped: tuple[int, ...]
    views: int
    views_in_cache: int
    shards_written: int
    bad_images: int
    seconds: float
    views_per_second: float


@deaths_named()
def dump(
    out: str | Path,
    images: Images,
    recipe: RecipeSpec,
    teacher: Model,
    config: DumpConfig,
    on_progress: Progress | None = None,
    *,
    on_busy: Callable[[str], None] | None = None,
    only: Mapping[int, Collection[int]] | None = None,
) -> DumpReport:
    """Fill a cache with the teacher's answers; started again, go on at the first missing shard.

    Seeds that another process writes are left to it, as long as there are others to dump.

    Args:
        out: path of the cache.
        images: what to view.
        recipe: how to view it.
        teacher: whose logits to keep.
        config: seeds, k, profile, speed.
        on_progress: called with (views done, views to do) after every batch.
        on_busy: called with a line that names the seeds left out, and their owner.
        only: shards to fill, by seed; all that are missing when None.

    Raises:
        MismatchError: there is another cache at `out`.
        DriftError: the views made here are not those of the shards already there, of whatever seed.
        BusyError: other processes write all of the seeds.
        DataError: an image does not decode (or, going on, no longer does).
        NonFiniteError: the teacher gave NaN or infinity.
        StorageError: the disk said no.
        LogitCacheError: a worker died.
    """
    device = choose_device(config.device)
    batch_size = config.batch_size or (256 if device.type == "cuda" else 64)
    seeds_fit = config.seeds and 0 <= min(config.seeds) <= max(config.seeds) < 1 << 63
    if batch_size < 1 or config.seeds_per_pass < 1 or not seeds_fit:
        raise OptionError(
            "batch size and seeds per pass must be at least 1, seeds 0 to 2^63 - 1; found "
            f"{config.batch_size}, {config.seeds_per_pass}, {list(config.seeds)}"
        )
    images, spec = _arranged(out, images, cache_spec(images, recipe, teacher, config), config)
    writer = CacheWriter.open(out, spec, images.keys(), grow=config.grow)
    spec = writer.spec
    views = KeyedViews(images, recipe, config.on_bad_image)
    started = time.perf_counter()
    with ExitStack() as stack:
        seeds, skipped = _own(writer, config.seeds, stack, on_busy)
        passes = _passes(list(seeds), config.seeds_per_pass)
        work = [missing for part in passes for missing in _missing(spec, seeds, part, only)]
        reader = CacheReader(out)
        prove_replay(reader, views, [s for s in reader.seeds() if reader.commits(s).any()])
        model = ViewModel(teacher, choose_precision(config.precision, device)).on(device).eval()
        loader = view_loader(
            views,
            _Batches(spec, work, batch_size),
            workers=config.workers if work else 0,
            device=device,
            start_method=config.start_method,
        )
        filler = stack.enter_context(_Filler(spec, seeds, images))
        total = sum(len(spec.shard_range(w.shard)) * len(w.seeds) for w in work)
        done = 0
        in_flight: deque[_Answered] = deque()
        for made in loaded(loader):
            in_flight.append(_answer(model, made, spec.k, device))
            done += len(made.samples)
            if len(in_flight) > 2:
                filler.take(in_flight.popleft())
            if on_progress:
                on_progress(done, total)
        for answered in in_flight:
            filler.take(answered)
    writer.index()
    seconds = time.perf_counter() - started
    in_cache = sum(len(spec.shard_range(int(j))) for s in seeds for j in np.flatnonzero(reader.commits(s)))
    return DumpReport(
        path=str(out),
        seeds=tuple(seeds),
        skipped=skipped,
        views=done,
        views_in_cache=in_cache,
        shards_written=filler.written,
        bad_images=filler.bad_images,
        seconds=seconds,
        views_per_second=done / seconds,
    )


def cache_spec(images: Images, recipe: RecipeSpec, teacher: Model, config: DumpConfig) -> CacheSpec:
    """Return what identifies the cache that such a dump makes."""
    return CacheSpec.new(
        TeacherSpec(
            name=teacher.name,
            weights=teacher.weights,
            weights_sha256=teacher.weights_sha256,
            precision=choose_precision(config.precision, choose_device(config.device)),
            adapter=teacher.adapter,
        ),
        images.spec(teacher.num_classes),
        recipe,
        k=config.top_k,
        profile=config.profile,
        versions=library_versions(),
        shard_samples=config.shard_samples or None,
    )


def _arranged(
    out: str | Path, images: Images, asked: CacheSpec, config: DumpConfig
) -> tuple[Images, CacheSpec]:
    """Put images into the order of the cache at `out`, if there is one; return them and what they make of it."""
    reader = CacheWriter.there(out)
    if reader is None:
        return images, asked
    there = reader.spec
    if not config.shard_samples:
        asked = dataclasses.replace(
            asked, shard_samples=there.shard_samples, chunk_samples=there.chunk_samples
        )
    fields = asked.differences(there)
    if not fields or any(f.field not in DATA for f in fields):
        return images, asked  # this cache; or another one, as `CacheWriter.open` will say
    ordered = in_cache_order(reader, images, grow=config.grow)
    if ordered.left_out:
        raise MismatchError(
            f"{out} holds {there.dataset.n:,} of these {len(images):,} images",
            fields,
            f"give --grow to append the other {ordered.left_out:,}, or another --out to begin a new cache",
        )
    return ordered, there.grown(ordered.spec(there.dataset.num_classes))


# What is to be done ---------------------------------------------------------------------------------------


class _Work(NamedTuple):
    """One shard, and the seeds of one pass that lack it."""

    shard: int
    seeds: tuple[int, ...]


def _passes(seeds: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(seeds), size):
        yield seeds[start : start + size]


def _own(
    writer: CacheWriter, seeds: Sequence[int], stack: ExitStack, on_busy: Callable[[str], None] | None
) -> tuple[dict[int, SeedWriter], tuple[int, ...]]:
    """Own those of the seeds that no other process writes; returns them, and the others."""
    owned: dict[int, SeedWriter] = {}
    busy: dict[int, BusyError] = {}
    for seed in dict.fromkeys(seeds):
        try:
            owned[seed] = stack.enter_context(writer.seed(seed))
        except BusyError as error:
            busy[seed] = error
    if busy and not owned:
        raise next(iter(busy.values()))
    for refusal in busy.values():
        if on_busy:
            on_busy(f"left out: {refusal}")
    return owned, tuple(busy)


def _missing(
    spec: CacheSpec,
    writers: dict[int, SeedWriter],
    seeds: list[int],
    only: Mapping[int, Collection[int]] | None,
) -> list[_Work]:
    def wanted(seed: int, shard: int) -> bool:
        return not committed[seed][shard] and (only is None or shard in only.get(seed, ()))

    committed = {seed: writers[seed].committed() for seed in seeds}
    work = (_Work(j, tuple(s for s in seeds if wanted(s, j))) for j in range(spec.shards))
    return [w for w in work if w.seeds]


class _Batches:
    """Pairs of each forward: up to `batch_size` samples of one shard, each under every seed of the pass."""

    def __init__(self, spec: CacheSpec, work: list[_Work], batch_size: int) -> None:
        self.spec, self.work, self.batch_size = spec, work, batch_size

    def __iter__(self) -> Iterator[list[Pair]]:
        for shard, seeds in self.work:
            samples = self.spec.shard_range(shard)
            for start in range(0, len(samples), self.batch_size):
                yield [(i, seed) for i in samples[start : start + self.batch_size] for seed in seeds]

    def __len__(self) -> int:
        return sum(-(-len(self.spec.shard_range(w.shard)) // self.batch_size) for w in self.work)


# The teacher's answers ------------------------------------------------------------------------------------


class _Answered(NamedTuple):
    """One batch on its way back: pieces by seed, on the host once `ready` has happened."""

    batch: ViewBatch
    pieces: dict[int, dict[str, Tensor]]
    ready: torch.cuda.Event | None


@torch.inference_mode()
def _answer(model: ViewModel, batch: ViewBatch, k: int, device: torch.device) -> _Answered:
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
        ready.record()
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
class _Filler:
    """Gathers answers into shards and has a thread write each as it fills; one shard waits at most."""

    spec: CacheSpec
    writers: dict[int, SeedWriter]
    images: Images
    written: int = 0
    _bad: set[int] = field(default_factory=set)
    _open: dict[tuple[int, int], _Buffer] = field(default_factory=dict)
    _writing: deque[Future[None]] = field(default_factory=deque)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "writer"))

    @property
    def bad_images(self) -> int:
        return len(self._bad)

    def __enter__(self) -> "_Filler":
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
                f"the teacher's logits for {self.images.describe(sample)} under seed {seed} are not finite; "
                "nothing of this shard was committed; try --precision float32, or check the weights"
            )
        first = int(samples[0])
        shard = self.spec.shard_of(first)
        buffer = self._open.setdefault((shard, seed), _Buffer(self._empty(shard)))
        at = first - self.spec.shard_range(shard).start
        here = slice(at, at + len(samples))
        bad = ~valid.numpy()
        for name, part in parts.items():
            buffer.arrays[name][here] = part.numpy()
            buffer.arrays[name][here][bad] = 0  # not what the teacher says of a blank picture
        buffer.arrays["top"][here][bad] = np.nan
        self._bad.update(samples[~valid].tolist())
        for position, canary in enumerate(self.spec.canary_samples(shard)):
            if 0 <= (row := canary - first) < len(samples) and valid[row]:
                buffer.arrays["canary"][0, position] = digest(views[row])
        buffer.filled += len(samples)
        if buffer.filled == len(self.spec.shard_range(shard)):
            del self._open[shard, seed]
            self._wait(1)
            self._writing.append(self._thread.submit(self.writers[seed].write, shard, buffer.arrays))

    def _wait(self, most: int) -> None:
        while len(self._writing) > most:
            self._writing.popleft().result()
            self.written += 1

    def _empty(self, shard: int) -> dict[str, npt.NDArray[Any]]:
        rows = len(self.spec.shard_range(shard))
        dtypes = {"ids": np.int32, "canary": np.uint32}
        return {
            a.name: np.zeros(
                (rows if a.dimensions[0] == "sample" else 1, *a.shape[1:]), dtypes.get(a.name, np.float32)
            )
            for a in self.spec.arrays()
        }
