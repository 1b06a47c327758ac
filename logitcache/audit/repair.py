"""Repair a cache: damaged shards and class statistics are made again, by the same teacher from the same views."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from logitcache.audit.verify import KEYS, STATISTICS, UNREADABLE, VerifyReport, verify_cache
from logitcache.dump.filler import ViewsDone
from logitcache.dump.job import cache_spec, dump
from logitcache.dump.late_calibration import calibrate_cache
from logitcache.dump.settings import DumpConfig
from logitcache.errors import FormatError, MismatchError, OptionError, StorageError
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.models.build import Model
from logitcache.store.place import CLASS_STATISTICS
from logitcache.store.reader import CacheReader
from logitcache.store.writer import CacheWriter
from logitcache.teacher.live import require_same_teacher
from logitcache.views.alignment import align_images
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.replay import prove_replay


@dataclass(frozen=True)
class RepairReport(Spec):
    """What a repair did.

    Attributes:
        mended: metadata files that were rewritten, such as "seed-7/ids/zarr.json", and "class_statistics" where these
            were estimated anew.
        redumped: (seed, shard) of the shards that were dumped again.
        identical: how many of these have the commit digest that they had before.
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
    on_progress: Callable[[int, int], None] | None = None,
) -> RepairReport:
    """Dump again what a verification found damaged; all else stays as it is.

    Metadata is rewritten from the spec, sample keys from the images. If shards are damaged too, teacher, images,
    recipe and views are first proved to be those of the cache; only then are the shards deleted and dumped again. If
    that is interrupted, the `dump` that made the cache finishes it. Class statistics come last, estimated by the
    teacher from the views that they were made of.

    Args:
        path: of the cache.
        found: what `verify_cache` found.
        config: batch size, device and workers; what identifies the cache is taken from the cache.
        teacher: returns the images that the cache was made of and the teacher that made it; called only if needed.
        on_progress: called with (views done, views to do).

    Raises:
        MismatchError: teacher or images are others than the cache's.
        DriftError: views made here are not those of the cache's sound shards.
        BusyError: another process writes one of the seeds. Nothing has been deleted after any of these three.
        OptionError: the cache can only be read.
        StorageError: a shard could not be read, which does not mean that it is damaged; or not be written.
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
    rewritten = [f"seed-{seed}/{name}" for seed in damaged for name in writer.rewrite_metadata(seed)]
    if any(problem.kind == KEYS for problem in found.problems):
        rewritten += writer.rewrite_keys(align_images(reader, teacher()[0]).keys())
    reader = CacheReader(path)
    problems = [*found.problems, *(verify_cache(reader, damaged).problems if rewritten else ())]
    bad: dict[int, dict[int, int]] = {}  # the commit digest before, by seed and shard
    for problem in problems:
        if problem.seed is None or problem.shard is None:  # it is repaired
            continue
        bad.setdefault(problem.seed, {})[problem.shard] = _digest_before(reader, problem.seed, problem.shard)
    if bad:
        images, model = teacher()
        images = align_images(reader, images)
        config = _same_but_for_speed(config, reader.spec, tuple(sorted(bad)))
        _require_same(reader, images, model, config, bad)
        with ExitStack() as locks:
            seed_writers = {seed: locks.enter_context(writer.seed(seed)) for seed in sorted(bad)}
            for seed, seed_writer in seed_writers.items():
                for shard in bad[seed]:
                    seed_writer.delete(shard)

        def on_views(views: ViewsDone) -> None:
            if on_progress:
                on_progress(views.done, views.total)

        dump(path, images, reader.spec.recipe, model, config, on_views, only=bad)
    if any(problem.kind == STATISTICS for problem in found.problems):
        images, model = teacher()
        calibration = calibrate_cache(path, images, model, config)
        if calibration.kept or reader.spec.calibrated:
            rewritten.append(CLASS_STATISTICS)
    redumped = [(seed, shard) for seed, shards in sorted(bad.items()) for shard in sorted(shards)]
    return RepairReport(
        mended=tuple(rewritten),
        redumped=tuple(redumped),
        identical=sum(reader.commit(seed, shard) == bad[seed][shard] for seed, shard in redumped),
        after=verify_cache(reader, damaged),
    )


def _digest_before(reader: CacheReader, seed: int, shard: int) -> int:
    try:
        return reader.commit(seed, shard)
    except FormatError:  # the commit entry itself is damaged
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
    """Check that a dump would go on with this cache, as `dump` checks again once the bad shards are deleted."""
    require_same_teacher(reader, teacher)
    spec = cache_spec(images, reader.spec.recipe, teacher, config, calibrated=reader.spec.calibrated)
    if fields := reader.spec.differences(dataclasses.replace(spec, parts=reader.spec.parts)):
        advice = "restore it from a copy, or make a new cache"
        raise MismatchError(f"{reader.path} is not as a dump here would make it", fields, advice)

    def has_sound_shard(seed: int) -> bool:
        return any(
            reader.commit(seed, j) for j in range(reader.spec.layout.shards) if j not in bad.get(seed, ())
        )

    seeds = [seed for seed in reader.seeds() if has_sound_shard(seed)]
    prove_replay(reader, KeyedViews(images, reader.spec.recipe), seeds, without=bad)
