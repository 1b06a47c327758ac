"""One thing against another: timed in turns, so that both share the machine's load, and told as a ratio."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from logitcache.schema import Spec

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison(Spec):
    """Medians of both, and the ratio of their times per round as median and quartiles.

    Attributes:
        of: what was measured, by column.
        against: the other.
        unit: of `value` and `value_against`.
        ratio: of times: below 1 it is faster than the other.
        wanted: what the ratio should be at most; None where it is only told.
    """

    of: dict[str, str]
    against: str
    unit: Literal["ms", "views/s"]
    value: float
    value_against: float
    ratio: float
    ratio_low: float
    ratio_high: float
    wanted: float | None

    @classmethod
    def between(
        cls,
        of: Mapping[str, object],
        against: str,
        mine: Seconds,
        theirs: Seconds,
        wanted: float | None,
        views: int | None = None,
    ) -> Self:
        """Compare seconds per round, (rounds,) each; of `views` views, rates are told instead of milliseconds."""
        low, middle, high = np.quantile(mine / theirs, [0.25, 0.5, 0.75]).tolist()
        seconds = (float(np.median(mine)), float(np.median(theirs)))
        values = [1e3 * s if views is None else views / s for s in seconds]
        told = {name: str(value) for name, value in of.items()}
        unit: Literal["ms", "views/s"] = "ms" if views is None else "views/s"
        return cls(told, against, unit, values[0], values[1], middle, low, high, wanted)

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        form = ".3g" if self.unit == "ms" else ",.0f"
        first, *others = self.of.items()
        digits = 2 if self.ratio >= 0.1 else 3
        low, middle, high = (f"{x:.{digits}f}" for x in (self.ratio_low, self.ratio, self.ratio_high))
        return {
            first[0]: first[1],
            "against": self.against,
            **dict(others),
            self.unit: format(self.value, form),
            "other": format(self.value_against, form),
            "ratio, quartiles": f"{middle} ({low}–{high})",
            "wanted": "" if self.wanted is None else f"≤ {self.wanted:g}",
        }


def in_turns(
    ways: Mapping[str, Callable[[int], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, Seconds]:
    """Time each way once a round, every other round in the opposite order; the first round is not counted.

    Args:
        ways: each is called with the number of the round.
        rounds: how many count.
        clock: in seconds; it waits for what is under way, where work is done elsewhere.

    Returns:
        (rounds,) seconds of each.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in sorted(ways.items(), reverse=bool(number % 2)):
            start = clock()
            way(number)
            if number:
                times[name].append(clock() - start)
    return {name: np.array(seconds) for name, seconds in times.items()}
