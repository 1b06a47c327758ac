"""How much memory work needs: each piece in a process of its own, watched while it runs.

What counts is memory that only its process can use (anonymous memory): mapped spools are the system's file cache, and
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

from logitcache.audit.verify import verify
from logitcache.dump.job import DumpConfig, dump
from logitcache.format.spec import Spec
from logitcache.models.build import build
from logitcache.store import CacheReader
from logitcache.teacher.cached import CachedTeacher
from logitcache.teacher.spool import open_spool
from logitcache.views.datasets import ArrayImages, digits
from logitcache.views.recipes import recipe_named

STATUS = Path("/proc/self/status")
MAPS = Path("/proc/self/smaps")
SMALL, LARGE = (1, 2_048), (3, 16_384)  # seeds, samples of each
SHARD = 1024


def told() -> bool:
    """Does the system tell a process its anonymous memory? (Linux does.)"""
    return STATUS.exists() and "RssAnon" in STATUS.read_text() and MAPS.exists()


# One piece of work at two sizes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Peak(Spec):
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


def peaks(folder: Path) -> Iterator[Peak]:
    """Measure dump, verify and look-ups, where the system tells."""
    if not told():
        return
    found = {}
    for size in (SMALL, LARGE):
        for task, work in TASKS.items():  # dump makes the cache that the others read
            found[task, size] = held(work, (folder / f"{size[1]}.zarr", *size))
    small, large = (seeds * samples for seeds, samples in (SMALL, LARGE))
    for task in TASKS:
        yield Peak(task, small, large, found[task, SMALL], found[task, LARGE])


def _dump(path: Path, seeds: int, samples: int) -> None:
    some = digits("train")
    again = np.arange(samples) % len(some)
    images = ArrayImages("digits", "train", some.images[again], some.labels[again], 10, "digits")
    config = DumpConfig(tuple(range(seeds)), 4, workers=0, shard_samples=SHARD, device="cpu")
    teacher = build("digits_tiny", num_classes=10, view_size=8, weights="random")
    dump(path, images, recipe_named("digits"), teacher, config)


def _verify(path: Path, seeds: int, samples: int) -> None:
    verify(CacheReader(path), workers=2)


def _stream(path: Path, seeds: int, samples: int) -> None:
    cached = CachedTeacher(CacheReader(path), path.parent / "memory-spool")
    generator = torch.Generator().manual_seed(0)
    for seed in range(seeds):
        cached.prepare([seed])
        for _ in range(100):
            cached.take(torch.randint(samples, (256,), generator=generator), seed)


TASKS: dict[str, Callable[[Path, int, int], None]] = {"dump": _dump, "verify": _verify, "stream": _stream}


def held(work: Callable[..., object], arguments: Sequence[Any]) -> float:
    """Do some work in a new process; return by how many MB its anonymous memory rose at most."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(watched, work, *arguments).result()


def watched(work: Callable[..., object], *arguments: Any) -> float:
    """Do some work; return by how many MB memory rose at most, looked at every few milliseconds."""
    most = before = anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, anonymous())
            time.sleep(0.003)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work(*arguments)
    finally:
        done.set()
        watcher.join()
    return most - before


def anonymous() -> float:
    """Return MB of anonymous memory of this process now."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024 / 1e6


# One spool, many processes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared(Spec):
    """Processes that look up in one spool: MB of each seen alone, and of all, each page counted once."""

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


def shared_by(processes: int, cache: Path, spool: Path) -> Shared:
    """Have processes read every row of one spool, and then say what of it is in their memory."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        everyone = manager.Barrier(processes)
        with ProcessPoolExecutor(processes, context) as pool:
            asked = [pool.submit(_mapped, cache, spool, everyone) for _ in range(processes)]
            found = [task.result() for task in asked]
    size = open_spool(CacheReader(cache), 0, spool).nbytes / 1e6
    return Shared(processes, size, max(rss for rss, _ in found), sum(pss for _, pss in found))


def _mapped(cache: Path, spool: Path, everyone: Any) -> tuple[float, float]:
    """MB of a spool in this process's memory when all have read it, and this process's share of them."""
    rows = open_spool(CacheReader(cache), 0, spool)
    rows.sum()
    everyone.wait()
    found, ours = {"Rss:": 0.0, "Pss:": 0.0}, False
    for line in MAPS.read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):  # the next mapping: its addresses, and last the file
            ours = line.endswith(".spool")
        elif ours and first in found:
            found[first] += int(rest[0]) * 1024 / 1e6
    everyone.wait()  # as long as one looks, all have it mapped
    return found["Rss:"], found["Pss:"]
