"""Both stages on real images: a teacher, its cache, and a small student trained by CE, KD and CMKD.

Everything is measured while it runs. The images are the letters that ship, or the digits.
"""

import dataclasses
import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.dump.job import DumpReport, dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import OptionError, StorageError, UnknownNameError
from logitcache.files import is_stray, require_folder, writing
from logitcache.format.spec import Spec
from logitcache.losses.objective import Objective
from logitcache.models.build import Model, build_model
from logitcache.models.forward import ViewModel, choose_device
from logitcache.models.weights import count_parameters
from logitcache.paths import expand_home
from logitcache.report.opening import Gain
from logitcache.report.page import report
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.train.config import TrainConfig
from logitcache.train.evaluation import Evaluation
from logitcache.train.learner import Run
from logitcache.train.loop import RunReport, train
from logitcache.train.run_folder import RunFolder
from logitcache.views.datasets import SHIPPED
from logitcache.views.recipes import evaluation_recipe, recipe_named

MARK = "demo.json"


@dataclass(frozen=True)
class Lesson(Spec):
    """How a student is taught: what it minimises, as `Objective.parse` reads it, and its peak learning rate."""

    objective: str
    lr: float


@dataclass(frozen=True)
class DemoTask(Spec):
    """What the demo does with some images.

    Attributes:
        teacher, student: networks by name.
        lessons: by the name of the loss, cross-entropy first.
        top_k: logits to keep.
        teacher_epochs, student_epochs: passes over the training images.
        teacher_lr: the teacher's peak learning rate.
        repeats: students of each loss.
    """

    teacher: str
    student: str
    lessons: dict[str, Lesson]
    top_k: int
    teacher_epochs: int
    teacher_lr: float
    student_epochs: int
    repeats: int


