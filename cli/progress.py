"""The progress of long work: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from logitcache.paths import read_variable
from logitcache.units import rate, span

from .terminal import say, stderr

SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """A callback that shows progress."""

    def __call__(self, done: int, total: int, note: str = "", of: str = "") -> None:
        """Show that `done` of `total` are done, with a note in place of the rate, `of` another unit."""


@contextmanager
def progress(what: str, unit: str, *, first: str = "") -> Iterator[Advance]:
    """Yield a callback that shows progress: a bar on a terminal; elsewhere a line at first, and every 10 seconds.

    Both show the time left and, where there is no note, the rate; before the first call they show `first`.
    Under torchrun only rank 0 shows anything.
    """
    if (read_variable("RANK") or "0") != "0":
        yield lambda done, total, note="", of="": None
    elif sys.stderr is None or not sys.stderr.isatty():
        if first:
            say(f"{what}: {first} …")
        yield _plain_lines(what, unit)
    else:
        texts = [
            TextColumn(f"{{task.{field}}}", markup=False)
            for field in ("description", "fields[unit]", "fields[note]")
        ]
        columns = (
            texts[0],
            BarColumn(),
            MofNCompleteColumn(),
            texts[1],
            texts[2],
            TimeRemainingColumn(),
        )
        pace = _Pace(unit)
        with Progress(*columns, console=stderr) as bar:
            task = bar.add_task(what, total=None, unit=unit, note=first)

            def advance(done: int, total: int, note: str = "", of: str = "") -> None:
                pace.update(done, of or unit)
                bar.update(task, completed=done, total=total, unit=pace.unit, note=note or str(pace))

            yield advance


def _plain_lines(what: str, unit: str) -> Advance:
    pace, printed = _Pace(unit), -math.inf

    def advance(done: int, total: int, note: str = "", of: str = "") -> None:
        nonlocal printed
        pace.update(done, of or unit)
        lasting = printed > -math.inf or done < total  # what is done at once needs no line
        if lasting and time.monotonic() - printed >= SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            left = f"{span((total - done) / pace.rate)} left" if pace.rate else ""
            parts = (f"{done:,} of {total:,} {pace.unit}", note or str(pace), left)
            say(f"{what}: {', '.join(filter(None, parts))}")

    return advance


class _Pace:
    """The rate of work since the first update."""

    def __init__(self, unit: str) -> None:
        self.unit, self.rate = unit, 0.0
        self._first: tuple[int, float] | None = None

    def update(self, done: int, unit: str) -> None:
        now = time.monotonic()
        if unit != self.unit:
            self.unit, self._first = unit, None
        first, began = self._first = self._first or (done, now)
        self.rate = (done - first) / max(now - began, 1e-9)

    def __str__(self) -> str:
        return f"{rate(self.rate)} {self.unit}/s" if self.rate else ""
