"""How a teacher's classes vary together, estimated from a sample of views.

The sample is a keyed choice of the images under a seed that no dump takes. So the same cache gets the same
statistics, whatever was interrupted, and however many processes dump it: one of them calibrates, before it exists.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitcache.dump.pipeline import Pipeline
from logitcache.errors import OptionError
from logitcache.format.class_statistics import ClassStatistics
from logitcache.format.identity import Profile
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.teacher.completion import FEWEST, HELD_OUT, Completion, fit_statistics
from logitcache.teacher.reach import count_unmasked, require_logits, split_tails
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.keyed_views import Pair
from logitcache.views.keys import permutation
from logitcache.views.loader import report_worker_deaths

CALIBRATION_SEED = (1 << 63) - 1  # and, where there are more views than images, those below
VIEWS = 4096
LEAST_VIEWS = 256
MOST_NUMBERS = 1 << 30  # logits of a sample that can be asked for: they are held in memory
SHARE = 5  # a sample is one view for so many images, unless that is below `LEAST_VIEWS` or above `VIEWS`
NUMBERS = 1 << 26  # logits of a sample, at most: a few times 512 MiB while they are looked at
TEMPERATURES = (1.0, 2.0, 4.0)
ROWS = 256  # at a time

Calibrate = Callable[[int, CacheSpec], "Calibrated"]  # of how many views, for which cache


@dataclass(frozen=True)
class Calibration(Spec):
    """What a calibration came to.

    Attributes:
        views: of the sample, those without an image left out.
        factors: of the statistics.
        even: mean KL(p ‖ p̂) in nats at T = 1, 2, 4, of views held out; p̂ from rows as the cache stores them, their
            tails even.
        completed: the same with the tail completed by statistics of the other views.
        kept: whether a cache is to keep them: only if completing is no farther from the teacher at any temperature.
        unmasked: the most classes that a view leaves unmasked, of views with masked classes beside others outside
            their top k; 0 where there are none.
    """

    views: int
    factors: int
    even: tuple[float, ...]
    completed: tuple[float, ...]
    kept: bool
    unmasked: int = 0


class Calibrated(NamedTuple):
    """What a calibration came to, and the statistics."""

    calibration: Calibration
    statistics: ClassStatistics


def calibrate_by(pipeline: Pipeline, count: int, spec: CacheSpec) -> Calibrated:
    """Estimate class statistics from `count` views, and try them on some that were held out.

    Args:
        pipeline: views and teacher.
        count: views to take.
        spec: of the cache, for its k and its profile.

    Raises:
        OptionError: there are too few views.
        DataError: an image does not decode.
        NonFiniteError: the teacher gave NaN, infinity, or what is no logit.
    """
    calibration, statistics = try_statistics(sample_logits(pipeline, count), spec.k, spec.profile)
    return Calibrated(calibration, replace(statistics, views=count))  # by which the sample is found again


@torch.inference_mode()
@report_worker_deaths()
def sample_logits(pipeline: Pipeline, count: int) -> Tensor:
    """Return (N, C) float32 logits of `count` views, on the CPU; those whose image does not decode are left out."""
    parts = []
    for batch in pipeline.batches(list(_batches(len(pipeline.views), count, pipeline.batch_size))):
        logits = pipeline.model(batch.views.to(pipeline.device, non_blocking=True)).cpu()

        def where(row: int, samples: Tensor = batch.samples) -> str:
            return f"{pipeline.views.images.describe(int(samples[row]))}, on a view of the calibration,"

        half = pipeline.model.model.dtype is not torch.float32
        logits = require_logits(logits, batch.valid, where, half=half)
        parts.append(logits[batch.valid])
    return torch.cat(parts)


def try_statistics(logits: Tensor, k: int, profile: Profile) -> Calibrated:
    """Estimate class statistics from (N, C) logits, and try them on some rows that were held out.

    Args:
        logits: of the views.
        k: logits that the cache keeps.
        profile: how it rounds them.

    Raises:
        OptionError: there are too few rows.
    """
    if len(logits) < FEWEST:
        raise OptionError(f"class statistics need {FEWEST} views, found {len(logits)}; give more, or none")
    held_out = torch.arange(len(logits)) % HELD_OUT == 0
    even = measure_divergence(logits[held_out], k, None, profile)
    trial = Completion.of(fit_statistics(logits[~held_out])) if int((~held_out).sum()) >= FEWEST else None
    completed = even if trial is None else measure_divergence(logits[held_out], k, trial, profile)
    statistics = fit_statistics(logits)
    kept = trial is not None and is_no_farther(completed, even)
    unmasked = torch.cat([count_unmasked(rows) for rows in torch.split(logits, ROWS)])
    most = int((unmasked * split_tails(unmasked, k, logits.shape[1])).max())
    return Calibrated(
        Calibration(len(logits), statistics.factors.shape[1], even, completed, kept, most), statistics
    )


def is_no_farther(completed: Sequence[float], even: Sequence[float]) -> bool:
    """Say whether completing is no farther from the teacher than an even tail at any temperature."""
    return all(a <= b for a, b in zip(completed, even, strict=True))


def most_views(num_classes: int) -> int:
    """Return how many views can be asked for."""
    return max(FEWEST, MOST_NUMBERS // num_classes)


def choose_count(n: int, num_classes: int, asked: int | None = None) -> int:
    """Return how many views to calibrate on: those asked for, or what suits so many images.

    It does not depend on the seeds, of which a cache gains some: so statistics that are lost are found again.
    """
    if asked is not None:
        return asked
    count = min(VIEWS, max(LEAST_VIEWS, n // SHARE))
    return max(FEWEST, min(count, NUMBERS // num_classes))


def _batches(n: int, count: int, batch_size: int) -> Iterator[list[Pair]]:
    """Yield pairs of the sample, each pass over the images in their order, under a seed of its own."""
    order = permutation(n, CALIBRATION_SEED)
    for number, start in enumerate(range(0, count, n)):
        samples = np.sort(order[: count - start]).tolist()
        for at in range(0, len(samples), batch_size):
            yield [(sample, CALIBRATION_SEED - number) for sample in samples[at : at + batch_size]]


def measure_divergence(
    logits: Tensor, k: int, completion: Completion | None, profile: Profile | None = None
) -> tuple[float, ...]:
    """Return mean KL(p ‖ p̂) at each temperature, p̂ from k logits with the tail completed, or even.

    Args:
        logits: (N, C).
        k: logits kept.
        completion: None for an even tail.
        profile: how what is kept is rounded; None: not at all.
    """
    sums = torch.zeros(len(TEMPERATURES), dtype=torch.float64)
    for at in range(0, len(logits), ROWS):
        rows = logits[at : at + ROWS]
        teacher = SparseTeacher.from_logits(rows, k, completion)
        if profile is not None:
            teacher = teacher.rounded(profile)
        for number, temperature in enumerate(TEMPERATURES):
            p = (rows.double() / temperature).log_softmax(1)
            sums[number] += (p.exp() * (p - teacher.at(temperature).log_probs.double())).sum()
    return tuple((sums / len(logits)).clamp(min=0.0).tolist())


def measure_information(logits: Tensor) -> tuple[float, ...]:
    """Return what (N, C) logits tell: mean KL in nats of their distribution from an even one, at each temperature."""
    sums = torch.zeros(len(TEMPERATURES), dtype=torch.float64)
    for at in range(0, len(logits), ROWS):
        for number, temperature in enumerate(TEMPERATURES):
            log_p = (logits[at : at + ROWS].double() / temperature).log_softmax(1)
            sums[number] += (log_p.exp() * (log_p + math.log(logits.shape[1]))).sum()
    return tuple((sums / len(logits)).clamp(min=0.0).tolist())


def share_lost(kl: Sequence[float], information: Sequence[float]) -> float:
    """Return KL at each temperature as a share of what the teacher tells: the sums of both, each weighed by T².

    So KD weighs a temperature. A teacher that tells nothing has nothing to lose: 0.
    """
    lost, all_of_it = (
        sum(t**2 * x for t, x in zip(TEMPERATURES, xs, strict=True)) for xs in (kl, information)
    )
    return lost / all_of_it if all_of_it > 0 else 0.0
