"""How far long work is: a bar on a terminal, plain lines elsewhere."""

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from logitcache.units import span

from .terminal import notes, say

SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """Where work tells how far it is."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """So much is done of so much; the note is shown in place of the rate."""


@contextmanager
def progress(what: str, unit: str, *, first: str = "") -> Iterator[Advance]:
    """Yield what is to be told the progress: a bar on a terminal; elsewhere a line at first, and now and then.

    Both say the time left and, where nothing else is noted, the rate; and until they are told any, what comes first.
    Under torchrun rank 0 alone speaks.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda done, total, note="": None
    elif not sys.stderr.isatty():
        if first:
            say(f"{what}: {first} …")
        yield _plain_lines(what, unit)
    else:
        texts = [TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[note]")]
        columns = (
            texts[0],
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            texts[1],
            TimeRemainingColumn(),
        )
        pace = _Pace(unit)
        with Progress(*columns, console=notes) as bar:
            task = bar.add_task(what, total=None, note=first)

            def advance(done: int, total: int, note: str = "") -> None:
                pace.tell(done)
                bar.update(task, completed=done, total=total, note=note or str(pace))

            yield advance


def _plain_lines(what: str, unit: str) -> Advance:
    pace, said = _Pace(unit), -math.inf

    def advance(done: int, total: int, note: str = "") -> None:
        nonlocal said
        pace.tell(done)
        begun = said > -math.inf or done < total  # what is done at once needs no line
        if begun and time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            left = f"{span((total - done) / pace.rate)} left" if pace.rate else ""
            say(
                f"{what}: {', '.join(filter(None, (f'{done:,} of {total:,} {unit}', note or str(pace), left)))}"
            )

    return advance


class _Pace:
    """How fast work goes, from when it was first heard of."""

    def __init__(self, unit: str) -> None:
        self.unit, self.rate = unit, 0.0
        self._first: tuple[int, float] | None = None

    def tell(self, done: int) -> None:
        now = time.monotonic()
        first, began = self._first = self._first or (done, now)
        self.rate = (done - first) / max(now - began, 1e-9)

    def __str__(self) -> str:
        return f"{self.rate:{',.0f' if self.rate >= 10 else '.2g'}} {self.unit}/s" if self.rate else ""
