"""Images in a stable order, with a fingerprint: what every data set is to the rest of the library."""

import abc
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from logitcache.errors import DataError
from logitcache.format.identity import DatasetSpec
from logitcache.views.picture_sample import PictureSample

Labels = npt.NDArray[np.int64]
Samples = npt.NDArray[np.int64] | slice
UNLABELLED_CLASSES = 1000
NO_SAMPLES: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)


class MissingImagesWarning(UserWarning):
    """Images of a cache are missing, and left out."""


def name_class(class_names: Sequence[str], class_: int) -> str:
    """Return what to call a class: its name, or its number where it has none."""
    return class_names[class_] if class_ < len(class_names) else str(class_)


class Images(abc.ABC):
    """Images in a stable order; subclass it for your own data.

    Attributes:
        name: as the user gave it.
        split: "train" or "test".
        labels: (n,) int64; −1 where there is no label.
        num_classes: C; None when unlabelled images leave it to the teacher.
        class_names: of the classes, for messages and pages; may be empty.
        recipe: name of the default recipe for such images, where their sizes do not choose one (`default_recipe`).
        note: what the user should know of them, in one line; may be empty.
        left_out: how many images the data has beyond these, where these are the samples of a cache.
        missing: (m,) int64, samples whose image is not there, or does not decode and is left out, or is `unneeded`;
            no view is made of them.
        unneeded: (u,) int64, those of `missing` that have no teacher, as their image did not decode; what became of
            it since, whether it is gone or mended, costs no row.
        missing_note: which these are, in one line; may be empty.
    """

    name: str
    split: str
    labels: Labels
    num_classes: int | None
    class_names: Sequence[str] = ()
    recipe: str = "imagenet"
    note: str = ""
    left_out: int = 0
    missing: npt.NDArray[np.int64] = NO_SAMPLES
    unneeded: npt.NDArray[np.int64] = NO_SAMPLES
    missing_note: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def image(self, sample: int) -> Tensor:
        """Return one image, (C, H, W) uint8 with C of 1 or 3, in any memory layout.

        Raises:
            ImageError: it does not decode; the message names it.
        """

    def on_background(self, colour: str | None) -> "Images":
        """Return these images with transparent ones on a colour, "#rrggbb", or with alpha dropped where it is None.

        These themselves, unless a subclass reads pictures that may be transparent.
        """
        return self

    def sample_pictures(self) -> PictureSample | None:
        """Look at a few pictures as they are stored; None where images have no sizes of their own, and no alpha."""
        return None

    def default_recipe(self) -> str:
        """Name the recipe of training views where the user names none: by a sample of the pictures, else `recipe`."""
        sample = self.sample_pictures()
        return sample.choose_recipe() if sample else self.recipe

    def pixels(self) -> Tensor | None:
        """Return all images, (n, C, H, W) uint8, if they lie in memory, so that `image` only looks one up."""
        return None

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of what the images are and of their order."""

    def fingerprint_of(self, samples: Samples) -> str:
        """Hex digest of some of the images in this order: what `fingerprint` was when there were only these.

        Args:
            samples: (m,) int64, or a slice.

        Raises:
            DataError: these images do not say.
        """
        raise DataError(
            f"{self.name}: the data has grown, or changed its order, since the cache was made; give "
            f"{type(self).__name__} a fingerprint_of(samples), so that the old samples can be told"
        )

    def stable_name(self, sample: int) -> bytes:
        """Return a name that the image keeps when the data grows; here its number, so new images must come last."""
        return str(sample).encode()

    def keys(self) -> npt.NDArray[np.uint64]:
        """Return the sample keys, (n,) uint64: BLAKE2b-64 of each stable name, little-endian."""
        names = (self.stable_name(sample) for sample in range(len(self)))
        digests = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names)
        return np.frombuffer(digests, dtype="<u8").astype(np.uint64)

    def earlier_listings(self) -> "Iterator[Images]":
        """Open the same data as earlier versions listed it, which caches may have been made of; here none."""
        return iter(())

    def times(self) -> npt.NDArray[np.float64] | None:
        """Return when each image was last changed or replaced, (n,) in seconds; None where it is unknown."""
        return None

    def populations(self) -> Sequence[int]:
        """Return how many samples there were at first, after the data had grown once, and so on, rising."""
        return (len(self),)

    def population(self, sample: int) -> int:
        """Return how many samples there were when this one was added; views are mixed with these alone."""
        counts = self.populations()
        return counts[bisect_right(counts, sample)]

    def describe(self, sample: int) -> str:
        """Say which image this is, for messages."""
        return f"sample {sample} of {self.name}"

    def spec(self, num_classes: int | None = None) -> DatasetSpec:
        """Return what a cache records of these images."""
        classes = self.num_classes or num_classes or UNLABELLED_CLASSES
        return DatasetSpec(self.name, self.split, len(self), classes, self.fingerprint)


def check_labels(name: str, labels: Any, n: int, num_classes: int | None) -> Labels:
    """Return labels as (n,) int64.

    Raises:
        DataError: they are not one class number per image; the message says what they are.
    """
    try:
        found = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name}: expected one class number per image; found labels of no one shape"
        ) from error
    if found.shape == (n, 1):
        found = found[:, 0]
    if found.dtype.kind == "f":
        numbers = found.astype(np.float64)
        if (np.abs(numbers) < 2.0**53).all() and (numbers == np.floor(numbers)).all():
            found = numbers.astype(np.int64)
    if found.shape != (n,) or not n or found.dtype.kind not in "iu":
        raise DataError(
            f"{name}: expected one class number per image, found {found.dtype} labels of shape {found.shape} "
            f"for {n} images{_advise_on_labels(found)}"
        )
    last = num_classes - 1 if num_classes else int(found.max())
    if odd := [int(label) for label in (found.min(), found.max()) if not -1 <= label <= last]:
        raise DataError(f"{name}: labels must be 0 to {last} (or -1 for none), found {odd[0]}")
    return np.ascontiguousarray(found, dtype=np.int64)


def are_probabilities(rows: npt.NDArray[Any]) -> bool:
    """Tell whether each row, (..., C), is a one-hot label, or probabilities of one class above all others."""
    if not rows.shape or rows.shape[-1] < 2 or rows.dtype.kind not in "biuf":
        return False
    rows = rows.astype(np.float64)
    alone = (rows == rows.max(-1, keepdims=True)).sum(-1) == 1
    return bool((rows >= 0).all() and np.allclose(rows.sum(-1), 1, atol=1e-2) and alone.all())


def _advise_on_labels(found: npt.NDArray[Any]) -> str:
    if found.ndim == 2 and found.size and found.dtype.kind in "biuf":
        if are_probabilities(found):
            return "; of one-hot labels take the class by .argmax(1)"
        return "; of several labels per image choose one"
    advice = {"f": "; make whole numbers of them", "U": "; number the classes from 0"}
    return advice.get(found.dtype.kind, "") if found.size else ""


def hash_parts(*parts: Any) -> str:
    """Return a fingerprint, in hex: SHA-256 over buffers, the length of each before it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(memoryview(part).cast("B")).to_bytes(8, "little"))
        digest.update(memoryview(part).cast("B"))
    return digest.hexdigest()
