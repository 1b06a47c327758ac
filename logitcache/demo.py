"""Both stages on real images: a teacher, its cache, and a small student trained by CE, KD and CMKD.

Everything is measured while it runs. The images are the 1,797 digits that ship.
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
from logitcache.errors import OptionError, StorageError
from logitcache.files import is_stray, require_folder, writing
from logitcache.format.spec import Spec
from logitcache.losses.objective import Objective
from logitcache.models.build import Model, build_model
from logitcache.models.forward import ViewModel, choose_device
from logitcache.models.weights import count_parameters
from logitcache.paths import expand_home
from logitcache.report.page import report
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.train.config import TrainConfig
from logitcache.train.evaluation import Evaluation
from logitcache.train.learner import Run
from logitcache.train.loop import RunReport, train
from logitcache.train.run_folder import RunFolder
from logitcache.views.datasets import load_digits
from logitcache.views.recipes import evaluation_recipe, recipe_named

TEACHER, STUDENT = "digits_teacher", "digits_tiny"
# Peak learning rates, as `bench.contest` chose them on images that neither student nor teacher had seen; but
# cross-entropy has the rate at which it is better than at the contest's, 1.6.
PEAK_LR = {"ce": 0.8, "kd": 0.4, "cmkd": 0.4}
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
    """What the demo measured, and the page about it; seconds per epoch are of the student trained by KD alone."""

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
    job = _Demo(_make_folder(expand_home(out)), config)
    on_stage(f"1. train a teacher, {TEACHER}, on {len(job.images):,} digits")
    trained = job.train_teacher()
    on_stage(f"2. dump its top {config.top_k} logits under {config.seeds} augmentation seeds")
    dumped = job.dump_logits()
    on_stage(
        f"3. train {STUDENT} by {', '.join(loss.upper() for loss in PEAK_LR)}, {config.repeats} times each"
    )
    results = job.train_students()
    on_stage("4. time the student's epochs, with the cache and with the teacher live")
    cached, live = job.time_epochs()
    student = _build(STUDENT, 0).module
    result = DemoReport(
        teacher=TEACHER,
        teacher_parameters=trained.parameters,
        teacher_top1=trained.top1 or 0.0,
        student=STUDENT,
        student_parameters=count_parameters(student),
        results=results,
        cache=str(job.cache),
        cached_views=dumped.views_in_cache,
        bytes_per_view=CacheReader(job.cache).info()["bytes_per_sample_view"],
        dump_seconds=dumped.seconds,
        epoch_seconds_cached=cached,
        epoch_seconds_live=live,
        page=str(job.write_page()),
    )
    with writing(job.out / MARK) as temporary:
        temporary.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    return result


class _Demo:
    """The stages of the demo, each of which finds the files of those before it in the folder."""

    def __init__(self, out: Path, config: DemoConfig) -> None:
        self.out, self.config, self.device = out, config, choose_device(config.device)
        self.images, self.test_images = load_digits("train"), load_digits("test")
        self.recipe = recipe_named(self.images.recipe)
        self.test_recipe = evaluation_recipe(self.recipe)
        self.cache, self.test_cache = out / "cache.zarr", out / "test.zarr"

    def student_folder(self, loss: str, repeat: int) -> Path:
        return self.out / "runs" / f"{loss}-{repeat}"

    def train_teacher(self) -> RunReport:
        epochs = self.config.teacher_epochs
        stream = Stream.plain(self.images, self.recipe, **self._stream_options(0, epochs))
        run = Run(self.out / "teacher", _build(TEACHER, 0), Objective.parse("ce"), TrainConfig(epochs=epochs))
        return train([run], stream, Evaluation(self.test_images, self.test_recipe))[0]

    def dump_logits(self) -> DumpReport:
        teacher, config = self._build_teacher(), self.config
        dump_config = DumpConfig(
            seeds=tuple(range(config.seeds)),
            top_k=config.top_k,
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
        top1: dict[str, list[float]] = {loss: [] for loss in PEAK_LR}
        for repeat in range(self.config.repeats):
            runs = []
            for loss, lr in PEAK_LR.items():
                config = TrainConfig(epochs=self.config.student_epochs, lr=lr, seed=repeat)
                student, folder = _build(STUDENT, repeat), self.student_folder(loss, repeat)
                runs.append(Run(folder, student, Objective.parse(loss), config))
            trained = train(runs, self._open_cache(repeat), evaluation)
            for loss, student_report in zip(PEAK_LR, trained, strict=True):
                assert student_report.top1 is not None
                top1[loss].append(student_report.top1)
        return tuple(LossResult(loss, tuple(values)) for loss, values in top1.items())

    def time_epochs(self) -> tuple[float, float]:
        """Return the median seconds of a student's second epoch, with the cache and with the teacher live."""
        teacher = self._build_teacher()
        model = ViewModel(teacher).on(self.device)
        live = LiveTeacher(model, len(self.images), self.config.top_k, teacher.num_classes)
        seconds: dict[str, list[float]] = {"cached": [], "live": []}
        for attempt in range(min(self.config.repeats, 3)):
            for name in seconds:
                stream = self._open_cache(0)
                if name == "live":
                    stream = Stream(stream.views, live, stream.config)
                folder = self.out / "timing" / f"{name}-{attempt}"
                train([Run(folder, _build(STUDENT, 0), Objective.parse("kd"), TrainConfig(epochs=2))], stream)
                seconds[name].append(RunFolder(folder).read_metrics()[-1]["seconds"])
        return statistics.median(seconds["cached"]), statistics.median(seconds["live"])

    def write_page(self) -> Path:
        page, repeats = self.out / "report.html", range(self.config.repeats)
        students = [self.student_folder(loss, repeat) for loss in PEAK_LR for repeat in repeats]
        report(page, [*students, self.out / "teacher", self.cache])
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
        return _build(TEACHER, 0, str(self.out / "teacher" / "last.safetensors"))


def _build(name: str, seed: int, weights: str = "random") -> Model:
    return build_model(name, num_classes=10, view_size=8, weights=weights, seed=seed)


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