# Weights and rates are those that `bench.contest` chose on a fifth of the training images, which neither teacher nor
# students had seen; but on the digits cross-entropy has the rate at which it is better than at the contest's, 1.6.
TASKS = {
    "letters": DemoTask(
        "letters_teacher", "letters_small",
        {"CE": Lesson("ce", 0.8), "KD": Lesson("kd:2", 0.8), "CMKD": Lesson("cmkd:16", 0.8)},
        top_k=8, teacher_epochs=12, teacher_lr=0.2, student_epochs=10, repeats=5,
    ),
    "digits": DemoTask(
        "digits_teacher", "digits_tiny",
        {"CE": Lesson("ce", 0.8), "KD": Lesson("kd", 0.4), "CMKD": Lesson("cmkd", 0.4)},
        top_k=4, teacher_epochs=25, teacher_lr=0.05, student_epochs=8, repeats=6,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class DemoConfig(Spec):
    """How much of the demo to run.

    Attributes:
        data: "letters" or "digits".
        seeds: augmentation seeds to dump.
        teacher_epochs, student_epochs: passes over the training images; 0: as many as the task has.
        repeats: runs per loss, each with its own initial weights and order of the data; 0: as many as the task has.
            Epochs are timed as often, up to three times.
        workers: DataLoader workers.
        device: where to run.

    Raises:
        UnknownNameError: there is no demo on such data.
    """

    data: str = "letters"
    seeds: int = 10
    teacher_epochs: int = 0
    student_epochs: int = 0
    repeats: int = 0
    workers: int = 0
    device: str = "auto"

    def task(self) -> DemoTask:
        """Return what the demo does, as much of it as is wanted."""
        if self.data not in TASKS:
            raise UnknownNameError("demo", self.data, TASKS)
        names = ("teacher_epochs", "student_epochs", "repeats")
        wanted = {name: number for name in names if (number := getattr(self, name))}
        return dataclasses.replace(TASKS[self.data], **wanted)


@dataclass(frozen=True)
class LossResult(Spec):
    """What students of one loss came to.

    Attributes:
        loss: its name.
        lesson: how they were taught.
        top1: accuracies on the test images, in [0, 1], one per repeat.
        gain: what they have over the students of cross-entropy; None for these themselves.
    """

    loss: str
    lesson: Lesson
    top1: tuple[float, ...]
    gain: Gain | None

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
    """What the demo measured, and the page about it; seconds per epoch are of the student trained by KD alone."""

    data: str
    test_images: int
    teacher: str
    teacher_parameters: int
    teacher_top1: float
    student: str
    student_parameters: int
    results: tuple[LossResult, ...]
    cache: str
    cached_views: int
    top_k: int
    num_classes: int
    bytes_per_view: float
    dump_seconds: float
    epoch_seconds_cached: float
    epoch_seconds_live: float
    page: str


def demo(
    out: str | Path, config: DemoConfig = DemoConfig(), on_stage: Callable[[str], None] | None = None
) -> DemoReport:
    """Run the demo into the folder `out`; an earlier demo there is replaced.

    Args:
        out: folder for the teacher, the cache and the runs.
        config: how much to run.
        on_stage: called with a line at each stage.

    Raises:
        OptionError: `out` is a file, or holds something other than a demo.
        StorageError: it cannot be written.
    """
    on_stage = on_stage or (lambda line: None)
    task = config.task()
    job = _Demo(_make_folder(expand_home(out)), config)
    on_stage(f"1. train a teacher, {task.teacher}, on {len(job.images):,} {config.data}")
    trained = job.train_teacher()
    classes = job.images.num_classes or 0
    on_stage(f"2. dump its top {task.top_k} of {classes} logits under {config.seeds} augmentation seeds")
    dumped = job.dump_logits()
    on_stage(f"3. train {task.student} by {', '.join(task.lessons)}, {task.repeats} times each")
    results = job.train_students()
    on_stage("4. time the student's epochs, with the cache and with the teacher live")
    cached, live = job.time_epochs()
    result = DemoReport(
        data=config.data,
        test_images=len(job.test_images),
        teacher=task.teacher,
        teacher_parameters=trained.parameters,
        teacher_top1=trained.top1 or 0.0,
        student=task.student,
        student_parameters=count_parameters(job.build(task.student, 0).module),
        results=results,
        cache=str(job.cache),
        cached_views=dumped.views_in_cache,
        top_k=task.top_k,
        num_classes=classes,
        bytes_per_view=CacheReader(job.cache).info()["bytes_per_sample_view"],
        dump_seconds=dumped.seconds,
        epoch_seconds_cached=cached,
        epoch_seconds_live=live,
        page=str(job.write_page(dumped.seconds)),
    )
    with writing(job.out / MARK) as temporary:
        temporary.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return result


class _Demo:
    """The stages of the demo, each of which finds the files of those before it in the folder."""

    def __init__(self, out: Path, config: DemoConfig) -> None:
        self.out, self.config, self.device = out, config, choose_device(config.device)
        self.task = config.task()
        self.images, self.test_images = (SHIPPED[config.data](split) for split in ("train", "test"))
        self.recipe = recipe_named(self.images.recipe)
        self.test_recipe = evaluation_recipe(self.recipe)
        self.cache, self.test_cache = out / "cache.zarr", out / "test.zarr"

    def build(self, name: str, seed: int, weights: str = "random") -> Model:
        side = self.images.images.shape[-1]
        classes = self.images.num_classes or 0
        return build_model(name, num_classes=classes, view_size=side, weights=weights, seed=seed)

    def student_folder(self, loss: str, repeat: int) -> Path:
        return self.out / "runs" / f"{loss.lower()}-{repeat}"

    def train_teacher(self) -> RunReport:
        epochs = self.task.teacher_epochs
        stream = Stream.plain(self.images, self.recipe, **self._stream_options(0, epochs))
        teacher = self.build(self.task.teacher, 0)
        training = TrainConfig(epochs, lr=self.task.teacher_lr)
        run = Run(self.out / "teacher", teacher, Objective.parse("ce"), training)
        return train([run], stream, Evaluation(self.test_images, self.test_recipe))[0]

    def dump_logits(self) -> DumpReport:
        teacher, config = self._build_teacher(), self.config
        dump_config = DumpConfig(
            seeds=tuple(range(config.seeds)),
            top_k=self.task.top_k,
            workers=config.workers,
            device=config.device,
            precision="float32",
        )
        dumped = dump(self.cache, self.images, self.recipe, teacher, dump_config)
        test_config = dataclasses.replace(dump_config, seeds=(0,))
        dump(self.test_cache, self.test_images, self.test_recipe, teacher, test_config)
        return dumped

    def train_students(self) -> tuple[LossResult, ...]:
        evaluation = Evaluation(self.test_images, self.test_recipe, CacheReader(self.test_cache))
        top1: dict[str, list[float]] = {loss: [] for loss in self.task.lessons}
        for repeat in range(self.task.repeats):
            runs = []
            for loss, lesson in self.task.lessons.items():
                config = TrainConfig(epochs=self.task.student_epochs, lr=lesson.lr, seed=repeat)
                student, folder = self.build(self.task.student, repeat), self.student_folder(loss, repeat)
                runs.append(Run(folder, student, Objective.parse(lesson.objective), config))
            trained = train(runs, self._open_cache(repeat), evaluation)
            for loss, student_report in zip(top1, trained, strict=True):
                assert student_report.top1 is not None
                top1[loss].append(student_report.top1)
        plain = top1["CE"]
        return tuple(
            LossResult(loss, lesson, tuple(top1[loss]), Gain.of_pairs(top1[loss], plain) if at else None)
            for at, (loss, lesson) in enumerate(self.task.lessons.items())
        )

    def time_epochs(self) -> tuple[float, float]:
        """Return the median seconds of a student's second epoch, with the cache and with the teacher live."""
        teacher, task = self._build_teacher(), self.task
        model = ViewModel(teacher).on(self.device)
        live = LiveTeacher(model, len(self.images), teacher.num_classes, teacher.num_classes)
        seconds: dict[str, list[float]] = {"cached": [], "live": []}
        for attempt in range(min(task.repeats, 3)):
            for name in seconds:
                stream = self._open_cache(0)
                if name == "live":
                    stream = Stream(stream.views, live, stream.config)
                folder, student = self.out / "timing" / f"{name}-{attempt}", self.build(task.student, 0)
                train([Run(folder, student, Objective.parse("kd"), TrainConfig(epochs=2))], stream)
                seconds[name].append(RunFolder(folder).read_metrics()[-1]["seconds"])
        return statistics.median(seconds["cached"]), statistics.median(seconds["live"])

    def write_page(self, dump_seconds: float) -> Path:
        page, repeats = self.out / "report.html", range(self.task.repeats)
        students = [self.student_folder(loss, repeat) for loss in self.task.lessons for repeat in repeats]
        report(page, [*students, self.cache, self.test_cache], dump_seconds={str(self.cache): dump_seconds})
        return page

    def _open_cache(self, order: int) -> Stream:
        options = self._stream_options(order, self.config.seeds)
        return Stream.from_cache(CacheReader(self.cache), self.images, **options)

    def _stream_options(self, order: int, seeds: int) -> dict[str, Any]:
        return {
            "batch_size": 64,
            "seeds": tuple(range(seeds)),
            "order": order,
            "workers": self.config.workers,
            "device": str(self.device),
        }

    def _build_teacher(self) -> Model:
        return self.build(self.task.teacher, 0, str(self.out / "teacher" / "last.safetensors"))


def _make_folder(out: Path) -> Path:
    """Make an empty folder, in place of an earlier demo."""
    require_folder(out)
    if out.exists() and not all(is_stray(file.name) for file in out.iterdir()):
        if not (out / MARK).is_file():
            raise OptionError(f"{out} is not empty and holds no demo; choose another --out")
        try:
            shutil.rmtree(out)
        except OSError as error:
            raise StorageError(f"cannot replace the demo in {out}: {error.strerror}") from error
    with writing(out / MARK) as temporary:
        temporary.write_text("{}\n", encoding="utf-8")
    return out
