"""The whole story on real images: a teacher, its cache, and a small student by CE, KD and CMKD.

Everything is measured while it runs; nothing is looked up. The images are the 1,797 digits that ship.
"""

import dataclasses
import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.dump.job import DumpConfig, dump
from logitcache.errors import OptionError
from logitcache.format.spec import Spec
from logitcache.losses import Objective
from logitcache.models.build import Model, build_model
from logitcache.models.forward import ViewModel, choose_device
from logitcache.report.page import report
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.train.config import TrainConfig
from logitcache.train.evaluation import Evaluation
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.views.datasets import load_digits
from logitcache.views.recipes import recipe_named

TEACHER, STUDENT = "digits_teacher", "digits_tiny"
# Loss and peak learning rate, as the contest of `bench.digits` chose them on images that neither student nor teacher
# had seen; but cross-entropy has the rate at which it is better than at the contest's, 1.6.
RECIPES = {
    "ce": ("ce", 0.8),
    "kd": ("kd", 0.4),
    "cmkd": ("cmkd", 0.4),
}
MARK = "demo.json"


@dataclass(frozen=True)
class DemoConfig(Spec):
    """How much of the demo to run.

    Attributes:
        seeds: augmentation seeds to dump.
        top_k: logits to keep of the 10.
        teacher_epochs, student_epochs: passes over the 1,437 training images.
        repeats: runs per loss, each with its own initial weights and order of the data; epochs are timed as often, up
            to three times.
        workers: DataLoader workers.
        device: where to run.
    """

    seeds: int = 10
    top_k: int = 4
    teacher_epochs: int = 25
    student_epochs: int = 8
    repeats: int = 6
    workers: int = 1
    device: str = "auto"


@dataclass(frozen=True)
class LossResult(Spec):
    """Top-1 accuracies of one loss on the 360 test images, in [0, 1], one per repeat."""

    loss: str
    top1: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over repeats."""
        return statistics.fmean(self.top1)

    @property
    def std(self) -> float:
        """Sample standard deviation over repeats; 0 for a single one."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else 0.0


@dataclass(frozen=True)
class DemoReport(Spec):
    """What the demo measured, and the page about it. Seconds per epoch are of the student trained by KD alone."""

    teacher: str
    teacher_parameters: int
    teacher_top1: float
    student: str
    student_parameters: int
    results: tuple[LossResult, ...]
    cache: str
    cached_views: int
    bytes_per_view: float
    dump_seconds: float
    epoch_seconds_cached: float
    epoch_seconds_live: float
    page: str


def demo(
    out: str | Path, config: DemoConfig = DemoConfig(), say: Callable[[str], None] | None = None
) -> DemoReport:
    """Run the demo into the folder `out`; an earlier demo there is replaced.

    Args:
        out: folder for the teacher, the cache and the runs.
        config: how much to run.
        say: called with a line at each stage.

    Raises:
        OptionError: `out` holds something other than a demo.
    """
    say = say or (lambda _: None)
    out = _fresh(Path(out))
    images = load_digits("train")
    recipe = recipe_named(images.recipe)
    unseen, as_they_are = load_digits("test"), recipe_named(recipe.evaluation)
    evaluation = Evaluation(unseen, as_they_are)
    device = choose_device(config.device)

    def network(name: str, seed: int, weights: str = "random") -> Model:
        return build_model(name, num_classes=10, view_size=8, weights=weights, seed=seed)

    def stream_options(order: int, seeds: int) -> dict[str, Any]:
        workers, where = config.workers, str(device)
        return {
            "batch_size": 64,
            "seeds": tuple(range(seeds)),
            "order": order,
            "workers": workers,
            "device": where,
        }

    say(f"1. train a teacher, {TEACHER}, on {len(images):,} digits")
    plain = Stream.plain(images, recipe, **stream_options(0, config.teacher_epochs))
    taught = Run(
        out / "teacher", network(TEACHER, 0), Objective.parse("ce"), TrainConfig(epochs=config.teacher_epochs)
    )
    teaching = train([taught], plain, evaluation)[0]
    teacher = network(TEACHER, 0, str(out / "teacher" / "last.safetensors"))

    say(f"2. dump its top {config.top_k} logits under {config.seeds} augmentation seeds")
    cache = out / "cache.zarr"
    seeds = tuple(range(config.seeds))
    dump_config = DumpConfig(
        seeds=seeds, top_k=config.top_k, workers=config.workers, device=config.device, precision="float32"
    )
    dumped = dump(cache, images, recipe, teacher, dump_config)
    dump(out / "test.zarr", unseen, as_they_are, teacher, dataclasses.replace(dump_config, seeds=(0,)))
    beside_teacher = Evaluation(unseen, as_they_are, CacheReader(out / "test.zarr"))

    say(f"3. train {STUDENT} by {', '.join(loss.upper() for loss in RECIPES)}, {config.repeats} times each")
    reader = CacheReader(cache)
    top1: dict[str, list[float]] = {loss: [] for loss in RECIPES}
    for repeat in range(config.repeats):
        runs = [
            Run(
                out / "runs" / f"{loss}-{repeat}",
                network(STUDENT, repeat),
                Objective.parse(expression),
                TrainConfig(epochs=config.student_epochs, lr=lr, seed=repeat),
            )
            for loss, (expression, lr) in RECIPES.items()
        ]
        stream = Stream.from_cache(reader, images, **stream_options(repeat, config.seeds))
        for loss, ended in zip(RECIPES, train(runs, stream, beside_teacher), strict=True):
            assert ended.top1 is not None
            top1[loss].append(ended.top1)

    say("4. time the student's epochs, with the cache and with the teacher live")
    live = LiveTeacher(ViewModel(teacher).on(device), len(images), config.top_k, teacher.num_classes)
    sources = {"cached": None, "live": live}
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for attempt in range(min(config.repeats, 3)):
        for name, source in sources.items():
            timed = Stream.from_cache(reader, images, **stream_options(0, config.seeds))
            timed = Stream(timed.views, source or timed.teacher, timed.config)
            run = Run(
                out / "timing" / f"{name}-{attempt}",
                network(STUDENT, 0),
                Objective.parse("kd"),
                TrainConfig(epochs=2),
            )
            train([run], timed)
            rows = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
            seconds[name].append(rows[-1]["seconds"])

    page = out / "report.html"
    students = [out / "runs" / f"{loss}-{repeat}" for loss in RECIPES for repeat in range(config.repeats)]
    report(page, [*students, out / "teacher", cache])
    found = DemoReport(
        teacher=TEACHER,
        teacher_parameters=teaching.parameters,
        teacher_top1=teaching.top1 or 0.0,
        student=STUDENT,
        student_parameters=sum(p.numel() for p in network(STUDENT, 0).module.parameters()),
        results=tuple(LossResult(loss, tuple(values)) for loss, values in top1.items()),
        cache=str(cache),
        cached_views=dumped.views_in_cache,
        bytes_per_view=reader.info()["bytes_per_sample_view"],
        dump_seconds=dumped.seconds,
        epoch_seconds_cached=statistics.median(seconds["cached"]),
        epoch_seconds_live=statistics.median(seconds["live"]),
        page=str(page),
    )
    (out / MARK).write_text(json.dumps(found.to_dict(), indent=2) + "\n")
    return found


def _fresh(out: Path) -> Path:
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise OptionError(f"{out} is not empty and holds no demo; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("{}\n")
    return out
