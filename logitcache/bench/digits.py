"""Every loss on the digits under one budget, its weight and learning rate tuned: the table of docs/losses.md.

    python -m logitcache.bench.digits

The same contest is held twice. To tune, the teacher, its cache and all students see four fifths of the training
digits and are scored on the last fifth, a keyed choice: first every weight and learning rate under a few seeds, then
the best of each loss under more. Then teacher and cache are made anew from all training digits, and each loss trains
with what won; only these students are scored on the test digits, and only once.
All students of one seed start from the same weights and share one pass over the data, so losses compare in pairs.
"""

import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from logitcache.datasets import ArrayImages, digits
from logitcache.dump import DumpConfig, dump
from logitcache.errors import NonFiniteError
from logitcache.evaluation import Evaluation
from logitcache.learner import Run
from logitcache.losses import LOSSES, Objective
from logitcache.models import Model, build
from logitcache.protocols import TrainConfig
from logitcache.schema import Spec
from logitcache.store import CacheReader
from logitcache.stream import Stream
from logitcache.train import train
from logitcache.views import permutation, recipe_named


@dataclass(frozen=True)
class ContestConfig(Spec):
    """The budget that every loss gets.

    Attributes:
        losses: names, besides cross-entropy.
        weights: to try, times each loss's default.
        rates: peak learning rates to try.
        epochs: of a student.
        teacher_epochs: of the teacher.
        top_k: logits kept of the 10.
        cached: augmentation seeds in the cache; epoch e takes seed e modulo their number.
        heat_seeds: students per weight and learning rate.
        finalists: entries of each loss that go on.
        tuning_seeds: students per finalist, those of the heat included.
        seeds: students per loss at the end.
    """

    losses: tuple[str, ...] = tuple(LOSSES)
    weights: tuple[float, ...] = (0.25, 1.0, 4.0)
    rates: tuple[float, ...] = (0.2, 0.4, 0.8, 1.6)
    epochs: int = 8
    teacher_epochs: int = 25
    top_k: int = 4
    cached: int = 10
    heat_seeds: int = 2
    finalists: int = 4
    tuning_seeds: int = 10
    seeds: int = 10


@dataclass(frozen=True)
class Entry(Spec):
    """A loss with its weight against cross-entropy (0 for "ce" itself) and its peak learning rate."""

    loss: str
    weight: float
    lr: float

    @property
    def expression(self) -> str:
        """As `Objective.parse` reads it."""
        return "ce" if self.loss == "ce" else f"{self.loss}:{self.weight:g}"


@dataclass(frozen=True)
class Standing(Spec):
    """What a loss came to: accuracies in [0, 1], by seed, of the entry that validation chose."""

    entry: Entry
    validation: float
    test: tuple[float, ...]


class Contest:
    """A teacher and its cache from some images, and students scored on others."""

    def __init__(self, out: Path, images: ArrayImages, scored: ArrayImages, config: ContestConfig) -> None:
        self.out, self.images, self.config = out, images, config
        self.recipe = recipe_named(images.recipe)
        self.evaluation = Evaluation(scored, recipe_named(self.recipe.evaluation))
        taught = Run(
            out / "teacher",
            _network("digits_teacher", 0),
            Objective.parse("ce"),
            TrainConfig(config.teacher_epochs),
        )
        plain = Stream.plain(images, self.recipe, batch_size=64, seeds=tuple(range(config.teacher_epochs)))
        self.teacher_top1 = train([taught], plain, self.evaluation)[0].top1
        dump_config = DumpConfig(seeds=tuple(range(config.cached)), top_k=config.top_k, precision="float32")
        dump(out / "cache.zarr", images, self.recipe, taught.student, dump_config)
        self.cache = CacheReader(out / "cache.zarr")

    def top1(self, entries: Sequence[Entry], seed: int) -> list[float]:
        """Train a student by each entry, side by side; accuracy of each, 0 where its loss became NaN."""
        with tempfile.TemporaryDirectory(dir=self.out) as folder:
            runs = [
                Run(
                    Path(folder) / f"{number}",
                    _network("digits_tiny", seed),
                    Objective.parse(entry.expression),
                    TrainConfig(self.config.epochs, lr=entry.lr, seed=seed),
                )
                for number, entry in enumerate(entries)
            ]
            stream = Stream.from_cache(self.cache, self.images, batch_size=64, order=seed)
            try:
                return [report.top1 or 0.0 for report in train(runs, stream, self.evaluation)]
            except NonFiniteError as error:
                at = next(i for i, run in enumerate(runs) if str(error).startswith(f"{run.out}:"))
        rest = self.top1([*entries[:at], *entries[at + 1 :]], seed)
        return [*rest[:at], 0.0, *rest[at:]]


