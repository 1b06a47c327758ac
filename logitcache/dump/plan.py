"""What a cache will cost and keep, before the GPU-days are spent: measured on a sample of the data.

The sample goes through the real `dump`, with every logit kept, and `derive` makes a cache of each k and profile from
that. So bytes are those of real shards, and what is lost is measured against all of the teacher's logits: on a
quarter of the images, the tail completed by class statistics of the others.
"""

import copy
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from logitcache.dump.calibration import (
    choose_count,
    is_no_farther,
    measure_information,
    share_lost,
)
from logitcache.dump.fidelity import measure_fidelity
from logitcache.dump.filler import OnViewsDone, ViewsDone
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig, default_top_k
from logitcache.errors import DataError, OptionError
from logitcache.format.class_statistics import ClassStatistics
from logitcache.format.identity import PROFILES, RecipeSpec
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.models.build import Model
from logitcache.store import CacheReader
from logitcache.store.derive import derive_cache
from logitcache.store.forecast import CacheSize, forecast_size
from logitcache.teacher.completion import FEWEST, HELD_OUT, Completion, fit_statistics
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import decode_shard
from logitcache.units import size
from logitcache.views.images import Images
from logitcache.views.keyed_views import OnBadImage
from logitcache.views.keys import permutation

KS = (4, 8, 16, 32, 64, 128)
NEAR = 0.03  # share of what a teacher tells that a cache may lose: students don't notice (docs/results.md)


@dataclass(frozen=True)
class PlanConfig(Spec):
    """What to plan for.

    Attributes:
        seeds: augmentation seeds that the cache will hold.
        epochs: passes over the data of one student run.
        images: how many images to try, a keyed choice; each is viewed under two seeds, or under as many as a dump
            of so few would calibrate on.
        ks: numbers of logits to try; those below the number of classes are.
        budget: bytes that the cache may have; None: as few as are near enough.
        devices: numbers of devices to estimate the time for.
        on_bad_image, batch_size, precision, device, workers: of the dump, as in `DumpConfig`.
    """

    seeds: int = 10
    epochs: int = 100
    images: int = 512
    ks: tuple[int, ...] = KS
    budget: int | None = None
    devices: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    on_bad_image: OnBadImage = "error"
    batch_size: int = 0
    precision: str = "auto"
    device: str = "auto"
    workers: int = -1


@dataclass(frozen=True)
class Choice(Spec):
    """One k and profile: what it costs, and what is left of the teacher.

    Attributes:
        k, profile: of the cache.
        completed: whether such a cache keeps class statistics; else an even tail is nearer to the teacher.
        bytes_per_view: of its seeds, with their metadata.
        bytes_in_all: of the whole cache: all seeds, sample keys, class statistics, metadata.
        kl: mean KL(p ‖ p̂) in nats at T = 1, 2, 4; p from all logits, p̂ from the cache.
        lost: the same as a share of what the teacher tells, as `calibration.share_lost` weighs the temperatures.
        pearson: mean correlation of p and p̂ over the classes, at the same temperatures.
        order: share of the pairs of listed classes that the stored gaps still put in the right order.
        tail_mass: mean probability at T = 1 outside the k classes.
        beaten: another choice is no larger, no farther from the teacher, and orders no fewer pairs.
    """

    k: int
    profile: str
    completed: bool
    bytes_per_view: float
    bytes_in_all: int
    kl: tuple[float, ...]
    lost: float
    pearson: tuple[float, ...]
    order: float
    tail_mass: float
    beaten: bool = False

    def beats(self, other: "Choice") -> bool:
        """Say whether this one is at least as good in everything, and better in something."""
        mine, theirs = ((c.bytes_in_all, *c.kl, -c.order) for c in (self, other))
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))

    @property
    def error(self) -> float:
        """KL summed over the temperatures; what is below a millionth counts as that."""
        return max(sum(self.kl), 1e-6)


@dataclass(frozen=True)
class Plan(Spec):
    """What each kind of cache costs and keeps, and which to take.

    Attributes:
        views: that were tried; those of images that do not decode are left out.
        information: what the teacher tells: mean KL in nats of its distribution from an even one, at T = 1, 2, 4.
        n: images of the whole data set.
        seeds, epochs: planned for.
        choices: every k and profile, by falling error; of equals the smaller last.
        chosen: of the choices within the budget, the one that keeps most, None where none fits; without a budget the
            smallest that loses less than `NEAR`, where there is none the one that keeps most.
        reason: which of these it is.
        default: what a dump makes where neither logits nor profile are named; None where that was not tried.
        views_per_second: of the dump on this device, once it runs.
        hours: to dump all seeds, by number of devices like this one.
        cache_hours, live_hours: device-hours of the teacher for the cache, and for one student run with it live.
        pays_from: number of student runs from which the cache costs less teacher time.
    """

    views: int
    information: tuple[float, ...]
    n: int
    seeds: int
    epochs: int
    choices: tuple[Choice, ...]
    chosen: Choice | None
    reason: str
    default: Choice | None
    views_per_second: float
    hours: dict[str, float]
    cache_hours: float
    live_hours: float
    pays_from: int


