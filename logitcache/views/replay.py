"""Proof, before anything relies on it, that the views of a cache can be made again here."""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from logitcache.errors import DataError, Difference, DriftError
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.plugins import require_own
from logitcache.store.reader import CacheReader
from logitcache.versions import view_conditions
from logitcache.views.alignment import align_images
from logitcache.views.datasets import open_recorded
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews, check_batch
from logitcache.views.maker import digest

MOST_ASKED = 1000  # views that the teacher is to be asked of again, by the advice on newer images


@dataclass(frozen=True)
class Drift(Spec):
    """Canary views that differ from those that the teacher saw.

    Attributes:
        compared: how many were made again.
        differing: how many of them differ.
        fields: the first that differs, and the library versions and the kind of CPU that differ.
    """

    compared: int
    differing: int
    fields: tuple[Difference, ...]

    def __str__(self) -> str:
        rows = "; ".join(f"{f.field}: expected {f.expected}, found {f.found}" for f in self.fields)
        return f"{self.differing} of {self.compared} views are not those that the teacher saw: {rows}"


def open_proved_views(
    reader: CacheReader, images: Images | None, seeds: Sequence[int] = (), *, allow_drift: bool = False
) -> tuple[KeyedViews, tuple[int, ...], Drift | None]:
    """Open what a cache was made of, ready to make the views that its teacher saw.

    Args:
        reader: the cache.
        images: by default those that the cache names. Images that came later are left out.
        seeds: augmentation seeds; by default all that are complete.
        allow_drift: return the views although some differ.

    Returns:
        The views; the seeds; what differs, if drift is allowed.

    Raises:
        OptionError: the cache names code that is not your own.
        MismatchError: the images are others than the cache's.
        DriftError: views made here differ from those that the teacher saw.
        IncompleteError: seeds asked for are not complete, or none is.
    """
    data, recipe = reader.spec.dataset, reader.spec.recipe
    require_own(reader.path, *recipe.code)
    images = images or open_recorded(data.name, data.split, reader.path)
    views = KeyedViews(align_images(reader, images), reader.spec.recipe)
    chosen = tuple(reader.choose_complete(seeds))
    if allow_drift:
        return views, chosen, find_drift(reader, views, chosen)
    prove_replay(reader, views, chosen)
    return views, chosen, None


def prove_replay(
    reader: CacheReader,
    views: KeyedViews,
    seeds: Sequence[int],
    limit: int = 256,
    without: Mapping[int, Collection[int]] = MappingProxyType({}),
) -> int:
    """Make canary views again and compare their digests with those of the views that the teacher saw.

    Args:
        reader: the cache.
        views: views of the same images by the same recipe.
        seeds: seeds to prove, complete or not.
        limit: canaries to make in all, spread over seeds and shards; but at least two per seed.
        without: shards to leave out, by seed.

    Returns:
        How many views were compared.

    Raises:
        DriftError: one differs; `fields` names it, the libraries whose versions differ, and another kind of CPU.
        DataError: an image that decoded when the cache was made no longer does.
        FormatError: the digests, or other numbers of their shard, are damaged.
    """
    compared = 0
    for difference in _compare_canaries(reader, views, seeds, limit, without):
        compared += 1
        if difference:
            others = _other_conditions(reader.spec)
            raise DriftError(
                f"{reader.path}: the views made here are not the views that the teacher saw",
                [difference, *others],
                _advise(reader.spec, others),
            )
    return compared


def find_drift(
    reader: CacheReader, views: KeyedViews, seeds: Sequence[int], limit: int = 256
) -> Drift | None:
    """Compare as `prove_replay` does, but return what differs; None where nothing does.

    Raises:
        DataError: an image that decoded when the cache was made no longer does.
    """
    found = list(_compare_canaries(reader, views, seeds, limit, {}))
    differing = [difference for difference in found if difference]
    if not differing:
        return None
    return Drift(len(found), len(differing), (differing[0], *_other_conditions(reader.spec)))


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
    return newer if len(newer) < len(changed) else newer[:0]


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


def _compare_canaries(
    reader: CacheReader,
    views: KeyedViews,
    seeds: Sequence[int],
    limit: int,
    without: Mapping[int, Collection[int]],
) -> Iterator[Difference | None]:
    """Make canary views again, one by one; yield how each differs, or None."""
    views = KeyedViews(views.images, views.maker.recipe, "skip")  # a skipped view has no digest to compare
    for seed in seeds:
        recorded = [(i, crc) for i, crc in reader.canaries(seed, without.get(seed, ())).items() if crc]
        step = max(1, len(recorded) // max(2, limit // len(seeds)))
        for sample, expected in recorded[::step]:
            batch = check_batch(views[sample, seed])
            if not batch.valid.all():
                raise DataError(
                    f"{views.images.describe(sample)} does not decode, and did when {reader.path} was made; "
                    "restore the file, or make a new cache"
                )
            found = digest(batch.views[0])
            if found != expected:
                reader.read(seed, reader.spec.layout.shard_of(sample))  # is it the cache that has changed?
            view = f"view of {views.images.describe(sample)} under seed {seed}"
            yield None if found == expected else Difference(view, f"CRC {expected:08x}", f"{found:08x}")


CPU = "kind of CPU"
ROUND_ALIKE = (" AVX2", " AVX512")  # kinds of CPU, by their instructions


def _other_conditions(spec: CacheSpec) -> list[Difference]:
    here = view_conditions()
    return [
        Difference(CPU if name == "cpu" else f"version of {name}", was, here.get(name))
        for name, was in spec.versions.items()
        if was != here.get(name)
    ]


def _advise(spec: CacheSpec, others: list[Difference]) -> str:
    """Say what to do about views that drift, by what is known to be otherwise here."""
    again = "or dump it again here"
    earlier = ""
    if "cpu" not in spec.versions:
        earlier = (
            "; the cache is of an earlier logitcache, which does not say on what kind of CPU, and which resized "
            "otherwise on some, by one level of a pixel: then dump it again, or train with --allow-drift"
        )
    if any(difference.field != CPU for difference in others):
        return f"use the library versions and files that the cache was made with, {again}{earlier}"
    if all(str(kind).endswith(ROUND_ALIKE) for other in others for kind in (other.expected, other.found)):
        return (
            "the libraries are those that it was made with, so files have changed, or the data set or a step of the "
            f"recipe is random by itself: give the files as they were, {again}{earlier}"
        )
    return (
        "files have changed, or some transform rounds otherwise on a CPU without AVX2: give the files as they were, "
        f"make views on a CPU of the cache's kind, {again}"
    )