def contest(out: Path, config: ContestConfig = ContestConfig()) -> tuple[list[Standing], float]:
    """Tune every loss on held-out training digits, then score it on the test digits.

    Returns:
        Standings, cross-entropy first; the teacher's accuracy on the test digits.
    """
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that k < C breaks some is known
        fit, held = _split(digits("train"))
        entries = [Entry("ce", 0.0, lr) for lr in config.rates]
        for name in config.losses:
            weights = [LOSSES[name].weight * w for w in config.weights]
            entries += [Entry(name, w, lr) for w in weights for lr in config.rates]
        tuning = Contest(out / "tuning", fit, held, config)
        scores: dict[Entry, list[float]] = {entry: [] for entry in entries}
        names = ("ce", *config.losses)

        def best(name: str, most: int) -> list[Entry]:
            ranked = sorted(scores, key=lambda e: -statistics.fmean(scores[e]))
            return [entry for entry in ranked if entry.loss == name][:most]

        for seed in range(config.tuning_seeds):
            if seed == config.heat_seeds:
                entries = [entry for name in names for entry in best(name, config.finalists)]
                scores = {entry: scores[entry] for entry in entries}
            for entry, top1 in zip(entries, tuning.top1(entries, 1000 + seed), strict=True):
                scores[entry].append(top1)
            _say(f"tuning: {seed + 1} of {config.tuning_seeds} seeds, {len(entries)} students")
        chosen = [best(name, 1)[0] for name in names]
        validation = {entry: statistics.fmean(scores[entry]) for entry in chosen}
        final = Contest(out / "final", digits("train"), digits("test"), config)
        tests = []
        for seed in range(config.seeds):
            tests.append(final.top1(chosen, seed))
            _say(f"test: {seed + 1} of {config.seeds} seeds, {len(chosen)} students")
    by_loss = zip(chosen, zip(*tests, strict=True), strict=True)
    return [Standing(e, validation[e], test) for e, test in by_loss], final.teacher_top1 or 0.0


def table(standings: Sequence[Standing]) -> str:
    """Write standings as a Markdown table; differences are means over seeds of pairs, ± their standard error."""
    lines = [
        "| loss | weight | lr | validation | test | minus CE | minus KD |",
        "|---|---|---|---|---|---|---|",
    ]
    others = {s.entry.loss: s.test for s in standings if s.entry.loss in ("ce", "kd")}
    for s in sorted(standings, key=lambda s: -statistics.fmean(s.test)):
        minus = [
            "–" if s.entry.loss == name or name not in others else _difference(s.test, others[name])
            for name in ("ce", "kd")
        ]
        weight = "–" if s.entry.loss == "ce" else f"{s.entry.weight:g}"
        test = f"{100 * statistics.fmean(s.test):.1f} ± {100 * statistics.stdev(s.test):.1f}"
        cells = [f"`{s.entry.loss}`", weight, f"{s.entry.lr:g}", f"{100 * s.validation:.1f}", test, *minus]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(mine: Sequence[float], theirs: Sequence[float]) -> str:
    pairs = [100 * (a - b) for a, b in zip(mine, theirs, strict=True)]
    return f"{statistics.fmean(pairs):+.1f} ± {statistics.stdev(pairs) / len(pairs) ** 0.5:.1f}"


def _split(images: ArrayImages) -> tuple[ArrayImages, ArrayImages]:
    order = permutation(len(images), 2024)
    parts = (np.sort(rows) for rows in np.split(order, [len(images) * 4 // 5]))
    fit, held = (
        ArrayImages("digits", "train", images.images[rows], images.labels[rows], 10, images.recipe)
        for rows in map(torch.from_numpy, parts)
    )
    return fit, held


def _network(name: str, seed: int) -> Model:
    return build(name, num_classes=10, view_size=8, weights="random", seed=seed)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)  # these networks are so small that threads only get in each other's way
    with tempfile.TemporaryDirectory() as folder:
        standings, teacher = contest(Path(folder))
    print(f"Teacher: {100 * teacher:.1f}\n\n{table(standings)}")


if __name__ == "__main__":
    main()
