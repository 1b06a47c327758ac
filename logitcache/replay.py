"""Proof, before anything relies on it, that the views of a cache can be made again here."""

from collections.abc import Sequence

from logitcache.datasets import Images
from logitcache.errors import DataError, Difference, DriftError, MismatchError
from logitcache.loader import KeyedViews, require
from logitcache.schema import CacheSpec
from logitcache.store import CacheReader
from logitcache.views import digest, library_versions


def check_images(reader: CacheReader, images: Images) -> None:
    """Insist that these are the images that the cache was made of.

    Raises:
        MismatchError: they are not; `fields` says what differs.
    """
    expected = reader.spec.dataset
    found = images.spec(expected.num_classes)
    fields = [
        Difference(f"dataset.{name}", getattr(expected, name), getattr(found, name))
        for name in ("n", "num_classes", "split", "fingerprint")
        if getattr(expected, name) != getattr(found, name)
    ]
    if fields:
        raise MismatchError(
            f"{reader.path} was made of other images ({expected.name}) than {images.name}",
            fields,
            "give the data that the cache was made of with --data, or dump a cache of this data",
        )


def prove_replay(reader: CacheReader, views: KeyedViews, seeds: Sequence[int], most: int = 256) -> int:
    """Make canary views again and compare their digests with those of the views that the teacher saw.

    Args:
        reader: the cache.
        views: views of the same images by the same recipe.
        seeds: seeds to prove, complete or not.
        most: canaries to make in all, spread over seeds and shards; but at least two per seed.

    Returns:
        How many views were compared.

    Raises:
        DriftError: one differs; `fields` names it and the libraries whose versions differ.
        DataError: an image that decoded when the cache was made no longer does.
    """
    compared = 0
    views = KeyedViews(views.images, views.maker.recipe, "skip")  # a skipped view has no digest to compare
    for seed in seeds:
        recorded = [(sample, crc) for sample, crc in reader.canaries(seed).items() if crc]
        step = max(1, len(recorded) // max(2, most // len(seeds)))
        for sample, expected in recorded[::step]:
            batch = require(views[sample, seed])
            if not batch.valid.all():
                raise DataError(
                    f"{views.images.describe(sample)} does not decode, and did when {reader.path} was made; "
                    "restore the file, or make a new cache"
                )
            found = digest(batch.views[0])
            compared += 1
            if found != expected:
                view = f"view of {views.images.describe(sample)} under seed {seed}"
                raise DriftError(
                    f"{reader.path}: the views made here are not the views that the teacher saw",
                    [
                        Difference(view, f"CRC {expected:08x}", f"{found:08x}"),
                        *_version_differences(reader.spec),
                    ],
                    "use the library versions and files that the cache was made with, or dump it again",
                )
    return compared


def _version_differences(spec: CacheSpec) -> list[Difference]:
    here = library_versions()
    return [
        Difference(f"version of {name}", was, here.get(name))
        for name, was in spec.versions.items()
        if was != here.get(name)
    ]
