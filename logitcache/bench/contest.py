"""Losses under one budget, weight and learning rate of each tuned: the tables of docs/losses.md and docs/results.md.

    python -m logitcache.bench.contest                       # every loss on the digits
    python -m logitcache.bench.contest letters               # some, on letters, by what the cache keeps
    python -m logitcache.bench.contest letters-k8            # tuned with 8 logits of 200
    python -m logitcache.bench.contest letters-weak          # so, with a teacher that learnt less
    python -m logitcache.bench.contest letters-strong        # with one that learnt more
    python -m logitcache.bench.contest letters-large         # with one twice as wide
    python -m logitcache.bench.contest letters-demo          # with networks that see every pixel, as in the demo
    python -m logitcache.bench.contest letters-pixels        # more losses, with these networks
    python -m logitcache.bench.contest letters-pixels-large  # with a teacher twice as wide; all logits, too
    python -m logitcache.bench.contest emoji                 # of three vendors, told in the drawings of a fourth
    python -m logitcache.bench.contest emoji-large           # with a teacher twice as wide; all logits, too
    python -m logitcache.bench.contest rare-letters          # other letters, and a teacher of another kind
    python -m logitcache.bench.contest rare-letters-k8       # tuned with 8 logits of 151
    python -m logitcache.bench.contest letters-k8 --tune "cmkd(temperature=4.0)" …  # these, on validation alone

The same contest is held twice. To tune, the teacher, its cache and all students see four fifths of the training
images and are scored on the last fifth, a keyed choice (of emoji: two vendors, and the third): first every weight
and learning rate under a few seeds, then the best of each loss under more. Then teacher and cache are made anew
from all training images, and each loss trains with what won; only these students are scored on the test images, and
only once.
All students of one seed start from the same weights and share one pass over the data, so losses compare in pairs.
"""

import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from logitcache.bench.emoji import CLASSES as EMOJI_CLASSES
from logitcache.bench.glyphs import CLASSES, RARE_CLASSES
from logitcache.bench.table import markdown
from logitcache.bench.tasks import (
    Task,
    demo_large_task,
    demo_task,
    digits_task,
    emoji_large_task,
    emoji_task,
    letters_large_task,
    letters_task,
    rare_letters_task,
)
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import LogitCacheError, NonFiniteError, StudentsError
from logitcache.format.spec import Spec
from logitcache.losses.objective import LOSSES, Objective
from logitcache.models.build import Model, build_model
from logitcache.models.forward import ViewModel
from logitcache.report.opening import Gain
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.train.config import TrainConfig
from logitcache.train.evaluation import Evaluation
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.views.datasets import ArrayImages
from logitcache.views.recipes import recipe_named


@dataclass(frozen=True)
class ContestConfig(Spec):
    """The budget that every loss gets.

    Attributes:
        losses: as `Objective.parse` reads them, without a weight, besides cross-entropy.
        weights: to try, times each loss's default.
        rates: peak learning rates to try.
        epochs: of a student.
        teacher_epochs, teacher_lr: of the teacher.
        top_k: logits kept, of the cache that is tuned with and the first that is scored.
        others: further numbers of logits to score with; 0 is the teacher live.
        cached: augmentation seeds in the cache; epoch e takes seed e modulo their number.
        heat_seeds: students per weight and learning rate.
        finalists: entries of each loss that go on.
        tuning_seeds: students per finalist, those of the heat included.
        seeds: students per loss at the end; 0: nothing is scored on the test images.
    """

    losses: tuple[str, ...] = tuple(LOSSES)
    weights: tuple[float, ...] = (0.25, 1.0, 4.0)
    rates: tuple[float, ...] = (0.2, 0.4, 0.8, 1.6)
    epochs: int = 8
    teacher_epochs: int = 25
    teacher_lr: float = 0.05
    top_k: int = 4
    others: tuple[int, ...] = ()
    cached: int = 10
    heat_seeds: int = 2
    finalists: int = 4
    tuning_seeds: int = 10
    seeds: int = 10


@dataclass(frozen=True)
class Entry(Spec):
    """A loss, its weight against cross-entropy (0 for "ce" itself) and its peak learning rate."""

    loss: str
    weight: float
    lr: float

    @property
    def expression(self) -> str:
        """As `Objective.parse` reads it."""
        return "ce" if self.loss == "ce" else f"{self.loss}:{self.weight:g}"


@dataclass(frozen=True)
class Standing(Spec):
    """What a loss came to.

    Attributes:
        entry: the one that validation chose.
        validation: its accuracy on held-out training images, in [0, 1], a mean over seeds.
        test: its accuracies on the test images, by seed.
        others: the same with other numbers of logits.
    """

    entry: Entry
    validation: float
    test: tuple[float, ...]
    others: dict[str, tuple[float, ...]] = field(default_factory=dict)


