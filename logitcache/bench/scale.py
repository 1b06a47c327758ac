"""How the cost of a view changes as samples, seeds and k grow; each row of points is measured in its own process.

One block of logits is made up, and comes again where a cache has more samples: in other shards, which no compressor
sees side by side. What ImageNet-21k under 300 seeds would cost is extrapolated from the points, by formulas that are
printed.
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
from typing import NamedTuple

import numpy as np

from logitcache.audit.verify import verify_cache
from logitcache.bench.fixtures import FIELDS, Arrays, join_arrays, shard_arrays, synthetic_spec
from logitcache.bench.memory import anonymous_mb, memory_is_known, peak_of
from logitcache.bench.sizes import disk_usage
from logitcache.bench.synthetic import SyntheticLogits
from logitcache.bench.table import brief
from logitcache.errors import OptionError, StorageError
from logitcache.format.class_statistics import ClassStatistics
from logitcache.format.schema import SHARD_SAMPLES, CacheSpec, RowLayout
from logitcache.format.spec import Spec
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.place import CLASS_STATISTICS
from logitcache.teacher.completion import fit_statistics
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import open_spool

LEAST, MOST = 10_000, 10_000_000  # samples
SEEDS = (1, 10, 100, 300)
MANY_SEEDS = 100  # so many are measured once, whatever the rounds
KS = (4, 8, 16, 64, 200)
K, CLASSES = 8, 1000
BLOCK = SHARD_SAMPLES  # views of made-up logits
SEEDS_SAMPLES, K_SAMPLES = 8192, 65_536  # samples of the points by seeds and by k
IMAGES_21K, CLASSES_21K, SEEDS_21K = 14_197_122, 21_841, 300
SAMPLES_21K = 16_384  # of the point with as many classes
SEEN = 1024  # views that the class statistics are of


@dataclass(frozen=True)
class Point(Spec):
    """What one cache cost.

    Attributes:
        grows: what the points beside it differ in.
        samples, seeds, k, classes: of the cache.
        shards: of each seed.
        write, decode, verify: microseconds per view; verify on as many threads as there are cores.
        open_ms: to open the cache and list its seeds.
        bytes_per_view: of all its files but the class statistics, which are there once.
        statistics_bytes: of these.
        files: how many.
        peak_mb: the most by which anonymous memory rose since the process began that makes the points of this row;
            None where it is not known.
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
    statistics_bytes: int
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
    """A figure that was extrapolated, and how."""

    of: str
    formula: str
    value: str

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        return {"of": self.of, "by": self.formula, "comes to": self.value}


@dataclass(frozen=True)
class ScaleReport(Spec):
    """The points, and what they say of a cache that was not made here."""

    points: tuple[Point, ...]
    estimates: tuple[Estimate, ...]

    def along(self, grows: str) -> list[Point]:
        """Return the points that differ in one thing: samples, seeds, k or classes."""
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
        points = tuple(_measure_rows(Path(name), n, rounds))
    return ScaleReport(points, tuple(_extrapolate(points)))


def _measure_rows(work: Path, n: int, rounds: int) -> Iterator[Point]:
    (block,) = _make_blocks(work, SyntheticLogits(min(BLOCK, max(n, SEEDS_SAMPLES))), [K])
    specs = [synthetic_spec(samples, CLASSES, K) for samples in _samples(n)]
    yield from measure_in_process([Trial("samples", block, spec, 1, rounds) for spec in specs])
    spec = synthetic_spec(SEEDS_SAMPLES, CLASSES, K, shard_samples=SEEDS_SAMPLES)
    yield from measure_in_process(
        [Trial("seeds", block, spec, seeds, rounds if seeds < MANY_SEEDS else 1) for seeds in SEEDS]
    )
    blocks = _make_blocks(work, SyntheticLogits(K_SAMPLES), KS)
    specs = [synthetic_spec(K_SAMPLES, CLASSES, k, shard_samples=K_SAMPLES) for k in KS]
    logits_21k = SyntheticLogits(SAMPLES_21K, num_classes=CLASSES_21K, images=IMAGES_21K)
    (block_21k,) = _make_blocks(work, logits_21k, [K])
    spec_21k = synthetic_spec(SAMPLES_21K, CLASSES_21K, K, shard_samples=SAMPLES_21K)
    yield from measure_in_process(
        [
            *(Trial("k", block, spec, 1, rounds) for block, spec in zip(blocks, specs, strict=True)),
            Trial("classes", block_21k, spec_21k, 1, rounds),
        ]
    )


def _samples(n: int) -> list[int]:
    powers = [LEAST * 10**e for e in range(12)]
    return [*(power for power in powers if power < n), n]


class Block(NamedTuple):
    """Made-up answers: a folder with the arrays of a cache of them, and how the classes vary together."""

    folder: Path
    statistics: ClassStatistics


def _make_blocks(work: Path, logits: SyntheticLogits, ks: Sequence[int]) -> list[Block]:
    """Make logits up, and save the arrays of a cache of them for every k."""
    parts: list[list[SparseTeacher]] = [[] for _ in ks]
    statistics = fit_statistics(next(logits.blocks())[:SEEN])
    for block in logits.blocks():
        for k, part in zip(ks, parts, strict=True):
            part.append(SparseTeacher.from_logits(block, k))
    blocks = []
    for k, part in zip(ks, parts, strict=True):
        blocks.append(Block(work / f"logits-{logits.num_classes}-{logits.n}-{k}", statistics))
        blocks[-1].folder.mkdir()
        for name, values in join_arrays(part).items():
            np.save(blocks[-1].folder / f"{name}.npy", values)
    return blocks


