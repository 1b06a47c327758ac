"""How cost grows with samples, seeds and k, told per view; each row of points is measured in a process of its own.

Answers are made up once, a block of them, and come again where a cache has more samples: whole shards, which no
compressor sees side by side. What ImageNet-21k under 300 seeds would cost is extrapolated from the points, by
formulas that are printed.
"""

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from logitcache.audit.verify import verify
from logitcache.bench.fixtures import FIELDS, Arrays, cache_spec, joined, shard_of
from logitcache.bench.memory import anonymous, told, watched
from logitcache.bench.sizes import on_disk
from logitcache.bench.speeds import brief
from logitcache.bench.synthetic import MadeUp
from logitcache.errors import OptionError, StorageError
from logitcache.format.schema import SHARD_SAMPLES, CacheSpec, RowLayout
from logitcache.format.spec import Spec
from logitcache.store import CacheReader, CacheWriter
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import open_spool

LEAST, MOST = 10_000, 10_000_000  # samples
SEEDS, ENOUGH = (1, 10, 100, 300), 100
KS = (4, 16, 64, 200)
K, CLASSES = 16, 1000
BLOCK = SHARD_SAMPLES  # answers made up
OF_SEEDS, OF_K = 8192, 65_536  # samples of the points by seeds and by k
IMAGES_21K, CLASSES_21K, SEEDS_21K = 14_197_122, 21_841, 300
OF_21K = 16_384  # samples of the point with as many classes


@dataclass(frozen=True)
class Point(Spec):
    """What one cache cost.

    Attributes:
        grows: what the points beside it differ in.
        samples, seeds, k, classes: of the cache.
        shards: of each seed.
        write, decode, verify: microseconds per view; verify on as many threads as there are cores.
        open_ms: to open the cache and list its seeds.
        bytes_per_view: of all its files.
        files: how many.
        peak_mb: rise of anonymous memory, at its highest, since the process began that made all points of a row up to
            this one; None where no one tells.
    """

    grows: str
    samples: int
    seeds: int
    k: int
    classes: int
    shards: int
    write: float
    decode: float
    verify: float
    open_ms: float
    bytes_per_view: float
    files: int
    peak_mb: float | None

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        return {
            "samples": f"{self.samples:,}",
            "seeds": f"{self.seeds}",
            "k": f"{self.k}",
            "C": f"{self.classes}",
            "write": brief(self.write),
            "decode": brief(self.decode),
            "verify": brief(self.verify),
            "open": brief(self.open_ms),
            "bytes": f"{self.bytes_per_view:.1f}",
            "files": f"{self.files:,}",
            "MB": "" if self.peak_mb is None else f"{self.peak_mb:.0f}",
        }


@dataclass(frozen=True)
class Estimate(Spec):
    """Something extrapolated, and how."""

    of: str
    formula: str
    value: str

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        return {"of": self.of, "by": self.formula, "comes to": self.value}


@dataclass(frozen=True)
class ScaleReport(Spec):
    """The points, and what they say of a cache that nobody made here."""

    points: tuple[Point, ...]
    estimates: tuple[Estimate, ...]

    def along(self, grows: str) -> list[Point]:
        """Return the points that differ in something."""
        return [point for point in self.points if point.grows == grows]


def measure(*, n: int = MOST, rounds: int = 3, folder: Path | None = None) -> ScaleReport:
    """Measure caches of growing numbers of samples, seeds and k.

    Args:
        n: samples of the largest, at least 100,000; the others are powers of ten from 10,000 on.
        rounds: how often each is written, decoded and verified; medians count. Hundreds of seeds are rounds enough.
        folder: where to write, on the disk to be measured; the system's temporary folder by default.

    Raises:
        OptionError: `n` is too small to see growth.
        StorageError: the disk said no, or gave back something other than was written.
    """
    if n < 10 * LEAST:
        raise OptionError(f"n must be at least {10 * LEAST:,} samples, found {n:,}")
    with tempfile.TemporaryDirectory(dir=folder, prefix="logitcache-scale-") as name:
        points = tuple(_points(Path(name), n, rounds))
    return ScaleReport(points, tuple(_extrapolated(points)))


def _points(work: Path, n: int, rounds: int) -> Iterator[Point]:
    (block,) = _block(work, MadeUp(min(BLOCK, max(n, OF_SEEDS))), [K])
    yield from apart(
        [Task("samples", block, cache_spec(samples, CLASSES, K), 1, rounds) for samples in _samples(n)]
    )
    spec = cache_spec(OF_SEEDS, CLASSES, K, shard_samples=OF_SEEDS)
    yield from apart([Task("seeds", block, spec, seeds, rounds if seeds < ENOUGH else 1) for seeds in SEEDS])
    blocks = _block(work, MadeUp(OF_K), KS)
    specs = [cache_spec(OF_K, CLASSES, k, shard_samples=OF_K) for k in KS]
    (many,) = _block(work, MadeUp(OF_21K, num_classes=CLASSES_21K, images=IMAGES_21K), [K])
    of_21k = cache_spec(OF_21K, CLASSES_21K, K, shard_samples=OF_21K)
    yield from apart(
        [
            *(Task("k", of_k, spec, 1, rounds) for of_k, spec in zip(blocks, specs, strict=True)),
            Task("classes", many, of_21k, 1, rounds),
        ]
    )


def _samples(n: int) -> list[int]:
    powers = [LEAST * 10**e for e in range(12)]
    return [*(power for power in powers if power < n), n]


