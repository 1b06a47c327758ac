"""Mend a cache: damaged shards are taken back and dumped again, by the same teacher from the same views."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from logitcache.audit.verify import KEYS, UNREADABLE, Progress, VerifyReport, verify_cache
from logitcache.dump.filler import ViewsDone
from logitcache.dump.job import DumpConfig, cache_spec, dump
from logitcache.errors import FormatError, MismatchError, OptionError, StorageError
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.models.build import Model
from logitcache.store import CacheReader, CacheWriter
from logitcache.teacher.live import require_same_teacher
from logitcache.views.alignment import align_images
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.replay import prove_replay


@dataclass(frozen=True)
class RepairReport(Spec):
    """What a repair did.

    Attributes:
        mended: metadata files written anew, as "seed-7/ids/zarr.json".
        redumped: shards dumped again, as (seed, shard).
        identical: of these, how many got the commit digest that they had before.
        after: what a verification of the repaired seeds finds now.
    """

    mended: tuple[str, ...]
    redumped: tuple[tuple[int, int], ...]
    identical: int
    after: VerifyReport


def repair_cache(
    path: str | Path,
    found: VerifyReport,
    config: DumpConfig,
    teacher: Callable[[], tuple[Images, Model]],
    on_progress: Progress | None = None,
) -> RepairReport:
    """Dump again what a verification found damaged; all else stays as it is.

    Metadata is made again from the spec, sample keys from the images. Where shards remain damaged, teacher, images,
    recipe and views are proved to be the cache's before any is taken back. Killed after that, it is finished by the
    `dump` that made the cache.

    Args:
        path: of the cache.
        found: what `verify` found.
        config: speed; what identifies the cache is taken from it.
        teacher: gives the images that the cache was made of and the teacher whose logits it keeps, called only
            where it is needed.
        on_progress: called with (views done, views to do).

    Raises:
        MismatchError: teacher or images are others than the cache's.
        DriftError: views made here are not those of the cache's sound shards.
        BusyError: another process writes one of the seeds. Nothing has been taken back after any of these three.
        OptionError: the cache can only be read.
        StorageError: the disk did not let a shard be read, which says nothing about the shard; or be written.
    """
    for problem in found.problems:
        if problem.kind == UNREADABLE:
            where = path if problem.seed is None else f"{path}, seed {problem.seed}"
            raise StorageError(
                f"{where}: {problem.reason}; mend the disk or the permission first, as the shard may be sound"
            )
    reader = CacheReader(path)
    if not reader.place.writable:
        raise OptionError(f"{reader.path} is for reading; mend the copy that it is served from")
    writer = CacheWriter(reader.place, reader.spec)
    damaged = sorted({problem.seed for problem in found.problems if problem.seed is not None})
    mended = [f"seed-{seed}/{name}" for seed in damaged for name in writer.rewrite_metadata(seed)]
    if any(problem.kind == KEYS for problem in found.problems):
        mended += writer.rewrite_keys(align_images(reader, teacher()[0]).keys())
    reader = CacheReader(path)
    problems = [*found.problems, *(verify_cache(reader, damaged).problems if mended else ())]
    bad: dict[int, dict[int, int]] = {}  # the commit digest before, by seed and shard
    for problem in problems:
        if problem.seed is None or problem.shard is None:  # has been mended
            continue
        bad.setdefault(problem.seed, {})[problem.shard] = _digest_before(reader, problem.seed, problem.shard)
    if bad:
        images, model = teacher()
        images = align_images(reader, images)
        config = _same_but_for_speed(config, reader.spec, tuple(sorted(bad)))
        _require_same(reader, images, model, config, bad)
        with ExitStack() as owned:
            for seed, own in [(seed, owned.enter_context(writer.seed(seed))) for seed in sorted(bad)]:
                for shard in bad[seed]:
                    own.delete(shard)

        def tell(views: ViewsDone) -> None:
            if on_progress:
                on_progress(views.done, views.total)

        dump(path, images, reader.spec.recipe, model, config, tell, only=bad)
    redumped = [(seed, shard) for seed, shards in sorted(bad.items()) for shard in sorted(shards)]
    return RepairReport(
        mended=tuple(mended),
        redumped=tuple(redumped),
        identical=sum(reader.commit(seed, shard) == bad[seed][shard] for seed, shard in redumped),
        after=verify_cache(reader, damaged),
    )


def _digest_before(reader: CacheReader, seed: int, shard: int) -> int:
    try:
        return reader.commit(seed, shard)
    except FormatError:  # it is the commit entry that is damaged
        return 0


def _same_but_for_speed(config: DumpConfig, spec: CacheSpec, seeds: tuple[int, ...]) -> DumpConfig:
    return dataclasses.replace(
        config,
        seeds=seeds,
        top_k=spec.k,
        profile=spec.profile.name,
        precision=spec.teacher.precision,
        shard_samples=spec.shard_samples,
    )


def _require_same(
    reader: CacheReader,
    images: Images,
    teacher: Model,
    config: DumpConfig,
    bad: Mapping[int, Collection[int]],
) -> None:
    """Insist that a dump would go on with this cache, as `dump` itself will once the bad shards are gone."""
    require_same_teacher(reader, teacher)
    here = cache_spec(images, reader.spec.recipe, teacher, config)
    if fields := reader.spec.differences(dataclasses.replace(here, parts=reader.spec.parts)):
        advice = "restore it from a copy, or make a new cache"
        raise MismatchError(f"{reader.path} is not as a dump here would make it", fields, advice)

    def sound(seed: int) -> bool:
        return any(
            reader.commit(seed, j) for j in range(reader.spec.layout.shards) if j not in bad.get(seed, ())
        )

    seeds = [seed for seed in reader.seeds() if sound(seed)]
    prove_replay(reader, KeyedViews(images, reader.spec.recipe), seeds, without=bad)
