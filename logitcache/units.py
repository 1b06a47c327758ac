"""Numbers of bytes, spans of time, shares and rates, as people write and read them.

The unit is that of the rounded number: 999,600 bytes are 1 MB, not 1e+03 kB.
"""

import re

from logitcache.errors import OptionError

_SPANS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"))  # each up to 120 of it


def figures(value: float, digits: int = 3) -> str:
    """Write a number by so many significant digits, and from 1 on never by a power of ten: 0.0123, 12.3, 12,346."""
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text else text


def count(number: int, one: str, many: str = "") -> str:
    """Write how many of something there are: 1 epoch, 1,200 epochs; `many` is a plural of its own."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size(count: float) -> str:
    """Write a number of bytes, by powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{figures(count)} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def operations(count: float) -> str:
    """Write a number of operations, by powers of 1000 from a thousand on, without their name: 59.9 M."""
    for unit in ("k", "M", "G"):
        count /= 1000
        if count < 999.5:
            return f"{figures(count)} {unit}"
    return f"{figures(count / 1000)} T"


def rate(per_second: float) -> str:
    """Write how many a second: 1,234, 25, 0.31."""
    return f"{per_second:,.0f}" if per_second >= 9.95 else figures(per_second, 2)


def parse_size(text: str) -> int:
    """Read a number of bytes such as "20GB", "500 mb" or "1.5TiB", in any case.

    Raises:
        OptionError: the text is not one.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    unit = (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " ") if match else 0
    if not match or (count := int(float(match[1]) * unit)) == 0:
        raise OptionError(f"a size reads like 20GB or 500MiB, found {text!r}")
    return count


def span_unit(seconds: float) -> tuple[float, str]:
    """Return the unit that a span is best told in: how many seconds it has, and its symbol."""
    return next((each, symbol) for each, symbol in _SPANS if seconds / each < 119.95 or symbol == "h")


def span(seconds: float) -> str:
    """Write a span of time."""
    seconds = max(0.0, seconds)
    each, symbol = span_unit(seconds)
    return f"{seconds / each:,.1f} {symbol}"


def share(part: float) -> str:
    """Write a share of 1 in percent: 41.3 %, 0.4 %, 0.0002 %."""
    return f"{100 * part:.1f} %" if part >= 0.0095 else f"{100 * part:.1g} %" if part >= 1e-6 else "0 %"
