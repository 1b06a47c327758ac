"""Filling shards of a dump that another process owns, once it is proved that both would write the same."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logitcache.dump.filler import Filler, Progress, Receipt, Work, receipt
from logitcache.dump.inputs import Sources
from logitcache.dump.job import DumpConfig, Owned, cache_spec, filler
from logitcache.errors import Difference, MismatchError
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.store import CacheReader, CacheWriter
from logitcache.versions import library_versions
from logitcache.views.alignment import in_cache_order
from logitcache.views.loader import KeyedViews
from logitcache.views.maker import digest

VIEWS = 8  # that owner and guest both make


@dataclass(frozen=True)
class Terms(Spec):
    """What a guest must agree on with the owner.

    Attributes:
        cache: which cache it is.
        versions: of the libraries that views depend on.
        views: digests of a few views, evenly spaced, under `seed`; 0 where an image does not decode.
        seed: one of those dumped.
    """

    cache: CacheSpec
    versions: dict[str, str]
    views: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, job: Owned) -> "Terms":
        """Return the owner's."""
        seed = next(iter(job.seeds))
        return cls(job.writer.spec, library_versions(), _digests(job.views, seed), seed)


@dataclass(frozen=True, eq=False)
class Guest:
    """One that fills shards under the owner's locks, with teacher and data loaded once."""

    writer: CacheWriter
    reader: CacheReader
    filler: Filler

    @classmethod
    def join(cls, out: str | Path, sources: Sources, config: DumpConfig, terms: Terms) -> "Guest":
        """Load what the owner loaded and prove that it is the same.

        Raises:
            MismatchError: it is not; `fields` says what differs.
            NotFoundError: the cache, the data or the weights are not there.
            LogitCacheError: whatever else opening them may raise.
        """
        _require("libraries", _released(terms.versions), _released(library_versions()))
        reader = CacheReader(out)
        if fields := terms.cache.differences(reader.spec):
            raise MismatchError(f"{out} is another cache here", fields, "name it by a path that all see")
        images, recipe, teacher = sources.as_in(reader).open()
        images = in_cache_order(reader, images)
        there = {name: getattr(terms.cache, name) for name in ("parts", "shard_samples", "chunk_samples")}
        here = dataclasses.replace(cache_spec(images, recipe, teacher, config), **there)
        if fields := terms.cache.differences(here):
            raise MismatchError("teacher, data or recipe are others here", fields, "give all the same files")
        views = KeyedViews(images, recipe, config.on_bad_image)
        _require(
            "views",
            dict(zip(_shown(views), terms.views, strict=True)),
            dict(zip(_shown(views), _digests(views, terms.seed), strict=True)),
        )
        return cls(
            CacheWriter(reader.place, reader.spec), reader, filler(reader.spec, views, teacher, config)
        )

    def fill(self, work: Sequence[Work], on_progress: Progress | None = None) -> list[Receipt]:
        """Fill shards; of those that are committed by now the receipt is made of what is there.

        Raises what `Filler.fill` raises, and FormatError where a committed shard is damaged.
        """
        found: list[Receipt] = []
        left: list[Work] = []
        for part in work:
            commits = {seed: self.reader.commit(seed, part.shard) for seed in part.seeds}
            for seed, commit in commits.items():
                if commit:
                    arrays = self.reader.read(seed, part.shard)
                    images = self.filler.views.images
                    found.append(receipt(self.reader.spec, images, seed, part.shard, commit, arrays))
            if seeds := tuple(seed for seed, commit in commits.items() if not commit):
                left.append(Work(part.shard, seeds))
        writers = {seed: self.writer.guest(seed) for seed in {s for part in left for s in part.seeds}}
        return found + self.filler.fill(writers, left, on_progress)


def _require(
    what: str, expected: dict[str, str] | dict[str, int], found: dict[str, str] | dict[str, int]
) -> None:
    fields = [
        Difference(name, value, found.get(name))
        for name, value in expected.items()
        if value != found.get(name)
    ]
    if fields:
        raise MismatchError(
            f"{what} are others than the owner's of the dump, so its views would drift",
            fields,
            "install the same versions and give the same files",
        )


def _released(versions: dict[str, str]) -> dict[str, str]:
    """Leave out how a library was built, "+cu128": views are made on the CPU everywhere."""
    return {name: version.split("+")[0] for name, version in versions.items()}


def _shown(views: KeyedViews) -> dict[str, int]:
    samples = (i * len(views) // VIEWS for i in range(VIEWS))
    return {f"view of {views.images.describe(sample)}": sample for sample in samples}


def _digests(views: KeyedViews, seed: int) -> tuple[int, ...]:
    views = KeyedViews(views.images, views.maker.recipe, "skip")
    made = (views[sample, seed] for sample in _shown(views).values())
    return tuple(digest(batch.views[0]) if batch.valid.all() else 0 for batch in made)