class Contest:
    """A teacher and its cache from some images, and students scored on others."""

    def __init__(
        self, out: Path, task: Task, images: ArrayImages, scored: ArrayImages, config: ContestConfig
    ) -> None:
        self.out, self.task, self.images, self.config = out, task, images, config
        self.evaluation = Evaluation(scored, recipe_named(task.recipe.evaluation))
        self.teacher = self.network(task.teacher, 0)
        training = TrainConfig(config.teacher_epochs, lr=config.teacher_lr)
        run = Run(out / "teacher", self.teacher, Objective.parse("ce"), training)
        stream = Stream.plain(images, task.recipe, batch_size=64, seeds=tuple(range(config.teacher_epochs)))
        self.teacher_top1 = train([run], stream, self.evaluation)[0].top1

    def stream(self, k: int, seed: int, *, completed: bool = True) -> Stream:
        """Open a cache of k logits, dumped when it is first asked for; of 0, the teacher live with all of them."""
        top_k = k or self.teacher.num_classes
        path = self.out / f"{top_k}{'' if completed else '-even'}.zarr"
        if not path.exists():
            options = DumpConfig(
                seeds=tuple(range(self.config.cached)),
                top_k=top_k,
                profile="exact" if top_k == self.teacher.num_classes else "default",
                precision="float32",
                calibration=None if completed else 0,
            )
            dump(path, self.images, self.task.recipe, self.teacher, options)
        stream = Stream.from_cache(path, self.images, batch_size=64, order=seed)
        if k:
            return stream
        live = LiveTeacher(ViewModel(self.teacher), len(self.images), stream.num_classes, stream.num_classes)
        return Stream(stream.views, live, stream.config)

    def network(self, name: str, seed: int) -> Model:
        """Build an untrained network for the task."""
        side = self.images.images.shape[-1]
        classes = self.images.num_classes or 0
        return build_model(name, num_classes=classes, view_size=side, weights="random", seed=seed)

    def top1(
        self, entries: Sequence[Entry], seed: int, k: int | None = None, *, completed: bool = True
    ) -> list[float]:
        """Train a student by each entry, side by side; return the accuracy of each, 0 where its loss became NaN."""
        k = self.config.top_k if k is None else k
        with tempfile.TemporaryDirectory(dir=self.out) as folder:
            runs = [
                Run(
                    Path(folder) / f"{number}",
                    self.network(self.task.student, seed),
                    Objective.parse(entry.expression),
                    TrainConfig(self.config.epochs, lr=entry.lr, seed=seed),
                )
                for number, entry in enumerate(entries)
            ]
            stream = self.stream(k, seed, completed=completed)
            try:
                reports = train(runs, stream, self.evaluation)
            except StudentsError as error:
                if others := [e for e in error.errors.values() if not isinstance(e, NonFiniteError)]:
                    raise others[0] from error
                reports = error.reports
        scores = {report.out: report.top1 or 0.0 for report in reports}
        return [scores.get(str(run.out), 0.0) for run in runs]


def hold_contest(
    out: Path, task: Task | None = None, config: ContestConfig = ContestConfig()
) -> tuple[list[Standing], float]:
    """Tune every loss on held-out training images, then score it on the test images.

    Returns:
        Standings, cross-entropy first; the teacher's accuracy on the images that they were scored on last.
    """
    task = task or digits_task()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that k < C breaks some is known
        fit, held_out = task.split(task.train)
        entries = [Entry("ce", 0.0, lr) for lr in config.rates]
        for name in config.losses:
            weights = [LOSSES[name.partition("(")[0]].weight * w for w in config.weights]
            entries += [Entry(name, w, lr) for w in weights for lr in config.rates]
        tuning = Contest(out / "tuning", task, fit, held_out, config)
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
            _log(f"tuning: {seed + 1} of {config.tuning_seeds} seeds, {len(entries)} students")
        chosen = [best(name, 1)[0] for name in names]
        validation = {entry: statistics.fmean(scores[entry]) for entry in chosen}
        if not config.seeds:
            return [Standing(entry, validation[entry], ()) for entry in chosen], tuning.teacher_top1 or 0.0
        final = Contest(out / "final", task, task.train, task.test, config)
        tests: dict[int, list[list[float]]] = {}
        for k in (config.top_k, *config.others):
            taught = chosen if k == config.top_k else chosen[1:]  # without cross-entropy, which no k changes
            for seed in range(config.seeds):
                tests.setdefault(k, []).append(final.top1(taught, seed, k))
                _log(f"test, k = {k}: {seed + 1} of {config.seeds} seeds, {len(taught)} students")
    standings = []
    for number, entry in enumerate(chosen):
        test = tuple(scores[number] for scores in tests[config.top_k])
        others = {str(k): tuple(s[number - 1] for s in tests[k]) for k in config.others if number}
        standings.append(Standing(entry, validation[entry], test, others))
    return standings, final.teacher_top1 or 0.0


