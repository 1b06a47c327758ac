"""What stage one and stage two are timed on: JPEG pictures, and a teacher that costs next to nothing.

The pictures are of 500 × 375 pixels, and their spectrum falls as that of photographs does.
"""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from logitcache.models.build import Model
from logitcache.views.datasets import open_images
from logitcache.views.images import Images

CLASSES, TOP_K = 1000, 8


def make_pictures(root: Path, count: int) -> Images:
    """Make a folder of so many JPEG files, and label them at random."""
    from PIL import Image

    rng = np.random.default_rng(0)
    root.mkdir()
    for number in range(count):
        Image.fromarray(_photograph(rng)).save(root / f"{number:05}.jpg", quality=90)
    images = open_images(f"folder:{root}")
    images.labels, images.num_classes = rng.integers(0, CLASSES, count), CLASSES
    return images


def _photograph(rng: np.random.Generator, height: int = 375, width: int = 500) -> npt.NDArray[np.uint8]:
    """Return (height, width, 3) uint8 noise whose amplitude falls with spatial frequency, as in natural images."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falling = 1 / np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    channels = [
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * falling, (height, width))
        for _ in range(3)
    ]
    shared = channels[0]
    picture = np.stack([shared + 0.4 * channel for channel in channels], 2)
    low, high = np.quantile(picture, [0.01, 0.99])
    pixels: npt.NDArray[np.uint8] = (np.clip((picture - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return pixels


def idle_teacher(like: Model) -> Model:
    """Return a teacher that does next to nothing, with the input of another."""
    return dataclasses.replace(like, module=_ColourHead(), name="idle")


class _ColourHead(nn.Module):
    """A linear layer on the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
