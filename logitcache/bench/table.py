"""How rows of figures are written: the columns of a row, numbers in few characters, Markdown."""

from collections.abc import Sequence
from typing import Protocol


class TableRow(Protocol):
    """A row of figures that can be shown in a table."""

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""


def brief(x: float) -> str:
    """Write a number with two digits, or all before the point, or in thousands: 0.05, 1.2, 140, 15k."""
    if x >= 9_999.5:
        return f"{x / 1000:.0f}k"
    if x >= 99.5:
        return f"{x:.0f}"
    return f"{x:.2g}" if x >= 0.1 else f"{x:.2f}"


def scientific(x: float, digits: int = 1) -> str:
    """Write a number as 1.2e-6, and nothing as 0."""
    return f"{x:.{digits}e}".replace("e-0", "e-") if x else "0"


def at_most(limit: float | None) -> str:
    """Write what a figure should be at most; "" for None."""
    return "" if limit is None else f"≤ {limit:g}"


def with_quartiles(low: str, middle: str, high: str) -> str:
    """Write a median and its quartiles."""
    return f"{middle} ({low}–{high})"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    lines.insert(1, "|---" * len(columns) + "|")
    return "\n".join(lines)
