"""Class statistics for a cache that has none: of an earlier logitcache, derived from all logits, or lost."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from logitcache.dump.calibration import (
    Calibrated,
    Calibration,
    calibrate_by,
    choose_count,
    most_views,
    try_statistics,
)
from logitcache.dump.job import calibration_views
from logitcache.dump.pipeline import Pipeline, load_pipeline
from logitcache.dump.settings import DumpConfig
from logitcache.errors import FormatError, OptionError
from logitcache.models.build import Model
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.statistics import fetch_attributes, statistics_digest
from logitcache.teacher.completion import FEWEST
from logitcache.teacher.live import require_same_teacher
from logitcache.teacher.spool import decode_shard
from logitcache.views.alignment import align_images
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.ordered_images import OrderedImages
from logitcache.views.repeatable import require_repeatable
from logitcache.views.replay import prove_replay

SHARDS_READ = 32  # of a cache of all logits


def calibrate_cache(
    path: str | Path,
    images: Images,
    teacher: Model,
    config: DumpConfig,
    *,
    on_note: Callable[[str], None] | None = None,
) -> Calibration:
    """Add class statistics to a cache that has none, or whose own are damaged; its shards stay as they are.

    Where an even tail is nearer to the teacher (`Calibration.kept`) the cache has none afterwards, unless it began
    with statistics and has lost them. Those are estimated as they were at first: of the images that the cache began
    with, and of as many views as their damaged files tell.

    Args:
        path: path or URL of the cache.
        images: those that it was made of.
        teacher: its teacher.
        config: `calibration` is how many views to take, if not as many as fit; device, batch size, workers and bad
            images are as in `dump`.
        on_note: called with a line for people.

    Raises:
        OptionError: the cache has class statistics, or keeps every logit, or can only be read.
        MismatchError: teacher or images are others than the cache's.
        DriftError: views made here are not those of the cache.
        DataError: an image does not decode, or data or recipe are random by themselves.
        NonFiniteError: the teacher gave NaN or infinity.
        StorageError: the disk said no.
    """
    reader = CacheReader(path)
    spec = reader.spec
    if not spec.tail_size:
        raise OptionError(f"{path} keeps all {spec.k} logits: there is nothing to complete")
    if config.calibration == 0:
        raise OptionError(
            f"calibration of 0 views adds nothing to {path}: give more, or leave the number out"
        )
    if not reader.place.writable:
        raise OptionError(f"{path} is for reading; calibrate the copy that it is served from")
    try:
        there = reader.statistics()
    except FormatError:  # damaged, or lost
        there = None
    if there is not None:
        raise OptionError(f"{path} has class statistics already, of {there.views:,} views: nothing to do")
    images = align_images(reader, images)
    require_same_teacher(reader, teacher)
    views = KeyedViews(images, spec.recipe, config.on_bad_image)
    require_repeatable(views)
    prove_replay(reader, views, [seed for seed in reader.seeds() if reader.commits(seed).any()])
    first = spec
    if spec.calibrated and spec.parts:
        first = spec.history()[0]
        n = first.dataset.n
        images = OrderedImages(images, np.arange(n), [n], first.dataset.fingerprint)
    count = calibration_views(first, config.calibration)
    count = count or choose_count(first.dataset.n, first.dataset.num_classes)
    views = KeyedViews(images, spec.recipe, config.on_bad_image)
    pipeline = load_pipeline(views, teacher, spec.teacher.precision, config, on_note)
    if config.calibration:
        calibration, statistics = calibrate_by(pipeline, count, spec)
    else:
        calibration, statistics = _calibrate_again(reader, pipeline, count)
    writer = CacheWriter(reader.place, spec)
    if calibration.kept or spec.calibrated:
        writer.write_statistics(statistics)
    else:  # damaged ones would be refused by whoever reads the cache
        writer.remove_statistics()
    return calibration


def _calibrate_again(reader: CacheReader, pipeline: Pipeline, count: int) -> Calibrated:
    """Estimate the statistics that the cache had, as far as their damaged files tell; else those of `count` views.

    The number of views that is recorded may be damaged itself, so the usual one is tried first: the digest tells.
    """
    recorded = fetch_attributes(reader.place)
    calibrated = calibrate_by(pipeline, count, reader.spec)
    if (
        recorded is None
        or recorded.views == count
        or statistics_digest(reader.spec, calibrated.statistics) == recorded.digest
        or not FEWEST <= recorded.views <= most_views(reader.spec.dataset.num_classes)
    ):
        return calibrated
    return calibrate_by(pipeline, recorded.views, reader.spec)


def calibrate_derived(source: CacheReader, path: str | Path) -> Calibration | None:
    """Add class statistics to a cache derived from one of all logits, estimated from these.

    Returns None where it has some, or there are too few views.

    Args:
        source: the cache of all logits.
        path: of the cache that keeps fewer of them.

    Raises:
        OptionError: the source does not keep all logits.
        StorageError: the disk said no.
    """
    reader = CacheReader(path)
    if source.spec.tail_size:
        raise OptionError(
            f"{source.path} keeps the top {source.spec.k} logits, which tell no class statistics"
        )
    if reader.spec.tail_size <= 1 or reader.statistics() is not None:
        return None
    seeds = source.complete()
    count = choose_count(source.spec.dataset.n, source.spec.dataset.num_classes)
    logits = read_some_logits(source, seeds, count)
    if len(logits) < FEWEST:
        return None
    calibration, statistics = try_statistics(logits, reader.spec.k, reader.spec.profile)
    if calibration.kept:
        CacheWriter(reader.place, reader.spec).write_statistics(statistics)
    return calibration


def read_some_logits(source: CacheReader, seeds: Sequence[int], count: int) -> Tensor:
    """Return (at most `count`, C) raw logits from a cache of all of them, of views spread evenly over these seeds."""
    shards = [(seed, shard) for seed in seeds for shard in range(source.spec.layout.shards)]
    chosen = shards[:: -(-len(shards) // SHARDS_READ)]
    each = -(-count // len(chosen))
    parts = []
    for seed, shard in chosen:
        teacher = decode_shard(source, seed, shard)
        teacher = teacher[~teacher.top.isnan()]
        rows = torch.linspace(0, len(teacher) - 1, min(each, len(teacher))).long()
        parts.append(teacher[rows].logits)
    return torch.cat(parts)[:count]
