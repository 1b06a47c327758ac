"""Stage one: every view once through the teacher, its compressed logits into the cache, shard by shard.

A dump holds the locks of its seeds for as long as it takes, and lists the shards that they lack. A `Filler` fills
them: all in this process (`dump`), or a share in each of several, under the locks that this one holds (`helper`).
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from logitcache.dump.calibration import Calibrate, Calibration, calibrate_by, choose_count, most_views
from logitcache.dump.filler import Filler, OnViewsDone, ShardReport, ShardTask
from logitcache.dump.pipeline import load_pipeline
from logitcache.dump.settings import DumpConfig, default_top_k
from logitcache.errors import BusyError, Difference, FormatError, MismatchError, OptionError
from logitcache.format.identity import RecipeSpec, TeacherSpec
from logitcache.format.schema import DATA, CacheSpec
from logitcache.format.spec import Spec
from logitcache.models.build import Model
from logitcache.models.forward import choose_device, choose_precision
from logitcache.store import CacheReader, CacheWriter, SeedWriter, seed_list
from logitcache.teacher.completion import FEWEST
from logitcache.views.alignment import MISSING, align_images
from logitcache.views.bad_images import BadImage, explain_bad_images
from logitcache.views.changes import describe_newer_images, require_distinct_keys
from logitcache.views.datasets import take_images
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.repeatable import require_repeatable
from logitcache.views.replay import prove_replay, view_conditions


@dataclass(frozen=True)
class DumpReport(Spec):
    """What a dump did.

    Attributes:
        path: of the cache.
        seeds: those dumped.
        skipped: those left to the processes that write them.
        views: made now.
        views_in_cache: of `seeds`, made now or before.
        shards_written: shards of all seeds, written now.
        bad_images: how many samples have no teacher among the views made now, as their images do not decode.
        teacher_top1: share in [0, 1] of the labelled views made now that the teacher puts into the class of their
            label; None where there are none.
        seconds: from the open cache to the last commit.
        views_per_second: of those made now.
        calibration: what became of the class statistics; None where the cache was there, or gets none.
        bad: the samples without a teacher, by name.
    """

    path: str
    seeds: tuple[int, ...]
    skipped: tuple[int, ...]
    views: int
    views_in_cache: int
    shards_written: int
    bad_images: int
    teacher_top1: float | None
    seconds: float
    views_per_second: float
    calibration: Calibration | None = None
    bad: tuple[BadImage, ...] = ()


def dump(
    out: str | Path,
    images: Images | Any,
    recipe: RecipeSpec,
    teacher: Model,
    config: DumpConfig,
    on_progress: OnViewsDone | None = None,
    *,
    on_note: Callable[[str], None] | None = None,
    only: Mapping[int, Collection[int]] | None = None,
) -> DumpReport:
    """Fill a cache with a teacher's logits; started again, go on at the first missing shard.

    Seeds that another process writes are left to it, as long as there are others to dump.

    Args:
        out: path or URL of the cache.
        images: what to view: `Images`, text for `open_images`, or a map-style data set of (image, label).
        recipe: how to view it.
        teacher: whose logits to keep.
        config: seeds, k, profile, speed.
        on_progress: called at the beginning and after every batch.
        on_note: called with a line for people: seeds left out and who writes them, a batch that had to be halved.
        only: shards to fill, by seed; all that are missing when None.

    Raises:
        MismatchError: there is another cache at `out`.
        DriftError: the views made here are not those of the shards already there, of whatever seed.
        BusyError: other processes write all of the seeds.
        DataError: an image does not decode (or, going on, no longer does), or data or recipe are random of
            themselves.
        NonFiniteError: the teacher gave NaN or infinity.
        StorageError: the disk said no.
        LogitCacheError: a worker died.
    """
    cache, images = CacheWriter.find(out), take_images(images)
    with open_seeds(out, cache, images, recipe, teacher, config, on_note=on_note, only=only) as job:
        filler = Filler.load(job.writer.spec, job.views, teacher, config, on_note)
        return job.report(filler.fill(job.seed_writers, job.tasks, on_progress))


@dataclass(frozen=True, eq=False)
class DumpJob:
    """A dump under way: this process holds the locks of its seeds, their arrays are there, their views are proved.

    Attributes:
        writer: of the cache.
        views: of its images, in its order.
        seed_writers: of the seeds to dump, by seed.
        skipped: seeds that other processes write.
        tasks: the shards that are missing.
        began: when, by `time.perf_counter`.
        calibration: of a new cache.
    """

    writer: CacheWriter
    views: KeyedViews
    seed_writers: dict[int, SeedWriter]
    skipped: tuple[int, ...]
    tasks: list[ShardTask]
    began: float
    calibration: Calibration | None

    def report(self, shards: Sequence[ShardReport]) -> DumpReport:
        """Sum up the shards that were filled."""
        seconds = time.perf_counter() - self.began
        spec, views = self.writer.spec, sum(shard.views for shard in shards)
        labelled = sum(shard.labelled for shard in shards)
        committed = [
            int(j) for writer in self.seed_writers.values() for j in np.flatnonzero(writer.commits())
        ]
        bad = explain_bad_images(self.views.images, (sample for shard in shards for sample in shard.bad))
        return DumpReport(
            path=str(self.writer.path),
            seeds=tuple(self.seed_writers),
            skipped=self.skipped,
            views=views,
            views_in_cache=sum(len(spec.layout.samples_of(j)) for j in committed),
            shards_written=len(shards),
            bad_images=len(bad),
            teacher_top1=sum(shard.right for shard in shards) / labelled if labelled else None,
            seconds=seconds,
            views_per_second=views / seconds,
            calibration=self.calibration,
            bad=bad,
        )


@contextmanager
def open_seeds(
    out: str | Path,
    cache: CacheReader | None,
    images: Images,
    recipe: RecipeSpec,
    teacher: Model,
    config: DumpConfig,
    *,
    on_note: Callable[[str], None] | None = None,
    only: Mapping[int, Collection[int]] | None = None,
    calibrate: Calibrate | None = None,
) -> Iterator[DumpJob]:
    """Begin a dump: open the cache, lock its seeds, prove its views, list what is missing; raises as `dump` does.

    A new cache is calibrated first, and then made.

    Args:
        out, images, recipe, teacher, config, on_note, only: as `dump` takes them.
        cache: the one at `out`, as `CacheWriter.find` read it; None where there was none.
        calibrate: how; None: by the teacher in this process.
    """
    seeds = _choose_seeds(cache, images.split, config, on_note)
    seeds_fit = seeds and 0 <= min(seeds) <= max(seeds) < 1 << 63
    if config.batch_size < 0 or config.seeds_per_pass < 1 or not seeds_fit:
        raise OptionError(
            "batch size and seeds per pass must be at least 1, seeds 0 to 2^63 - 1; found "
            f"{config.batch_size}, {config.seeds_per_pass}, {list(seeds)}"
        )
    if images.num_classes not in (None, teacher.num_classes):
        raise MismatchError(
            f"{teacher.name} is no teacher for {images.name}",
            [Difference("number of classes", images.num_classes, teacher.num_classes)],
            "give weights of as many classes, or view the images without theirs (folder:PATH)",
        )
    keys, calibration, statistics = require_distinct_keys(images), None, None
    require_repeatable(KeyedViews(images, recipe))
    if cache is not None:
        images, spec = _match_cache(cache, images, recipe, teacher, config)
        keys = require_distinct_keys(images)
    if on_note and images.note:  # not of what the cache keeps
        on_note(images.note)
    if cache is None:
        spec = cache_spec(images, recipe, teacher, config)
        if count := calibration_views(spec, config.calibration):
            if on_note:
                on_note(f"{count:,} views of a seed of their own go through the teacher first, to calibrate")
            if calibrate is None:
                views = KeyedViews(images, recipe, config.on_bad_image)
                pipeline = load_pipeline(views, teacher, spec.teacher.precision, config, on_note)
                calibrate = partial(calibrate_by, pipeline)
            calibration, found = calibrate(count, spec)
            if calibration.kept:
                statistics = found
                spec = cache_spec(images, recipe, teacher, config, calibrated=True)
    elif on_note:
        if config.calibration is not None:
            on_note(f"{cache.path} is there, so --calibration is left aside: it keeps what it has")
        try:
            cache.statistics()
        except FormatError as error:  # who reads the cache is refused; it can be dumped on all the same
            on_note(str(error))
    writer = CacheWriter.open(out, spec, keys, statistics, grow=config.grow)
    views = KeyedViews(images, recipe, config.on_bad_image)
    began = time.perf_counter()
    with ExitStack() as stack:
        writers, skipped = _lock_seeds(writer, seeds, stack, on_note)
        tasks = list(_missing_shards(writers, config.seeds_per_pass, only))
        reader = cache if cache and cache.spec == writer.spec else CacheReader(out)
        prove_replay(reader, views, [s for s in reader.seeds() if reader.commits(s).any()])
        if on_note and cache and (newer := describe_newer_images(reader, images)):
            on_note(newer)
        yield DumpJob(writer, views, writers, skipped, tasks, began, calibration)


def calibration_views(spec: CacheSpec, asked: int | None) -> int:
    """Return how many views a new cache is calibrated on; 0 for none.

    Raises:
        OptionError: so many cannot be, or the cache keeps every logit.
    """
    most = most_views(spec.dataset.num_classes)
    if asked is not None and not (asked == 0 or FEWEST <= asked <= most):
        raise OptionError(f"calibration must be 0 for none, or {FEWEST} to {most:,} views, found {asked:,}")
    if not spec.tail_size and asked:
        raise OptionError(f"a cache of all {spec.k} logits has nothing to complete: leave calibration out")
    follows = spec.tail_size == 1 and asked is None  # of one class the tail's mass says all
    if not spec.tail_size or follows:
        return 0
    return choose_count(spec.dataset.n, spec.dataset.num_classes, asked)


def cache_spec(
    images: Images, recipe: RecipeSpec, teacher: Model, config: DumpConfig, *, calibrated: bool = False
) -> CacheSpec:
    """Return what identifies the cache that such a dump makes."""
    return CacheSpec.new(
        TeacherSpec(
            name=teacher.name,
            weights=teacher.weights,
            weights_sha256=teacher.weights_sha256,
            precision=choose_precision(config.precision, choose_device(config.device)),
            adapter=teacher.adapter,
        ),
        images.spec(teacher.num_classes),
        recipe,
        k=default_top_k(teacher.num_classes) if config.top_k is None else config.top_k,
        profile=config.profile or "default",
        versions=view_conditions(),
        shard_samples=config.shard_samples or None,
        calibrated=calibrated,
    )


_DRAWN = "weights that are drawn come out otherwise by other code or versions, and on another kind of CPU"
_OWN = f"your code gave others, read from a file that has changed, or drawn: {_DRAWN}"


def _match_cache(
    cache: CacheReader, images: Images, recipe: RecipeSpec, teacher: Model, config: DumpConfig
) -> tuple[Images, CacheSpec]:
    """Put images into the order of the cache that the dump goes on with; return them and what they make of it."""
    there = cache.spec
    config = config.with_defaults_of(there)
    here = cache_spec(images, recipe, teacher, config)
    if there.calibrated and here.tail_size:
        here = cache_spec(images, recipe, teacher, config, calibrated=True)
    if here.shard_samples == there.shard_samples:
        here = dataclasses.replace(here, chunk_samples=there.chunk_samples)
    fields = there.differences(here)
    if [f.field for f in fields] == ["teacher.adapter.size"]:
        raise MismatchError(
            f"the teacher of {cache.path} sees views at another size",
            fields,
            f"give --input-size {there.teacher.adapter.size} to go on with it, or another --out",
        )
    drawn = teacher.weights == there.teacher.weights and teacher.weights.startswith(("random:", "own"))
    if [f.field for f in fields] == ["teacher.weights_sha256"] and drawn:
        raise MismatchError(
            f"the teacher of {cache.path} has other weights",
            fields,
            f"{_OWN if teacher.weights == 'own' else _DRAWN}: read them from one file each time, or give another "
            "--out to begin a new cache",
        )
    if not fields or any(f.field not in DATA for f in fields):
        return images, here  # this cache; or another one, as `CacheWriter.open` will say
    try:
        ordered = align_images(cache, images, grow=config.grow)
    except MismatchError as error:
        if not any(field.field == MISSING for field in error.fields):
            raise
        raise MismatchError(
            f"{cache.path} cannot be gone on with: no row can be made of an image that is missing",
            error.fields,
            "put back what is missing, or name it as it was; or dump what is there to another --out",
        ) from error
    if ordered.left_out:
        raise MismatchError(
            f"{cache.path} holds {there.dataset.n:,} of these {len(images):,} images",
            fields,
            f"give --grow to append the other {ordered.left_out:,}, or another --out to begin a new cache",
        )
    return ordered, there.grown(ordered.spec(there.dataset.num_classes))


def _choose_seeds(
    cache: CacheReader | None, split: str, config: DumpConfig, on_note: Callable[[str], None] | None
) -> tuple[int, ...]:
    """Return the seeds to dump: those asked for, or all that the cache has, or those of a new cache."""
    standard = (0,) if split == "test" else (0, 1, 2, 3)
    begun = cache is not None and any(cache.commits(seed).any() for seed in cache.seeds())
    opened = cache.opened_seeds() if cache and begun else []  # all are, before the first shard is committed
    if config.seeds is None:
        if on_note and cache and opened not in ([], list(standard)):
            on_note(f"{cache.path} goes on with its own {seed_list(opened)}")
        return tuple(opened) or standard
    others = [seed for seed in opened if seed not in config.seeds]
    if on_note and config.grow and others:
        on_note(
            f"{seed_list(others)} of the cache will lack the new images: leave --seeds out to dump all of them"
        )
    return config.seeds


def _lock_seeds(
    writer: CacheWriter, seeds: Sequence[int], stack: ExitStack, on_note: Callable[[str], None] | None
) -> tuple[dict[int, SeedWriter], tuple[int, ...]]:
    """Lock those of the seeds that no other process writes; return their writers, and the other seeds."""
    writers: dict[int, SeedWriter] = {}
    busy: dict[int, BusyError] = {}
    for seed in dict.fromkeys(seeds):
        try:
            writers[seed] = stack.enter_context(writer.seed(seed))
        except BusyError as error:
            busy[seed] = error
    if busy and not writers:
        raise next(iter(busy.values()))
    for refusal in busy.values():
        if on_note:
            on_note(f"left out: {refusal}")
    return writers, tuple(busy)


def _missing_shards(
    writers: Mapping[int, SeedWriter], seeds_per_pass: int, only: Mapping[int, Collection[int]] | None
) -> Iterator[ShardTask]:
    """Yield the shards that are not committed, pass by pass; those in `only` alone, where that is given."""
    seeds = list(writers)
    for start in range(0, len(seeds), seeds_per_pass):
        committed = {seed: writers[seed].committed() for seed in seeds[start : start + seeds_per_pass]}
        missing = {
            seed: {j for j in np.flatnonzero(~found).tolist() if only is None or j in only.get(seed, ())}
            for seed, found in committed.items()
        }
        for shard in sorted(set[int]().union(*missing.values())):
            yield ShardTask(shard, tuple(seed for seed, shards in missing.items() if shard in shards))
