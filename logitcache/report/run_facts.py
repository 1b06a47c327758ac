"""What run folders say: settings, curves and size of each student, and which runs are repeats of one another."""

import functools
import hashlib
import json
import operator
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from logitcache.errors import IncompleteError, LogitCacheError
from logitcache.format.spec import Spec
from logitcache.losses import Objective
from logitcache.models.weights import count_weights
from logitcache.store import seed_list
from logitcache.train.calibration import Reliability
from logitcache.train.run_folder import RunFolder

Value = str | int | float | bool | None
REPEATED = ("config.seed", "stream.order")  # what differs between repeats; and random initial weights
LONGEST = 72
MOST = 1e140  # what is larger counts as infinite


@dataclass(frozen=True)
class RunFacts(Spec):
    """One run.

    Attributes:
        path: its folder, as it was named.
        student: architecture.
        loss: names of the terms that it minimised.
        weights: numbers in its last weights, running statistics apart; None where the file is gone.
        settings: all of config.json but the command, by dotted name; lists and long values as text.
        rows: metrics.jsonl, finite numbers only.
        reliability: after the last epoch; None where the student was not evaluated on labels.
        left_out: how many numbers were not finite.
    """

    path: str
    student: str
    loss: str
    weights: int | None
    settings: dict[str, Any]
    rows: tuple[dict[str, float], ...]
    reliability: Reliability | None
    left_out: int

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of what was measured, in the order of the file, but for the epoch."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row if name != "epoch"))

    def curve(self, name: str) -> tuple[tuple[float, float], ...]:
        """Return (epoch from 1, value) wherever it was measured."""
        return tuple((row["epoch"] + 1, row[name]) for row in self.rows if name in row)

    def last(self, name: str) -> float | None:
        """Return the value of the last epoch that has one."""
        return next((row[name] for row in reversed(self.rows) if name in row), None)

    @property
    def planned(self) -> int:
        """How many epochs it was to have; as many as it has where nobody says."""
        epochs = self.settings.get("config.epochs")
        return epochs if type(epochs) is int else len(self.rows)

    @property
    def finished(self) -> bool:
        """Has it come to its end?"""
        return len(self.rows) >= self.planned

    @property
    def best_top1(self) -> float | None:
        """The highest top-1 of any epoch."""
        return max((row["top1"] for row in self.rows if "top1" in row), default=None)

    @property
    def seconds(self) -> float:
        """Time in its epochs."""
        return sum(row.get("seconds", 0.0) for row in self.rows)

    @property
    def rate(self) -> float | None:
        """Views per second over all of its epochs; None where no epoch says."""
        told = [
            (r["views_per_second"], r["seconds"])
            for r in self.rows
            if {"views_per_second", "seconds"} <= r.keys()
        ]
        seconds = sum(time for _, time in told)
        return sum(rate * time for rate, time in told) / seconds if seconds else None


@dataclass(frozen=True)
class Group(Spec):
    """Finished runs that differ in their random numbers alone; or one unfinished run, compared with none.

    Attributes:
        name: tells it from the other groups.
        runs: each with random numbers of its own, so that they are independent.
        copies: further runs with all that one of these has, random numbers too; no figure takes them in.
    """

    name: str
    runs: tuple[RunFacts, ...]
    copies: tuple[RunFacts, ...] = ()

    @property
    def finished(self) -> bool:
        """Have its runs come to their end?"""
        return all(run.finished for run in self.runs)

    def spread(self, name: str) -> tuple[float, float] | None:
        """Return mean and sample standard deviation (0 for a single run) of the last values; None without any."""
        found = [value for run in self.runs if (value := run.last(name)) is not None]
        if not found:
            return None
        return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0

    def reliability(self) -> Reliability | None:
        """Return the bins of all runs together."""
        found = [run.reliability for run in self.runs if run.reliability]
        return functools.reduce(operator.add, found) if found else None

    def mean(self, name: str) -> tuple[tuple[float, float], ...]:
        """Return (epoch, mean over runs) of the epochs that every run has."""
        curves = [dict(run.curve(name)) for run in self.runs]
        shared = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
        return tuple((epoch, statistics.fmean(curve[epoch] for curve in curves)) for epoch in shared)


def read_run(path: str | Path) -> RunFacts:
    """Read a run folder.

    Raises:
        NotFoundError: there is no run.
        FormatError: config.json, metrics.jsonl or reliability.json is damaged.
        IncompleteError: no epoch is done yet.
    """
    folder = RunFolder(Path(path))
    record, rows = folder.read_config(), folder.read_metrics()
    if not rows:
        raise IncompleteError(f"{path} has no epoch yet; wait for its first, or leave it out")
    finite = tuple({name: v for name, v in row.items() if abs(v) < MOST} for row in rows)
    student = record.get("student")
    weights = Path(path) / "last.safetensors"
    expression = _inside(record, "objective", "expression")
    return RunFacts(
        path=str(path),
        student=str(student.get("name")) if isinstance(student, dict) else "student",
        loss=_loss(expression) if isinstance(expression, str) else "loss",
        weights=count_weights(weights) if weights.exists() else None,
        settings=dict(_settings({name: part for name, part in record.items() if name != "command"})),
        rows=finite,
        reliability=folder.read_reliability(),
        left_out=sum(map(len, rows)) - sum(map(len, finite)),
    )


