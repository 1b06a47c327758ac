"""The campaign: every kind of fault in turn, each from a seed of its own, counted."""

import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from soak import files, processes
from soak.subject import HangError, LostShardError, Truth, UntypedError, WrongNumberError, dump_digits

Fault = Callable[[random.Random, Truth, Path], int | None]
KINDS: dict[str, Fault] = {
    "kill dump": processes.kill_dump,
    "kill derive": processes.kill_derive,
    "kill copy": processes.kill_copy,
    "kill spool": processes.kill_spool,
    "power": processes.lose_power,
    "power, growing": processes.lose_power_growing,
    "full disk": processes.full_disk,
    "read-only disk": processes.read_only_disk,
    "permission": processes.no_permission,
    "broken disk": processes.broken_disk,
    "unflushable folder": processes.unflushable_folder,
    "few descriptors": processes.few_descriptors,
    "unreadable": processes.unreadable,
    "flip": files.flip,
    "cut": files.cut,
    "garbage": files.garbage,
    "gone": files.gone,
    "swap": files.swap,
    "other kind": files.other_kind,
    "edit": files.edit,
    "spool": files.damage_spool,
    "hostile": files.hostile,
}
QUICK = {"flip", "cut", "garbage", "gone", "swap", "other kind", "edit", "spool"}  # so five of each in a turn
LONGEST = 120  # seconds that one fault may take, everything included
MEMORY = Path("/dev/shm")  # where there is such a disk, nothing waits for a slower one
MOST_MEMORY = 512 << 20  # bytes that this process may grow by in one fault

_COUNTED = {
    WrongNumberError: "wrong numbers",
    LostShardError: "committed shards lost",
    HangError: "hangs",
    UntypedError: "other errors",
}


@dataclass
class Tally:
    """What was done, how often, and what came of it."""

    seed: int
    seconds: float = 0.0
    injected: Counter[str] = field(default_factory=Counter)
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED.values(), 0))
    first: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Did nothing happen that must not?"""
        return not any(self.failures.values())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "faults": dict(self.injected),
            **self.failures,
            "first": self.first,
        }


def run(seed: int, seconds: float, kinds: list[str] | None = None, number: int | None = None) -> Tally:
    """Inject faults for so many seconds, each kind in turn; or number `number` of each kind, once."""
    tally, began = Tally(seed), time.monotonic()
    numbers = Counter(dict.fromkeys(KINDS, number or 0))
    torch.set_num_threads(1)
    where = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="soak-", dir=where, ignore_cleanup_errors=True) as base:
        dump_digits(Path(base) / "truth.zarr")
        truth = Truth(Path(base) / "truth.zarr", Path(base) / "spool")
        while True:
            for kind in kinds or KINDS:
                for _ in range(5 if kind in QUICK and number is None else 1):
                    if number is None and time.monotonic() - began > seconds:
                        tally.seconds = time.monotonic() - began
                        return tally
                    inject(kind, numbers[kind], tally, truth, Path(base) / f"{kind}-{numbers[kind]}")
                    numbers[kind] += 1
            if number is not None:
                tally.seconds = time.monotonic() - began
                return tally


def inject(kind: str, number: int, tally: Tally, truth: Truth, folder: Path) -> None:
    """Inject one fault, in `folder`, which is made and deleted, and count what comes of it."""
    rng = random.Random(f"{tally.seed}/{kind}/{number}")
    folder.mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with _ended(LONGEST):
            times = KINDS[kind](rng, truth, folder)
        tally.injected[kind] += 1 if times is None else times
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (
            1 if sys.platform == "darwin" else 1024
        )
        if grown > MOST_MEMORY:
            raise UntypedError(f"{grown >> 20} MB of memory")
    except Exception as error:
        tally.injected[kind] += 1
        what = next((text for cls, text in _COUNTED.items() if isinstance(error, cls)), "other errors")
        tally.failures[what] += 1
        if len(tally.first) < 20:
            tally.first.append(f"{kind} {number}: {what}: {type(error).__name__}: {error}"[:600])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _ended(seconds: int) -> Iterator[None]:
    """Raise HangError where something does not end."""

    def rung(*_: object) -> None:
        raise HangError(f"not ended after {seconds} s")

    before = signal.signal(signal.SIGALRM, rung)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
