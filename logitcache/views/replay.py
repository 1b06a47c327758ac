"""Proof, before anything relies on it, that the views of a cache can be made again here."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from logitcache.errors import DataError, Difference, DriftError, list_some
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.plugins import require_own
from logitcache.store.reader import CacheReader
from logitcache.versions import cpu_kind, library_versions
from logitcache.views.alignment import OnMissing, align_images
from logitcache.views.datasets import open_recorded, take_images
from logitcache.views.images import Images
from logitcache.views.jpeg import name_jpeg_decoder
from logitcache.views.keyed_views import KeyedViews, check_batch
from logitcache.views.maker import digest


def view_conditions() -> dict[str, str]:
    """Return what views depend on beside images and recipe.

    That is `library_versions`; as "jpeg", the library that decodes JPEG files; as "cpu", `cpu_kind`.
    """
    return {**library_versions(), "jpeg": name_jpeg_decoder(), "cpu": cpu_kind()}


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
    reader: CacheReader,
    images: Any,
    seeds: Sequence[int] = (),
    *,
    allow_drift: bool = False,
    missing: OnMissing = "error",
) -> tuple[KeyedViews, tuple[int, ...], Drift | None]:
    """Open what a cache was made of, ready to make the views that its teacher saw.

    Args:
        reader: the cache.
        images: as `take_images` takes them; None opens those that the cache names. Images that came later are
            left out.
        seeds: augmentation seeds; by default all that are complete.
        allow_drift: return the views although some differ.
        missing: as `align_images` takes it; a warning tells how many images are left out.

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
    if images is None:
        images = open_recorded(data.name, data.split, reader.path)
    images = take_images(images, data.split, data.name)
    images = align_images(reader, images, missing=missing)
    views = KeyedViews(images, recipe)
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
    canaries = list(_compare_canaries(reader, views, seeds, limit, without))
    if any(canary.difference for canary in canaries):
        others = _other_conditions(reader.spec)
        raise DriftError(
            f"{reader.path}: the views made here are not the views that the teacher saw",
            [*_describe_differing(views.images, canaries), *others],
            _advise(reader.spec, others),
        )
    return len(canaries)


def find_drift(
    reader: CacheReader, views: KeyedViews, seeds: Sequence[int], limit: int = 256
) -> Drift | None:
    """Compare as `prove_replay` does, but return what differs; None where nothing does.

    Raises:
        DataError: an image that decoded when the cache was made no longer does.
    """
    canaries = list(_compare_canaries(reader, views, seeds, limit, {}))
    if not (differing := sum(canary.difference is not None for canary in canaries)):
        return None
    fields = (*_describe_differing(views.images, canaries), *_other_conditions(reader.spec))
    return Drift(len(canaries), differing, fields)


class _Canary(NamedTuple):
    """A canary made again: its sample, and how its view differs, or None."""

    sample: int
    difference: Difference | None


def _describe_differing(images: Images, canaries: Sequence[_Canary]) -> list[Difference]:
    """Return the first difference, and, where views of several images differ, their names."""
    differing: dict[int, Difference] = {}
    for canary in canaries:
        if canary.difference:
            differing.setdefault(canary.sample, canary.difference)
    fields = [*differing.values()][:1]
    if len(differing) > 1:
        names = list_some([images.describe(sample) for sample in differing], len(differing))
        total = len({canary.sample for canary in canaries})
        fields.append(Difference("images with other views", "none", f"{len(differing)} of {total}: {names}"))
    return fields


def _compare_canaries(
    reader: CacheReader,
    views: KeyedViews,
    seeds: Sequence[int],
    limit: int,
    without: Mapping[int, Collection[int]],
) -> Iterator[_Canary]:
    """Make canary views again, one by one, but for those that need a missing image."""
    views = KeyedViews(views.images, views.maker.recipe, "skip")  # a skipped view has no digest to compare
    for seed in seeds:
        recorded = [(i, crc) for i, crc in reader.canaries(seed, without.get(seed, ())).items() if crc]
        if len(views.images.missing):
            makeable = views.makeable(seed)
            there = [(i, crc) for i, crc in recorded if makeable[i]]
            if recorded and not there:
                raise DataError(
                    f"nothing proves the views of {reader.path} under seed {seed}: the images of all of its canaries "
                    "are missing, or are mixed with some that are; put more of the images back"
                )
            recorded = there
        step = max(1, len(recorded) // max(2, limit // len(seeds)))
        for sample, expected in recorded[::step]:
            batch = check_batch(views[sample, seed])
            if not batch.valid.all():
                raise DataError(
                    f"{views.images.describe(sample)} does not decode, and did when {reader.path} was made; "
                    "restore the file, or make a new cache"
                )
            found = digest(batch.views[0])
            difference = None
            if found != expected:
                reader.read(seed, reader.spec.layout.shard_of(sample))  # is it the cache that has changed?
                view = f"view of {views.images.describe(sample)} under seed {seed}"
                difference = Difference(view, f"CRC {expected:08x}", f"{found:08x}")
            yield _Canary(sample, difference)


CPU, JPEG = "kind of CPU", "decoder of JPEG files"
ROUND_ALIKE = (" AVX2", " AVX512")  # kinds of CPU, by their instructions


def _other_conditions(spec: CacheSpec) -> list[Difference]:
    here = view_conditions()
    return [
        Difference({"cpu": CPU, "jpeg": JPEG}.get(name, f"version of {name}"), was, here.get(name))
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
