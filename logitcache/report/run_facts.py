"""Facts of run folders: settings, curves and size of each student, and which runs are repeats of one another."""

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
from logitcache.losses.objective import Objective
from logitcache.models.weights import count_weights
from logitcache.paths import expand_home
from logitcache.store import seed_list
from logitcache.train.confidence import Reliability
from logitcache.train.run_folder import RunFolder
from logitcache.train.same_run import NAME_OF_DATA
from logitcache.units import count

Setting = str | int | float | bool | None
REPEATED = ("config.seed", "stream.order")  # what differs between repeats, beside random initial weights
BEGINNING = (
    "command",
    "folder",
    "protocol",
    "left_out",
)  # how a run was begun: what came of it stands beside
FINGERPRINT = "stream.data.fingerprint"  # where a run has it, its images are the same by whatever name
LONGEST = 72
MOST = 1e140  # what is larger counts as infinite


@dataclass(frozen=True)
class RunFacts(Spec):
    """One run.

    Attributes:
        path: its folder, as the user named it.
        student: architecture.
        loss: names of the terms that it minimised.
        weights: numbers in its last weights, running statistics apart; None where the file is gone.
        settings: all of config.json but the command, by dotted name; lists and long values as text.
        rows: metrics.jsonl, finite numbers only.
        reliability: after the last epoch; None where the student was not evaluated on labels.
        left_out: how many numbers of metrics.jsonl were not finite.
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
    def metrics(self) -> tuple[str, ...]:
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
        """How many epochs it is to have; where its settings do not say, as many as it has."""
        epochs = self.settings.get("config.epochs")
        return epochs if type(epochs) is int else len(self.rows)

    @property
    def finished(self) -> bool:
        """Has it all its epochs?"""
        return len(self.rows) >= self.planned

    @property
    def best_top1(self) -> float | None:
        """The highest top-1 of any epoch; None without a test set."""
        return max((row["top1"] for row in self.rows if "top1" in row), default=None)

    @property
    def seconds(self) -> float:
        """Seconds of all its epochs, evaluation apart."""
        return sum(row.get("seconds", 0.0) for row in self.rows)

    @property
    def rate(self) -> float | None:
        """Views per second over all of its epochs; None where none has both rate and time."""
        paces = [
            (row["views_per_second"], row["seconds"])
            for row in self.rows
            if {"views_per_second", "seconds"} <= row.keys()
        ]
        seconds = sum(time for _, time in paces)
        return sum(rate * time for rate, time in paces) / seconds if seconds else None


@dataclass(frozen=True)
class RunGroup(Spec):
    """Finished runs that differ only in their random numbers, repeats of one another; or one unfinished run.

    Attributes:
        name: tells it from the other groups.
        runs: each with random numbers of its own, so that they are independent.
        copies: further runs with the same random numbers as one of these; no figure takes them in.
    """

    name: str
    runs: tuple[RunFacts, ...]
    copies: tuple[RunFacts, ...] = ()

    @property
    def finished(self) -> bool:
        """Have its runs all their epochs?"""
        return all(run.finished for run in self.runs)

    def spread(self, name: str) -> tuple[float, float] | None:
        """Return mean and sample standard deviation (0 for a single run) of the last values; None without any."""
        values = [value for run in self.runs if (value := run.last(name)) is not None]
        if not values:
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def reliability(self) -> Reliability | None:
        """Return the confidence bins of all runs together."""
        bins = [run.reliability for run in self.runs if run.reliability]
        return functools.reduce(operator.add, bins) if bins else None

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
    path = expand_home(path)
    folder = RunFolder(path)
    config, rows = folder.read_config(), folder.read_metrics()
    if not rows:
        raise IncompleteError(f"{path} has no epoch yet; wait for its first, or leave it out")
    finite = tuple({name: v for name, v in row.items() if abs(v) < MOST} for row in rows)
    student = config.get("student")
    weights = path / "last.safetensors"
    expression = _value_at(config, "objective", "expression")
    return RunFacts(
        path=str(path),
        student=str(student.get("name")) if isinstance(student, dict) else "student",
        loss=_loss(expression) if isinstance(expression, str) else "loss",
        weights=count_weights(weights) if weights.exists() else None,
        settings=dict(_flatten({name: part for name, part in config.items() if name not in BEGINNING})),
        rows=finite,
        reliability=folder.read_reliability(),
        left_out=sum(map(len, rows)) - sum(map(len, finite)),
    )


def group_runs(runs: Sequence[RunFacts]) -> tuple[RunGroup, ...]:
    """Put repeats together, in the order in which they were named; unfinished runs behind those they would repeat."""
    kinds: dict[str, list[RunFacts]] = {}
    for run in runs:
        kinds.setdefault(json.dumps([run.student, _identity(run)]), []).append(run)
    groups = []
    for name, kind in zip(_name_kinds([kind[0] for kind in kinds.values()]), kinds.values(), strict=True):
        first: dict[str, RunFacts] = {}
        for run in (run for run in kind if run.finished):
            first.setdefault(json.dumps(_without_place(run.settings)), run)
        repeats = tuple(first.values())
        if repeats:
            copies = tuple(run for run in kind if run.finished and run not in repeats)
            groups.append(RunGroup(name, repeats, copies))
        groups += [
            RunGroup(f"{name}, unfinished: {len(run.rows)} of {count(run.planned, 'epoch')}", (run,))
            for run in kind
            if not run.finished
        ]
    names, paths = [group.name for group in groups], shorten_paths(runs) if runs else {}
    return tuple(
        group
        if names.count(group.name) == 1
        else replace(group, name=f"{group.name} · {paths[group.runs[0].path]}")
        for group in groups
    )


def _name_kinds(firsts: Sequence[RunFacts]) -> list[str]:
    """Name kinds of runs, each by its first run: student and loss, and where others share these, what differs."""
    names = [f"{run.student} · {run.loss}" for run in firsts]
    for name in {name for name in names if names.count(name) > 1}:
        namesakes = [number for number, other in enumerate(names) if other == name]
        differing = differing_settings([firsts[number] for number in namesakes])
        for number in namesakes:
            settings = firsts[number].settings
            parts = [f"{key.rpartition('.')[2]} {settings.get(key, '–')}" for key in differing[:3]]
            names[number] = f"{name} · {', '.join(parts)}"
    return names


def differing_settings(runs: Sequence[RunFacts]) -> list[str]:
    """Name the settings in which runs differ, those of their random numbers apart."""
    identities = [_identity(run) for run in runs]
    names = dict.fromkeys(name for identity in identities for name in identity)
    return [name for name in names if len({repr(identity.get(name)) for identity in identities}) > 1]


def shorten_paths(runs: Sequence[RunFacts]) -> dict[str, str]:
    """Name run folders by their paths without the folders that all of them share."""
    paths = [run.path for run in runs]
    parents = {os.path.dirname(os.path.abspath(path)) for path in paths}
    shared = os.path.commonpath(parents)
    return {path: os.path.relpath(path, shared) if len(set(paths)) > 1 else path for path in paths}


# Settings -------------------------------------------------------------------------------------------------


def _identity(run: RunFacts) -> dict[str, Setting]:
    """All settings but those that differ between repeats."""
    settings = _without_place(run.settings)
    settings = {name: value for name, value in settings.items() if name not in REPEATED}
    if str(settings.get("student.weights")).startswith("random:"):
        settings["student.weights"] = "random"
    return settings


def _without_place(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """All settings but where the images lie, if their fingerprint is known."""
    return {
        name: value for name, value in settings.items() if name != NAME_OF_DATA or FINGERPRINT not in settings
    }


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Yield settings by dotted name."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name == "objective.expression":
            yield "objective", _loss(str(value))
            yield from _flatten_objective(str(value))
        elif name == "stream.seeds" and isinstance(value, list):
            yield name, shorten(seed_list([seed for seed in value if isinstance(seed, int)]))
        elif isinstance(value, dict) and value and not all(map(str.isdecimal, value)):
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value if isinstance(value, int | float | bool | None) else shorten(value)


def _flatten_objective(expression: str) -> Iterator[tuple[str, Setting]]:
    """Yield an objective option by option, so that two can be compared."""
    try:
        objective = Objective.parse(expression)
    except LogitCacheError:  # written by another version
        yield "objective.expression", shorten(expression)
        return
    for key, (term, weight) in zip(objective.keys, objective.terms, strict=True):
        yield f"objective.{key}.weight", weight
        for option, value in term.options.items():
            yield f"objective.{key}.{option}", shorten(str(value))


def _loss(expression: str) -> str:
    try:
        return " + ".join(term.name for term, _ in Objective.parse(expression).terms) or "ce"
    except LogitCacheError:
        return shorten(expression)


def shorten(value: object) -> str:
    """Write a value; of a long one the beginning, and a digest so that a difference shows."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= LONGEST:
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{text[: LONGEST - 12]}… ({digest})"


def _value_at(config: Mapping[str, Any], *names: str) -> Any:
    value: Any = config
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
