"""How much memory work needs: each task in a process of its own, watched while it runs.

What counts is anonymous memory, which only its process can use. Mapped spools are the system's file cache, and are
counted once for all processes that map them.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitcache.audit.verify import verify_cache
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.format.spec import Spec
from logitcache.models.build import build_model
from logitcache.store import CacheReader
from logitcache.teacher.cached import CachedTeacher
from logitcache.teacher.spool import open_spool
from logitcache.views.datasets import ArrayImages, load_digits
from logitcache.views.recipes import recipe_named

STATUS = Path("/proc/self/status")
MAPS = Path("/proc/self/smaps")
SMALL, LARGE = (1, 2_048), (3, 16_384)  # seeds, samples of each
SHARD_SAMPLES = 1024


def memory_is_known() -> bool:
    """Say whether the system tells a process how much anonymous memory it has, as Linux does."""
    return STATUS.exists() and "RssAnon" in STATUS.read_text(encoding="utf-8") and MAPS.exists()


# One task at two sizes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryPeak(Spec):
    """Peak anonymous memory of one task in MB, beyond what its imports take, at two numbers of views."""

    task: str
    small_views: int
    large_views: int
    small_mb: float
    large_mb: float

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        sizes = {
            f"MB at {self.small_views:,} views": f"{self.small_mb:.1f}",
            f"at {self.large_views:,}": f"{self.large_mb:.1f}",
        }
        return {"memory of": self.task, **sizes, "wanted": "equal"}


def measure_peaks(folder: Path) -> Iterator[MemoryPeak]:
    """Measure dump, verify and look-ups, where memory is known."""
    if not memory_is_known():
        return
    megabytes = {}
    for size in (SMALL, LARGE):
        for task, work in TASKS.items():  # dump makes the cache that the others read
            megabytes[task, size] = peak_in_process(work, (folder / f"{size[1]}.zarr", *size))
    small, large = (seeds * samples for seeds, samples in (SMALL, LARGE))
    for task in TASKS:
        yield MemoryPeak(task, small, large, megabytes[task, SMALL], megabytes[task, LARGE])


def _dump(path: Path, seeds: int, samples: int) -> None:
    few = load_digits("train")
    repeated = np.arange(samples) % len(few)
    images = ArrayImages("digits", "train", few.images[repeated], few.labels[repeated], 10, "digits")
    config = DumpConfig(
        tuple(range(seeds)), 4, calibration=0, workers=0, shard_samples=SHARD_SAMPLES, device="cpu"
    )
    teacher = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    dump(path, images, recipe_named("digits"), teacher, config)


def _verify(path: Path, seeds: int, samples: int) -> None:
    verify_cache(CacheReader(path), workers=2)


def _stream(path: Path, seeds: int, samples: int) -> None:
    cached = CachedTeacher(CacheReader(path), path.parent / "memory-spool")
    generator = torch.Generator().manual_seed(0)
    for seed in range(seeds):
        cached.prepare([seed])
        for _ in range(100):
            cached.take(torch.randint(samples, (256,), generator=generator), seed)


TASKS: dict[str, Callable[[Path, int, int], None]] = {"dump": _dump, "verify": _verify, "stream": _stream}


def peak_in_process(work: Callable[..., object], arguments: Sequence[Any]) -> float:
    """Do some work in a new process; return by how many MB its anonymous memory rose at most."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(peak_of, work, *arguments).result()


def peak_of(work: Callable[..., object], *arguments: Any) -> float:
    """Do some work; return by how many MB memory rose at most, looked at every few milliseconds."""
    most = before = anonymous_mb()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, anonymous_mb())
            time.sleep(0.003)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work(*arguments)
    finally:
        done.set()
        watcher.join()
    return most - before


def anonymous_mb() -> float:
    """Return MB of anonymous memory of this process now."""
    line = next(
        line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("RssAnon:")
    )
    return int(line.split()[1]) * 1024 / 1e6


# One spool, many processes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class SharedSpool(Spec):
    """Processes that look up in one spool: MB of it that each maps, and that all map, each page counted once."""

    processes: int
    spool_mb: float
    seen_alone_mb: float
    in_all_mb: float

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        return {
            "processes": f"{self.processes}",
            "spool, MB": f"{self.spool_mb:.1f}",
            "seen by each": f"{self.seen_alone_mb:.1f}",
            "mapped by all": f"{self.in_all_mb:.1f}",
            "wanted": "one spool",
        }


def measure_shared_spool(processes: int, cache: Path, spool: Path) -> SharedSpool:
    """Have processes read every row of one spool, and measure how much of it is in their memory then."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        barrier = manager.Barrier(processes)
        with ProcessPoolExecutor(processes, context) as pool:
            tasks = [pool.submit(_mapped_mb, cache, spool, barrier) for _ in range(processes)]
            sizes = [task.result() for task in tasks]
    size = open_spool(CacheReader(cache), 0, spool).nbytes / 1e6
    return SharedSpool(processes, size, max(rss for rss, _ in sizes), sum(pss for _, pss in sizes))


def _mapped_mb(cache: Path, spool: Path, barrier: Any) -> tuple[float, float]:
    """Return MB of a spool in this process's memory when all have read it, and this process's share of them."""
    rows = open_spool(CacheReader(cache), 0, spool)
    rows.sum()
    barrier.wait()
    megabytes, is_spool = {"Rss:": 0.0, "Pss:": 0.0}, False
    for line in MAPS.read_text(encoding="utf-8").splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):  # the next mapping: its addresses, and last the file
            is_spool = line.endswith(".spool")
        elif is_spool and first in megabytes:
            megabytes[first] += int(rest[0]) * 1024 / 1e6
    barrier.wait()  # as long as one looks, all have it mapped
    return megabytes["Rss:"], megabytes["Pss:"]
