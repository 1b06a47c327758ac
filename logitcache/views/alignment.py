"""Images in a cache's order: data that has grown keeps the numbers of its old samples.

A folder lists new files between old ones; a cache appends them. `align_images` finds the old images by the sample
keys that every cache stores, and proves them by the fingerprint. `open_images_to_show` opens only images that the
user names.
"""

import copy
import shlex
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.errors import DataError, Difference, LogitCacheError, MismatchError, NotFoundError
from logitcache.store.reader import CacheReader
from logitcache.views.datasets import SHIPPED, open_images
from logitcache.views.images import Images, Samples
from logitcache.views.picture_sample import PictureSample

SampleKeys = npt.NDArray[np.uint64]


class OrderedImages(Images):
    """Some of the images of another set, in an order of their own.

    Args:
        images: the other set.
        order: (m,) int64, which of them, and in which order.
        counts: how many there were at first, after the data had grown once, and so on; the last is m.
    """

    def __init__(self, images: Images, order: npt.NDArray[np.int64], counts: Sequence[int]) -> None:
        self.images, self.order, self.counts = images, order, list(counts)
        self.name, self.split, self.recipe = images.name, images.split, images.recipe
        self.labels, self.num_classes = images.labels[order], images.num_classes
        self.class_names, self.note = images.class_names, images.note
        self.left_out = len(images) - len(order)
        self._fingerprint = images.fingerprint_of(order)

    def image(self, sample: int) -> Tensor:
        """Return one image, (C, H, W) uint8."""
        return self.images.image(int(self.order[sample]))

    def on_background(self, colour: str | None) -> "OrderedImages":
        """Return the same images, transparent ones on a colour."""
        ordered = copy.copy(self)
        ordered.images = self.images.on_background(colour)
        return ordered

    def sample_pictures(self) -> PictureSample | None:
        """Look at a few of the other set."""
        return self.images.sample_pictures()

    def pixels(self) -> Tensor | None:
        """Return a copy of these images, where the others lie in memory."""
        pixels = self.images.pixels()
        return None if pixels is None else pixels[torch.from_numpy(self.order)]

    @property
    def fingerprint(self) -> str:
        """Digest of these images in this order, as their own set would give it."""
        return self._fingerprint

    def fingerprint_of(self, samples: Samples) -> str:
        """Digest of some of them."""
        return self.images.fingerprint_of(self.order[samples])

    def stable_name(self, sample: int) -> bytes:
        """Return the name that the image has in its own set."""
        return self.images.stable_name(int(self.order[sample]))

    def times(self) -> npt.NDArray[np.float64] | None:
        """Return when each was last changed or replaced, as their own set tells it."""
        times = self.images.times()
        return None if times is None else times[self.order]

    def population(self, sample: int) -> int:
        """Return how many samples there were when this one came."""
        return self.counts[bisect_right(self.counts, sample)]

    def describe(self, sample: int) -> str:
        """Say which image this is, for messages."""
        return self.images.describe(int(self.order[sample]))


def open_images_to_show(reader: CacheReader, named: Sequence[str] = ()) -> tuple[Images | None, str]:
    """Open a cache's images to show them: those that the user named, or those that ship.

    The name in the cache is not enough: a cache from elsewhere may name code, or any folder of this disk, whose
    images would then be shown and passed on.

    Args:
        reader: the cache.
        named: data sets as `open_images` takes them; the first that fits is taken.

    Returns:
        The images in the cache's order, and by which name; None and "" where none were named.

    Raises:
        UnknownNameError, NotFoundError: there is no data set of such a name.
        MismatchError, DataError: none of those that were named is the cache's.
    """
    spec = reader.spec.dataset
    found: LogitCacheError | None = None
    for name in [*named, *([spec.name] if spec.name in SHIPPED else [])]:
        try:
            images = align_images(reader, open_images(name, spec.split))
            return images.on_background(reader.spec.recipe.background), name
        except (DataError, MismatchError) as error:
            found = found or error
        except NotFoundError as error:
            if spec.split == "train":
                raise
            found = found or error  # a data set need not have a test split
    if found:
        raise found
    return None, ""


