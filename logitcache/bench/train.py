"""What distilling from a cache adds to plain training, and what it saves of training with the teacher live.

Every way trains the same student on the same JPEG files through a loader of its own, as `train` steps it: views,
the teacher's logits, forward, backward, update.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from logitcache.bench.compare import Comparison, device_clock, time_interleaved
from logitcache.bench.fixtures import write_cache
from logitcache.bench.memory import SharedSpool, measure_shared_spool, memory_is_known, peak_in_process
from logitcache.bench.table import at_most
from logitcache.bench.workload import CLASSES, TOP_K, idle_teacher, make_pictures
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.format.identity import RecipeSpec
from logitcache.format.spec import Spec
from logitcache.losses.objective import Objective
from logitcache.models.build import Model, build_model
from logitcache.models.forward import ViewModel, choose_precision
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.train.config import TrainConfig
from logitcache.train.learner import Learner, Run
from logitcache.train.loop import train
from logitcache.views.images import Images
from logitcache.views.loader import choose_workers
from logitcache.views.maker import ViewMaker
from logitcache.views.recipes import recipe_named

STUDENT = "resnet18"
SPOOL_PROCESSES = (1, 4, 8)
SPOOL_VIEWS = 131_072  # of the spool that they share
LOSSES = ("ce", "kd", "cmkd")
VIEWS_PER_IMAGE = 4  # in one batch
LOSS_ROUNDS = 8  # rounds of training by each loss, for one of slower things

Round = Callable[[int], object]


@dataclass(frozen=True)
class TrainBenchReport(Spec):
    """What was measured: times; peak memory of training, in MB; memory of processes that share a spool."""

    times: tuple[Comparison, ...]
    peaks: tuple["TrainingPeak", ...]
    shared: tuple[SharedSpool, ...]


@dataclass(frozen=True)
class TrainingPeak(Spec):
    """Peak memory in MB of training by a loss: of the device on CUDA, else what only the process itself can use."""

    loss: str
    mb: float
    ratio: float
    wanted: float | None

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        return {
            "student by": self.loss,
            "peak MB": f"{self.mb:.0f}",
            "ratio": f"{self.ratio:.2f}",
            "wanted": at_most(self.wanted),
        }


def measure(
    *, pictures: int = 256, rounds: int = 4, batch: int = 64, workers: int = -1, device: torch.device
) -> TrainBenchReport:
    """Time training from labels, from a cache and with the teacher live; then measure memory.

    The student is ResNet-18 of 1,000 classes, k = 8; at 64 pixels with ResNet-50 as the live teacher on the CPU, at
    224 with ViT-L/16 on CUDA.

    Args:
        pictures: how many JPEG files to make and to train on.
        rounds: how often each slow thing is timed, and eight times as often a round of training by each loss (a
            step on the CPU, whose views no worker makes meanwhile; on CUDA an epoch); one more is not counted.
        batch: views per step.
        workers: processes that make views, as for `train`.
        device: where to train.
    """
    with tempfile.TemporaryDirectory(prefix="logitcache-bench-") as name:
        bench = _Bench.create(Path(name), pictures, batch, workers, device)
        parts = (bench.time_losses, bench.time_loaders, bench.time_several_views, bench.time_two_students)
        times = [row for part in parts for row in part(rounds)]
        return TrainBenchReport(tuple(times), tuple(bench.measure_peaks()), tuple(bench.measure_spools()))


@dataclass(frozen=True)
class _Bench:
    """A folder with pictures and a cache of them; what is trained, and where."""

    folder: Path
    images: Images
    recipe: RecipeSpec
    batch: int
    workers: int
    device: torch.device

    @classmethod
    def create(cls, folder: Path, pictures: int, batch: int, workers: int, device: torch.device) -> "_Bench":
        recipe = recipe_named("imagenet@224" if device.type == "cuda" else "imagenet@64")
        images = make_pictures(folder / "pictures", pictures)
        config = DumpConfig(seeds=(0,), top_k=TOP_K, workers=workers, device="cpu", precision="float32")
        teacher = idle_teacher(_build_student(STUDENT))
        dump(folder / "cache.zarr", images, recipe, teacher, config)
        return cls(folder, images, recipe, batch, workers, device)

    # Times --------------------------------------------------------------------------------------------------

    def time_losses(self, rounds: int) -> Iterator[Comparison]:
        """Time training by each loss, and with the teacher live."""
        clock, on_cpu = device_clock(self.device), self.device.type == "cpu"
        workers = 0 if on_cpu else self.workers
        views = min(self.batch, len(self.images)) if on_cpu else len(self.images)

        def train_by(loss: str, *, live: bool = False) -> Round:
            stream = self.open_stream(loss, workers, live=live)
            return self.train_steps(stream, loss, 1 if on_cpu else stream.steps(0))

        ways = {loss: train_by(loss) for loss in LOSSES}
        times = time_interleaved(ways, LOSS_ROUNDS * rounds, clock)
        for loss in LOSSES[1:]:
            of = {"stage two": f"{loss}, cached"}
            yield Comparison.between(of, "ce, labels", times[loss], times["ce"], 1.03, views)
        times = time_interleaved({"kd": ways["kd"], "live": train_by("kd", live=True)}, rounds, clock)
        against = f"{self._teacher} live"
        yield Comparison.between(
            {"stage two": "kd, cached"}, against, times["kd"], times["live"], None, views
        )

    def time_loaders(self, rounds: int) -> Iterator[Comparison]:
        """Time batches with the teacher's logits, and those of a plain loader of the same transforms."""
        stream = self.open_stream("kd", self.workers)
        workers = choose_workers(self.workers, self.images, self.device)
        plain = DataLoader(
            _PlainViews(self.images, self.recipe),
            self.batch,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        ways: dict[str, Round] = {
            "stream": lambda number: _load_epoch(stream, number),
            "plain": lambda _: sum(len(views.to(self.device)) for views, _ in plain),
        }
        times = time_interleaved(ways, 2 * rounds, device_clock(self.device))
        of = {"stage two": "its loader"}
        yield Comparison.between(of, "DataLoader", times["stream"], times["plain"], 1.03, len(self.images))

    def time_several_views(self, rounds: int) -> Iterator[Comparison]:
        """Time batches that show an image under several seeds, decoded once, and as many passes over the images."""
        seeds = tuple(range(VIEWS_PER_IMAGE))
        options: dict[str, Any] = {
            "seeds": seeds,
            "batch_size": self.batch,
            "workers": self.workers,
            "device": str(self.device),
        }
        together = Stream.plain(self.images, self.recipe, views_per_image=VIEWS_PER_IMAGE, **options)
        apart = Stream.plain(self.images, self.recipe, **options)
        ways: dict[str, Round] = {
            "together": lambda number: _load_epoch(together, number),
            "apart": lambda number: sum(
                _load_epoch(apart, VIEWS_PER_IMAGE * number + seed) for seed in seeds
            ),
        }
        times = time_interleaved(ways, rounds, device_clock(self.device))
        of, views = {"stage two": f"{VIEWS_PER_IMAGE} views an image"}, VIEWS_PER_IMAGE * len(self.images)
        passes = f"{VIEWS_PER_IMAGE} passes"
        yield Comparison.between(of, passes, times["together"], times["apart"], None, views)

    def time_two_students(self, rounds: int) -> Iterator[Comparison]:
        """Time two students in one pass over the data, and one after the other."""
        stream, names = self.open_stream("kd", self.workers), (STUDENT, "mobilenet_v3_small")
        both, one, other = (self.train_epoch(stream, "kd", some) for some in (names, names[:1], names[1:]))

        def apart(number: int) -> None:
            one(number)
            other(number)

        times = time_interleaved({"both": both, "apart": apart}, rounds, device_clock(self.device))
        yield Comparison.between(
            {"stage two": "2 students"},
            "one by one",
            times["both"],
            times["apart"],
            None,
            len(self.images),
        )

    @property
    def _teacher(self) -> str:
        return "vit_l_16" if self.device.type == "cuda" else "resnet50"

    def open_stream(self, loss: str, workers: int, *, live: bool = False) -> Stream:
        """Open what training by a loss needs: labels, a cache, or a live teacher."""
        options: dict[str, Any] = {
            "batch_size": self.batch,
            "workers": workers,
            "device": str(self.device),
        }
        if loss == "ce":
            return Stream.plain(self.images, self.recipe, seeds=(0,), **options)
        stream = Stream.from_cache(
            self.folder / "cache.zarr", self.images, spool_folder=self.folder / "spool", **options
        )
        if live:
            teacher = build_model(self._teacher, num_classes=CLASSES, view_size=224, weights="random")
            model = ViewModel(teacher, choose_precision("auto", self.device)).on(self.device)
            return Stream(stream.views, LiveTeacher(model, len(self.images), CLASSES, CLASSES), stream.config)
        return stream

    def train_steps(self, stream: Stream, loss: str, count: int) -> Round:
        """Return a function that takes a new student some steps further, each time it is called."""
        out = Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        run = Run(out, _build_student(STUDENT), Objective.parse(loss))
        learner = Learner(run, stream)
        batches = (batch for epoch in itertools.count() for batch in stream.epoch(epoch))

        def steps(number: int) -> None:
            for batch in itertools.islice(batches, count):
                learner.step(batch)

        return steps

    def train_epoch(self, stream: Stream, loss: str, students: Sequence[str] = (STUDENT,)) -> Round:
        """Return a function that trains new students for an epoch by `train`, each time it is called."""
        out = Path(tempfile.mkdtemp(dir=self.folder))

        def epoch(number: int) -> None:
            runs = [
                Run(
                    out / f"{number}-{name}",
                    _build_student(name),
                    Objective.parse(loss),
                    TrainConfig(epochs=1),
                )
                for name in students
            ]
            train(runs, stream)

        return epoch

    # Memory -------------------------------------------------------------------------------------------------

    def measure_peaks(self) -> Iterator[TrainingPeak]:
        """Measure the peak of an epoch of each loss: on CUDA the device's, else that of a process of its own."""
        if self.device.type == "cuda":
            peaks = {loss: _device_peak(self, loss) for loss in LOSSES}
        elif memory_is_known():
            peaks = {loss: peak_in_process(_train_once, (self, loss, 0)) for loss in LOSSES}
        else:
            return
        for loss, mb in peaks.items():
            yield TrainingPeak(loss, mb, mb / peaks["ce"], None if loss == "ce" else 1.05)

    def measure_spools(self) -> Iterator[SharedSpool]:
        """Measure the memory of processes that look up in one spool, where it is known."""
        if not memory_is_known():
            return
        cache = self.folder / "many.zarr"
        write_cache(cache, SPOOL_VIEWS, TOP_K)
        for count in SPOOL_PROCESSES:
            yield measure_shared_spool(count, cache, self.folder / "spool")


def _load_epoch(stream: Stream, epoch: int) -> int:
    """Load the batches of an epoch; return how many views they have."""
    return sum(len(batch.views) for batch in stream.epoch(epoch))


def _build_student(name: str) -> Model:
    return build_model(name, num_classes=CLASSES, view_size=64, weights="random")


def _train_once(bench: _Bench, loss: str, workers: int) -> None:
    bench.train_epoch(bench.open_stream(loss, workers), loss)(0)


def _device_peak(bench: _Bench, loss: str) -> float:
    torch.cuda.reset_peak_memory_stats(bench.device)
    _train_once(bench, loss, bench.workers)
    return torch.cuda.max_memory_allocated(bench.device) / 1e6


class _PlainViews(Dataset[tuple[Tensor, int]]):
    """Views as torchvision makes them for anybody, by the same transforms, random numbers unkeyed."""

    def __init__(self, images: Images, recipe: RecipeSpec) -> None:
        self.images, self.steps = images, ViewMaker(recipe).steps

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: int) -> tuple[Tensor, int]:
        view = self.images.image(sample)
        for step in self.steps:
            view = step(view)
        return view, int(self.images.labels[sample])
