"""How fast whole seeds are written and decoded, and random samples looked up, against plain alternatives."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from logitcache.bench.baselines import Lookup
from logitcache.bench.compare import Seconds, quartiles, time_interleaved
from logitcache.bench.fixtures import CacheContents
from logitcache.bench.synthetic import open_logits
from logitcache.bench.table import brief, with_quartiles
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
        ratios = (brief(x) for x in (self.ratio_low, self.ratio, self.ratio_high))
        cells = {
            "what": self.what,
            "against": self.against,
            "ms": brief(self.ms),
            "times as fast": with_quartiles(*ratios) if self.against else "",
            "M/s": "" if self.rate is None else brief(self.rate),
            "/CPU": "" if self.cpu_rate is None else brief(self.cpu_rate),
        }
        column = "M/s" if self.rate is not None else "times as fast" if self.against else "ms"
        return {**cells, column: f"{cells[column]} {self.wanted}".rstrip()}


def time_whole_seeds(work: Path, contents: CacheContents, cache: Path, rounds: int) -> Iterator[Speed]:
    """Write a seed, decode it into a spool, and copy the same bytes plainly.

    Args:
        work: where to write.
        contents: of the seed.
        cache: one that holds them under seed 0.
        rounds: how often.
    """
    reader, spools = CacheReader(cache), work / "spool"
    open_spool(reader, 0, spools)
    (spool,) = spools.glob("*.spool")
    fresh = work / "fresh"

    def empty_folder(name: str, number: int) -> None:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()

    times = time_interleaved(
        {
            "write": lambda _: contents.write(fresh / "c.zarr", "default"),
            "decode": lambda _: open_spool(reader, 0, fresh),
            "copy": lambda _: _copy(spool, fresh / "copy", durable=False),
            "durable": lambda _: _copy(spool, fresh / "durable", durable=True),
        },
        rounds,
        lambda: np.array([time.perf_counter(), time.process_time()]),
        empty_folder,
    )
    clock, cpu = ({name: both[:, column] for name, both in times.items()} for column in (0, 1))
    for name, other, against, wanted in (
        ("write", "durable", "durable copy", "≥ 1.5"),
        ("decode", "copy", "plain copy", "≥ 4"),
    ):
        speed = _compare(name, against, clock[name], clock[other], wanted)
        rate, cpu_rate = (float(contents.n / np.median(times[name]) / 1e6) for times in (clock, cpu))
        yield replace(speed, rate=rate, cpu_rate=cpu_rate)


def time_lookups(
    work: Path, cache: Path, lookups: Mapping[str, Lookup], batch: int, rounds: int
) -> Iterator[Speed]:
    """Look random samples up in the spool of a cache, and in other look-ups that hold the same.

    Each look-up follows one of its own kind, for other samples: some read 100 MB for 1,024 rows, and whatever came
    after them would find its page tables in no cache.
    """
    reader = CacheReader(cache)
    rows = open_spool(reader, 0, work / "spool")
    teacher = CachedTeacher(reader, work / "spool")
    teacher.prepare([0])
    rng, samples = np.random.default_rng(0), np.zeros(batch, np.int64)

    def take_from(lookup: Lookup) -> Callable[[int], object]:
        return lambda _: lookup.take(samples)

    ways = {name: take_from(lookup) for name, lookup in lookups.items()}
    ways["spool"] = lambda _: np.take(rows, samples, axis=0, mode="clip")  # as `CachedTeacher` does
    ways["unpacked"] = lambda _: teacher.take(torch.from_numpy(samples), 0)

    def take_others(name: str, number: int) -> None:
        ways[name](number)
        samples[:] = rng.integers(0, len(rows), batch)

    times = time_interleaved(ways, rounds, time.perf_counter, take_others)
    for name in lookups:
        yield _compare("take", name, times["spool"], times[name], WANTED_SPEEDS.get(name, ""))
    yield _compare("take, unpack", "seek + read", times["unpacked"], times["seek + read"], "")


def time_opening(work: Path, rounds: int) -> Speed:
    """Open a cache of 300 seeds, and list them."""
    path = work / "seeds.zarr"
    CacheContents.of(open_logits(256, "folder"), 8).write(path, "default")
    for seed in range(1, SEEDS):
        shutil.copytree(path / "seed-0", path / f"seed-{seed}")
    times = time_interleaved({"open": lambda _: CacheReader(path).seeds()}, rounds, time.perf_counter)["open"]
    return _compare(f"open {SEEDS} seeds", "", times, times, "< 50")


def _copy(source: Path, target: Path, *, durable: bool) -> None:
    """Copy a file plainly, in large pieces; `durable` flushes it to the disk, as shards are and spools are not."""
    with source.open("rb") as read, target.open("wb") as written:
        while piece := read.read(1 << 24):
            written.write(piece)
        if durable:
            written.flush()
            os.fsync(written.fileno())


def _compare(what: str, against: str, mine: Seconds, other: Seconds, wanted: str) -> Speed:
    low, middle, high = quartiles(other / mine)
    ms, ms_against = (float(np.median(seconds)) * 1e3 for seconds in (mine, other))
    return Speed(what, against, ms, ms_against, middle, low, high, None, None, wanted)