def explain_how_to_show(reader: CacheReader) -> str:
    """Return the advice for a cache whose images were not named."""
    name = reader.spec.dataset.name
    return f"only data sets that you name are opened; the cache says --data {shlex.quote(name)}"


def align_images(reader: CacheReader, images: Images, *, grow: bool = False) -> Images:
    """Return images in the order of a cache, after proof that it was made of them.

    Args:
        reader: the cache.
        images: its images, and perhaps others that came later.
        grow: append these others, in their own order; else they are left out.

    Raises:
        MismatchError: they are others; `fields` says what differs, such as the first image that is missing.
        DataError: the images do not say how to tell the old ones.
    """
    found: Images | None = None
    refusal: MismatchError | None = None
    try:
        found = _align(reader, images, grow)
    except MismatchError as error:
        refusal = error
    if found is None or found.left_out:
        for earlier in images.earlier_listings():
            with suppress(MismatchError):
                aligned = _align(reader, earlier, grow)
                if found is None or not aligned.left_out:
                    return aligned
    if refusal:
        raise refusal
    assert found is not None
    return found


def _align(reader: CacheReader, images: Images, grow: bool) -> Images:
    expected = reader.spec.dataset
    fields = _differences(reader, images)
    counts = [then.dataset.n for then in reader.spec.history()]
    if not fields:
        return images if len(counts) == 1 else OrderedImages(images, np.arange(len(images)), counts)
    expected, keys = reader.spec.dataset, reader.keys()
    fixed = {f.field for f in fields} & {"dataset.num_classes", "dataset.split"}  # growth cannot change these
    if not fixed and keys is not None:
        order, missing = _locate(keys, images)
        first = order[: len(keys)]
        if missing:
            fields.append(missing)
        elif (found := images.fingerprint_of(first)) == expected.fingerprint:
            new = [len(order)] if grow and len(order) > len(keys) else []
            return OrderedImages(images, order if new else first, counts + new)
        elif len(images) > len(keys):
            fields.append(Difference(f"fingerprint of the first {len(keys)}", expected.fingerprint, found))
    raise MismatchError(
        f"{reader.path} was made of other images ({expected.name}) than {images.name}",
        fields,
        "give the data that the cache was made of with --data, or dump a cache of this data"
        + (f"; {images.note}: an earlier cache may hold them" if images.note else "")
        + ("; the classes of a cache cannot change" if "dataset.num_classes" in fixed else "")
        + ("; it has no sample keys, so its data cannot grow" if keys is None else ""),
    )


def require_distinct_keys(images: Images) -> SampleKeys:
    """Return the sample keys, (n,) uint64.

    Raises:
        DataError: two images have the same.
    """
    keys = images.keys()
    if len(np.unique(keys)) < len(keys):
        raise DataError(f"{images.name}: two images have one stable name, so they cannot be told apart")
    return keys


def _differences(reader: CacheReader, images: Images) -> list[Difference]:
    expected = reader.spec.dataset
    found = images.spec(expected.num_classes)
    return [
        Difference(f"dataset.{name}", getattr(expected, name), getattr(found, name))
        for name in ("n", "num_classes", "split", "fingerprint")
        if getattr(expected, name) != getattr(found, name)
    ]


def _locate(keys: SampleKeys, images: Images) -> tuple[npt.NDArray[np.int64], Difference | None]:
    """Find samples among images by their keys.

    Returns:
        Where each is among the images, then the other images in their own order; and the first key that is missing.
    """
    found = require_distinct_keys(images)
    sorted_keys, place = np.unique(found, return_index=True)
    at = np.searchsorted(sorted_keys, keys).clip(max=len(sorted_keys) - 1)
    order = place[at]
    missing = None
    if (gone := np.flatnonzero(sorted_keys[at] != keys)).size:
        first = int(gone[0])
        after = f", which came after {images.describe(int(order[first - 1]))}" if first else ""
        missing = Difference(f"sample {first}{after}", "an image", "none")
    others = np.setdiff1d(np.arange(len(found)), order)
    return np.concatenate([order, others]), missing
