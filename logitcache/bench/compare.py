"""Two ways of doing one thing, timed in interleaved rounds so that both share the machine's load, as a ratio."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from logitcache.bench.table import at_most, with_quartiles
from logitcache.format.spec import Spec
from logitcache.units import figures, rate

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison(Spec):
    """Medians of both, and the ratio of their times per round as median and quartiles.

    Attributes:
        of: what was measured, by column.
        against: the other.
        unit: of `value` and `value_against`.
        ratio: of times: below 1 it is faster than the other.
        wanted: what the ratio should be at most; None where there is no such aim.
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
        """Compare seconds per round, (rounds,) each; of `views` views, give rates instead of milliseconds."""
        low, middle, high = quartiles(mine / theirs)
        seconds = (float(np.median(mine)), float(np.median(theirs)))
        values = [1e3 * s if views is None else views / s for s in seconds]
        columns = {name: str(value) for name, value in of.items()}
        unit: Literal["ms", "views/s"] = "ms" if views is None else "views/s"
        return cls(columns, against, unit, values[0], values[1], middle, low, high, wanted)

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        write = figures if self.unit == "ms" else rate
        first, *others = self.of.items()
        ratios = (_write_ratio(x) for x in (self.ratio_low, self.ratio, self.ratio_high))
        return {
            first[0]: first[1],
            "against": self.against,
            **dict(others),
            self.unit: write(self.value),
            "other": write(self.value_against),
            "ratio, quartiles": with_quartiles(*ratios),
            "wanted": at_most(self.wanted),
        }


def _write_ratio(x: float) -> str:
    digits = 3 if x < 0.0995 else 2 if x < 9.995 else 1 if x < 99.95 else 0
    return f"{x:.{digits}f}"


def quartiles(values: Seconds) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return low, middle, high


def time_interleaved(
    ways: Mapping[str, Callable[[int], object]],
    rounds: int,
    clock: Callable[[], float | Seconds],
    prepare: Callable[[str, int], object] = lambda name, number: None,
) -> dict[str, Seconds]:
    """Time each way once a round; the first round is not counted.

    Every other round takes the ways in the opposite order, and every pair of rounds begins with another of them, so
    that each is equally often first, last, and right after itself.

    Args:
        ways: each is called with the number of the round.
        rounds: how many count.
        clock: in seconds; it waits for what is under way, where work is done elsewhere. Or several, as an array.
        prepare: what is done each time before a way, untimed, with its name and the number of the round.

    Returns:
        (rounds,) seconds of each; (rounds, clocks) by several.
    """
    times: dict[str, list[float | Seconds]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        first = number // 2 % len(names)
        order = names[first:] + names[:first]
        for name in reversed(order) if number % 2 else order:
            prepare(name, number)
            start = clock()
            ways[name](number)
            if number:
                times[name].append(clock() - start)
    return {name: np.array(seconds) for name, seconds in times.items()}


def device_clock(device: torch.device) -> Callable[[], float]:
    """Return a clock in seconds that waits for the device."""
    if device.type != "cuda":
        return time.perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized
