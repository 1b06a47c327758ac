"""Choose samples to train on by the names of the command line; `selection` has the ways themselves."""

import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from logitcache.errors import Difference, MismatchError, OptionError, StorageError
from logitcache.files import require_file, writing
from logitcache.format.spec import Spec
from logitcache.models.forward import ViewModel, choose_device, choose_precision
from logitcache.store import CacheReader
from logitcache.teacher.sample_scores import SampleScores, score_samples
from logitcache.train.evaluation_job import choose_evaluation_recipe
from logitcache.train.selection import (
    Kept,
    count_kept,
    keep_balanced,
    keep_best,
    keep_farthest,
    keep_robust,
    score_need,
)
from logitcache.train.trained import TrainedStudent
from logitcache.train.training_answers import iterate_answers
from logitcache.units import size
from logitcache.views.alignment import OnMissing, align_images, explain_how_to_show
from logitcache.views.datasets import SHIPPED, open_images, open_recorded
from logitcache.views.images import Images, MissingImagesWarning, name_class
from logitcache.views.keyed_views import KeyedViews

Way = Literal["confidence", "entropy", "agreement", "margin", "llkd", "coreset", "robust"]
OF_TEACHER = ("confidence", "entropy", "agreement", "margin")  # ways that ask no student
RANKED = (*OF_TEACHER, "llkd")  # ways that have two ends
MOST_DISTANCES = 1e13  # numbers that a coreset compares, from which it takes hours: said before

Numbers = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KeptOfClass(Spec):
    """How many samples of a class there are, and are kept."""

    name: str
    kept: int
    of: int


@dataclass(frozen=True)
class SelectionReport(Spec):
    """What was kept.

    Attributes:
        samples: the file that lists them.
        by, lowest, balanced: how they were chosen.
        seeds: whose answers were asked.
        kept, of: how many of how many samples that have a teacher.
        left_out: samples without a teacher, or whose image a student cannot be shown; none of them is kept.
        score_kept, score_left: mean of the score; None where nothing is left.
        labels: whether classes are those of labels; else those that the teacher says.
        mistakes: share of the teacher's answers that `robust` took for wrong.
        classes: by rising share that is kept, then by number.
    """

    samples: str
    by: Way
    lowest: bool
    balanced: bool
    seeds: tuple[int, ...]
    kept: int
    of: int
    left_out: int
    score_kept: float
    score_left: float | None
    labels: bool
    mistakes: float | None
    classes: tuple[KeptOfClass, ...]

    def lost(self) -> list[str]:
        """Name the classes of which no sample is kept."""
        return [one.name for one in self.classes if not one.kept]


class _Answers:
    """What a student says of the candidates; `points` of `coreset` alone, else what it is unsure by."""

    def __init__(self, n: int, classes: int, way: Way) -> None:
        self.way, self.seen = way, np.zeros(n, np.bool_)
        self.unsure = np.full(n, np.nan)
        self.points: npt.NDArray[np.float32] | None = None
        if way == "coreset":
            self.points = _map_temporary(n, classes)

    def add(self, samples: Any, probs: Any) -> None:
        rows, p = samples.numpy(), probs.double()
        self.seen[rows] = True
        if self.points is not None:
            self.points[rows] = probs.numpy()
        elif self.way == "llkd":
            self.unsure[rows] = -p.xlogy(p).sum(1).numpy()
        else:
            first, second = p.topk(2, dim=1).values.T
            self.unsure[rows] = (1 - (first - second)).numpy()


