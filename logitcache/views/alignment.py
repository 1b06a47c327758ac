"""Images in a cache's order: data that has grown keeps the numbers of its old samples.

A folder lists new files between old ones; a cache appends them. `align_images` finds the old images by the sample
keys that every cache stores, and proves them by the fingerprint. `open_images_to_show` opens only images that the
user names.
"""

import shlex
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import numpy as np
import numpy.typing as npt

from logitcache.errors import (
    NAMED,
    DataError,
    Difference,
    LogitCacheError,
    MismatchError,
    NotFoundError,
    OptionError,
    list_some,
)
from logitcache.store.reader import CacheReader
from logitcache.views.changes import (
    Located,
    SampleKeys,
    describe_changed,
    find_newer_images,
    have_names,
    locate,
    name_images,
    name_missing,
)
from logitcache.views.datasets import SHIPPED, open_images
from logitcache.views.images import Images, MissingImagesWarning, name_class
from logitcache.views.ordered_images import OrderedImages
from logitcache.views.without_teacher import find_without_teacher

OnMissing = Literal["error", "skip"]
MISSING = "missing images"  # field of a `MismatchError`


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

    An image that did not decode when the cache was made has no teacher. Where it is gone since, or was changed, it is
    left out (`Images.unneeded`), with a `MissingImagesWarning`.

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
    if found is None or found.left_out or len(found.unneeded):
        for earlier in images.earlier_listings():
            with suppress(MismatchError):
                aligned = _align(reader, earlier, grow)
                if found is None or _count_leavings(aligned) < _count_leavings(found):
                    found = aligned
    if found is None and missing == "skip":
        found = _align_those_there(reader, images, *images.earlier_listings())
    if found is None:
        assert refusal is not None
        raise refusal
    if found.missing_note != images.missing_note:
        warnings.warn(found.missing_note, MissingImagesWarning, stacklevel=3)
    return found


def _count_leavings(images: Images) -> tuple[int, bool]:
    return len(images.unneeded), images.left_out > 0


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
    first = located.order
    found = "" if len(located.missing) else images.fingerprint_of(first)
    if found == expected.fingerprint:
        order = np.concatenate([first, located.new]) if grow else first
        return OrderedImages(images, order, [*counts, len(order)] if len(order) > counts[-1] else counts)
    if not grow and (ordered := _go_without_unneeded(reader, images, keys, located)) is not None:
        return ordered
    if len(located.missing):
        raise _describe_missing(reader, images, keys, located, fields)
    if len(images) > len(keys):
        fields.append(Difference(f"fingerprint of the first {len(keys)}", expected.fingerprint, found))
    if not have_names(images):
        raise _other_images(reader, images, fields, _advise(images, fixed, keys))
    changed = describe_changed(reader, OrderedImages(images, first, counts))
    mended = ""
    if not grow and len(without := find_without_teacher(reader, np.arange(len(keys)))):
        names = list_some([images.describe(int(first[i])) for i in without[:NAMED]], len(without))
        mended = f"; if only what has no teacher was mended ({names}), take that out of the folder"
    raise MismatchError(
        f"{reader.path}: images of {images.name} were changed since it was made",
        [Difference("changed images", "none", changed), *fields],
        f"put back what was changed, or dump a cache of this data{mended}",
    )


def _go_without_unneeded(
    reader: CacheReader, images: Images, keys: SampleKeys, located: Located
) -> OrderedImages | None:
    """Return the images of a cache whose missing and changed ones have no teacher; None where others are among them.

    The fingerprint, which is of all, proves the others no more: names, classes, times and canaries do.

    Raises:
        MismatchError: classes may have moved.
    """
    missing, order = located.missing, located.order
    counts, fingerprint = [then.dataset.n for then in reader.spec.history()], reader.spec.dataset.fingerprint
    if not have_names(images) or len(missing) == len(order):
        return None
    newer = find_newer_images(reader, OrderedImages(images, order, counts, fingerprint))
    unneeded = find_without_teacher(reader, np.union1d(missing, newer))
    gone, changed = np.intersect1d(unneeded, missing), np.intersect1d(unneeded, newer)
    if not len(unneeded) or len(gone) < len(missing) or len(changed) < len(newer):
        return None
    if len(missing):
        _require_same_classes(reader, images, order[order >= 0])
    note = _describe_unneeded(reader, images, keys, located, gone, changed)
    return OrderedImages(images, order, counts, fingerprint, note, unneeded, keys)


