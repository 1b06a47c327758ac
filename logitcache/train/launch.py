"""Stage two by the names of the command line, on one process or on all that torchrun started."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn.modules.batchnorm import _BatchNorm

from logitcache.distributed import World
from logitcache.errors import DataError, LogitCacheError, NotFoundError, OptionError, StudentsError
from logitcache.models.build import NEW_HEAD, Model, build
from logitcache.models.catalog import require_known
from logitcache.models.export import export, format_named
from logitcache.store import CacheReader
from logitcache.stream.sampler import SeedOrder
from logitcache.stream.stream import Stream
from logitcache.teacher.sparse import MixSpace
from logitcache.teacher.spool import DEFAULT_LIMIT
from logitcache.train.evaluation import Evaluation
from logitcache.train.learner import Run
from logitcache.train.loop import TrainReport, train
from logitcache.train.run_folder import claimed_folders
from logitcache.train.trained import Trained
from logitcache.train.variants import Lesson
from logitcache.views.datasets import open_images
from logitcache.views.recipes import recipe_named

FRESH = 10_000  # epochs without a cache whose views are new; then they come again

Say = Callable[[str], None]
Student = tuple[Model, Lesson]
LONGEST = 100  # name of a folder
UNLEARNT = 2e-2  # share of first values in running statistics above which evaluation suffers


@dataclass(frozen=True)
class Supply:
    """Where batches come from.

    Attributes:
        caches: paths or URLs; several are an ensemble, none trains from labels alone.
        mix_weights, mix_space: `weights` and `space` of an ensemble, as `Stream.from_caches` takes them.
        data: of `open_images`; "auto" are the cache's, or the digits.
        recipe: of `recipe_named`, without a cache; "auto" is the data's own.
        seeds: augmentation seeds; none are all that the cache has complete, or one per epoch, up to 10,000.
        samples: file of the samples to train on, numbers in text or an .npy array; None: all.
        batch_size: pairs per batch, of all ranks together.
        seed_order, views_per_image, fraction, order, device, workers: of `StreamConfig`.
        allow_drift, spool_folder, spool_limit: of `Stream.from_cache`.
    """

    caches: tuple[str | Path, ...]
    data: str = "auto"
    recipe: str = "auto"
    mix_weights: tuple[float, ...] = ()
    mix_space: MixSpace = "probability"
    seeds: tuple[int, ...] = ()
    seed_order: SeedOrder = "mod"
    views_per_image: int = 1
    fraction: float = 1.0
    samples: Path | None = None
    batch_size: int = 64
    order: int = 0
    device: str = "auto"
    workers: int = -1
    allow_drift: bool = False
    spool_folder: Path | None = None
    spool_limit: int = DEFAULT_LIMIT

    def stream(self, epochs: int, world: World, say: Say) -> Stream:
        """Open a rank's part of the stream, of which so many epochs will be wanted; say what the user should know.

        Raises:
            OptionError: batches cannot be dealt to so many ranks, or a recipe is named where the cache has one.
            LogitCacheError: see `Stream.from_cache`, `Stream.from_caches` and `open_images`.
        """
        if self.batch_size % world.size:
            raise OptionError(
                f"batches of {self.batch_size} cannot be dealt evenly to {world.size} ranks; choose a --batch-size "
                f"such as {max(1, self.batch_size // world.size) * world.size}"
            )
        options: dict[str, Any] = {
            "batch_size": self.batch_size // world.size,
            "seed_order": self.seed_order,
            "views_per_image": self.views_per_image,
            "fraction": self.fraction,
            "samples": None if self.samples is None else _numbers(self.samples),
            "order": self.order,
            "device": world.choose_device(self.device),
            "workers": self.workers,
            "rank": world.rank,
            "world_size": world.size,
        }
        if not self.caches:
            images = open_images(self.data if self.data != "auto" else "digits")
            made_by = recipe_named(self.recipe if self.recipe != "auto" else images.recipe)
            return Stream.plain(
                images,
                made_by,
                seeds=self.seeds or tuple(range(min(epochs, FRESH) * self.views_per_image)),
                **options,
            )
        if self.recipe != "auto":
            raise OptionError(
                f"the views of {self.caches[0]} are made by its own recipe, found --recipe {self.recipe}; leave it "
                "out, or `logitcache dump` another cache with it"
            )
        named = open_images(self.data) if self.data != "auto" else None
        options |= {
            "allow_drift": self.allow_drift,
            "spool_folder": self.spool_folder,
            "spool_limit": self.spool_limit,
            "seeds": self.seeds,
        }
        if len(self.caches) == 1 and not self.mix_weights:
            stream = Stream.from_cache(self.caches[0], named, **options)
        else:
            weights = self.mix_weights or None
            stream = Stream.from_caches(self.caches, named, weights=weights, space=self.mix_space, **options)
        if stream.drift:
            say(f"warning: --allow-drift: {stream.drift}; the run's config.json records it")
        if more := stream.views.images.left_out:
            say(
                f"note: {more:,} images came after the cache and are left out; `logitcache dump --grow` adds them"
            )
        return stream


@dataclass(frozen=True)
class Study:
    """Students, what they are taught, and with what.

    Attributes:
        students: names, as `build` takes them; each is built once for every lesson.
        lessons: their seeds draw the first weights.
        supply: where batches come from.
        out: run folder, a folder of run folders where there are several; None: runs/STUDENT-LESSON-N.
        weights, input_size: as `build` takes them.
        teacher_cache: path or URL of a cache of the test split, to compare the students with their teacher.
        exports: formats, as `export` takes them, to write the best weights in besides, into the run folders.
    """

    students: tuple[str, ...]
    lessons: tuple[Lesson, ...]
    supply: Supply
    out: Path | None = None
    weights: str = "random"
    teacher_cache: str | None = None
    exports: tuple[str, ...] = ()
    input_size: int = 0

    def conduct(self, world: World, say: Say, **options: Any) -> list[TrainReport]:
        """Open everything and train, with all ranks of the world.

        Rank 0 opens everything first, so that what is downloaded is downloaded once.

        Args:
            world: this process among the others.
            say: called by rank 0 with lines that the user should know.
            **options: as `train` takes them.

        Raises:
            LogitCacheError: whatever opening and `train` raise.
            StudentsError: some students failed, or could not be exported.
        """
        with world.process_group(), ExitStack() as stack:
            if world.rank == 0:
                try:
                    for format in self.exports:  # before hours of training
                        format_named(format)
                    if options.get("resume") and self.out is None:
                        raise OptionError("--resume goes on with a run; name its folder with --out")
                    stream, students = self._open(world, say)
                    evaluation = self._evaluation(stream, say)
                    folders = stack.enter_context(self._folders(students))
                except BaseException:
                    world.all_gather(None)  # the others need not say so too
                    raise
                world.all_gather([str(folder) for folder in folders])
                return self._trained(_runs(students, folders), stream, evaluation, **options)
            named = world.all_gather(None)[0]
            if named is None:
                return []
            stream, students = self._open(world, lambda line: None)
            runs = _runs(students, map(Path, named))
            return train(runs, stream, self._evaluation(stream, lambda line: None), **options)

    def _trained(self, runs: list[Run], stream: Stream, *others: Any, **options: Any) -> list[TrainReport]:
        """Train, then export who came to the end."""
        errors: dict[str, LogitCacheError] = {}
        try:
            reports = train(runs, stream, *others, **options)
        except StudentsError as error:
            errors, reports = error.errors, error.reports
        how = "ended early"
        for number, report in enumerate(reports):
            try:
                if self.exports:
                    reports[number] = replace(report, exported=_export(report.out, self.exports))
            except LogitCacheError as error:
                errors[report.out] = error.said_by(report.out)
                how = "ended early, or were not exported"
        if errors:
            raise StudentsError(errors, reports, len(runs), how)
        return reports

    def _open(self, world: World, say: Say) -> tuple[Stream, list[Student]]:
        for name in self.students:  # before all that takes longer
            require_known(name)
        stream = self.supply.stream(max(lesson.config.epochs for lesson in self.lessons), world, say)
        size = max(stream.views.any_view().shape[1:])
        students = []
        for name in self.students:
            for lesson in self.lessons:
                model = build(
                    name,
                    num_classes=stream.num_classes,
                    view_size=size,
                    weights=self.weights,
                    seed=lesson.config.seed,
                    input_size=self.input_size,
                    new_head=True,
                )
                for note in _notes(model, lesson.config.epochs * stream.steps(0), size):
                    say(f"note: {note}")
                students.append((model, lesson))
        return stream, students

    def _folders(self, students: Sequence[Student]) -> AbstractContextManager[list[Path]]:
        labels = [_label(model, lesson) for model, lesson in students]
        if doubled := [label for label in labels if labels.count(label) > 1]:
            raise OptionError(f"{doubled[0]} would be trained twice; name each --student and --variant once")
        if self.out is None:
            return claimed_folders(Path("runs"), labels)
        return nullcontext([self.out / label for label in labels] if len(labels) > 1 else [self.out])

    def _evaluation(self, stream: Stream, say: Say) -> Evaluation | None:
        teacher = CacheReader(self.teacher_cache) if self.teacher_cache else None
        try:
            return Evaluation.beside(stream, teacher)
        except (DataError, NotFoundError) as error:
            say(f"note: training without evaluation: {error}")
            return None


def _notes(model: Model, steps: int, side: int) -> Iterator[str]:
    """Say what a user may not expect of a student that will be trained for so many steps on views of that side."""
    if model.weights.endswith(NEW_HEAD):
        body = model.weights.removesuffix(NEW_HEAD)
        yield f"{model.name} begins with {body}, and a new head for {model.num_classes} classes"
    if model.adapter.size != side:
        yield (
            f"{model.name} sees views of {side} pixels resized to {model.adapter.size}; "
            "--input-size gives it another size"
        )
    norms = (m for m in model.module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats)
    slowest = min((m.momentum for m in norms if m.momentum is not None), default=1.0)
    if (1 - slowest) ** steps > UNLEARNT:
        yield (
            f"{model.name}'s batch norm forgets one part in {1 / slowest:.0f} a step, so that after {steps} steps "
            "its statistics, by which it is evaluated, still hold much of their first values: train for more steps, "
            "by more --epochs or a smaller --batch-size"
        )


def _runs(students: Sequence[Student], folders: Iterable[Path]) -> list[Run]:
    pairs = zip(students, folders, strict=True)
    return [Run(folder, model, lesson.objective, lesson.config) for (model, lesson), folder in pairs]


def _label(model: Model, lesson: Lesson) -> str:
    """Name a student's folder; of a long name the beginning, and a digest so that it is no other's."""
    label = f"{model.name}-{lesson.name}".replace("/", "_").replace(":", "_")
    if len(label) <= LONGEST:
        return label
    return f"{label[: LONGEST - 9]}-{hashlib.blake2b(label.encode(), digest_size=4).hexdigest()}"


def _export(out: str, formats: Iterable[str]) -> tuple[str, ...]:
    trained = Trained.find(out)
    model, files = trained.model(), {format: trained.file.with_suffix(f".{format}") for format in formats}
    return tuple(export(model, file, format_named(format)).path for format, file in files.items())


def _numbers(file: Path) -> tuple[int, ...]:
    """Read a list of samples."""
    try:
        if file.suffix != ".npy":
            return tuple(map(int, file.read_text().split()))
        found = np.lib.format.read_array(BytesIO(file.read_bytes()), allow_pickle=False)
        if not np.issubdtype(found.dtype, np.integer):
            raise ValueError(f"{found.dtype} are no samples")
    except OSError as error:
        raise NotFoundError(f"cannot read the list of samples {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise OptionError(f"{file} is no list of samples: expected whole numbers, in text or .npy") from error
    return tuple(found.ravel().tolist())
