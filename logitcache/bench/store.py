"""What a cache costs on disk, what it keeps of the teacher, and how fast it is written, decoded and looked up.

Everything is measured on files that the library writes, of one set of answers; speeds are ratios to plain
alternatives, timed in turns within a round, so that both share the machine's load.
"""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.bench.answers import BLOCK, Answers, answers
from logitcache.bench.memory import Peak, peaks
from logitcache.bench.records import (
    alternatives,
    copy_file,
    divergence,
    sparse_log_probs,
    tinyvit_log_probs,
    true_log_probs,
)
from logitcache.schema import (
    PROFILES,
    SHARD_SAMPLES,
    AdapterSpec,
    CacheSpec,
    DatasetSpec,
    RecipeSpec,
    RowLayout,
    Spec,
    TeacherSpec,
)
from logitcache.sparse import SparseTeacher
from logitcache.spool import open_spool, pack
from logitcache.store import CacheReader, CacheWriter
from logitcache.stream import CachedTeacher

Arrays = dict[str, npt.NDArray[Any]]
TEMPERATURES = (1.0, 2.0, 4.0)
SAMPLED = 16  # blocks of answers, evenly spaced, are kept whole, to compare distributions with
SEEDS = 300
VIEWS = 2 * SHARD_SAMPLES
BATCH = 1024
WANTED_BYTES = {"default": 48.0, "compact": 33.0, "archive": 38.0}
WANTED_KL = {"default": 1e-6, "compact": 1e-4, "archive": 1e-6}
WANTED_SPEEDS = {"seek + read": "≥ 50", "LMDB": "≥ 20", "memmap.take": "≥ ⅓"}


@dataclass(frozen=True)
class Size(Spec):
    """One kind of record: bytes per view on disk, and mean KL of the teacher from what it tells, at T = 1, 2, 4.

    `kl` is over the k listed classes and all others as one; `cut` is the part of it that is due to k < C, not to
    rounding.
    """

    record: str
    order: str
    bytes_per_view: float
    of_tinyvit: float
    kl: tuple[float, ...]
    cut: tuple[float, ...]
    wanted_bytes: float | None
    wanted_kl: float | None

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        first, *others = (f"{value:.1e}" for value in self.kl)
        bytes_wanted, kl_wanted = (f" ≤ {x:g}" if x else "" for x in (self.wanted_bytes, self.wanted_kl))
        return {
            "record": self.record,
            "order": self.order,
            "B/view": f"{self.bytes_per_view:.1f}{bytes_wanted}",
            "ratio": f"{self.of_tinyvit:.2f}",
            "KL at T=1": f"{first}{kl_wanted}",
            **dict(zip((f"T={t:g}" for t in TEMPERATURES[1:]), others, strict=True)),
        }


@dataclass(frozen=True)
class Speed(Spec):
    """One comparison: medians in milliseconds, how many times as fast as the other (median and quartiles), the rate.

    `rate` is million views per second, and `cpu_rate` per second of one processor's work, which what other processes
    take away changes little.
    """

    what: str
    against: str
    ms: float
    ms_against: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rate: float | None
    cpu_rate: float | None
    wanted: str

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        low, middle, high = (_brief(x) for x in (self.ratio_low, self.ratio, self.ratio_high))
        cells = {
            "what": self.what,
            "against": self.against,
            "ms": _brief(self.ms),
            "times as fast": f"{middle} ({low}–{high})" if self.against else "",
            "M/s": "" if self.rate is None else _brief(self.rate),
            "/CPU": "" if self.cpu_rate is None else _brief(self.cpu_rate),
        }
        column = "M/s" if self.rate is not None else "times as fast" if self.against else "ms"
        return {**cells, column: f"{cells[column]} {self.wanted}".rstrip()}


def _brief(x: float) -> str:
    if x >= 99.5:
        return f"{x:.0f}"
    return f"{x:.2g}" if x >= 0.1 else f"{x:.2f}"


@dataclass(frozen=True)
class StoreReport(Spec):
    """What was measured, and on what: `views` answers of `about`, k of them kept."""

    about: str
    views: int
    k: int
    top1_probability: float
    tail_mass: float
    sizes: tuple[Size, ...]
    speeds: tuple[Speed, ...]
    peaks: tuple[Peak, ...]