# One row of points ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A cache to write, decode and verify: of made-up answers, under so many seeds, so many times."""

    grows: str
    block: Block
    spec: CacheSpec
    seeds: int
    rounds: int

    @property
    def views(self) -> int:
        """Of all seeds."""
        return self.spec.dataset.n * self.seeds


def measure_in_process(trials: Sequence[Trial]) -> list[Point]:
    """Measure a row of points in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure_row, trials).result()


def measure_row(trials: Sequence[Trial]) -> list[Point]:
    """Measure a row of points in this process."""
    before = anonymous_mb() if memory_is_known() else 0.0
    return [_measure_point(trial, before) for trial in trials]


def _measure_point(trial: Trial, before: float) -> Point:
    """Write, open, decode and verify a cache, and watch memory, which was `before` MB when the process began."""
    arrays = {name: np.load(trial.block.folder / f"{name}.npy", mmap_mode="r") for name in FIELDS}
    times: dict[str, list[float]] = {"write": [], "open": [], "decode": [], "verify": []}
    path, spool = trial.block.folder.parent / "c.zarr", trial.block.folder.parent / "spool"

    def run_rounds() -> None:
        for _ in range(trial.rounds):
            shutil.rmtree(path, ignore_errors=True)
            for name, step in _steps(trial, arrays, path, spool).items():
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
            shutil.rmtree(spool)

    peak = None
    if memory_is_known():
        risen = anonymous_mb() - before
        peak = risen + peak_of(run_rounds)
    else:
        run_rounds()
    once = disk_usage(path / CLASS_STATISTICS)[0]
    size, files = disk_usage(path)[0] - once, sum(file.is_file() for file in path.rglob("*"))
    shutil.rmtree(path)
    per_view = {name: 1e6 * median(seconds) / trial.views for name, seconds in times.items()}
    return Point(
        grows=trial.grows,
        samples=trial.spec.dataset.n,
        seeds=trial.seeds,
        k=trial.spec.k,
        classes=trial.spec.dataset.num_classes,
        shards=trial.spec.layout.shards,
        write=per_view["write"],
        decode=per_view["decode"],
        verify=per_view["verify"],
        open_ms=1e3 * median(times["open"]),
        bytes_per_view=size / trial.views,
        statistics_bytes=once,
        files=files,
        peak_mb=peak,
    )


def _steps(trial: Trial, arrays: Arrays, path: Path, spool: Path) -> dict[str, Callable[[], object]]:
    def write() -> None:
        writer = CacheWriter.open(path, trial.spec, statistics=trial.block.statistics)
        for seed in range(trial.seeds):
            with writer.seed(seed) as seed_writer:
                for shard in range(trial.spec.layout.shards):
                    seed_writer.write(shard, shard_arrays(arrays, trial.spec, shard))

    def decode() -> None:
        reader = CacheReader(path)
        for seed in range(trial.seeds):
            open_spool(reader, seed, spool, limit=0)  # the one before makes room

    def check() -> None:
        report = verify_cache(CacheReader(path))
        if not report.clean:
            raise StorageError(
                f"{path}: expected the cache just written, found it damaged: {report.problems[0]}"
            )

    return {"write": write, "open": lambda: CacheReader(path).seeds(), "decode": decode, "verify": check}


# What is not measured -------------------------------------------------------------------------------------


def _extrapolate(points: Sequence[Point]) -> Iterator[Estimate]:
    """Estimate ImageNet-21k under 300 seeds from the largest point and that of as many classes."""
    by_samples, by_seeds = ([p for p in points if p.grows == grows] for grows in ("samples", "seeds"))
    (of_21k,) = (p for p in points if p.grows == "classes")
    large, spec = by_samples[-1], synthetic_spec(IMAGES_21K, CLASSES_21K, K)
    views = IMAGES_21K * SEEDS_21K
    per_shard = _slope([(p.shards, p.files) for p in by_samples])
    per_seed = _slope([(p.seeds, p.files) for p in by_seeds])
    files = SEEDS_21K * (per_seed + per_shard * (spec.layout.shards - 1))
    row = RowLayout.of(spec).row_bytes
    yield Estimate("views", f"{IMAGES_21K:,} images × {SEEDS_21K} seeds", f"{views / 1e9:.2f} · 10⁹")
    size = views * of_21k.bytes_per_view
    yield Estimate(
        "bytes", f"views × {of_21k.bytes_per_view:.1f} (C = {CLASSES_21K:,})", f"{size / 1e9:,.0f} GB"
    )
    once = of_21k.statistics_bytes
    yield Estimate("class statistics", f"as measured, C = {CLASSES_21K:,}", f"{once / 1e6:.0f} MB")
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
    """Return by how much the second number rises with the first."""
    (x0, y0), (x1, y1) = min(points), max(points)
    return (y1 - y0) / (x1 - x0)
