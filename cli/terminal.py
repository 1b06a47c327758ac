"""What people see: tables and progress bars on a terminal, plain lines elsewhere; figures as JSON on request."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from logitcache.units import span

# Names and paths are anybody's: brackets and colons in them are no markup.
console = Console(highlight=False, markup=False, emoji=False)
notes = Console(stderr=True, highlight=False, markup=False, emoji=False)

SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """Where work tells how far it is."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """So much is done of so much; the note is shown in place of the rate."""


def say(text: str) -> None:
    """Tell the user something that is not a result."""
    notes.print("\n".join(map(printable, text.split("\n"))), soft_wrap=True)


def show(report: dict[str, Any], rows: list[tuple[str, str]], *, as_json: bool) -> None:
    """Print a result: as JSON, or as rows of a name and a value, wrapped on a terminal alone."""
    if as_json:
        print(json.dumps(report, indent=2))
    elif console.is_terminal:
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, printable(value))
        console.print(table)
    else:
        widest = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"{name:<{widest}}  {printable(value)}".rstrip())


def printable(text: str) -> str:
    """Write what a terminal would take for an order as its escape: a stranger's cache may be called anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def progress(what: str, unit: str, *, shown: bool = True) -> Iterator[Advance]:
    """Yield what is to be told the progress: a bar on a terminal, a line now and then elsewhere.

    Both say the time left and, where nothing else is noted, the rate.
    """
    if not shown:
        yield lambda done, total, note="": None
    elif not sys.stderr.isatty():
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
            task = bar.add_task(what, total=None, note="")

            def advance(done: int, total: int, note: str = "") -> None:
                pace.tell(done)
                bar.update(task, completed=done, total=total, note=note or str(pace))

            yield advance


def _plain_lines(what: str, unit: str) -> Advance:
    pace, said = _Pace(unit), time.monotonic()

    def advance(done: int, total: int, note: str = "") -> None:
        nonlocal said
        pace.tell(done)
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
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
