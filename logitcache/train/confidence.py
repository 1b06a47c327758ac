"""Calibration: a model's accuracy by confidence bin."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from logitcache.format.spec import Spec, require

BINS = 15  # of confidence, equally wide


@dataclass(frozen=True)
class Reliability(Spec):
    """Accuracy by confidence, the probability of the first class, in bins (0, 1/15], (1/15, 2/15], …, (14/15, 1].

    Attributes:
        images: number of labelled images in each bin.
        right: how many of them are classified right.
        confidence: sum of their confidences.

    Source: Guo et al. 2017 (arXiv 1706.04599), figure 1.
    """

    images: tuple[int, ...]
    right: tuple[int, ...]
    confidence: tuple[float, ...]

    def __post_init__(self) -> None:
        """Insist on numbers that can be such counts and sums."""
        complete = len(self.images) == len(self.right) == len(self.confidence) == BINS
        require(complete, f"Reliability: expected {BINS} bins of each, found others")
        bins = zip(self.images, self.right, self.confidence, strict=True)
        possible = all(0 <= right <= n and 0 <= total <= n * (1 + 1e-6) for n, right, total in bins)
        require(possible, "Reliability: expected no more right, and no more confidence, than images in a bin")

    def __add__(self, other: Self) -> Self:
        one, two = (np.array([x.images, x.right, x.confidence]) for x in (self, other))
        images, right, confidence = (one + two).tolist()
        return type(self)(tuple(map(int, images)), tuple(map(int, right)), tuple(confidence))

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]; equation 3 of Guo et al.; 0 without any image."""
        gaps = np.abs(np.subtract(self.right, self.confidence))
        return float(gaps.sum()) / max(1, sum(self.images))

    def points(self) -> list[tuple[float, float, int]]:
        """List (mean confidence, accuracy, number of images) of the bins that hold any."""
        bins = zip(self.images, self.right, self.confidence, strict=True)
        return [(total / n, right / n, n) for n, right, total in bins if n]