_LOSSES = ("kd", "dist", "cmkd", "cmkd(difficulty=fixed)", "cmkd(difficulty=fixed,balance=0.0)")
_LETTERS = ContestConfig(
    losses=_LOSSES, weights=(1.0, 2.0, 4.0), rates=(0.4, 0.8, 1.6), epochs=10, teacher_epochs=20, top_k=8,
    heat_seeds=2, finalists=3, tuning_seeds=4, seeds=8,
)  # fmt: skip
_DEMO = replace(
    _LETTERS, losses=("kd", "cmkd"), weights=(0.5, 1.0, 2.0, 4.0), rates=(0.4, 0.8, 1.6, 3.2),
    teacher_epochs=12, teacher_lr=0.2,
)  # fmt: skip
_BY_K = replace(_LETTERS, losses=(*_LOSSES, "dkd", "pld"), others=(16, 8, 4))
_PIXELS = replace(
    _DEMO, losses=_BY_K.losses, weights=(0.25, 1.0, 4.0), rates=(0.4, 0.8, 1.6),
    heat_seeds=1, finalists=2, tuning_seeds=3, seeds=6,
)  # fmt: skip
_EMOJI = replace(_PIXELS, epochs=30, teacher_epochs=40, cached=20)

CONTESTS: dict[str, tuple[Callable[[], Task], ContestConfig]] = {
    "digits": (digits_task, ContestConfig()),
    "letters": (letters_task, replace(_BY_K, top_k=CLASSES)),
    "letters-k8": (letters_task, replace(_LETTERS, losses=_BY_K.losses)),
    "letters-weak": (letters_task, replace(_LETTERS, teacher_epochs=10)),
    "letters-strong": (letters_task, replace(_LETTERS, teacher_epochs=60)),
    "letters-demo": (demo_task, _DEMO),
    "letters-pixels": (demo_task, _PIXELS),
    "letters-pixels-large": (demo_large_task, replace(_PIXELS, losses=_LOSSES, others=(CLASSES,))),
    "emoji": (emoji_task, _EMOJI),
    "emoji-large": (emoji_large_task, replace(_EMOJI, losses=_LOSSES, others=(EMOJI_CLASSES,))),
    "letters-large": (letters_large_task, _LETTERS),
    "rare-letters": (rare_letters_task, replace(_BY_K, top_k=RARE_CLASSES)),
    "rare-letters-k8": (rare_letters_task, replace(_LETTERS, losses=_BY_K.losses)),
}


def standings_table(standings: Sequence[Standing]) -> str:
    """Write standings as a Markdown table; differences are means over seeds of pairs, ± their standard error."""
    sources = ["live" if k == "0" else f"k = {k}" for k in standings[-1].others]
    tested = bool(standings[0].test)
    columns = ["loss", "weight", "lr", "validation"]
    columns += ["test", "minus CE", "minus KD", *sources] if tested else []
    rows = []
    others = {s.entry.loss: s.test for s in standings if s.entry.loss in ("ce", "kd")}
    for s in sorted(standings, key=lambda s: -statistics.fmean(s.test or [s.validation])):
        weight = "–" if s.entry.loss == "ce" else f"{s.entry.weight:g}"
        row = [f"`{s.entry.loss}`", weight, f"{s.entry.lr:g}", f"{100 * s.validation:.1f}"]
        if tested:
            minus = [
                "–"
                if s.entry.loss == name or name not in others
                else str(Gain.of_pairs(s.test, others[name]))
                for name in ("ce", "kd")
            ]
            by_source = [mean_and_std(scores) for scores in s.others.values()] or ["–"] * len(sources)
            row += [mean_and_std(s.test), *minus, *by_source]
        rows.append(row)
    return markdown(columns, rows)


def mean_and_std(scores: Sequence[float]) -> str:
    """Write accuracies by seed in percent, as mean ± standard deviation."""
    return f"{100 * statistics.fmean(scores):.1f} ± {100 * statistics.stdev(scores):.1f}"


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Print the table of a contest, with its own losses or those that are named; with --tune of validation alone."""
    torch.set_num_threads(1)  # these networks are so small that threads only get in each other's way
    name, *losses = sys.argv[1:] or ["digits"]
    if name not in CONTESTS:
        sys.exit(f"no contest {name!r}; there are {', '.join(CONTESTS)}")
    task, config = CONTESTS[name]
    if "--tune" in losses:
        losses.remove("--tune")
        config = replace(config, seeds=0)
    config = replace(config, losses=tuple(losses) or config.losses)
    try:
        opened = task()
    except LogitCacheError as error:
        sys.exit(str(error))
    with tempfile.TemporaryDirectory() as folder:
        standings, teacher_top1 = hold_contest(Path(folder), opened, config)
    print(f"Teacher: {100 * teacher_top1:.1f}\n\n{standings_table(standings)}")


if __name__ == "__main__":
    main()
