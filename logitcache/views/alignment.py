"""Images in a cache's order: data that has grown keeps the numbers of its old samples.

A folder lists new files between old ones; a cache appends them. `align_images` finds the old images by the sample
keys that every cache stores, and proves them by the fingerprint. `open_images_to_show` opens only images that the
user names.
"""

import copy
import shlex
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.errors import (
    DataError,
    Difference,
    ImageError,
    LogitCacheError,
    MismatchError,
    NotFoundError,
    OptionError,
)
from logitcache.store.reader import CacheReader
from logitcache.views.changes import (
    Located,
    SampleKeys,
    describe_changed,
    have_names,
    locate,
    name_images,
    name_missing,
)
from logitcache.views.datasets import SHIPPED, open_images
from logitcache.views.images import Images, MissingImagesWarning, Samples, name_class
from logitcache.views.picture_sample import PictureSample

OnMissing = Literal["error", "skip"]
MISSING = "missing images"  # field of a `MismatchError`


class OrderedImages(Images):
    """Some of the images of another set, in an order of their own.

    Args:
        images: the other set.
        order: (m,) int64, which of them, and in which order; −1 where a sample's image is missing.
        counts: how many there were at first, after the data had grown once, and so on; the last is m.
        fingerprint: of all m, where some are missing.
        missing_note: says which are missing.
    """

    def __init__(
        self,
        images: Images,
        order: npt.NDArray[np.int64],
        counts: Sequence[int],
        fingerprint: str | None = None,
        missing_note: str = "",
    ) -> None:
        self.images, self.order, self.counts = images, order, list(counts)
        self.name, self.split, self.recipe = images.name, images.split, images.recipe
        self.labels, self.num_classes = np.where(order < 0, -1, images.labels[order]), images.num_classes
        self.class_names, self.note = images.class_names, images.note
        self.missing_note = missing_note or images.missing_note
        self.missing = np.flatnonzero((order < 0) | np.isin(order, images.missing))
        self.left_out = len(images) - int((order >= 0).sum())
        self._fingerprint = images.fingerprint_of(order) if fingerprint is None else fingerprint

    def image(self, sample: int) -> Tensor:
        """Return one image, (C, H, W) uint8.

        Raises:
            ImageError: it does not decode, or is missing.
        """
        return self.images.image(self._find_place(sample, "no view of it can be made"))

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


def align_images(
    reader: CacheReader, images: Images, *, grow: bool = False, missing: OnMissing = "error"
) -> Images:
    """Return images in the order of a cache, after proof that it was made of them.

    Args:
        reader: the cache.
        images: its images, and perhaps others that came later.
        grow: append these others, in their own order; else they are left out.
        missing: whether an image that is not there is an error, or left out (`Images.missing`). Then only names,
            classes and canaries prove the others, as the fingerprint is of all. A `MissingImagesWarning` says which
            are left out.

    Raises:
        MismatchError: they are others; `fields` says what differs, such as the images that are missing or new.
        DataError: the images do not say how to tell the old ones.
        OptionError: `missing` is neither.
    """
    if missing not in ("error", "skip"):
        raise OptionError(f"missing must be error or skip, found {missing!r}")
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
    if refusal and missing == "skip":
        return _align_those_there(reader, images, *images.earlier_listings())
    if refusal:
        raise refusal
    assert found is not None
    return found


def _align(reader: CacheReader, images: Images, grow: bool) -> Images:
    fields, expected = _differences(reader, images), reader.spec.dataset
    counts = [then.dataset.n for then in reader.spec.history()]
    if not fields:
        if len(counts) == 1:
            return images
        return OrderedImages(images, np.arange(len(images)), counts, expected.fingerprint)
    fixed, keys = _list_fixed(fields), reader.keys()
    if fixed or keys is None:
        raise _other_images(reader, images, fields, _advise(images, fixed, keys))
    located = locate(keys, images)
    if len(located.missing):
        raise _other_images(reader, images, *_describe_missing(reader, images, keys, located, fields))
    first = located.order
    if (found := images.fingerprint_of(first)) == expected.fingerprint:
        order = np.concatenate([first, located.new]) if grow else first
        return OrderedImages(images, order, [*counts, len(order)] if len(order) > counts[-1] else counts)
    if len(images) > len(keys):
        fields.append(Difference(f"fingerprint of the first {len(keys)}", expected.fingerprint, found))
    advice = _advise(images, fixed, keys)
    if have_names(images):
        changed = describe_changed(reader, OrderedImages(images, first, counts))
        fields.append(Difference("changed images", "none", changed))
        advice = "put back what was changed, or dump a cache of this data"
    raise _other_images(reader, images, fields, advice)


