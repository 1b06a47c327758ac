"""Samples of a cache by the names of their images, where its data can be opened."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from logitcache.audit.verify import VerifyReport
from logitcache.errors import LogitCacheError
from logitcache.store.reader import CacheReader, Commits
from logitcache.views.alignment import align_images
from logitcache.views.bad_images import BadImage, explain_bad_images
from logitcache.views.datasets import open_images
from logitcache.views.images import Images, MissingImagesWarning

FOLDERS = ("imagefolder:", "folder:")  # data that is opened because a cache names it: no code, no download


def name_samples(
    reader: CacheReader, samples: Sequence[int], data: Images | None = None, *, open_data: bool = True
) -> tuple[BadImage, ...]:
    """Name samples of a cache, with the reason why each does not decode.

    Args:
        reader: the cache.
        samples: which.
        data: its images; None: as the cache names them, where these are files.
        open_data: open them; else samples are named by number.

    Returns:
        One for each; where the images are not there, by number alone. Where `data` is of others, a warning says so.
    """
    images = _open(reader, data, open_data) if samples else None
    if images is not None:
        return explain_bad_images(images, samples)
    return tuple(
        BadImage(sample, f"sample {sample} of {reader.spec.dataset.name}", None) for sample in samples
    )


def name_images_of_problems(
    reader: CacheReader, found: VerifyReport, data: Images | None = None
) -> VerifyReport:
    """Return what `verify_cache` found, with the image of each sample that it tells, as `name_samples` finds them."""
    if all(problem.sample is None for problem in found.problems):
        return found
    if (images := _open(reader, data)) is None:
        return found
    named = (
        problem if problem.sample is None else replace(problem, image=images.describe(problem.sample))
        for problem in found.problems
    )
    return replace(found, problems=tuple(named))


def _open(reader: CacheReader, data: Images | None, open_data: bool = True) -> Images | None:
    """Return a cache's images, in its order: `data`, or, where these are files, what it names; None for neither."""
    spec = reader.spec.dataset
    if data is not None:
        try:
            return _align(reader, data)
        except LogitCacheError as error:
            warnings.warn(f"samples without a teacher are named by number alone, as {error}", stacklevel=3)
    elif open_data and spec.name.startswith(FOLDERS):
        with suppress(LogitCacheError):
            return _align(reader, open_images(spec.name, spec.split))
    return None


def _align(reader: CacheReader, images: Images) -> Images:
    with warnings.catch_warnings(action="ignore", category=MissingImagesWarning):  # nothing is asked of them
        return align_images(reader, images, missing="skip")


def find_samples_left_out(reader: CacheReader, commits: dict[int, Commits]) -> list[int] | None:
    """Find the samples without a teacher under the seed that is farthest; None of a cache at a host.

    Raises:
        FormatError: a shard is damaged.
    """
    if "://" in str(reader.path):
        return None
    if not any(digests.any() for digests in commits.values()):
        return []
    seed = max(commits, key=lambda seed: int(np.count_nonzero(commits[seed])))
    found: list[int] = []
    for shard in np.flatnonzero(commits[seed]).tolist():
        found += reader.without_teacher(seed, shard)
    return found
