"""What distilling from a cache adds to plain training, and what it saves of training with the teacher live.

Every way trains the same student on the same JPEG files through a loader of its own, as `train` steps it: views,
the teacher's answers, forward, backward, update.
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

from logitcache.bench.compare import Comparison, clock_of, in_turns
from logitcache.bench.dump import CLASSES, TOP_K, idle_teacher, pictures_in
from logitcache.bench.fixtures import write_cache
from logitcache.bench.memory import Shared, held, shared_by, told
from logitcache.dump.job import DumpConfig, dump
from logitcache.format.identity import RecipeSpec
from logitcache.format.spec import Spec
from logitcache.losses import Objective
from logitcache.models.build import Model, build
from logitcache.models.forward import ViewModel, choose_precision
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.train.config import TrainConfig
from logitcache.train.learner import Learner, Run
from logitcache.train.loop import train
from logitcache.views.datasets import Images
from logitcache.views.loader import choose_workers
from logitcache.views.maker import ViewMaker
from logitcache.views.recipes import recipe_named

STUDENT = "resnet18"
PROCESSES = (1, 4, 8)
SPOOLED = 131_072  # views of the spool that they share
WAYS = ("ce", "kd", "cmkd")
VIEWS = 4  # of an image in one batch
STEADY = 8  # rounds of training by each loss, for one of slower things

Round = Callable[[int], object]


@dataclass(frozen=True)
class TrainReport(Spec):
    """What was measured: times; peak memory of training, in MB; memory of processes that share a spool."""

    times: tuple[Comparison, ...]
    peaks: tuple["Peak", ...]
    shared: tuple[Shared, ...]


@dataclass(frozen=True)
class Peak(Spec):
    """Peak memory in MB of training by a loss: of the device on CUDA, else what only the process itself can use."""

    loss: str
    mb: float
    ratio: float
    wanted: float | None

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        wanted = "" if self.wanted is None else f"≤ {self.wanted:g}"
        return {
            "student by": self.loss,
            "peak MB": f"{self.mb:.0f}",
            "ratio": f"{self.ratio:.2f}",
            "wanted": wanted,
        }


def measure(
    *, pictures: int = 256, rounds: int = 4, batch: int = 64, workers: int = -1, device: torch.device
) -> TrainReport:
    """Time training from labels, from a cache and with the teacher live, in turns; then measure memory.

    The student is ResNet-18 of 1,000 classes, k = 16; at 64 pixels with ResNet-50 as the live teacher on the CPU, at
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
        bench = _Bench.made(Path(name), pictures, batch, workers, device)
        suites = (bench.losses, bench.loaders, bench.several_views, bench.side_by_side)
        times = [row for suite in suites for row in suite(rounds)]
        return TrainReport(tuple(times), tuple(bench.peaks()), tuple(bench.shared()))


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
    def made(cls, folder: Path, pictures: int, batch: int, workers: int, device: torch.device) -> "_Bench":
        recipe = recipe_named("imagenet@224" if device.type == "cuda" else "imagenet@64")
        images = pictures_in(folder / "pictures", pictures)
        config = DumpConfig(seeds=(0,), top_k=TOP_K, workers=workers, device="cpu", precision="float32")
        dump(
            folder / "cache.zarr",
            images,
            recipe,
            idle_teacher(_student(STUDENT)),
            config,
        )
        return cls(folder, images, recipe, batch, workers, device)

    # Times --------------------------------------------------------------------------------------------------

    def losses(self, rounds: int) -> Iterator[Comparison]:
        """Training by each loss, and with the teacher live."""
        clock, on_cpu = clock_of(self.device), self.device.type == "cpu"
        workers = 0 if on_cpu else self.workers
        views = min(self.batch, len(self.images)) if on_cpu else len(self.images)

        def way(loss: str, by: str) -> Round:
            stream = self.stream(loss, workers)
            return self.steps_of(stream, by, 1 if on_cpu else stream.steps(0))

        ways = {loss: way(loss, loss) for loss in WAYS}
        times = in_turns(ways, STEADY * rounds, clock)
        for loss in WAYS[1:]:
            of = {"stage two": f"{loss}, cached"}
            yield Comparison.between(of, "ce, labels", times[loss], times["ce"], 1.03, views)
        times = in_turns({"kd": ways["kd"], "live": way("live", "kd")}, rounds, clock)
        live = f"{self._teacher} live"
        yield Comparison.between({"stage two": "kd, cached"}, live, times["kd"], times["live"], None, views)

    def loaders(self, rounds: int) -> Iterator[Comparison]:
        """Batches with the teacher's answers, against those of a plain loader of the same transforms."""
        stream = self.stream("kd", self.workers)
        workers = choose_workers(self.workers, self.images, self.device)
        plain = DataLoader(
            _Plain(self.images, self.recipe),
            self.batch,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        ways: dict[str, Round] = {
            "stream": lambda number: _views_in(stream, number),
            "plain": lambda _: sum(len(views.to(self.device)) for views, _ in plain),
        }
        times = in_turns(ways, 2 * rounds, clock_of(self.device))
        of = {"stage two": "its loader"}
        yield Comparison.between(of, "DataLoader", times["stream"], times["plain"], 1.03, len(self.images))

    def several_views(self, rounds: int) -> Iterator[Comparison]:
        """Batches that show an image under several seeds, decoded once, against as many passes over the images."""
        seeds = tuple(range(VIEWS))
        options = {
            "seeds": seeds,
            "batch_size": self.batch,
            "workers": self.workers,
            "device": str(self.device),
        }
        together = Stream.plain(self.images, self.recipe, views_per_image=VIEWS, **options)
        apart = Stream.plain(self.images, self.recipe, **options)
        ways: dict[str, Round] = {
            "together": lambda number: _views_in(together, number),
            "apart": lambda number: sum(_views_in(apart, VIEWS * number + seed) for seed in seeds),
        }
        times = in_turns(ways, rounds, clock_of(self.device))
        of, views = {"stage two": f"{VIEWS} views an image"}, VIEWS * len(self.images)
        yield Comparison.between(of, f"{VIEWS} passes", times["together"], times["apart"], None, views)

    def side_by_side(self, rounds: int) -> Iterator[Comparison]:
        """Two students in one pass over the data, against one after the other."""
        stream, names = self.stream("kd", self.workers), (STUDENT, "mobilenet_v3_small")
        both, one, other = (self.epoch_of(stream, "kd", some) for some in (names, names[:1], names[1:]))

        def apart(number: int) -> None:
            one(number)
            other(number)

        times = in_turns({"both": both, "apart": apart}, rounds, clock_of(self.device))
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

    def stream(self, loss: str, workers: int) -> Stream:
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
        if loss == "live":
            teacher = build(self._teacher, num_classes=CLASSES, view_size=224, weights="random")
            model = ViewModel(teacher, choose_precision("auto", self.device)).on(self.device)
            live = LiveTeacher(model, len(self.images), TOP_K, CLASSES)
            return Stream(stream.views, live, stream.config)
        return stream

    def steps_of(self, stream: Stream, loss: str, count: int) -> Round:
        """Return what takes a new student some steps further, each time it is called."""
        run = Run(Path(tempfile.mkdtemp(dir=self.folder)) / "run", _student(STUDENT), Objective.parse(loss))
        learner = Learner(run, stream)
        batches = (batch for epoch in itertools.count() for batch in stream.epoch(epoch))

        def steps(number: int) -> None:
            for batch in itertools.islice(batches, count):
                learner.step(batch)

        return steps

    def epoch_of(self, stream: Stream, loss: str, students: Sequence[str] = (STUDENT,)) -> Round:
        """Return what trains an epoch of new students by `train`, each time it is called."""
        out = Path(tempfile.mkdtemp(dir=self.folder))

        def epoch(number: int) -> None:
            runs = [
                Run(out / f"{number}-{name}", _student(name), Objective.parse(loss), TrainConfig(epochs=1))
                for name in students
            ]
            train(runs, stream)

        return epoch

    # Memory -------------------------------------------------------------------------------------------------

    def peaks(self) -> Iterator[Peak]:
        """Peak memory of an epoch of each loss: on CUDA the device's, else that of a process of its own."""
        if self.device.type == "cuda":
            found = {loss: _on_device(self, loss) for loss in WAYS}
        elif told():
            found = {loss: held(_train_once, (self, loss, 0)) for loss in WAYS}
        else:
            return
        for loss, mb in found.items():
            yield Peak(loss, mb, mb / found["ce"], None if loss == "ce" else 1.05)

    def shared(self) -> Iterator[Shared]:
        """Memory of processes that look up in one spool, where the system tells."""
        if not told():
            return
        cache = self.folder / "many.zarr"
        write_cache(cache, SPOOLED, TOP_K)
        for count in PROCESSES:
            yield shared_by(count, cache, self.folder / "spool")


def _views_in(stream: Stream, epoch: int) -> int:
    return sum(len(batch.views) for batch in stream.epoch(epoch))


def _student(name: str) -> Model:
    return build(name, num_classes=CLASSES, view_size=64, weights="random")


def _train_once(bench: _Bench, loss: str, workers: int) -> None:
    bench.epoch_of(bench.stream(loss, workers), loss)(0)


def _on_device(bench: _Bench, loss: str) -> float:
    torch.cuda.reset_peak_memory_stats(bench.device)
    _train_once(bench, loss, bench.workers)
    return torch.cuda.max_memory_allocated(bench.device) / 1e6


class _Plain(Dataset[tuple[Tensor, int]]):
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
