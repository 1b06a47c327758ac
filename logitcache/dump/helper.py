"""A process that fills shards of a dump which another process holds the locks for.

It first proves that both would write the same: same cache, teacher, images, recipe, libraries and views.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from logitcache.dump.filler import Filler, OnViewsDone, ShardReport, ShardTask, report_shard
from logitcache.dump.inputs import DumpInputs
from logitcache.dump.job import DumpJob, cache_spec
from logitcache.dump.settings import DumpConfig
from logitcache.errors import Difference, MismatchError
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.store import CacheReader, CacheWriter
from logitcache.versions import cpu_kind, library_versions
from logitcache.views.alignment import align_images
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.maker import digest

PROOF_VIEWS = 8  # that lock holder and helper both make


@dataclass(frozen=True)
class DumpIdentity(Spec):
    """What a dump depends on; a helper's must be the lock holder's.

    Attributes:
        cache: the spec of the cache.
        versions: of the libraries that views depend on.
        views: digests of `PROOF_VIEWS` views, evenly spaced, under `seed`; 0 where an image does not decode.
        seed: one of those dumped.
        cpu: kind of the lock holder's CPU.
    """

    cache: CacheSpec
    versions: dict[str, str]
    views: tuple[int, ...]
    seed: int
    cpu: str

    @classmethod
    def of(cls, job: DumpJob) -> "DumpIdentity":
        """Return the lock holder's."""
        return cls.of_new(job.writer.spec, job.views, next(iter(job.seed_writers)))

    @classmethod
    def of_new(cls, spec: CacheSpec, views: KeyedViews, seed: int) -> "DumpIdentity":
        """Return that of a dump whose cache is not there yet."""
        return cls(spec, library_versions(), _digest_views(views, seed), seed, cpu_kind())

    def require_libraries(self) -> None:
        """Refuse other libraries than the lock holder's.

        Raises:
            MismatchError: `fields` says which.
        """
        _require_equal("libraries", _without_builds(self.versions), _without_builds(library_versions()))

    def require(self, spec: CacheSpec, views: KeyedViews) -> None:
        """Refuse another teacher, other data, another recipe or other views than the lock holder's.

        Raises:
            MismatchError: `fields` says which.
        """
        if fields := self.cache.differences(spec):
            raise MismatchError("teacher, data or recipe are others here", fields, "give all the same files")
        samples = _proof_samples(views)
        expected = dict(zip(samples, self.views, strict=True))
        found = dict(zip(samples, _digest_views(views, self.seed), strict=True))
        other_cpu = expected != found and self.cpu != cpu_kind()
        _require_equal(
            "views",
            {**expected, **({"kind of CPU": self.cpu} if other_cpu else {})},
            {**found, **({"kind of CPU": cpu_kind()} if other_cpu else {})},
        )


@dataclass(frozen=True, eq=False)
class Helper:
    """Fills shards under the lock holder's locks, with teacher and data loaded once."""

    writer: CacheWriter
    reader: CacheReader
    filler: Filler

    @classmethod
    def join(
        cls, out: str | Path, inputs: DumpInputs, config: DumpConfig, identity: DumpIdentity
    ) -> "Helper":
        """Load what the lock holder loaded and prove that it is the same.

        Args:
            out: path or URL of the cache.
            inputs: teacher, data and recipe by name, as the lock holder opened them.
            config: as the lock holder has it.
            identity: the lock holder's.

        Raises:
            MismatchError: something differs; `fields` says what.
            NotFoundError: the cache, the data or the weights are not there.
            LogitCacheError: whatever else opening them may raise.
        """
        identity.require_libraries()
        reader = CacheReader(out)
        if fields := identity.cache.differences(reader.spec):
            raise MismatchError(f"{out} is another cache here", fields, "name it by a path that all see")
        images, recipe, teacher = inputs.with_defaults_of(reader).open()
        images = align_images(reader, images)
        layout = {name: getattr(identity.cache, name) for name in ("parts", "shard_samples", "chunk_samples")}
        spec = cache_spec(images, recipe, teacher, config, calibrated=identity.cache.calibrated)
        spec = dataclasses.replace(spec, **layout)
        views = KeyedViews(images, recipe, config.on_bad_image)
        identity.require(spec, views)
        filler = Filler.load(reader.spec, views, teacher, config)
        return cls(CacheWriter(reader.place, reader.spec), reader, filler)

    def fill(self, tasks: Sequence[ShardTask], on_progress: OnViewsDone | None = None) -> list[ShardReport]:
        """Fill shards; those that are committed by now are reported as they are.

        Raises what `Filler.fill` raises, and FormatError where a committed shard is damaged.
        """
        reports: list[ShardReport] = []
        missing: list[ShardTask] = []
        for task in tasks:
            commits = {seed: self.reader.commit(seed, task.shard) for seed in task.seeds}
            for seed, commit in commits.items():
                if commit:
                    arrays, images = self.reader.read(seed, task.shard), self.filler.pipeline.views.images
                    reports.append(report_shard(self.reader.spec, images, seed, task.shard, commit, arrays))
            if seeds := tuple(seed for seed, commit in commits.items() if not commit):
                missing.append(ShardTask(task.shard, seeds))
        writers = {seed: self.writer.unlocked(seed) for seed in {s for task in missing for s in task.seeds}}
        return reports + self.filler.fill(writers, missing, on_progress)


def _require_equal(what: str, expected: Mapping[str, str | int], found: Mapping[str, str | int]) -> None:
    fields = [
        Difference(name, value, found.get(name))
        for name, value in expected.items()
        if value != found.get(name)
    ]
    if fields:
        raise MismatchError(
            f"{what} here are not those of the process that began the dump, so its views would drift",
            fields,
            "install the same versions and give the same files"
            + (", on the same kind of CPU" if any(f.field == "kind of CPU" for f in fields) else ""),
        )


def _without_builds(versions: dict[str, str]) -> dict[str, str]:
    """Leave out how a library was built, "+cu128": views are made on the CPU everywhere."""
    return {name: version.split("+")[0] for name, version in versions.items()}


def _proof_samples(views: KeyedViews) -> dict[str, int]:
    """Choose the samples whose views are compared, evenly spaced, by what messages call them."""
    samples = (i * len(views) // PROOF_VIEWS for i in range(PROOF_VIEWS))
    return {f"view of {views.images.describe(sample)}": sample for sample in samples}


def _digest_views(views: KeyedViews, seed: int) -> tuple[int, ...]:
    """Make the views that are compared; return their digests, 0 where an image does not decode."""
    views = KeyedViews(views.images, views.maker.recipe, "skip")
    batches = (views[sample, seed] for sample in _proof_samples(views).values())
    return tuple(digest(batch.views[0]) if batch.valid.all() else 0 for batch in batches)