def plan_cache(
    images: Images,
    recipe: RecipeSpec,
    teacher: Model,
    config: PlanConfig = PlanConfig(),
    on_progress: OnViewsDone | None = None,
) -> Plan:
    """Try a teacher on a sample of images, and say what each kind of cache of all of them comes to.

    Args:
        images: the data set.
        recipe: how it is viewed.
        teacher: whose logits to keep.
        config: what to plan for.
        on_progress: called as views are tried.

    Raises:
        OptionError: there is nothing to plan.
        DataError: an image of the sample does not decode; or, where these are left out, too few do.
        NonFiniteError: the teacher gave NaN or infinity.
        StorageError: there is no room for the trial in the system's temporary folder.
    """
    if min(config.seeds, config.epochs, config.images, *config.ks, *config.devices) < 1:
        raise OptionError("seeds, epochs, images, top-k and devices must be at least 1")
    sample = _Sample(images, config.images)
    with tempfile.TemporaryDirectory(prefix="logitcache-plan-") as folder:
        rate = _dump_sample(Path(folder) / "all", sample, recipe, teacher, config, on_progress)
        exact = CacheReader(Path(folder) / "all")
        logits = torch.cat([teacher.logits for _, teacher in _decode_shards(exact)])
        held_out = torch.cat([rows for rows, _ in _decode_shards(exact)])
        if not held_out.any():
            decoded = len(logits) // len(exact.complete())
            raise DataError(
                f"{images.name}: {decoded:,} of the {len(sample):,} images tried decode, too few to measure what a "
                "cache loses; try more with --images"
            )
        statistics = _fit_statistics(logits[~held_out], len(images))
        completion = Completion.of(statistics) if statistics else None
        views, information, choices = len(logits), measure_information(logits[held_out]), []
        for k, profile in _kinds(exact.spec.dataset.num_classes, config.ks):
            reader = exact
            if profile != "exact":
                path = Path(folder) / f"{k}-{profile}"
                derive_cache(exact.path, path, top_k=k, profile=profile)
                reader = CacheReader(path)
            parts = [teacher[rows] for rows, teacher in _decode_shards(reader)]
            even = measure_fidelity(logits[held_out], parts)
            parts = [replace(part, completion=completion) for part in parts]
            found = even
            if completion and reader.spec.tail_size > 1:  # of one class the tail's mass says all
                found = measure_fidelity(logits[held_out], parts)
            completed = found is not even and is_no_farther(found.kl, even.kl)
            stored = statistics if completed else None
            size = _forecast_size(reader, images, config.seeds, stored)
            total, per_view = size.once + config.seeds * size.seed, size.seed / len(images)
            fidelity = found if completed else even
            lost = share_lost(fidelity.kl, information)
            choices.append(Choice(k, profile, completed, per_view, total, fidelity.kl, lost, *fidelity[1:]))
    choices = [replace(c, beaten=any(other.beats(c) for other in choices)) for c in choices]
    choices.sort(key=lambda choice: (-choice.error, -choice.bytes_in_all))
    chosen, reason = _choose(choices, config.budget)
    usual = (default_top_k(exact.spec.dataset.num_classes), "default")
    hours = len(images) * config.seeds / rate / 3600
    return Plan(
        views=views,
        information=information,
        n=len(images),
        seeds=config.seeds,
        epochs=config.epochs,
        choices=tuple(choices),
        chosen=chosen,
        reason=reason,
        default=next((c for c in choices if (c.k, c.profile) == usual), None),
        views_per_second=rate,
        hours={str(number): hours / number for number in config.devices},
        cache_hours=hours,
        live_hours=len(images) * config.epochs / rate / 3600,
        pays_from=config.seeds // config.epochs + 1,
    )


def _choose(choices: Sequence[Choice], budget: int | None) -> tuple[Choice | None, str]:
    """Choose from `choices`, ordered by falling error and of equals the smaller last; return the choice and why."""
    if budget is not None:
        fitting = [c for c in choices if c.bytes_in_all <= budget]
        if fitting:
            return fitting[-1], f"keeps most of what fits {size(budget)}"
        return None, f"nothing fits {size(budget)}: take fewer seeds, or fewer logits"
    if near := [c for c in choices if c.lost < NEAR]:
        return min(near, key=lambda c: c.bytes_in_all), f"the smallest that loses less than {NEAR:.0%}"
    return choices[-1], f"keeps most; none loses less than {NEAR:.0%}"


