"""Logits of an ImageNet teacher for a million views, made up, as there is no such teacher at hand; or of a real one.

Made-up logits follow from features, so that what is correlated in a trained network is correlated here. A view's
feature is its class's, weaker or stronger (views differ in how clear they are), often some of another object's, and
Gaussian noise; classes have features in a tree of 12 kinds and 110 families, so each has neighbours that it is
confused with; all directions fall off in strength like the spectrum of a network's last layer. The scale is set so
that the means are those of a ViT on training views: top-1 probability 0.7, right in 0.8 of views, mass beyond the
top 16 of 0.07, gaps of 2.5 (median) to the second and 7 to the sixteenth. Noise makes the lists of two views of a
class differ: they are no easier to compress than that.

Views come in the order of an image folder, class by class, as `ImageFolder` lists them and `dump` stores them;
or shuffled, so that no order helps a compressor.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from logitcache.errors import DataError, NotFoundError, OptionError

IMAGENET = 1_281_167
CLASSES = 1000
BLOCK = 4096  # views whose logits are in memory at a time
Order = Literal["folder", "shuffled"]


class TeacherLogits(Protocol):
    """Logits of many views, block by block."""

    @property
    def n(self) -> int:
        """Number of views."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def about(self) -> str:
        """What these logits are, in words."""

    def blocks(self) -> Iterator[Tensor]:
        """Yield (B, C) float32 logits of the views in order."""


@dataclass(frozen=True)
class SyntheticLogits:
    """Made-up logits of the first `n` views of a folder of so many images; the same for the same fields.

    Strengths are set for ImageNet's 1,000 classes: of more, the same teacher is less sure.
    """

    n: int
    order: Order = "folder"
    seed: int = 0
    num_classes: int = CLASSES
    images: int = IMAGENET
    dimensions: int = 192
    scale: float = 20.0
    noise: float = 1.4

    @property
    def about(self) -> str:
        """What these logits are, in words."""
        return "a made-up ViT"

    def blocks(self) -> Iterator[Tensor]:
        """Yield (B, C) float32 logits of the views in order."""
        generator = torch.Generator().manual_seed(self.seed)
        fading = (torch.arange(self.dimensions) + 5.0) ** -0.35
        classes = self._classes(generator) * fading
        classes = classes / classes.norm(dim=1).mean()
        fading = fading / fading.norm()
        for start in range(0, self.n, BLOCK):
            count = min(BLOCK, self.n - start)
            labels = (torch.arange(start, start + count) * self.num_classes) // self.images
            if self.order == "shuffled":
                labels = torch.randint(self.num_classes, (count,), generator=generator)
            clear = 0.35 + 0.75 * torch.rand(count, 1, generator=generator) ** 0.7
            other = classes[torch.randint(self.num_classes, (count,), generator=generator)]
            beside = 0.35 * torch.rand(count, 1, generator=generator) ** 3
            noise = torch.randn(count, self.dimensions, generator=generator) * fading
            feature = classes[labels % self.num_classes] * clear + other * beside + self.noise * noise
            yield self.scale * feature @ classes.T

    def _classes(self, generator: torch.Generator) -> Tensor:
        kinds, families = 12, 110
        of_kind = torch.randn(kinds, self.dimensions, generator=generator)
        of_family = torch.randn(families, self.dimensions, generator=generator)
        own = torch.randn(self.num_classes, self.dimensions, generator=generator)
        kind = torch.randint(kinds, (families,), generator=generator)
        sizes = torch.rand(families, generator=generator) ** 1.5 + 0.05
        family = (
            torch.multinomial(sizes, self.num_classes, replacement=True, generator=generator).sort().values
        )
        return math.sqrt(0.2) * of_kind[kind[family]] + math.sqrt(0.4) * (of_family[family] + own)


class RecordedLogits:
    """Logits of a real teacher, from the array `logits` (n, C) of an .npz file.

    Raises:
        NotFoundError: there is no such file.
        DataError: it does not hold that.
    """

    def __init__(self, path: Path, order: Order = "folder") -> None:
        if not path.is_file():
            raise NotFoundError(f"no file {path}; expected an .npz with an array 'logits', (n, C)")
        try:
            with np.load(path, allow_pickle=False) as file:
                self._logits = np.asarray(file["logits"], dtype=np.float32)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: expected an .npz with an array 'logits', (n, C); {error}") from error
        if self._logits.ndim != 2 or self._logits.shape[1] < 2 or not np.isfinite(self._logits).all():
            raise DataError(f"{path}: expected finite logits (n, C), found shape {self._logits.shape}")
        if order == "shuffled":
            self._logits = np.random.default_rng(0).permutation(self._logits)
        self.about = f"logits of {path.name}"

    @property
    def n(self) -> int:
        """Number of views."""
        return len(self._logits)

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self._logits.shape[1])

    def blocks(self) -> Iterator[Tensor]:
        """Yield (B, C) float32 logits of the views in order."""
        for start in range(0, self.n, BLOCK):
            yield torch.from_numpy(self._logits[start : start + BLOCK])


def open_logits(n: int, order: Order, file: Path | None = None) -> TeacherLogits:
    """Return the logits to measure with: those of a file, or of `n` made-up views.

    Raises:
        OptionError: `n` is not at least 1.
        NotFoundError: there is no such file.
        DataError: it does not hold logits.
    """
    if file is not None:
        return RecordedLogits(file, order)
    if n < 1:
        raise OptionError(f"n must be at least 1 view, found {n}")
    return SyntheticLogits(n, order)