def _describe_unneeded(
    reader: CacheReader,
    images: Images,
    keys: SampleKeys,
    located: Located,
    gone: npt.NDArray[np.int64],
    changed: npt.NDArray[np.int64],
) -> str:
    """Say what became of images without a teacher: those that are gone, and those that were changed."""
    parts = []
    if len(gone):
        were = "is missing" if len(gone) == 1 else "are missing"
        parts.append(f"{len(gone):,} {were} ({name_missing(keys, images, located, gone)})")
    if len(changed):
        were = "was changed" if len(changed) == 1 else "were changed"
        names = list_some([images.describe(int(located.order[i])) for i in changed[:NAMED]], len(changed))
        parts.append(f"{len(changed):,} {were} since ({names})")
    left_out = "and left out as before" + (
        "; a new cache has rows of what decodes now" if len(changed) else ""
    )
    proof = "names, times and canaries alone prove the others"
    return f"of the images that {reader.path} has no teacher for, {' and '.join(parts)}, {left_out}; {proof}"


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
    images, order, missing = opened[best], located[best].order, located[best].missing
    if not len(missing) or not (order >= 0).any():
        return _align(reader, images, False)
    _require_same_classes(reader, images, order[order >= 0])
    unneeded = find_without_teacher(reader, missing)
    needed = np.setdiff1d(missing, unneeded)
    mixed = ", and the views that they are mixed into" if spec.recipe.mix_steps else ""
    others = f", beside {len(unneeded):,} that had no teacher" if len(unneeded) else ""
    note = (
        f"{len(needed):,} of {len(order):,} images of {reader.path} are missing and left out{mixed}: "
        f"{name_missing(keys, images, located[best], needed)}{others}; names and canaries alone prove the others"
    )
    counts = [then.dataset.n for then in spec.history()]
    return OrderedImages(images, order, counts, spec.dataset.fingerprint, note, unneeded, keys)


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
) -> MismatchError:
    """Describe images that are missing: what differs, and what to do; by name where they have names."""
    data = reader.spec.dataset
    advice = "give the data that the cache was made of with --data, or dump a cache of this data"
    note = _describe_note(images)
    if not have_names(images):
        advice = f"{advice}; these images have no names, so nothing tells which are missing{note}"
        return _other_images(reader, images, fields, advice)
    if len(located.missing) == data.n:
        none = Difference("images of the cache", f"{data.n:,}", "none")
        return _other_images(reader, images, [*fields, none], f"{advice}{note}")
    needed = np.setdiff1d(located.missing, find_without_teacher(reader, located.missing))
    missing = needed if len(needed) else located.missing
    named = name_missing(keys, images, located, missing)
    found = [Difference(MISSING, "none", f"{len(missing):,}: {named}")]
    if len(located.new):
        found.append(
            Difference("new images", "none", f"{len(located.new):,}: {name_images(images, located.new)}")
        )
    if data.n != len(images):
        found.append(Difference("dataset.n", data.n, len(images)))
    skip = ", or train on the others with --missing skip" if data.split == "train" else ""
    mend = f"put back what is missing, or name it as it was{skip}, or dump a cache of this data{note}"
    return MismatchError(f"{reader.path}: images that it was made of are not in {images.name}", found, mend)


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
    others = f" than {name} has now" if name == images.name else f" ({name}) than {images.name}"
    return MismatchError(f"{reader.path} was made of other images{others}", fields, advice)


def _differences(reader: CacheReader, images: Images) -> list[Difference]:
    expected = reader.spec.dataset
    found = images.spec(expected.num_classes)
    return [
        Difference(f"dataset.{name}", getattr(expected, name), getattr(found, name))
        for name in ("n", "num_classes", "split", "fingerprint")
        if getattr(expected, name) != getattr(found, name)
    ]
