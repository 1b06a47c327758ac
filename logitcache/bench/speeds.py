"""How fast whole seeds are written and decoded, and random samples looked up, against plain alternatives.

Speeds are ratios, timed in turns within a round, so that both share the machine's load.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from logitcache.bench.baselines import Lookup
from logitcache.bench.compare import Seconds, in_turns
from logitcache.bench.fixtures import Made
from logitcache.bench.synthetic import answers
from logitcache.format.spec import Spec
from logitcache.store import CacheReader
from logitcache.teacher.cached import CachedTeacher
from logitcache.teacher.spool import open_spool

SEEDS = 300
WANTED_SPEEDS = {"seek + read": "≥ 50", "LMDB": "≥ 20", "memmap.take": "≥ ⅓"}


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
        low, middle, high = (brief(x) for x in (self.ratio_low, self.ratio, self.ratio_high))
        cells = {
            "what": self.what,
            "against": self.against,
            "ms": brief(self.ms),
            "times as fast": f"{middle} ({low}–{high})" if self.against else "",
            "M/s": "" if self.rate is None else brief(self.rate),
            "/CPU": "" if self.cpu_rate is None else brief(self.cpu_rate),
        }
        column = "M/s" if self.rate is not None else "times as fast" if self.against else "ms"
        return {**cells, column: f"{cells[column]} {self.wanted}".rstrip()}


def brief(x: float) -> str:
    """Write a number for people: two digits, or all before the point, or thousands."""
    if x >= 9_999.5:
        return f"{x / 1000:.0f}k"
    if x >= 99.5:
        return f"{x:.0f}"
    return f"{x:.2g}" if x >= 0.1 else f"{x:.2f}"


def whole_seeds(work: Path, made: Made, cache: Path, rounds: int) -> Iterator[Speed]:
    """Write a seed, decode it into a spool, and copy the same bytes plainly, in turns.

    Args:
        work: where to write.
        made: the answers.
        cache: one that holds them under seed 0.
        rounds: how often.
    """
    reader, spools = CacheReader(cache), work / "spool"
    open_spool(reader, 0, spools)
    (packed,) = spools.glob("*.spool")
    fresh = work / "fresh"

    def emptied(name: str, number: int) -> None:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()

    times = in_turns(
        {
            "write": lambda _: made.write(fresh / "c.zarr", "default"),
            "decode": lambda _: open_spool(reader, 0, fresh),
            "copy": lambda _: _copy(packed, fresh / "copy", durable=False),
            "durable": lambda _: _copy(packed, fresh / "durable", durable=True),
        },
        rounds,
        lambda: np.array([time.perf_counter(), time.process_time()]),
        emptied,
    )
    clock, cpu = ({name: both[:, column] for name, both in times.items()} for column in (0, 1))
    for name, other, against, wanted in (
        ("write", "durable", "durable copy", "≥ 1.5"),
        ("decode", "copy", "plain copy", "≥ 4"),
    ):
        speed = _speed(name, against, clock[name], clock[other], wanted)
        rate, cpu_rate = (float(made.n / np.median(times[name]) / 1e6) for times in (clock, cpu))
        yield replace(speed, rate=rate, cpu_rate=cpu_rate)


def lookups(
    work: Path, cache: Path, others: Mapping[str, Lookup], batch: int, rounds: int
) -> Iterator[Speed]:
    """Look random samples up in the spool of a cache, and where others hold the same answers, in turns.

    Each look-up follows one of its own kind, for other samples: some read 100 MB for 1,024 rows, and whatever came
    after them would find its page tables in no cache.
    """
    reader = CacheReader(cache)
    rows = open_spool(reader, 0, work / "spool")
    teacher = CachedTeacher(reader, work / "spool")
    teacher.prepare([0])
    rng, samples = np.random.default_rng(0), np.zeros(batch, np.int64)

    def taken_by(way: Lookup) -> Callable[[int], object]:
        return lambda _: way.take(samples)

    ways = {name: taken_by(way) for name, way in others.items()}
    ways["spool"] = lambda _: np.take(rows, samples, axis=0, mode="clip")  # as `CachedTeacher` does
    ways["decoded"] = lambda _: teacher.take(torch.from_numpy(samples), 0)

    def after_another(name: str, number: int) -> None:
        ways[name](number)
        samples[:] = rng.integers(0, len(rows), batch)

    times = in_turns(ways, rounds, time.perf_counter, after_another)
    for name in others:
        yield _speed("take", name, times["spool"], times[name], WANTED_SPEEDS.get(name, ""))
    yield _speed("take, unpack", "seek + read", times["decoded"], times["seek + read"], "")


def opening(work: Path, rounds: int) -> Speed:
    """Open a cache of 300 seeds, and list them."""
    path = work / "seeds.zarr"
    Made.of(answers(256, "folder"), 16).write(path, "default")
    for seed in range(1, SEEDS):
        shutil.copytree(path / "seed-0", path / f"seed-{seed}")
    times = in_turns({"open": lambda _: CacheReader(path).seeds()}, rounds, time.perf_counter)["open"]
    return _speed(f"open {SEEDS} seeds", "", times, times, "< 50")


def _copy(source: Path, target: Path, *, durable: bool) -> None:
    """Copy a file plainly, in large pieces; `durable` flushes it to the disk, as shards are and spools are not."""
    with source.open("rb") as read, target.open("wb") as written:
        while piece := read.read(1 << 24):
            written.write(piece)
        if durable:
            written.flush()
            os.fsync(written.fileno())


def _speed(what: str, against: str, mine: Seconds, other: Seconds, wanted: str) -> Speed:
    low, middle, high = np.quantile(other / mine, [0.25, 0.5, 0.75]).tolist()
    ms, ms_against = (float(np.median(seconds)) * 1e3 for seconds in (mine, other))
    return Speed(what, against, ms, ms_against, middle, low, high, None, None, wanted)
