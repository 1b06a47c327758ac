"""What a few pictures, evenly spread, say of a data set: how large they are, and whether some are transparent.

By their headers alone, but for those that may be transparent: of these some are decoded.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from logitcache.views.decoding import has_alpha, read_alpha, read_picture

LOOKED_AT = 64  # files
MOST_DECODED = 1 << 24  # pixels, to see whether alpha hides any; of further ones the header is believed
SIDES = (32, 64, 96, 128, 160, 192, 224)  # of views, by default


@dataclass(frozen=True)
class PictureSample:
    """Some pictures of a data set.

    Attributes:
        sides: shorter side, in pixels, of each.
        transparent: how many have pixels that are not opaque.
        first: the first of these, for messages; "" where there is none.
    """

    sides: tuple[int, ...]
    transparent: int = 0
    first: str = ""

    @classmethod
    def of_files(cls, files: Sequence[Path], describe: Callable[[int], str]) -> "PictureSample":
        """Look at up to `LOOKED_AT` of these files; those that do not open are passed over.

        Args:
            files: in a stable order, so that the same folder gives the same sample anywhere.
            describe: says which one a number means.
        """
        sides: list[int] = []
        clear: list[int] = []
        budget = MOST_DECODED
        for number in spread_evenly(len(files), LOOKED_AT):
            try:
                pixels, side, transparent = read_picture(files[number], partial(_look, budget=budget))
            except Exception:  # whatever a decoder raises: whoever needs the picture will say so
                continue
            sides.append(side)
            clear += [number] * transparent
            budget -= pixels
        return cls(tuple(sides), len(clear), describe(clear[0]) if clear else "")

    def choose_recipe(self) -> str:
        """Name the recipe of training views by the median shorter side: the nearest of `SIDES`, of two the larger."""
        if not self.sides:
            return "imagenet"
        middle = statistics.median_low(self.sides)
        side = min(reversed(SIDES), key=lambda side: abs(side - middle))
        return "imagenet" if side == SIDES[-1] else f"imagenet@{side}"

    def describe_sides(self) -> str:
        """Say in a few words how large the pictures are."""
        middle = statistics.median_low(self.sides)
        small = ", and are enlarged" if middle < SIDES[0] else ""
        among = f" (median of {len(self.sides):,} looked at)" if len({*self.sides}) > 1 else ""
        return f"the pictures' shorter sides are {middle:,} pixels{among}{small}"


def spread_evenly(n: int, count: int) -> list[int]:
    """List up to so many of n samples, evenly spaced."""
    return sorted({i * n // count for i in range(count)}) if n else []


def is_transparent(image: Any) -> bool:
    """Tell whether a PIL image has pixels that are not opaque."""
    alpha = read_alpha(image)
    return alpha is not None and bool((alpha < 255).any())


def _look(file: Any, budget: int) -> tuple[int, int, bool]:
    """Return how many pixels were decoded, the shorter side, and whether some pixels are not opaque."""
    width, height = file.size
    if not has_alpha(file):
        return 0, min(width, height), False
    if width * height > budget:
        return 0, min(width, height), True
    return width * height, min(width, height), is_transparent(file)
