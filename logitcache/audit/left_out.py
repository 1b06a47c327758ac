"""Samples of a cache that have no teacher, as their images did not decode: named where its data can be opened."""

import warnings
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

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
    spec = reader.spec.dataset
    if samples and data is not None:
        try:
            return explain_bad_images(_align(reader, data), samples)
        except LogitCacheError as error:
            warnings.warn(f"samples without a teacher are named by number alone, as {error}", stacklevel=2)
    elif samples and open_data and spec.name.startswith(FOLDERS):
        with suppress(LogitCacheError):
            return explain_bad_images(_align(reader, open_images(spec.name, spec.split)), samples)
    return tuple(BadImage(sample, f"sample {sample} of {spec.name}", None) for sample in samples)


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
