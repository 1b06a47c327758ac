"""MixUp and CutMix as functions of (sample, seed): partner and share do not depend on the batch.

The partner of sample i under seed s is π_s(i), π_s a permutation of the data set that s keys, and it is seen as it
is under s before mixing. Whether, how and how much follows from (s, i). Shares are whole 256ths or whole pixels, so
that a mixed view is integers throughout: the same on every machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.format.identity import RecipeSpec
from logitcache.views.keys import key


class MixedLabels(NamedTuple):
    """Labels of mixed views.

    Attributes:
        own, other: (B,) int64, −1 where there is none.
        share: (B,) float in [0, 1], of `own`; 1 where a view is not mixed.
    """

    own: Tensor
    other: Tensor
    share: Tensor

    @property
    def dominant(self) -> Tensor:
        """(B,) the label of the larger share, for losses that know one label only."""
        return torch.where(self.share >= 0.5, self.own, self.other)


@dataclass(frozen=True)
class Mix:
    """How one view is mixed.

    Attributes:
        partner: the other sample.
        kind: "MixUp" or "CutMix".
        ratio: share in [0, 1] that was drawn for the view's own image.
        centre: of the box that CutMix cuts, (y, x) in [0, 1) of height and width.
    """

    partner: int
    kind: Literal["MixUp", "CutMix"]
    ratio: float
    centre: tuple[float, float]

    def apply(self, view: Tensor, other: Tensor) -> tuple[Tensor, float]:
        """Mix two (C, h, w) uint8 views; returns the mixed one, and the share of the first that is in it."""
        if self.kind == "MixUp":
            weight = round(self.ratio * 256)
            mixed = (view.int() * weight + other.int() * (256 - weight) + 128) >> 8
            return mixed.to(view.dtype), weight / 256
        height, width = view.shape[1:]
        side = (1 - self.ratio) ** 0.5
        top, bottom = _box_edges(height, self.centre[0], side)
        left, right = _box_edges(width, self.centre[1], side)
        mixed = view.clone()
        mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


ROUNDS = 4  # of the network that permutes samples


@dataclass(frozen=True)
class Mixer:
    """The mixing steps at the end of a recipe, (kind, alpha, probability) each; a view is mixed by one at most.

    Source: MixUp, Zhang et al. 2018 (arXiv 1710.09412); CutMix, Yun et al. 2019 (arXiv 1905.04899).
    """

    steps: tuple[tuple[Literal["MixUp", "CutMix"], float, float], ...]

    @classmethod
    def from_recipe(cls, recipe: RecipeSpec) -> Self:
        """Read a recipe's MixUp and CutMix steps, each with `alpha` (default 1) and `probability` (default 1).

        Raises:
            OptionError: an argument cannot be honoured, or the probabilities exceed 1 in sum.
        """
        steps: list[tuple[Literal["MixUp", "CutMix"], float, float]] = []
        for step in recipe.mix_steps:
            given = {"alpha": 1.0, "probability": 1.0, **step.args}
            alpha, probability = given.pop("alpha"), given.pop("probability")
            numbers = all(type(x) in (int, float) for x in (alpha, probability))
            if given or not numbers or not (0 < alpha <= 1e6 and 0 <= probability <= 1):
                raise OptionError(
                    f"{step.transform} takes alpha (above 0) and probability (0 to 1), found {step.args}"
                )
            kind: Literal["MixUp", "CutMix"] = "MixUp" if step.transform == "MixUp" else "CutMix"
            steps.append((kind, float(alpha), float(probability)))
        if sum(probability for _, _, probability in steps) > 1 + 1e-9:
            raise OptionError(
                "a view is mixed once: the probabilities of MixUp and CutMix must not exceed 1 in sum, found "
                + " + ".join(f"{probability:g}" for _, _, probability in steps)
            )
        return cls(tuple(steps))

    def draw(self, sample: int, seed: int, n: int) -> Mix | None:
        """Return how the view of a sample of n under a seed is mixed, if it is."""
        # NumPy's legacy generator: its streams are frozen for good, those of the new one are not.
        numbers = np.random.RandomState(key(seed, sample, 1) & 0xFFFF_FFFF)
        chance = float(numbers.random_sample())
        for kind, alpha, probability in self.steps:
            if chance < probability:
                ratio = float(numbers.beta(alpha, alpha))
                centre = (float(numbers.random_sample()), float(numbers.random_sample()))
                return Mix(draw_partner(sample, seed, n), kind, ratio, centre)
            chance -= probability
        return None

    def find_mixed(self, partners: Iterable[int], seed: int, populations: Sequence[int]) -> list[int]:
        """List the samples whose views under a seed are mixed with one of these.

        Args:
            partners: samples.
            seed: which.
            populations: how many samples there were at first, after the data had grown once, and so on.
        """
        if not self.steps:
            return []
        found = []
        for first, n in pairwise((0, *populations)):
            drawers = (find_drawer(partner, seed, n) for partner in partners if partner < n)
            found += [i for i in drawers if i >= first and self.draw(i, seed, n)]
        return found


def draw_partner(sample: int, seed: int, n: int) -> int:
    """Return π_s(i), π_s a permutation of range(n): a keyed Feistel network, walked until it lands below n.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, sections 3 and 4.
    """
    half, mask = _halve(n)
    while True:
        left, right = sample >> half, sample & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (key(seed, number, right, 2) & mask)
        sample = left << half | right
        if sample < n:
            return sample


def find_drawer(partner: int, seed: int, n: int) -> int:
    """Return the sample i that draws this partner, π_s(i): `draw_partner` walked backwards."""
    half, mask = _halve(n)
    sample = partner
    while True:
        left, right = sample >> half, sample & mask
        for number in reversed(range(ROUNDS)):
            left, right = right ^ (key(seed, number, left, 2) & mask), left
        sample = left << half | right
        if sample < n:
            return sample


def _halve(n: int) -> tuple[int, int]:
    """Return the bits of either half of a number below n, and a mask of as many."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    return half, (1 << half) - 1


def _box_edges(length: int, centre: float, side: float) -> tuple[int, int]:
    """Where a box begins and ends along one side of an image, cut off at the borders."""
    size, middle = round(length * side), int(centre * length)
    start = middle - size // 2
    return max(0, start), min(length, start + size)
