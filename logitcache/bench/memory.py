"""How much memory dump, verify and training's look-ups need, at two sizes: each in a process of its own.

What counts is memory that only its process can use (anonymous memory): mapped spools are the system's file cache.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from logitcache.audit.verify import verify
from logitcache.datasets import ArrayImages, digits
from logitcache.dump import DumpConfig, dump
from logitcache.models import build
from logitcache.schema import Spec
from logitcache.store import CacheReader
from logitcache.stream import CachedTeacher
from logitcache.views import recipe_named

STATUS = Path("/proc/self/status")
SMALL, LARGE = (1, 2_048), (3, 16_384)  # seeds, samples of each
SHARD = 1024
TASKS = ("dump", "verify", "stream")


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
    """Measure each task, as far as the system tells a process its anonymous memory (Linux does)."""
    if not STATUS.exists() or "RssAnon" not in STATUS.read_text():
        return
    found = {}
    for size in (SMALL, LARGE):
        for task in TASKS:  # dump makes the cache that the others read
            words = [sys.executable, "-m", __name__, task, str(folder / f"{size[1]}.zarr"), *map(str, size)]
            ended = subprocess.run(words, check=True, capture_output=True, text=True)
            found[task, size] = json.loads(ended.stdout)
    small, large = (seeds * samples for seeds, samples in (SMALL, LARGE))
    for task in TASKS:
        yield Peak(task, small, large, found[task, SMALL], found[task, LARGE])


def _run(task: str, path: Path, seeds: int, samples: int) -> None:
    if task == "dump":
        some = digits("train")
        again = np.arange(samples) % len(some)
        images = ArrayImages("digits", "train", some.images[again], some.labels[again], 10, "digits")
        config = DumpConfig(tuple(range(seeds)), 4, workers=0, shard_samples=SHARD, device="cpu")
        teacher = build("digits_tiny", num_classes=10, view_size=8, weights="random")
        dump(path, images, recipe_named("digits"), teacher, config)
    elif task == "verify":
        verify(CacheReader(path), workers=2)
    else:
        cached = CachedTeacher(CacheReader(path), path.parent / "memory-spool")
        generator = torch.Generator().manual_seed(0)
        for seed in range(seeds):
            cached.prepare([seed])
            for _ in range(100):
                cached.take(torch.randint(samples, (256,), generator=generator), seed)


def _anonymous() -> float:
    """MB of anonymous memory of this process now."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1e3


def watched(task: str, path: Path, seeds: int, samples: int) -> float:
    """Run a task; return by how many MB memory rose at most, looked at every few milliseconds."""
    most = before = _anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, _anonymous())
            time.sleep(0.003)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _run(task, path, seeds, samples)
    finally:
        done.set()
        watcher.join()
    return most - before


if __name__ == "__main__":
    print(watched(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
