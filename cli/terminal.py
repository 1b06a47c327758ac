"""Output: results on stdout, as tables on a terminal, plain lines elsewhere, or JSON; all else on stderr."""

import codecs
import io
import json
import os
import re
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table

from logitcache.format.spec import jsonable

PIPE_CLOSED = 141  # exit code, 128 + SIGPIPE, as of other programs whose output nobody reads


class _Output(Console):
    """A console that leaves it to us what follows when its reader has gone."""

    def on_broken_pipe(self) -> None:
        raise


# Names and paths may hold anything: brackets and colons in them are no markup.
console = _Output(highlight=False, markup=False, emoji=False)
stderr = _Output(stderr=True, highlight=False, markup=False, emoji=False)

IN_ASCII = dict(zip("×−–·µ→≥≤≠±─│├└▁▂▃▄▅▆▇█", "x--.u>><!~-|++_.-=+*##", strict=True))
IN_ASCII |= {"…": "...", "²": "^2", "→": "->", "≥": ">=", "≤": "<=", "≠": "!=", "±": "+-", "∞": "inf"}
"""What stands for letters that the encoding of an output lacks."""


@contextmanager
def open_output() -> Iterator[None]:
    """Have stdout and stderr take any letter; end with a line and code 1 where stdout is full, 141 where closed."""
    codecs.register_error("in_ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="in_ascii")
    code: Any = None
    try:
        try:
            yield
        except SystemExit as ended:
            if not (refusal := _flush(sys.stdout)):
                raise
            code = ended.code or code
        except OSError as error:
            # stdout still holds what it did not take, but for one that holds nothing: that is asked again
            asked = "\n" if getattr(sys.stdout, "write_through", False) else ""
            if error.filename or not (refusal := _flush(sys.stdout, asked)):  # it was of another file
                raise
        else:
            refusal = _flush(sys.stdout)
        if refusal:
            if isinstance(refusal, BrokenPipeError):  # of which a reader that has gone need not be told
                code = code or PIPE_CLOSED
            else:
                say(f"logitcache: cannot write the output: {refusal.strerror or refusal}")
            _discard(sys.stdout)
            sys.exit(code or 1)
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


def is_closed(stream: Any) -> bool:
    """Has the reader of a stream gone?"""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no file, or a system that cannot tell
        return False


def _discard(stream: Any) -> None:
    """Let what a stream did not take go nowhere, or Python would try, and complain, as it ends."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def say(text: str) -> None:
    """Print something that is not a result, on stderr; where that is full nobody reads it, and work goes on.

    A terminal has it wrapped between words; elsewhere a line stays one, to be searched. A note is said once.
    """
    text = "\n".join(map(printable, text.split("\n")))
    if text.startswith(_NOTE):
        if text in _notes:
            return
        _notes.add(text)
    if stderr.is_terminal:
        text = "\n".join(wrap(line, stderr.width) for line in text.split("\n"))
    with suppress(OSError):
        stderr.print(text, soft_wrap=True)


_NOTE = "note: "
_notes: set[str] = set()


def forget_notes() -> None:
    """Have notes said again, as another command begins."""
    _notes.clear()


def wrap(line: str, width: int) -> str:
    """Break a line between words where it is longer than a width, but not within a `command` that fits a line."""
    lines, length = [""], 0
    for word in re.findall(r"[^\s`]*`[^`]+`\S*|\S+", line):
        pieces = [word] if cell_len(word) <= width else word.split()
        for piece in pieces:
            space = 1 if lines[-1] else 0
            if space and length + 1 + cell_len(piece) > width:
                lines.append("")
                length = space = 0
            lines[-1] += " " * space + piece
            length += space + cell_len(piece)
    return "\n".join(lines)


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


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a result of several things side by side on stdout: fitted to a terminal, elsewhere a line for each."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if console.is_terminal:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in cells:
            table.add_row(*row)
        console.print(table)
        return
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    for line in ([*columns], *cells):
        print(
            "  ".join(set_cell_size(cell, width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def printable(text: str) -> str:
    """Escape control characters, which a terminal would act on: a cache from elsewhere may have any name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
