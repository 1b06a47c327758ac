"""Which samples to keep, by a score of each or by what they cover together.

All are pure functions of numbers per sample: a permutation of the samples permutes the choice. Where samples tie, a
keyed shuffle decides, not their order, which is often that of classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from logitcache.errors import OptionError
from logitcache.views.keys import permutation

Scores = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
CHUNK = 1 << 22  # numbers of which distances are computed at once
_TIES = -3  # key of the shuffle of ties


class Kept(NamedTuple):
    """What a way of choosing keeps of n samples.

    Attributes:
        samples: (m,) int64, in the order in which they are taken.
        score: (n,) float64, what they were chosen by.
    """

    samples: Numbers
    score: Scores


def count_kept(keep: float, n: int) -> int:
    """Return how many of n samples are kept: of up to 1 a share, above 1 a number.

    Raises:
        OptionError: it is neither, keeps nothing, or more than there are.
    """
    if not 0 < keep < math.inf or (keep > 1 and keep != round(keep)):
        raise OptionError(f"keep takes a share such as 0.3, or a number such as 5000, found {keep:g}")
    if keep > n:
        raise OptionError(f"{keep:,.0f} samples cannot be kept of {n:,}; keep fewer, or a share such as 0.3")
    count = round(keep * n) if keep <= 1 else round(keep)
    if not count:
        raise OptionError(f"a share of {keep:g} of {n:,} samples is less than one; keep more")
    return count


def share_out(count: int, sizes: Sequence[int]) -> list[int]:
    """Divide a number among groups by their sizes: what is left over goes to the largest remainders."""
    total = sum(sizes)
    exact = [divmod(count * size, total) for size in sizes]
    counts = [integer for integer, _ in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda group: -exact[group][1])
    for group in by_remainder[: count - sum(counts)]:
        counts[group] += 1
    return counts


def keep_balanced(count: int, classes: Numbers, keep: Callable[[Numbers, int], Kept]) -> Kept:
    """Keep the same share of each class.

    Args:
        count: how many in all.
        classes: (n,) int64.
        keep: given samples of one class, (m,), and how many to keep, returns which of range(m).
    """
    groups = [np.flatnonzero(classes == one) for one in np.unique(classes)]
    score, kept = np.full(len(classes), np.nan), []
    for samples, number in zip(groups, share_out(count, [len(one) for one in groups]), strict=True):
        found = keep(samples, number)
        score[samples] = found.score
        kept.append(samples[found.samples])
    return Kept(np.concatenate(kept), score)


def keep_best(score: Scores, count: int, *, lowest: bool = False) -> Kept:
    """Keep the samples of the highest scores, or of the lowest."""
    order = permutation(len(score), _TIES)
    by_score = np.argsort(score[order] if lowest else -score[order], kind="stable")
    return Kept(order[by_score][:count], score)


def score_need(confidence: Scores, uncertainty: Scores) -> Scores:
    """Score samples of which the teacher is sure and the student is not: the lower of both ranks, in (0, 1].

    So the highest scores are those above a threshold of the teacher's confidence and above one of the student's
    uncertainty, both the same quantile, and so low that as many are kept as are asked for.

    Args:
        confidence: (n,), of the teacher.
        uncertainty: (n,), of the student, such as its entropy.

    Source: the two thresholds of LLKD (Li et al. 2024, arXiv 2411.08028), which there follow each batch's means.
    """
    return np.minimum(_rank(confidence), _rank(uncertainty))


def _rank(values: Scores) -> Scores:
    """Return ranks over n, ties sharing their mean rank."""
    _, index, times = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(times) - (times - 1) / 2)[index] / len(values)


def keep_farthest(
    points: npt.NDArray[np.float32], count: int, on_progress: Callable[[int, int], None] | None = None
) -> Kept:
    """Keep points that cover all others: greedily the farthest from those kept before, by Euclidean distance.

    The first is the farthest from the mean. The score of a kept point is how far it was when it was taken, of another
    one how far the nearest kept one is.

    Args:
        points: (n, C), in memory or mapped; read in pieces, once for each point that is kept.
        count: how many to keep.
        on_progress: called with (points kept, points to keep).

    Source: greedy k-center (Sener and Savarese 2018, arXiv 1708.00489), among a student's probabilities as in
    PCoreSet (Kang et al. 2025, arXiv 2506.00910), which begins from samples that have labels.
    """
    n, order = len(points), permutation(len(points), _TIES)
    if not count:
        return Kept(np.zeros(0, np.int64), np.full(n, np.nan))
    nearest = _distances(points, points.mean(0, dtype=np.float64))
    score, kept = np.empty(n), np.empty(count, np.int64)
    for number in range(count):
        kept[number] = farthest = order[np.argmax(nearest[order])]
        score[farthest] = nearest[farthest]
        distances = _distances(points, points[farthest].astype(np.float64))
        nearest = distances if number == 0 else np.minimum(nearest, distances)
        nearest[farthest] = -1.0  # not to be taken again
        if on_progress:
            on_progress(number + 1, count)
    left = np.setdiff1d(np.arange(n), kept)
    score[left] = nearest[left]
    return Kept(kept, score)


def _distances(points: npt.NDArray[np.float32], centre: Scores) -> Scores:
    """Return the (n,) distances of points from one."""
    rows = max(1, CHUNK // points.shape[1])
    parts = [points[start : start + rows] - centre for start in range(0, len(points), rows)]
    squares: Scores = np.concatenate([np.einsum("nc,nc->n", part, part) for part in parts])
    return np.sqrt(squares)


def keep_robust(gain: Scores, count: int, mistakes: float) -> Kept:
    """Keep samples that teach much even if the teacher is wrong where it hurts most.

    Each sample is drawn with the probability of `hedge`, by a systematic sample along the gains: any stretch of them
    has as many samples as its probabilities say, but for one.

    Args:
        gain: (n,), what the student can learn of a sample, 0 or more.
        count: how many to keep.
        mistakes: share of the teacher's answers that may be wrong, whichever these are.
    """
    order = permutation(len(gain), _TIES)
    order = order[np.argsort(-gain[order], kind="stable")]
    passed = np.cumsum(hedge(gain[order], count, mistakes))
    chosen = np.unique(np.searchsorted(passed.round(9), np.arange(count) + 0.5))
    chosen = chosen[chosen < len(gain)]
    if len(chosen) < count:  # two fell on one by rounding
        rest = np.setdiff1d(np.arange(len(gain)), chosen)
        chosen = np.concatenate([chosen, rest[: count - len(chosen)]])
    return Kept(order[chosen], gain)


def hedge(gain: Scores, count: int, mistakes: float) -> Scores:
    """Return the probabilities, (n,), that make the most of the worst case.

    A sample counts by its gain where the teacher is right, and not at all where it is wrong. An adversary who knows
    the probabilities π, 0 ≤ π ≤ 1, Σ π = count, chooses the m = mistakes · n wrong ones; what is left is

        Σ π g − (the m largest of π g) = max_t Σ min(π g, t) − m t.

    So π g is the same for all samples that are drawn at all but for those of low gain, which are drawn for certain:
    π = min(1, t / g), from the highest gain on until `count` are spent, and t is where the value is largest. Without
    mistakes these are the highest gains.

    Args:
        gain: (n,), falling.
        count: how many to keep.
        mistakes: share of n, from 0 to 1.

    Raises:
        OptionError: `mistakes` is no share.

    Source: the game of Robust Active Distillation (Baykal et al. 2023, arXiv 2210.01213), solved here for draws
    without replacement.
    """
    if not 0 <= mistakes <= 1:
        raise OptionError(f"mistakes must be a share from 0 to 1, found {mistakes}")
    gain = np.maximum(gain, 1e-9)
    if count >= len(gain) or not count:
        return np.full(len(gain), float(count > 0))
    low, high = 0.0, float(gain[0])
    for _ in range(60):  # where the draw is spread over all samples: lower, `count` could not be spent
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle / gain).sum() < count else (low, middle)
    low, high = high, float(gain[0])
    for _ in range(60):  # the value is concave in t
        left, right = low + (high - low) / 3, high - (high - low) / 3
        worse = _value(gain, count, mistakes, left) < _value(gain, count, mistakes, right)
        low, high = (left, high) if worse else (low, right)
    return _spend(gain, count, (low + high) / 2)


def _spend(gain: Scores, count: int, t: float) -> Scores:
    wanted = np.minimum(1, t / gain)
    before = np.cumsum(wanted) - wanted
    spent: Scores = np.clip(count - before, 0, wanted)
    return spent


def _value(gain: Scores, count: int, mistakes: float, t: float) -> float:
    return float((_spend(gain, count, t) * gain).sum() - mistakes * len(gain) * t)