def measure(
    *,
    n: int = VIEWS,
    k: int = 16,
    batch: int = BATCH,
    rounds: int = 20,
    logits: Path | None = None,
    folder: Path | None = None,
) -> StoreReport:
    """Write, decode and look up `n` views in every profile and alternative.

    Args:
        n: views, made up in the order of an image folder; as many again, at most a shard, are shuffled.
        k: logits kept.
        batch: random samples of one look-up.
        rounds: how often look-ups are timed; whole seeds are written and decoded a quarter as often (3 at least).
        logits: an .npz of a real teacher's logits, instead of made-up ones.
        folder: where to write, on the disk to be measured; the system's temporary folder by default.

    Raises:
        OptionError: `n` or `k` is out of range.
        NotFoundError, DataError: `logits` is no such file.
        StorageError: the disk said no.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        made = _Made.of(answers(n, "folder", logits), k)
        shuffled = _Made.of(answers(min(n, SHARD_SAMPLES), "shuffled", logits), k)
        work = Path(name)
        sizes = [*_sizes(work, made, "folder"), *_sizes(work, shuffled, "shuffled")]
        speeds = [
            *_whole_seeds(work, made, max(3, rounds // 4)),
            *_lookups(work, made, batch, rounds),
            _opening(work, rounds),
        ]
        about = made.about
        top1, tail = (float(x) for x in (made.top1_probability, made.tail_mass))
        return StoreReport(about, made.n, k, top1, tail, tuple(sizes), tuple(speeds), tuple(peaks(work)))


def write_cache(path: Path, n: int, k: int) -> None:
    """Write a cache of `n` made-up answers under seed 0."""
    _Made.of(answers(n, "folder"), k).write(path, "default")


# The answers, ready to be written -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """Answers as `SeedWriter.write` takes them, one dictionary per shard, and some of the logits they are of."""

    spec: CacheSpec
    about: str
    shards: list[Arrays]
    logits: Tensor
    rows: npt.NDArray[np.int64]
    top1_probability: float
    tail_mass: float

    @property
    def n(self) -> int:
        return self.spec.dataset.n

    @classmethod
    def of(cls, said: Answers, k: int) -> "_Made":
        spec = _spec(said.n, said.num_classes, k)
        parts: list[SparseTeacher] = []
        whole, rows, start = [], [], 0
        for number, block in enumerate(said.blocks()):
            parts.append(SparseTeacher.from_logits(block, spec.k))
            if number % max(1, said.n // BLOCK // SAMPLED) == 0:
                whole.append(block)
                rows.append(np.arange(start, start + len(block)))
            start += len(block)
        top1 = torch.cat([p.probs()[:, 0] for p in parts]).mean()
        tail = torch.cat([p.tail_mass() for p in parts]).mean()
        names = ("ids", "gap", "top", "tail_lse", "tail_mean", "tail_var")
        pieces = {name: [getattr(p, name) for p in parts] for name in names}
        arrays = {name: torch.cat(piece).numpy() for name, piece in pieces.items() if piece[0] is not None}
        arrays["ids"] = arrays["ids"].astype(np.int32)  # as `dump` hands them over
        shards = [
            {
                name: values[spec.shard_range(j).start : spec.shard_range(j).stop]
                for name, values in arrays.items()
            }
            | {"canary": np.ones((1, spec.canaries), np.uint32)}
            for j in range(spec.shards)
        ]
        logits, kept = torch.cat(whole), np.concatenate(rows)
        return cls(spec, said.about, shards, logits, kept, float(top1), float(tail))

    def write(self, path: Path, profile: str) -> None:
        """Write a cache of one seed."""
        spec = dataclasses.replace(self.spec, profile=PROFILES[profile])
        with CacheWriter.open(path, spec).seed(0) as own:
            for shard, arrays in enumerate(self.shards):
                own.write(shard, arrays)


def _spec(n: int, num_classes: int, k: int) -> CacheSpec:
    teacher = TeacherSpec("made-up", "none", "0" * 64, "float32", AdapterSpec(3, 224, (0.5,) * 3, (0.5,) * 3))
    data = DatasetSpec("made-up", "train", n, num_classes, "0" * 64)
    shard = min(n, SHARD_SAMPLES)
    return CacheSpec.new(teacher, data, RecipeSpec("none", 1, ()), k=k, versions={}, shard_samples=shard)


# Bytes, and what is kept ----------------------------------------------------------------------------------


def _sizes(work: Path, made: _Made, order: str) -> Iterator[Size]:
    if made.spec.tail_size == 0:
        return
    ids = SparseTeacher.from_logits(made.logits, made.spec.k).ids
    truth = [true_log_probs(made.logits, ids, t) for t in TEMPERATURES]
    unrounded = SparseTeacher.from_logits(made.logits.double(), made.spec.k)

    def kl(told: Callable[[float], Tensor]) -> tuple[float, ...]:
        pairs = zip(truth, TEMPERATURES, strict=True)
        return tuple(max(0.0, float(divergence(p, told(t)).mean())) for p, t in pairs)

    cut = kl(lambda t: sparse_log_probs(unrounded, t))
    tinyvit = 4.0 * made.spec.k + 4
    for profile, bytes_wanted in WANTED_BYTES.items():
        if not PROFILES[profile].installed:
            continue
        path = work / f"{profile}-{order}.zarr"
        made.write(path, profile)
        reader = CacheReader(path)
        layout = RowLayout.of(reader.spec)
        packed = np.concatenate(
            [
                pack(reader.spec, layout, reader.read(0, j))[
                    made.rows[_inside(reader.spec, j, made.rows)] - first
                ]
                for j, first in enumerate(range(0, made.n, reader.spec.shard_samples))
            ]
        )
        stored = SparseTeacher.unpack(torch.from_numpy(packed), layout)
        size = reader.info()["bytes_per_sample_view"]
        told = kl(lambda t, stored=stored: sparse_log_probs(stored, t))  # type: ignore[misc]
        yield Size(profile, order, size, size / tinyvit, told, cut, bytes_wanted, WANTED_KL[profile])
    if order == "folder":
        told = kl(lambda t: tinyvit_log_probs(made.logits, ids, t))
        yield Size("TinyViT's", "any", tinyvit, 1.0, told, told, None, None)


def _inside(spec: CacheSpec, shard: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    samples = spec.shard_range(shard)
    return np.asarray((rows >= samples.start) & (rows < samples.stop))


# Speeds ---------------------------------------------------------------------------------------------------


def _whole_seeds(work: Path, made: _Made, rounds: int) -> Iterator[Speed]:
    """Write a seed, decode it into a spool, and copy the same bytes plainly, in turns."""
    path, spools = work / "default-folder.zarr", work / "spool"
    reader = CacheReader(path)
    open_spool(reader, 0, spools)
    (packed,) = spools.glob("*.spool")
    fresh = work / "fresh"
    times = _in_turns(
        {
            "write": lambda: made.write(fresh / "c.zarr", "default"),
            "decode": lambda: open_spool(reader, 0, fresh),
            "copy": lambda: copy_file(packed, fresh / "copy", durable=False),
            "durable": lambda: copy_file(packed, fresh / "durable", durable=True),
        },
        rounds,
        before=lambda: shutil.rmtree(fresh, ignore_errors=True),
    )
    yield _speed("write", "durable copy", times["write"], times["durable"], "≥ 1.5", made.n)
    yield _speed("decode", "plain copy", times["decode"], times["copy"], "≥ 4", made.n)


def _lookups(work: Path, made: _Made, batch: int, rounds: int) -> Iterator[Speed]:
    """Look random samples up in the spool and in the same rows kept in other ways, in turns.

    Each look-up follows one of its own kind, for other samples: some read 100 MB for 1,024 rows, and whatever came
    after them would find its page tables in no cache.
    """
    reader = CacheReader(work / "default-folder.zarr")
    rows = open_spool(reader, 0, work / "spool")
    teacher = CachedTeacher(reader, work / "spool")
    teacher.prepare([0])
    others = {}
    for kind in alternatives():
        (work / kind.name).mkdir()
        others[kind.name] = kind(work / kind.name, rows)
    rng, samples = np.random.default_rng(0), np.zeros(batch, np.int64)
    ways: dict[str, Callable[[], object]] = {name: partial(way.take, samples) for name, way in others.items()}
    ways["spool"] = lambda: np.take(rows, samples, axis=0, mode="clip")  # as `CachedTeacher` does
    ways["decoded"] = lambda: teacher.take(torch.from_numpy(samples), 0)

    def other_samples() -> None:
        samples[:] = rng.integers(0, made.n, batch)

    times = _in_turns(ways, rounds, after_another=other_samples)
    for way in others.values():
        way.close()
    for name in others:
        yield _speed("take", name, times["spool"], times[name], WANTED_SPEEDS.get(name, ""))
    yield _speed("take, unpack", "seek + read", times["decoded"], times["seek + read"], "")


def _opening(work: Path, rounds: int) -> Speed:
    """Open a cache of 300 seeds, and list them."""
    made = _Made.of(answers(256, "folder"), 16)
    path = work / "seeds.zarr"
    made.write(path, "default")
    for seed in range(1, SEEDS):
        shutil.copytree(path / "seed-0", path / f"seed-{seed}")
    times = _in_turns({"open": lambda: CacheReader(path).seeds()}, rounds)["open"]
    return _speed(f"open {SEEDS} seeds", "", times, times, "< 50")


@dataclass
class _Times:
    """Seconds of each round: by the clock, and of this process's work."""

    clock: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def _in_turns(
    work: dict[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
    after_another: Callable[[], object] | None = None,
) -> dict[str, _Times]:
    """Do each piece of work once a round, one after the other; the first round is not counted.

    Where it is to be timed `after_another` of its own kind, that is done first, and what then changes the subject.
    """
    times = {name: _Times() for name in work}
    for number in range(rounds + 1):
        before()
        for name, do in work.items():
            if after_another:
                do()
                after_another()
            clock, cpu = time.perf_counter(), time.process_time()
            do()
            if number:
                times[name].clock.append(time.perf_counter() - clock)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def _speed(
    what: str, against: str, mine: _Times, other: _Times, wanted: str, views: int | None = None
) -> Speed:
    ratios = np.array(other.clock) / np.array(mine.clock)
    low, middle, high = (float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    ms, ms_against, cpu = (float(np.median(t)) * 1e3 for t in (mine.clock, other.clock, mine.cpu))
    rate, cpu_rate = (None, None) if views is None else (views / ms / 1e3, views / cpu / 1e3)
    return Speed(what, against, ms, ms_against, middle, low, high, rate, cpu_rate, wanted)