class _Sample(Images):
    """Some of the images, a keyed choice, in their order."""

    def __init__(self, images: Images, size: int) -> None:
        self.images, self.name, self.split = images, images.name, images.split
        self.samples = np.sort(permutation(len(images), 0)[:size])
        self.labels, self.num_classes = images.labels[self.samples], images.num_classes

    def image(self, sample: int) -> Tensor:
        return self.images.image(int(self.samples[sample]))

    def on_background(self, colour: str | None) -> "_Sample":
        sample = copy.copy(self)
        sample.images = self.images.on_background(colour)
        return sample

    def pixels(self) -> Tensor | None:
        pixels = self.images.pixels()
        return None if pixels is None else pixels[torch.from_numpy(self.samples)]

    def describe(self, sample: int) -> str:
        return self.images.describe(int(self.samples[sample]))

    @property
    def fingerprint(self) -> str:
        return f"{len(self)} of {self.images.fingerprint}"


def _dump_sample(
    out: Path,
    sample: _Sample,
    recipe: RecipeSpec,
    teacher: Model,
    config: PlanConfig,
    on_progress: OnViewsDone | None,
) -> float:
    """Dump the sample with every logit kept; return views per second between its first batch and its last.

    What comes before and after (workers, kernels, flushing to the disk) is paid once, or goes on beside the teacher.
    """
    times: list[tuple[float, int]] = []  # and views done by then
    seeds = tuple(range(_choose_trial_seeds(sample, teacher.num_classes)))
    settings = DumpConfig(
        seeds=seeds,
        profile="exact",
        on_bad_image=config.on_bad_image,
        batch_size=config.batch_size,
        precision=config.precision,
        device=config.device,
        workers=config.workers,
    )

    def record_time(views: ViewsDone) -> None:
        if views.done:
            times.append((time.perf_counter(), views.done))
        if on_progress:
            on_progress(views)

    began = time.perf_counter()
    dump(out, sample, recipe, teacher, settings, record_time)
    if len(times) < 3:
        return len(seeds) * len(sample) / (time.perf_counter() - began)
    (began, first), (ended, done) = times[0], times[-1]
    return (done - first) / (ended - began)


def _choose_trial_seeds(sample: _Sample, num_classes: int) -> int:
    """Return how many seeds to try: two, or of few images up to eight, as a dump calibrates on more views of them."""
    if len(sample) < len(sample.images):
        return 2
    wanted = choose_count(len(sample), num_classes) * HELD_OUT / (HELD_OUT - 1)
    return max(2, min(8, math.ceil(wanted / len(sample))))


def _kinds(num_classes: int, ks: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield each k and profile to try."""
    for k in sorted({min(k, num_classes) for k in ks}):
        for name, profile in PROFILES.items():
            if name != "exact" and profile.installed:
                yield k, name
    yield num_classes, "exact"


def _decode_shards(reader: CacheReader) -> Iterator[tuple[Tensor, SparseTeacher]]:
    """Yield (rows,) bool, which rows of a shard are held out, a quarter of the images; and the shard's answers.

    Rows without a teacher are left out.
    """
    for seed in reader.complete():
        for shard in range(reader.spec.layout.shards):
            samples = torch.tensor(reader.spec.layout.samples_of(shard))
            teacher = decode_shard(reader, seed, shard)
            answered = ~teacher.top.isnan()
            yield (samples % HELD_OUT == 0)[answered], teacher[answered]


def _fit_statistics(logits: Tensor, n: int) -> ClassStatistics | None:
    """Fit class statistics to as many of these rows as a dump of n images would calibrate on; None of too few."""
    count = min(len(logits), choose_count(n, logits.shape[1]))
    if count < FEWEST:
        return None
    return fit_statistics(logits[torch.arange(count) * len(logits) // count])


def _forecast_size(
    trial: CacheReader, images: Images, seeds: int, statistics: ClassStatistics | None
) -> CacheSize:
    """Foretell the size of the cache of all images that is as the trial, with class statistics or without."""
    spec = trial.spec
    forecast = CacheSpec.new(
        spec.teacher,
        images.spec(spec.dataset.num_classes),
        spec.recipe,
        k=spec.k,
        profile=spec.profile.name,
        versions=spec.versions,
        calibrated=statistics is not None,
    )
    shards = [trial.read(seed, shard) for seed in trial.complete() for shard in range(spec.layout.shards)]
    names = [a.name for a in forecast.arrays() if a.shards]
    rows = {name: np.concatenate([shard[name] for shard in shards]) for name in names}
    return forecast_size(forecast, rows, range(seeds), statistics)