def _block(work: Path, said: MadeUp, ks: Sequence[int]) -> list[Path]:
    """Make answers up, and keep k of each on disk, for every k; return where."""
    parts: list[list[SparseTeacher]] = [[] for _ in ks]
    for block in said.blocks():
        for k, part in zip(ks, parts, strict=True):
            part.append(SparseTeacher.from_logits(block, k))
    paths = []
    for k, part in zip(ks, parts, strict=True):
        paths.append(work / f"answers-{said.num_classes}-{said.n}-{k}")
        paths[-1].mkdir()
        for name, values in joined(part).items():
            np.save(paths[-1] / f"{name}.npy", values)
    return paths


# One row of points ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A cache to make of the answers in a folder, under so many seeds, so many times."""

    grows: str
    answers: Path
    spec: CacheSpec
    seeds: int
    rounds: int

    @property
    def views(self) -> int:
        """Of all seeds."""
        return self.spec.dataset.n * self.seeds


def apart(tasks: Sequence[Task]) -> list[Point]:
    """Measure a row of points in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(series, tasks).result()


def series(tasks: Sequence[Task]) -> list[Point]:
    """Measure a row of points in this process."""
    before = anonymous() if told() else 0.0
    return [_measured(task, before) for task in tasks]


def _measured(task: Task, before: float) -> Point:
    """Write, open, decode and verify a cache, and watch memory meanwhile, which was so much before."""
    answers = {name: np.load(task.answers / f"{name}.npy", mmap_mode="r") for name in FIELDS}
    times: dict[str, list[float]] = {"write": [], "open": [], "decode": [], "verify": []}
    path, spool = task.answers.parent / "c.zarr", task.answers.parent / "spool"

    def all_rounds() -> None:
        for _ in range(task.rounds):
            shutil.rmtree(path, ignore_errors=True)
            for name, step in _steps(task, answers, path, spool).items():
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
            shutil.rmtree(spool)

    peak = None
    if told():
        held = anonymous() - before
        peak = held + watched(all_rounds)
    else:
        all_rounds()
    size, files = on_disk(path)[0], sum(file.is_file() for file in path.rglob("*"))
    shutil.rmtree(path)
    write, decode, check = (1e6 * median(times[name]) / task.views for name in ("write", "decode", "verify"))
    about = (
        task.spec.dataset.n,
        task.seeds,
        task.spec.k,
        task.spec.dataset.num_classes,
        task.spec.layout.shards,
    )
    opened = 1e3 * median(times["open"])
    return Point(task.grows, *about, write, decode, check, opened, size / task.views, files, peak)


def _steps(task: Task, answers: Arrays, path: Path, spool: Path) -> dict[str, Callable[[], object]]:
    def write() -> None:
        writer = CacheWriter.open(path, task.spec)
        for seed in range(task.seeds):
            with writer.seed(seed) as own:
                for shard in range(task.spec.layout.shards):
                    own.write(shard, shard_of(answers, task.spec, shard))

    def decode() -> None:
        reader = CacheReader(path)
        for seed in range(task.seeds):
            open_spool(reader, seed, spool, limit=0)  # the one before makes room

    def check() -> None:
        found = verify(CacheReader(path))
        if not found.clean:
            raise StorageError(
                f"{path}: expected the cache just written, found it damaged: {found.problems[0]}"
            )

    return {"write": write, "open": lambda: CacheReader(path).seeds(), "decode": decode, "verify": check}


# What nobody measured -------------------------------------------------------------------------------------


def _extrapolated(points: Sequence[Point]) -> Iterator[Estimate]:
    """Say what ImageNet-21k under 300 seeds would cost, by the largest point and that of its number of classes."""
    by_samples, by_seeds = ([p for p in points if p.grows == grows] for grows in ("samples", "seeds"))
    (many,) = (p for p in points if p.grows == "classes")
    large, spec = by_samples[-1], cache_spec(IMAGES_21K, CLASSES_21K, K)
    views = IMAGES_21K * SEEDS_21K
    per_shard = _slope([(p.shards, p.files) for p in by_samples])
    per_seed = _slope([(p.seeds, p.files) for p in by_seeds])
    files = SEEDS_21K * (per_seed + per_shard * (spec.layout.shards - 1))
    row = RowLayout.of(spec).row_bytes
    yield Estimate("views", f"{IMAGES_21K:,} images × {SEEDS_21K} seeds", f"{views / 1e9:.2f} · 10⁹")
    size = views * many.bytes_per_view
    yield Estimate(
        "bytes", f"views × {many.bytes_per_view:.1f} (C = {CLASSES_21K:,})", f"{size / 1e9:,.0f} GB"
    )
    of_seed = f"{per_seed:.0f} + {per_shard:.0f} × ({spec.layout.shards} shards − 1)"
    yield Estimate("files", f"seeds × ({of_seed})", f"{files:,.0f}")
    at = f"(at {large.samples:,} samples)"
    hours = views * large.write / 3.6e9
    yield Estimate("writing, all seeds", f"views × {large.write:.2f} µs {at}", f"{hours:.1f} h")
    seconds = IMAGES_21K * large.decode / 1e6
    yield Estimate("decoding, an epoch", f"images × {large.decode:.3f} µs {at}", f"{seconds:.1f} s")
    hours = views * large.verify / 3.6e9
    yield Estimate("verifying, all", f"views × {large.verify:.3f} µs {at}", f"{hours:.1f} h")
    yield Estimate("spool, an epoch", f"images × {row} bytes", f"{IMAGES_21K * row / 1e9:.2f} GB")


def _slope(points: Sequence[tuple[int, int]]) -> float:
    """Say by how much the second number rises with the first."""
    (x0, y0), (x1, y1) = min(points), max(points)
    return (y1 - y0) / (x1 - x0)