def grouped(runs: Sequence[RunFacts]) -> tuple[Group, ...]:
    """Put repeats together, in the order in which they were named; unfinished runs behind those they would repeat."""
    kinds: dict[str, list[RunFacts]] = {}
    for run in runs:
        kinds.setdefault(json.dumps([run.student, _identity(run)]), []).append(run)
    groups = []
    for name, kind in zip(_names([kind[0] for kind in kinds.values()]), kinds.values(), strict=True):
        first: dict[str, RunFacts] = {}
        for run in (run for run in kind if run.finished):
            first.setdefault(json.dumps(run.settings), run)
        kept = tuple(first.values())
        if kept:
            groups.append(Group(name, kept, tuple(run for run in kind if run.finished and run not in kept)))
        groups += [
            Group(f"{name}, unfinished: {len(run.rows)} of {run.planned} epochs", (run,))
            for run in kind
            if not run.finished
        ]
    names, paths = [group.name for group in groups], short_paths(runs) if runs else {}
    return tuple(
        group
        if names.count(group.name) == 1
        else replace(group, name=f"{group.name} · {paths[group.runs[0].path]}")
        for group in groups
    )


def _names(firsts: Sequence[RunFacts]) -> list[str]:
    """Name kinds of runs, each by its first: student and loss, and where others have these too, what differs."""
    names = [f"{run.student} · {run.loss}" for run in firsts]
    for name in {name for name in names if names.count(name) > 1}:
        alike = [number for number, other in enumerate(names) if other == name]
        differing = differences([firsts[number] for number in alike])
        for number in alike:
            told = [f"{key.rpartition('.')[2]} {firsts[number].settings.get(key, '–')}" for key in differing]
            names[number] = f"{name} · {', '.join(told[:3])}"
    return names


def differences(runs: Sequence[RunFacts]) -> list[str]:
    """Name the settings in which runs differ, those of their random numbers apart."""
    told = [_identity(run) for run in runs]
    names = dict.fromkeys(name for settings in told for name in settings)
    return [name for name in names if len({repr(settings.get(name)) for settings in told}) > 1]


def short_paths(runs: Sequence[RunFacts]) -> dict[str, str]:
    """Name folders without what all of them begin with."""
    paths = [run.path for run in runs]
    parents = {os.path.dirname(os.path.abspath(path)) for path in paths}
    shared = os.path.commonpath(parents)
    return {path: os.path.relpath(path, shared) if len(set(paths)) > 1 else path for path in paths}


# Settings -------------------------------------------------------------------------------------------------


def _identity(run: RunFacts) -> dict[str, Value]:
    """Everything but what differs between repeats."""
    kept = {name: value for name, value in run.settings.items() if name not in REPEATED}
    if str(kept.get("student.weights")).startswith("random:"):
        kept["student.weights"] = "random"
    return kept


def _settings(record: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in record.items():
        name = f"{at}{key}"
        if name == "objective.expression":
            yield "objective", _loss(str(value))
            yield from _objective(str(value))
        elif name == "stream.seeds" and isinstance(value, list):
            yield name, brief(seed_list([seed for seed in value if isinstance(seed, int)]))
        elif isinstance(value, dict) and value and not all(map(str.isdecimal, value)):
            yield from _settings(value, f"{name}.")
        else:
            yield name, value if isinstance(value, int | float | bool | None) else brief(value)


def _objective(expression: str) -> Iterator[tuple[str, Value]]:
    """Write an objective option by option, so that two can be compared."""
    try:
        objective = Objective.parse(expression)
    except LogitCacheError:  # of another version: as it stands
        yield "objective.expression", brief(expression)
        return
    for key, (term, weight) in zip(objective.keys, objective.terms, strict=True):
        yield f"objective.{key}.weight", weight
        for option, value in term.options.items():
            yield f"objective.{key}.{option}", brief(str(value))


def _loss(expression: str) -> str:
    try:
        return " + ".join(term.name for term, _ in Objective.parse(expression).terms) or "ce"
    except LogitCacheError:
        return brief(expression)


def brief(value: object) -> str:
    """Write a value for people; of a long one the beginning, and a digest so that a difference is seen."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= LONGEST:
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{text[: LONGEST - 12]}… ({digest})"


def _inside(record: Mapping[str, Any], *names: str) -> Any:
    found: Any = record
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
