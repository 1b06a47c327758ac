"""Images in an order of their own, such as a cache's; some of them may be missing."""

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.errors import ImageError
from logitcache.views.images import NO_SAMPLES, Images, Samples
from logitcache.views.picture_sample import PictureSample

NO_VIEW = "no view of it can be made"


class OrderedImages(Images):
    """Some of the images of another set, in an order of their own.

    Args:
        images: the other set.
        order: (m,) int64, which of them, and in which order; −1 where a sample's image is missing.
        counts: how many there were at first, after the data had grown once, and so on; the last is m.
        fingerprint: of all m, where some are missing.
        missing_note: says which are missing.
        unneeded: (u,) int64, samples without a teacher whose image is gone or was changed; no view is made of them.
        keys: (m,) uint64, of all m, where some are missing.
    """

    def __init__(
        self,
        images: Images,
        order: npt.NDArray[np.int64],
        counts: Sequence[int],
        fingerprint: str | None = None,
        missing_note: str = "",
        unneeded: npt.NDArray[np.int64] = NO_SAMPLES,
        keys: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        self.images, self.order, self.counts = images, order, list(counts)
        self.name, self.split, self.recipe = images.name, images.split, images.recipe
        self.labels, self.num_classes = np.where(order < 0, -1, images.labels[order]), images.num_classes
        self.class_names, self.note = images.class_names, images.note
        self.missing_note = missing_note or images.missing_note
        self.unneeded = np.union1d(unneeded, np.flatnonzero(np.isin(order, images.unneeded)))
        gone = np.flatnonzero((order < 0) | np.isin(order, images.missing))
        self.missing = np.union1d(gone, self.unneeded)
        self._keys = keys
        self.left_out = len(images) - int((order >= 0).sum())
        self._fingerprint = images.fingerprint_of(order) if fingerprint is None else fingerprint

    def image(self, sample: int) -> Tensor:
        """Return one image, (C, H, W) uint8.

        Raises:
            ImageError: it does not decode, is missing, or was changed since a cache was made without it.
        """
        place = self._find_place(sample, NO_VIEW)
        if sample in self.unneeded and place not in self.images.unneeded:
            raise ImageError(
                f"{self.describe(sample)} was changed since the cache was made, where it has no teacher, so {NO_VIEW}"
            )
        return self.images.image(place)

    def _find_place(self, sample: int, lacking: str) -> int:
        if (place := int(self.order[sample])) < 0:
            raise ImageError(f"{self.describe(sample)} is missing, so {lacking}")
        return place

    def on_background(self, colour: str | None) -> "OrderedImages":
        """Return the same images, transparent ones on a colour."""
        ordered = copy.copy(self)
        ordered.images = self.images.on_background(colour)
        return ordered

    def sample_pictures(self) -> PictureSample | None:
        """Look at a few of the other set."""
        return self.images.sample_pictures()

    def pixels(self) -> Tensor | None:
        """Return a copy of these images, where the others lie in memory and none is missing."""
        pixels = None if len(self.missing) else self.images.pixels()
        return None if pixels is None else pixels[torch.from_numpy(self.order)]

    @property
    def fingerprint(self) -> str:
        """Digest of these images in this order, as their own set would give it."""
        return self._fingerprint

    def fingerprint_of(self, samples: Samples) -> str:
        """Digest of some of them.

        Raises:
            ImageError: one is missing.
        """
        gone = np.arange(len(self))[samples][self.order[samples] < 0]
        if len(gone):
            raise ImageError(f"{self.describe(int(gone[0]))} is missing, so no digest of it can be made")
        return self.images.fingerprint_of(self.order[samples])

    def stable_name(self, sample: int) -> bytes:
        """Return the name that the image has in its own set.

        Raises:
            ImageError: it is missing.
        """
        return self.images.stable_name(self._find_place(sample, "it has no name"))

    def keys(self) -> npt.NDArray[np.uint64]:
        """Return the sample keys, (n,) uint64.

        Raises:
            ImageError: an image is missing, and nothing tells its key.
        """
        return super().keys() if self._keys is None else self._keys

    def times(self) -> npt.NDArray[np.float64] | None:
        """Return when each was last changed or replaced, as their own set tells it; NaN where one is missing."""
        times = self.images.times()
        return None if times is None else np.where(self.order < 0, np.nan, times[self.order])

    def populations(self) -> Sequence[int]:
        """Return how many samples there were at first, after the data had grown once, and so on."""
        return self.counts

    def describe(self, sample: int) -> str:
        """Say which image this is, for messages."""
        place = int(self.order[sample])
        return super().describe(sample) if place < 0 else self.images.describe(place)