@dataclass(frozen=True)
class SelectionJob:
    """A cache, and how to choose among its samples.

    Attributes:
        cache: path or URL.
        by: the way; `llkd`, `coreset` and `robust` ask a student.
        keep: of up to 1 a share of the samples, above 1 their number.
        out: the .npy file to write.
        lowest: keep those of the lowest score.
        balanced: keep the same share of each class.
        student: run folder, or a file of weights that says what it holds.
        mistakes: share of the teacher's answers that `robust` takes for wrong; None: of the labelled samples those
            that it gets wrong, without labels what its confidence lacks.
        seeds: whose answers are asked; none: all complete ones.
        data: the cache's images, as `open_images` takes them; None: of a student those that the cache names.
        missing: as `align_images` takes it.
        batch_size, precision, device, workers: of the student.
    """

    cache: str
    by: Way
    keep: float
    out: Path
    lowest: bool = False
    balanced: bool = False
    student: Path | None = None
    mistakes: float | None = None
    seeds: tuple[int, ...] = ()
    data: str | None = None
    missing: OnMissing = "error"
    batch_size: int = 256
    precision: str = "auto"
    device: str = "auto"
    workers: int = -1

    def run(
        self,
        on_line: Callable[[str], None],
        on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    ) -> SelectionReport:
        """Choose, and write the list.

        Args:
            on_line: called with a line that the user should know.
            on_progress: called with (done, to do, of what).

        Raises:
            OptionError: options do not go together, or so many cannot be kept.
            LogitCacheError: what opening and reading raise.
        """
        self._check()
        reader = CacheReader(self.cache)
        student = self._find_student(reader)
        count_kept(self.keep, reader.spec.dataset.n)  # before all is read
        seeds = self._choose_seeds(reader)
        images = self._open_images(reader, on_line)
        _note_poor_reasons(reader, on_line)

        def report(what: str) -> Callable[[int, int], None]:
            return lambda done, total: on_progress(done, total, what)

        entropy = self.by == "entropy"
        teacher = score_samples(reader, seeds, entropy=entropy, on_progress=report("shards read"))
        usable = teacher.top >= 0
        answers = None
        if student is not None and images is not None:
            answers = self._ask(student, images, reader, report("images shown"))
            usable &= answers.seen
        elif images is not None:
            usable[images.missing] = False
        candidates = np.flatnonzero(usable)
        if not len(candidates):
            raise OptionError(f"no sample of {reader.path} can be kept: none has a teacher and an image")
        number = count_kept(self.keep, len(candidates))
        labels = np.full(len(usable), -1) if images is None else images.labels
        classes = np.where(labels >= 0, labels, teacher.top)
        mistakes = self._count_mistakes(teacher, labels, candidates) if self.by == "robust" else None
        way = self._way(teacher, answers, mistakes, report("samples chosen"))
        groups = len(np.unique(classes[candidates])) if self.balanced else 1
        looks = number * len(candidates) * reader.spec.dataset.num_classes / groups
        if self.by == "coreset" and looks > MOST_DISTANCES:
            less = "a smaller --keep looks less often"
            on_line(
                f"note: {number:,} of {len(candidates):,} samples are chosen one after another, each time all others "
                f"are looked at, which takes hours; {less if self.balanced else f'--balanced or {less}'}"
            )
        if self.balanced:
            kept = keep_balanced(number, classes[candidates], lambda of, m: way(candidates[of], m))
        else:
            kept = way(candidates, number)
        chosen = np.sort(candidates[kept.samples])
        with writing(self.out) as file, file.open("wb") as stream:
            np.save(stream, chosen)
        names = images.class_names if images is not None else ()
        is_kept = np.zeros(len(candidates), np.bool_)
        is_kept[kept.samples] = True
        return SelectionReport(
            samples=str(self.out),
            by=self.by,
            lowest=self.lowest,
            balanced=self.balanced,
            seeds=teacher.seeds,
            kept=len(chosen),
            of=len(candidates),
            left_out=len(usable) - len(candidates),
            score_kept=float(kept.score[is_kept].mean()),
            score_left=None if is_kept.all() else float(kept.score[~is_kept].mean()),
            labels=bool((labels >= 0).any()),
            mistakes=mistakes,
            classes=_count_classes(classes[candidates], is_kept, names),
        )

    def _check(self) -> None:
        require_file(self.out, "samples.npy")
        if self.out.suffix != ".npy":
            raise OptionError(
                f"a list of samples is an .npy file, found --out {self.out}; name one, such as samples.npy"
            )
        if self.by in OF_TEACHER and self.student:
            raise OptionError(
                f"{self.by} asks the teacher alone; leave out --student, or choose by llkd, coreset or robust"
            )
        if self.by not in OF_TEACHER and not self.student:
            raise OptionError(
                f"{self.by} asks a student what it knows already; name its run folder with --student"
            )
        if self.by not in RANKED and self.lowest:
            raise OptionError(f"{self.by} has no lowest end; leave out --lowest")
        if self.by != "robust" and self.mistakes is not None:
            raise OptionError(f"--mistakes is of --by robust, found {self.by}; leave it out")
        if self.mistakes is not None and not 0 <= self.mistakes <= 1:
            raise OptionError(f"--mistakes is a share from 0 to 1, found {self.mistakes:g}")

    def _choose_seeds(self, reader: CacheReader) -> list[int]:
        seeds = reader.choose_complete(self.seeds)
        if self.by == "agreement" and len(seeds) == 1:
            raise OptionError(
                f"agreement compares seeds, of which {reader.path} has one here, {seeds[0]}; dump more with "
                "`logitcache dump --seeds`, or choose by margin"
            )
        return seeds

    def _find_student(self, reader: CacheReader) -> TrainedStudent | None:
        if self.student is None:
            return None
        trained, classes = TrainedStudent.find(self.student), reader.spec.dataset.num_classes
        if trained.name is None:
            raise OptionError(f"{trained.file} does not say what it holds the weights of; name a run folder")
        if trained.num_classes not in (None, classes):
            raise MismatchError(
                f"{self.student} cannot answer for the samples of {reader.path}",
                [Difference("number of classes", classes, trained.num_classes)],
                "name a student of the cache's classes",
            )
        return trained

    def _open_images(self, reader: CacheReader, on_line: Callable[[str], None]) -> Images | None:
        """Open the cache's images: for labels those named or shipped, for a student what the cache names too."""
        spec = reader.spec.dataset
        if self.data is not None:
            images = open_images(self.data, spec.split)
        elif self.student:
            images = open_recorded(spec.name, spec.split, reader.path)
        elif spec.name in SHIPPED:
            images = open_images(spec.name, spec.split)
        else:
            on_line(f"note: classes are those that the teacher says: {explain_how_to_show(reader)}")
            return None
        with warnings.catch_warnings(action="ignore", category=MissingImagesWarning):
            images = align_images(reader, images, missing=self.missing)
        if images.missing_note:
            on_line(f"warning: {images.missing_note}")
        return images

    def _ask(
        self,
        trained: TrainedStudent,
        images: Images,
        reader: CacheReader,
        on_progress: Callable[[int, int], None],
    ) -> _Answers:
        """Show a student every image once."""
        recipe, device = choose_evaluation_recipe(trained, images), choose_device(self.device)
        views, classes = KeyedViews(images, recipe, "skip"), reader.spec.dataset.num_classes
        built = trained.build_model(num_classes=classes, view_size=max(views.any_view().shape[1:]))
        model = ViewModel(built, choose_precision(self.precision, device)).on(device)
        answers = _Answers(len(images), classes, self.by)
        for samples, probs in iterate_answers(
            model,
            views,
            device=device,
            batch_size=self.batch_size,
            workers=self.workers,
            on_progress=on_progress,
        ):
            answers.add(samples, probs)
        return answers

    def _count_mistakes(self, teacher: SampleScores, labels: Numbers, candidates: Numbers) -> float:
        if self.mistakes is not None:
            return self.mistakes
        labelled = candidates[labels[candidates] >= 0]
        if len(labelled):
            return float((teacher.top[labelled] != labels[labelled]).mean())
        return float(1 - teacher.confidence[candidates].mean())

    def _way(
        self,
        teacher: SampleScores,
        answers: _Answers | None,
        mistakes: float | None,
        on_progress: Callable[[int, int], None],
    ) -> Callable[[Numbers, int], Kept]:
        """Return what keeps so many of some samples."""
        if answers is None:
            score: Scores = getattr(teacher, self.by)
            return lambda samples, number: keep_best(score[samples], number, lowest=self.lowest)
        if self.by == "llkd":
            return lambda samples, number: keep_best(
                score_need(teacher.confidence[samples], answers.unsure[samples]), number, lowest=self.lowest
            )
        if mistakes is not None:
            return lambda samples, number: keep_robust(answers.unsure[samples], number, mistakes)
        points = answers.points
        assert points is not None
        return lambda samples, number: keep_farthest(
            points if len(samples) == len(points) else points[samples], number, on_progress
        )


