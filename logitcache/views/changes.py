"""Which images of a cache are missing, new or changed since it was made of them.

A cache keeps a key of each image's name, a fingerprint of all images together, and a few canaries. So a missing or a
new image is known by its key; of a changed one the fingerprint or a canary tells that it is among them, and times
which may be.
"""

import hashlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from logitcache.errors import NAMED, DataError, list_some
from logitcache.store.reader import CacheReader
from logitcache.views.decoding import printable_path
from logitcache.views.folders import FolderImages
from logitcache.views.images import Images
from logitcache.views.picture_files import IMAGE_SUFFIXES, LATER_SUFFIXES

SampleKeys = npt.NDArray[np.uint64]

MOST_ASKED = 1000  # views that the teacher is to be asked of again, by the advice on newer images
GUESSED = 16  # missing images whose names are sought
REACH = 1000  # numbers tried on either side of a neighbour's
NEAR = 16  # likewise, where endings are tried too
ENDINGS = (*IMAGE_SUFFIXES, *LATER_SUFFIXES, ".JPG", ".JPEG", ".PNG")
MOST_FILES = 100_000  # names of files that are tried in other folders


class Located(NamedTuple):
    """Where the samples of a cache are among images.

    Attributes:
        order: (n,) int64, the place of each sample among the images; −1 where it is missing.
        new: (m,) int64, places of the images that are no sample of the cache.
    """

    order: npt.NDArray[np.int64]
    new: npt.NDArray[np.int64]

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Samples of the cache whose image is not there."""
        return np.flatnonzero(self.order < 0)


def locate(keys: SampleKeys, images: Images) -> Located:
    """Find the samples of a cache among images by their keys, (n,) uint64.

    Raises:
        DataError: two images have one key.
    """
    found = require_distinct_keys(images)
    _, samples, places = np.intersect1d(keys, found, assume_unique=True, return_indices=True)
    order = np.full(len(keys), -1, dtype=np.int64)
    order[samples] = places
    return Located(order, np.delete(np.arange(len(found)), places))


def require_distinct_keys(images: Images) -> SampleKeys:
    """Return the sample keys, (n,) uint64.

    Raises:
        DataError: two images have the same.
    """
    keys = images.keys()
    in_order = np.sort(keys)  # `np.unique` takes a hundred times as long
    if (in_order[1:] == in_order[:-1]).any():
        raise DataError(f"{images.name}: two images have one stable name, so they cannot be told apart")
    return keys


def have_names(images: Images) -> bool:
    """Tell whether images have names that stay theirs when others go; else their names are their numbers."""
    return type(images).stable_name is not Images.stable_name


def name_images(images: Images, samples: npt.NDArray[np.int64]) -> str:
    """Name the first of some images."""
    return list_some([images.describe(int(i)) for i in samples[:NAMED]], len(samples))


def name_missing(keys: SampleKeys, images: Images, located: Located, missing: npt.NDArray[np.int64]) -> str:
    """Name the first of a cache's images that are missing, or say where they stood.

    A key does not tell the name that it was made of; but names like those that are there are tried.

    Args:
        keys: of the cache, (n,) uint64.
        images: where they are sought.
        located: as `locate` returns it.
        missing: (m,) int64, those to name.
    """
    names = guess_names(keys, images, located, missing)
    shown = [names[i] for i in missing[:GUESSED].tolist() if i in names] or [
        _describe_place(images, located, int(missing[0]))
    ]
    return list_some(shown, len(missing))


def _describe_place(images: Images, located: Located, sample: int) -> str:
    """Say between which images that are there a missing one stood."""
    there = np.flatnonzero(located.order >= 0)
    at = int(np.searchsorted(there, sample))
    sides = [("after", there[at - 1 : at]), ("before", there[at : at + 1])]
    found = [f"{side} {images.describe(int(located.order[i[0]]))}" for side, i in sides if len(i)]
    return f"one whose name is not known, {' and '.join(found)}" if found else "sample 0"


def guess_names(
    keys: SampleKeys, images: Images, located: Located, missing: npt.NDArray[np.int64]
) -> dict[int, str]:
    """Find names of missing samples, by trying names like those of the images that are there.

    Args:
        keys, images, located, missing: as `name_missing` takes them.

    Returns:
        By sample what to call its image; each has the sample's key. Not all need be found.
    """
    missing = missing[:GUESSED]
    if not have_names(images) or not len(missing):
        return {}
    sought = {int(keys[i]): int(i) for i in missing}
    found: dict[int, str] = {}
    for name in _names_to_try(images, located, missing):
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        sample = sought.get(int.from_bytes(digest, "little"))
        if sample is not None and sample not in found:
            path = images.root / name if isinstance(images, FolderImages) else Path(name)
            found[sample] = printable_path(path)
            if len(found) == len(sought):
                break
    return found


def _names_to_try(images: Images, located: Located, missing: npt.NDArray[np.int64]) -> Iterator[str]:
    """Yield names that missing images may have: those of neighbours and new ones, with other numbers and endings."""
    there = np.flatnonzero(located.order >= 0)
    beside = {
        int(there[at]) for i in missing for at in (np.searchsorted(there, i) - 1, np.searchsorted(there, i))
        if 0 <= at < len(there)
    }  # fmt: skip
    neighbours = [_name(images, int(located.order[sample])) for sample in sorted(beside)]
    for place in located.new[:GUESSED].tolist():
        new = _name(images, place)
        yield from (new.lower(), new.upper())
        yield from (os.path.splitext(new)[0] + ending for ending in ENDINGS)
    for name in neighbours:
        yield from _renumber(name)
    if isinstance(images, FolderImages):
        yield from images.unread  # there, but not read here
    for name in neighbours:
        stem, suffix = os.path.splitext(name)
        stems = [stem, *_renumber(stem, NEAR)]
        yield from (other + ending for ending in ENDINGS if ending != suffix for other in stems)
    folders = dict.fromkeys(name.rpartition("/")[0] for name in neighbours)
    places = range(0, len(images), -(-len(images) // MOST_FILES))
    for file in dict.fromkeys(_name(images, place).rpartition("/")[2] for place in places):
        yield from (f"{folder}/{file}" if folder else file for folder in folders)


def _renumber(name: str, reach: int = REACH) -> Iterator[str]:
    """Yield a name with each of its numbers, the last first, replaced by those near it."""
    for run in reversed(list(re.finditer(r"[0-9]{1,18}", name))):
        start, number = int(run[0]), run[0]
        for distance in range(1, reach + 1):
            for other in (start - distance, start + distance):
                if other >= 0:
                    yield f"{name[: run.start()]}{other:0{len(number)}d}{name[run.end() :]}"
                    if number[0] != "0" and len(str(other)) < len(number):
                        yield f"{name[: run.start()]}{other}{name[run.end() :]}"


def _name(images: Images, place: int) -> str:
    return os.fsdecode(images.stable_name(place))


def find_newer_images(reader: CacheReader, images: Images) -> npt.NDArray[np.int64]:
    """Find the images that were changed or replaced after a cache was made of them, as far as times tell.

    Where all are newer, the data set was copied or moved since, and none is returned: then all canaries are among
    them, and speak for the others. Times do not tell of a cache at a host, nor of images that are not files.

    Args:
        reader: the cache.
        images: its images, in its order, as `align_images` returns them.

    Returns:
        (m,) int64 samples, in order.
    """
    made, changed = reader.times(), images.times()
    if made is None or changed is None:
        return np.zeros(0, dtype=np.int64)
    begun, grown = made
    first = reader.spec.history()[0].dataset.n
    newer = np.flatnonzero(changed > np.where(np.arange(len(changed)) < first, begun, grown))
    newer = np.setdiff1d(newer, images.missing)
    return newer if len(newer) < len(changed) - len(images.missing) else newer[:0]


def describe_newer_images(reader: CacheReader, images: Images) -> str | None:
    """Say which images are newer than a cache, as `find_newer_images` finds them, and what to do; None for none."""
    if not len(newer := find_newer_images(reader, images)):
        return None
    asked = min(MOST_ASKED, max(50, len(newer)))
    command = f"logitcache verify {shlex.quote(str(reader.path))} --replay {asked}"
    if images.name != reader.spec.dataset.name:
        command += f" --data {shlex.quote(images.name)}"
    which = "these" if len(newer) <= asked else f"{asked:,} of these"
    were, them = ("was", "it is another") if len(newer) == 1 else ("were", "they are others")
    return (
        f"{len(newer):,} of {len(images):,} images {were} changed or touched since {reader.path} was made, first "
        f"{images.describe(int(newer[0]))}; only canaries tell whether {them}: `{command}` asks the teacher again, "
        f"of {which} first"
    )


def describe_changed(reader: CacheReader, images: Images) -> str:
    """Say which of a cache's images may have another size or label than it was made of; one at least has.

    Args:
        reader: the cache.
        images: its images, in its order.
    """
    newer = find_newer_images(reader, images)
    if not len(newer):
        return "one at least, of another size or label"
    if len(newer) == 1:
        return f"{images.describe(int(newer[0]))}, the only one changed since {reader.path} was made"
    names = name_images(images, newer)
    return f"one at least of {len(newer):,} that were changed since {reader.path} was made: {names}"
