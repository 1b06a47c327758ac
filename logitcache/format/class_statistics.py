"""How a teacher's classes vary together: what a cache knows of all its rows at once."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from logitcache.format.spec import require

MOST_FACTORS = 4096


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """A normal distribution of centred logits, N(mean, F Fᵀ + noise · I); `teacher.completion` uses it.

    A row's centred logits are its logits less their mean over all C classes.

    Attributes:
        mean: (C,) float32.
        factors: F, (C, r) float32, 1 ≤ r ≤ C.
        noise: variance of each class that the factors do not explain, > 0.
        views: how many views it was estimated from, those counted in whose image did not decode.

    Raises:
        FormatError: these are no such numbers.
    """

    mean: npt.NDArray[np.float32]
    factors: npt.NDArray[np.float32]
    noise: float
    views: int

    def __post_init__(self) -> None:
        classes, factors = self.mean.shape, self.factors.shape
        require(
            len(factors) == 2 and factors[:1] == classes and 1 <= factors[1] <= min(classes[0], MOST_FACTORS),
            f"class statistics: expected mean (C,) and factors (C, r), found {classes} and {factors}",
        )
        require(
            self.mean.dtype == self.factors.dtype == np.float32,
            f"class statistics: expected float32, found {self.mean.dtype} and {self.factors.dtype}",
        )
        require(
            bool(np.isfinite(self.mean).all() and np.isfinite(self.factors).all()),
            "class statistics: expected finite numbers, found others",
        )
        require(
            0 < self.noise < np.inf, f"class statistics: noise must be above 0 and finite, found {self.noise}"
        )
        require(self.views >= 1, f"class statistics: views must be at least 1, found {self.views}")
