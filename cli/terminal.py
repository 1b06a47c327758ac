"""Output: results on stdout, as tables on a terminal, plain lines elsewhere, or JSON; all else on stderr."""

import codecs
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.table import Table

from logitcache.format.spec import jsonable

# Names and paths may hold anything: brackets and colons in them are no markup.
console = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)

IN_ASCII = dict(zip("×−–·µ→≥≤≠±─│├└▁▂▃▄▅▆▇█", "x--.u>><!~-|++_.-=+*##", strict=True))
IN_ASCII |= {"…": "...", "²": "^2", "→": "->", "≥": ">=", "≤": "<=", "≠": "!=", "±": "+-", "∞": "inf"}
"""What stands for letters that the encoding of an output lacks."""


@contextmanager
def open_output() -> Iterator[None]:
    """Have stdout and stderr take any letter, and end with one line and exit code 1 where stdout is full."""
    codecs.register_error("in_ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="in_ascii")
    try:
        try:
            yield
        except SystemExit:
            if not (refusal := _flush(sys.stdout)):
                raise
        except OSError as error:
            # stdout still holds what it did not take, but for one that holds nothing: that is asked again
            asked = "\n" if getattr(sys.stdout, "write_through", False) else ""
            if error.filename or not (refusal := _flush(sys.stdout, asked)):  # it was of another file
                raise
        else:
            refusal = _flush(sys.stdout)
        if refusal:
            if not isinstance(refusal, BrokenPipeError):  # of which a reader that has gone need not be told
                say(f"logitcache: cannot write the output: {refusal.strerror or refusal}")
            _discard(sys.stdout)
            sys.exit(1)
    finally:
        if _flush(sys.stderr):
            _discard(sys.stderr)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write letters that the encoding lacks as those that stand for them, or by their number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(
        IN_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in letters
    ), error.end


def _flush(stream: Any, text: str = "") -> OSError | None:
    """Write what is left, and a text; returns the error of a stream that does not take it."""
    try:
        if stream is not None and not stream.closed:
            stream.write(text)
            stream.flush()
    except OSError as error:
        return error
    return None


def _discard(stream: Any) -> None:
    """Let what a stream did not take go nowhere, or Python would try, and complain, as it ends."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def say(text: str) -> None:
    """Print something that is not a result, on stderr; where that is full nobody reads it, and work goes on."""
    with suppress(OSError):
        stderr.print("\n".join(map(printable, text.split("\n"))), soft_wrap=True)


def show(report: dict[str, Any], rows: list[tuple[str, str]], *, as_json: bool) -> None:
    """Print a result on stdout: as JSON, or as rows of a name and a value, wrapped on a terminal only."""
    if as_json:
        print(json.dumps(jsonable(report), indent=2, allow_nan=False))
    elif console.is_terminal:
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, printable(value))
        console.print(table)
    else:
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            print(f"{name:<{width}}  {printable(value)}".rstrip())


def printable(text: str) -> str:
    """Escape control characters, which a terminal would act on: a cache from elsewhere may have any name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
