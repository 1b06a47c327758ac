"""The images of a cache, in its order: data that has grown keeps the numbers of its old samples.

A folder lists new files between old ones; a cache appends them. Sample keys, which every cache stores, say which
image is which, and the fingerprint proves it.
"""

import shlex
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.errors import DataError, Difference, LogitCacheError, MismatchError, NotFoundError
from logitcache.store import CacheReader
from logitcache.views.datasets import Images, Samples, open_images

Keys = npt.NDArray[np.uint64]


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
        self.class_names = images.class_names
        self.left_out = len(images) - len(order)
        self._fingerprint = images.fingerprint_of(order)

    def image(self, sample: int) -> Tensor:
        """Return one image, (C, H, W) uint8."""
        return self.images.image(int(self.order[sample]))

    def pixels(self) -> Tensor | None:
        """Return a copy of these images, where the others lie in memory."""
        whole = self.images.pixels()
        return None if whole is None else whole[torch.from_numpy(self.order)]

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

    def population(self, sample: int) -> int:
        """Return how many samples there were when this one came."""
        return self.counts[bisect_right(self.counts, sample)]

    def describe(self, sample: int) -> str:
        """Say which image this is, for messages."""
        return self.images.describe(int(self.order[sample]))


def images_to_show(reader: CacheReader, named: Sequence[str] = ()) -> tuple[Images | None, str]:
    """Open a cache's images to show them: those that the user named, or the digits that ship.

    The cache's own word is not enough: a stranger's may name code, or any folder of this disk, whose images would
    then be shown and sent on.

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
    for name in [*named, *(["digits"] if spec.name == "digits" else [])]:
        try:
            return in_cache_order(reader, open_images(name, spec.split)), name
        except (DataError, MismatchError) as error:
            found = found or error
        except NotFoundError as error:
            if spec.split == "train":
                raise
            found = found or error  # a data set need not have a test split
    if found:
        raise found
    return None, ""


def how_to_show(reader: CacheReader) -> str:
    """Say what lets a cache's images be shown where none were named."""
    name = reader.spec.dataset.name
    return f"only data sets that you name are opened; the cache says --data {shlex.quote(name)}"


def in_cache_order(reader: CacheReader, images: Images, *, grow: bool = False) -> Images:
    """Put images into the order of a cache, after proof that they are those that it was made of.

    Args:
        reader: the cache.
        images: its images, and perhaps others that came later.
        grow: keep these others, behind the cache's own and in their own order; else they are left out.

    Raises:
        MismatchError: they are others; `fields` says what differs, such as the first image that is missing.
        DataError: the images do not say how to tell the old ones.
    """
    expected = reader.spec.dataset
    fields = _differences(reader, images)
    counts = [then.dataset.n for then in reader.spec.history()]
    if not fields:
        return images if len(counts) == 1 else OrderedImages(images, np.arange(len(images)), counts)
    expected, keys = reader.spec.dataset, reader.keys()
    kind = {f.field for f in fields} & {"dataset.num_classes", "dataset.split"}
    if not kind and keys is not None:
        order, missing = _places(keys, images)
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
        + ("; the classes of a cache cannot change" if "dataset.num_classes" in kind else "")
        + ("; it has no sample keys, so its data cannot grow" if keys is None else ""),
    )


def distinct_keys(images: Images) -> Keys:
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


def _places(keys: Keys, images: Images) -> tuple[npt.NDArray[np.int64], Difference | None]:
    """Find samples among images by their keys.

    Returns:
        Where each is among the images, then the others, in their own order; and the first that is not there.
    """
    there = distinct_keys(images)
    rising, place = np.unique(there, return_index=True)
    at = np.searchsorted(rising, keys).clip(max=len(rising) - 1)
    order = place[at]
    missing = None
    if (gone := np.flatnonzero(rising[at] != keys)).size:
        first = int(gone[0])
        after = f", which came after {images.describe(int(order[first - 1]))}" if first else ""
        missing = Difference(f"sample {first}{after}", "an image", "none")
    others = np.setdiff1d(np.arange(len(there)), order)
    return np.concatenate([order, others]), missing
