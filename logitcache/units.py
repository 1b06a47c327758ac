"""Numbers of bytes, spans of time and shares, as people write and read them."""

import re

from logitcache.errors import OptionError

_SPANS = ((7200.0, 3600.0, "h"), (120.0, 60.0, "min"), (0.0, 1.0, "s"))  # from so many seconds on


def size(count: float) -> str:
    """Write a number of bytes, by powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def parse_size(text: str) -> int:
    """Read a number of bytes such as "20GB", "500 MB" or "1.5TiB".

    Raises:
        OptionError: the text is not one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text.strip())
    if not match or not (
        count := float(match[1]) * (1024 if match[3] else 1000) ** " kMGT".index(match[2] or " ")
    ):
        raise OptionError(f"a size reads like 20GB or 500MiB, found {text!r}")
    return int(count)


def span_unit(seconds: float) -> tuple[float, str]:
    """Return the unit that a span is best told in: how many seconds it has, and its symbol."""
    return next((each, symbol) for least, each, symbol in _SPANS if seconds >= least)


def span(seconds: float) -> str:
    """Write a span of time."""
    each, symbol = span_unit(max(0.0, seconds))
    return f"{seconds / each:,.1f} {symbol}"


def share(part: float) -> str:
    """Write a share of 1 in percent: 41.3 %, 0.4 %, 2e-05 %."""
    return f"{100 * part:.1f} %" if part >= 0.01 else f"{100 * part:.1g} %" if part >= 1e-6 else "0 %"