def _note_poor_reasons(reader: CacheReader, on_line: Callable[[str], None]) -> None:
    """Say what makes a teacher's answers poor reasons to choose by."""
    if reader.spec.teacher.weights.startswith("random"):
        on_line(
            f"note: the teacher of {reader.path} has random weights: what it says is no reason to keep a sample"
        )
    if reader.spec.recipe.mix_steps:
        on_line(
            "note: views are mixed of two images, so what the teacher says of a sample is of its partners too"
        )


def _map_temporary(rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Map (rows, columns) float32 of a file without a name, whose room on the disk is taken at once.

    Raises:
        StorageError: there is not so much.
    """
    needed = 4 * rows * columns
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # else a full disk would end the process later, by a signal
                os.posix_fallocate(file.fileno(), 0, needed)
            return np.memmap(file, np.float32, "w+", shape=(rows, columns))
    except OSError as error:
        raise StorageError(
            f"cannot keep the student's answers, {size(needed)}, in {tempfile.gettempdir()}: "
            f"{error.strerror or error}; name a folder of a larger disk in $TMPDIR"
        ) from error


def _count_classes(classes: Numbers, is_kept: npt.NDArray[np.bool_], names: Any) -> tuple[KeptOfClass, ...]:
    there = np.bincount(classes)
    kept = np.bincount(classes[is_kept], minlength=len(there))
    found = [(name_class(names, c), int(kept[c]), int(there[c])) for c in np.flatnonzero(there).tolist()]
    return tuple(KeptOfClass(*one) for one in sorted(found, key=lambda one: one[1] / one[2]))