def _align_those_there(reader: CacheReader, *opened: Images) -> Images:
    """Return the images that are there in the order of a cache, of the listing that has most of them.

    Raises:
        MismatchError: it cannot be proved that they are the cache's.
    """
    keys, spec = reader.keys(), reader.spec
    if keys is None or not all(map(have_names, opened)) or _list_fixed(_differences(reader, opened[0])):
        return _align(reader, opened[0], False)
    located = [locate(keys, images) for images in opened]
    best = min(range(len(opened)), key=lambda number: len(located[number].missing))
    images, order = opened[best], located[best].order
    if not len(located[best].missing) or not (order >= 0).any():
        return _align(reader, images, False)
    _require_same_classes(reader, images, order[order >= 0])
    mixed = ", and the views that they are mixed into" if spec.recipe.mix_steps else ""
    note = (
        f"{len(located[best].missing):,} of {len(order):,} images of {reader.path} are missing and left out{mixed}: "
        f"{name_missing(keys, images, located[best])}; names and canaries alone prove the others"
    )
    warnings.warn(note, MissingImagesWarning, stacklevel=4)
    counts = [then.dataset.n for then in spec.history()]
    return OrderedImages(images, order, counts, spec.dataset.fingerprint, note)


def _require_same_classes(reader: CacheReader, images: Images, there: npt.NDArray[np.int64]) -> None:
    """Insist that the images of a cache that are there have the labels that they had.

    A class folder that came or went moves the numbers of others. There are as many classes as there were; so where
    each still has an image of the cache, they are the same.
    """
    named = reader.spec.dataset.name.partition(":")[0]
    if images.num_classes is None and images.name.partition(":")[0] != named:
        raise _other_images(
            reader,
            images,
            [Difference("kind of data", named, images.name.partition(":")[0])],
            "while images are missing, give --data of the kind that the cache names",
        )
    lost = np.setdiff1d(images.labels, images.labels[there])
    if len(lost):
        name = name_class(images.class_names, int(lost[0]))
        raise _other_images(
            reader,
            images,
            [Difference(f"images of the cache in class {name}", "one at least", "none")],
            "classes are numbered by their names, so labels may have moved: give the class folders their old names, "
            "and put an image of each back",
        )


def _list_fixed(fields: Sequence[Difference]) -> set[str]:
    """List what differs and cannot, whatever the data has grown by or lost."""
    return {field.field for field in fields} & {"dataset.num_classes", "dataset.split"}


def _describe_missing(
    reader: CacheReader, images: Images, keys: SampleKeys, located: Located, fields: list[Difference]
) -> tuple[list[Difference], str]:
    """Return the differences and the advice for images that are missing, by name where they have names."""
    data = reader.spec.dataset
    advice = "give the data that the cache was made of with --data, or dump a cache of this data"
    note = _describe_note(images)
    if not have_names(images):
        return fields, f"{advice}; these images have no names, so nothing tells which are missing{note}"
    if len(located.missing) == data.n:
        return [*fields, Difference("images of the cache", f"{data.n:,}", "none")], f"{advice}{note}"
    counts = [Difference("dataset.n", data.n, len(images))] if data.n != len(images) else []
    found = [Difference(MISSING, "none", f"{len(located.missing):,}: {name_missing(keys, images, located)}")]
    if len(located.new):
        found.append(
            Difference("new images", "none", f"{len(located.new):,}: {name_images(images, located.new)}")
        )
    skip = ", or train on the others with --missing skip" if data.split == "train" else ""
    mend = f"put back what is missing, or name it as it was{skip}, or dump a cache of this data{note}"
    return [*counts, *found], mend


def _describe_note(images: Images) -> str:
    """Return what the images leave out, as a part of advice: a cache may be of that too."""
    return f"; {images.note}: the cache may hold them" if images.note else ""


def _advise(images: Images, fixed: set[str], keys: SampleKeys | None) -> str:
    return (
        "give the data that the cache was made of with --data, or dump a cache of this data"
        + _describe_note(images)
        + ("; the classes of a cache cannot change" if "dataset.num_classes" in fixed else "")
        + (
            "; it has no sample keys, so its data cannot grow, and nothing tells which images are missing"
            if keys is None
            else ""
        )
    )


def _other_images(
    reader: CacheReader, images: Images, fields: Sequence[Difference], advice: str
) -> MismatchError:
    name = reader.spec.dataset.name
    return MismatchError(
        f"{reader.path} was made of other images ({name}) than {images.name}", fields, advice
    )


def _differences(reader: CacheReader, images: Images) -> list[Difference]:
    expected = reader.spec.dataset
    found = images.spec(expected.num_classes)
    return [
        Difference(f"dataset.{name}", getattr(expected, name), getattr(found, name))
        for name in ("n", "num_classes", "split", "fingerprint")
        if getattr(expected, name) != getattr(found, name)
    ]
