"""What people see: tables, progress bars on a terminal, plain lines elsewhere; figures as JSON on request."""

import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from logitcache.errors import LogitCacheError, StoppedError

console = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

Advance = Callable[[int, int, str], None]
SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """Tell the user something that is not a result."""
    notes.print(text, markup=False, soft_wrap=True)


def show(report: dict[str, Any], rows: list[tuple[str, str]], *, as_json: bool) -> None:
    """Print a result: as JSON, or as rows of a name and a value."""
    if as_json:
        print(json.dumps(report, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


@contextmanager
def progress(what: str, unit: str, *, shown: bool = True) -> Iterator[Advance]:
    """Yield ``advance(done, total, note)``: a bar on a terminal, a line now and then elsewhere."""
    if not shown:
        yield lambda done, total, note: None
        return
    if not sys.stderr.isatty():
        yield _plain_lines(what, unit)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=notes) as bar:
        task = bar.add_task(what, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def _plain_lines(what: str, unit: str) -> Advance:
    said = time.monotonic()

    def advance(done: int, total: int, note: str) -> None:
        nonlocal said
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            say(f"{what}: {done:,} of {total:,} {unit} {note}")

    return advance


_P = ParamSpec("_P")


def ending_clearly(command: Callable[_P, None]) -> Callable[_P, None]:
    """Let a command end with one line and exit code 1 on an expected error, 130 on Ctrl-C; never a traceback."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except LogitCacheError as error:
            say(f"logitcache: {error}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interruption:
            say("logitcache: interrupted; run the same command again to go on")
            raise typer.Exit(130) from interruption
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(f"logitcache: torch.compile fails here ({reason}); leave out --compile")
            raise typer.Exit(1) from error

    return wrapped


@contextmanager
def stopped_gently() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM or Ctrl-C came; a second one acts at once.

    Work that then ends with a `StoppedError` ends the program with one line and exit code 128 + the signal's number,
    SIGTERM's where it was another rank that heard one.
    """
    came: list[int] = []

    def hear(number: int, _: object) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, hear)
    try:
        yield lambda: bool(came)
    except StoppedError as error:
        say(f"logitcache: {error}")
        raise typer.Exit(128 + (came or [signal.SIGTERM])[0]) from error
    finally:
        restore()


def size(count: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
