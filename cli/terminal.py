"""Output: results on stdout, as tables on a terminal, plain lines elsewhere, or JSON; all else on stderr."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from logitcache.format.spec import jsonable

# Names and paths may hold anything: brackets and colons in them are no markup.
console = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """Print something that is not a result, on stderr."""
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
