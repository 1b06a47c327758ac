"""What the page opens with: what was gained over labels alone, at what cost, and from how many bytes."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from logitcache.format.spec import Spec
from logitcache.report.cache_facts import CacheFacts
from logitcache.report.metrics import metric_named
from logitcache.report.run_facts import FINGERPRINT, RunFacts, RunGroup, shorten
from logitcache.report.run_section import find_teachers
from logitcache.train.same_run import NAME_OF_DATA
from logitcache.units import rate, size, span

LITTLE = 0.01  # of a cache's bytes, below which what lies beside the views is not worth a word
MOST_LOSSES = 4  # named; the table below has all
EVALUATED_BY = ("stream.recipe.evaluation", "stream.recipe.background")
NOISE = 2.0  # standard errors, within which a difference may be chance


@dataclass(frozen=True)
class Gain(Spec):
    """How much higher one accuracy is than another.

    Attributes:
        mean: in [-1, 1].
        error: standard error of the mean; None of a single run.
    """

    mean: float
    error: float | None

    @classmethod
    def of_pairs(cls, mine: Sequence[float], theirs: Sequence[float]) -> "Gain":
        """Compare runs pair by pair, as those of one seed share their first weights and the order of the data."""
        pairs = [a - b for a, b in zip(mine, theirs, strict=True)]
        error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
        return cls(statistics.fmean(pairs), error)

    @classmethod
    def of_groups(cls, mine: Sequence[float], theirs: Sequence[float]) -> "Gain":
        """Compare runs that share nothing."""
        error = None
        if min(len(mine), len(theirs)) > 1:
            error = math.sqrt(sum(statistics.variance(runs) / len(runs) for runs in (mine, theirs)))
        return cls(statistics.fmean(mine) - statistics.fmean(theirs), error)

    def __str__(self) -> str:
        """Write it in points of percent: +10.2 ± 1.0."""
        error = "" if self.error is None else f" ± {100 * self.error:.1f}"
        return f"{100 * self.mean:+.1f}{error}"


def describe_outcome(groups: Sequence[RunGroup], caches: Sequence[CacheFacts]) -> list[str]:
    """Say in up to three paragraphs what was gained, at what cost, from how many bytes."""
    sentences = [_describe_gain(groups), _describe_teachers(groups, caches)]
    paragraphs = [" ".join(filter(None, sentences)), _describe_cost(groups, caches), _describe_bytes(caches)]
    return [text for text in paragraphs if text]


# What was gained ------------------------------------------------------------------------------------------


def _describe_gain(groups: Sequence[RunGroup]) -> str:
    """Say what distilling gained each student over labels alone; without such runs, which is the highest top-1."""
    if groups and not any(group.finished for group in groups):
        return "No run has come to its end yet."
    tested = [group for group in groups if group.finished and group.spread("top1")]
    by_task: dict[tuple[object, ...], list[RunGroup]] = {}
    for group in tested:
        by_task.setdefault(_task(group), []).append(group)
    gains = [text for alike in by_task.values() if (text := _gain_on_task(alike, several=len(by_task) > 1))]
    return " ".join(gains) or _describe_highest(tested)


def _task(group: RunGroup) -> tuple[object, ...]:
    """What makes accuracies comparable: student, images, and how test images are viewed."""
    settings = group.runs[0].settings
    images = FINGERPRINT if FINGERPRINT in settings else NAME_OF_DATA
    return group.runs[0].student, *(settings.get(name) for name in (images, *EVALUATED_BY))


def _gain_on_task(alike: Sequence[RunGroup], *, several: bool) -> str:
    mine = sorted(alike, key=_top1, reverse=True)
    student, data = mine[0].runs[0].student, mine[0].runs[0].settings.get(NAME_OF_DATA)
    where = f" on {data}" if several and data else ""
    plain = [group for group in mine if group.runs[0].loss == "ce"]
    taught = [group for group in mine if group not in plain]
    if not plain or not taught:
        return ""
    base = plain[0]  # the best of them
    parts = [_compare(group, base, student) for group in taught[:MOST_LOSSES]]
    more = f"; {len(taught) - MOST_LOSSES} more below" if taught[MOST_LOSSES:] else ""
    runs = sorted({len(group.runs) for group in (base, *taught)})
    each = (
        f"{runs[0]} run{'s' if runs[0] > 1 else ''}"
        if runs[0] == runs[-1]
        else f"{runs[0]} to {runs[-1]} runs"
    )
    return (
        f"Labels alone bring {student} to {_percent(base)} top-1{where}; with a teacher's answers it comes to "
        f"{', '.join(parts)}{more}; {each} of each, {'± standard error' if runs[0] > 1 else 'so it may be chance'}."
    )


def _compare(group: RunGroup, base: RunGroup, student: str) -> str:
    name = group.name.removeprefix(f"{student} · ")
    difference = compare_groups(group, base)
    within = difference.error is not None and abs(difference.mean) < NOISE * difference.error
    return f"{_percent(group)} by {name} ({difference} points{', within the noise' if within else ''})"


def compare_groups(group: RunGroup, base: RunGroup) -> Gain:
    """Compare two groups of runs: in pairs, where they have the same random numbers."""
    mine, theirs = _by_seed(group), _by_seed(base)
    if mine.keys() == theirs.keys():
        return Gain.of_pairs([mine[seed] for seed in mine], [theirs[seed] for seed in mine])
    return Gain.of_groups(list(mine.values()), list(theirs.values()))


def _by_seed(group: RunGroup) -> dict[object, float]:
    runs = ((run, run.last("top1")) for run in group.runs)
    return {_seed(run): top1 for run, top1 in runs if top1 is not None}


def _seed(run: RunFacts) -> tuple[object, ...]:
    return tuple(run.settings.get(name) for name in ("config.seed", "stream.order", "student.weights"))


def _describe_highest(tested: Sequence[RunGroup]) -> str:
    if not tested:
        return ""
    best = max(tested, key=_top1)
    many, (mean, deviation) = len(best.runs), best.spread("top1") or (0.0, 0.0)
    text = (
        f"{100 * mean:.1f} ± {100 * deviation:.1f} % over {many} runs" if many > 1 else f"{100 * mean:.2f} %"
    )
    if many == 1 and best.copies:
        text += f" ({1 + len(best.copies)} runs of the same seed)"
    tied = [group.name for group in tested if group is not best and round(mean - _top1(group), 4) == 0]
    also = f", a tie with {', '.join(tied[:3])}{' and others' if tied[3:] else ''}" if tied else ""
    return f"Highest top-1 after the last epoch: {best.name}, {text}{also}."


def _describe_teachers(groups: Sequence[RunGroup], caches: Sequence[CacheFacts]) -> str:
    return " ".join(
        f"{name[0].upper()}{name[1:]}: {metric_named('top1').format(cache.accuracy('top1'))}."
        for name, cache in find_teachers(groups, caches).items()
    )


def _top1(group: RunGroup) -> float:
    return (group.spread("top1") or (0.0, 0.0))[0]


def _percent(group: RunGroup) -> str:
    return f"{100 * _top1(group):.1f} %"


# At what cost ---------------------------------------------------------------------------------------------


def _describe_cost(groups: Sequence[RunGroup], caches: Sequence[CacheFacts]) -> str:
    """Say how often the teacher was asked, for how many students, and what an epoch without it takes."""
    finished = [run for group in groups if group.finished for run in group.runs]
    taught = [run for run in finished if run.loss != "ce" and "stream.teacher.cached" in run.settings]
    asked_of = {
        _answers(cache): cache.complete * cache.about["n"] for cache in caches if _taught(cache, taught)
    }
    if not asked_of:
        return ""
    views = sum(asked_of.values())
    asked = f"once for each of {views:,} views"
    seconds = [run.seconds / len(run.rows) for run in taught]
    rates = [found for run in taught if (found := run.rate) is not None]
    pace = f" at {rate(statistics.fmean(rates))} views/s" if rates else ""
    students = f"all {len(taught)} students" if len(taught) > 1 else "the student"
    dumps = {_answers(cache): cache.dump_seconds for cache in caches if _taught(cache, taught)}
    known = [each for each in dumps.values() if each is not None]
    took = f", in {span(sum(known))}" if len(known) == len(dumps) else ""
    beside = ", the students that shared its pass beside it" if len(finished) > 1 else ""
    return (
        f"That took the teacher {asked}{took}, whatever the number of students; {students} trained without it, "
        f"{span(statistics.fmean(seconds))} an epoch{pace}{beside}."
    )


def _taught(cache: CacheFacts, runs: Sequence[RunFacts]) -> bool:
    """Say whether any of these runs trained from such a cache."""
    about = cache.about
    teacher, recipe = about["teacher"], about["recipe"]
    found = (teacher["name"], shorten(str(teacher["weights"])), shorten(recipe["name"]), about["k"])
    names = ("stream.teacher.name", "stream.teacher.weights", "stream.recipe.name", "stream.teacher.k")
    return not cache.of_test_images and found in [tuple(map(run.settings.get, names)) for run in runs]


def _answers(cache: CacheFacts) -> str:
    """What the teacher was asked, whatever of its answers is kept: a cache and one derived from it are one."""
    return json.dumps([cache.about[part] for part in ("teacher", "dataset", "recipe")], sort_keys=True)


# From how many bytes --------------------------------------------------------------------------------------


def _describe_bytes(caches: Sequence[CacheFacts]) -> str:
    """Say what is kept of the teacher's answers, and what all of them would take."""
    sentences = []
    for cache in caches:
        about = cache.about
        k, classes, disk = about["k"], about["num_classes"], about["bytes_on_disk"]
        if cache.of_test_images or disk is None:
            continue
        each = about["bytes_per_sample_view"]
        stored = f"the top {k} of {classes:,} logits" if k < classes else f"all {classes:,} logits"
        sentences.append(
            f"What was kept is {stored}: {each:.1f} bytes a view, {size(disk)} in all{_describe_rest(cache)}; every "
            f"logit in float32 would be {4 * classes / each:.3g} times the bytes of the views."
        )
    return " ".join(sentences)


def _describe_rest(cache: CacheFacts) -> str:
    """Say how much of a cache whose seeds are all complete is of no view, where it is not next to nothing."""
    about = cache.about
    disk, views = about["bytes_on_disk"], cache.complete * about["n"]
    rest = disk - views * about["bytes_per_sample_view"]
    if cache.complete < len(about["seeds"]) or rest < LITTLE * disk:
        return ""
    return f", {size(round(rest))} of them {'class statistics and ' if about['class_statistics'] else ''}metadata"
