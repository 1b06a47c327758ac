"""Evaluate a trained student by the names of the command line; `evaluation` has the measures themselves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.errors import OptionError
from logitcache.format.identity import RecipeSpec
from logitcache.models.forward import ViewModel, choose_device, choose_precision
from logitcache.plugins import require_own
from logitcache.store import CacheReader
from logitcache.train.evaluation import Evaluation, EvaluationReport, evaluate
from logitcache.train.trained import TrainedStudent
from logitcache.views.datasets import choose_recipe, describe_transparency, open_images, open_recorded
from logitcache.views.images import Images
from logitcache.views.keyed_views import OnBadImage
from logitcache.views.recipes import evaluation_recipe, recipe_named, with_background


@dataclass(frozen=True)
class StudentEvaluation:
    """What a trained student is worth.

    Attributes:
        student: name of its architecture.
        weights: their file.
        num_classes: C.
        class_names: of the images, by class; empty where the data set names none.
        report: the measures.
    """

    student: str
    weights: str
    num_classes: int
    class_names: Sequence[str]
    report: EvaluationReport

    def to_dict(self) -> dict[str, Any]:
        """Return architecture, file and measures as JSON values."""
        return {"student": self.student, "weights": self.weights, **self.report.to_dict()}


@dataclass(frozen=True)
class EvaluationJob:
    """A trained student, and what to evaluate it on.

    Attributes:
        student: run folder, or a file of weights.
        weights: "best" or "last", of a run folder.
        architecture, num_classes: where the file does not say; without a number, the images' is taken.
        input_size: as `TrainedStudent.build_model` takes it.
        data: as `open_images` takes it; "auto": what the run was trained on. Its test split is seen.
        recipe: as `recipe_named` takes it; "auto": what the recipe of the training views evaluates by.
        background: as `recipes.with_background` takes it; None: as while training.
        teacher_cache: path or URL of a cache of the test split, to compare the student with its teacher.
        batch_size, workers, on_bad_image: as `Evaluation` takes them.
        precision, device: as `choose_precision` and `choose_device` take them.
    """

    student: Path
    weights: str = "best"
    architecture: str | None = None
    num_classes: int | None = None
    input_size: int = 0
    data: str = "auto"
    recipe: str = "auto"
    background: str | None = None
    teacher_cache: str | None = None
    batch_size: int = 256
    precision: str = "auto"
    device: str = "auto"
    workers: int = -1
    on_bad_image: OnBadImage = "error"

    def run(self, on_line: Callable[[str], None]) -> StudentEvaluation:
        """Open everything and evaluate.

        Args:
            on_line: called with a line that the user should know.

        Raises:
            OptionError: nobody says what to evaluate on, or how to build the student.
            LogitCacheError: whatever opening and `evaluate` raise.
        """
        trained = TrainedStudent.find(self.student, self.weights)
        images = self._open_images(trained)
        named = self.recipe if self.recipe != "auto" else None
        recipe = choose_evaluation_recipe(trained, images, named, self.background)
        advice = "--background white puts them on white"
        if (trained.recipe or trained.evaluation) and self.background is None:
            advice = "as while training"
        if note := describe_transparency(images, recipe, advice):
            on_line(f"note: {note}")
        device = choose_device(self.device)
        evaluation = Evaluation(
            images,
            recipe,
            CacheReader(self.teacher_cache) if self.teacher_cache else None,
            batch_size=self.batch_size,
            workers=self.workers,
            device=device,
            on_bad_image=self.on_bad_image,
        )
        if evaluation.images.note:  # of the listing that the teacher's cache is of
            on_line(f"note: {evaluation.images.note}")
        if newer := evaluation.describe_newer_images():
            on_line(f"note: {newer}")
        model = trained.build_model(
            self.architecture,
            self.num_classes
            or trained.num_classes
            or images.num_classes,  # `evaluate` says where they differ
            view_size=max(evaluation.views.any_view().shape[1:]),
            input_size=self.input_size,
        )
        network = ViewModel(model, choose_precision(self.precision, device)).on(device)
        report = evaluate(network, evaluation, model.num_classes)
        if self.data == "auto" and self.weights == "best" and self.student.is_dir():
            on_line(
                "note: these weights are of the epoch best on these images, which flatters; --weights last takes "
                "the last"
            )
        return StudentEvaluation(model.name, str(trained.file), model.num_classes, images.class_names, report)

    def _open_images(self, trained: TrainedStudent) -> Images:
        if self.data != "auto":
            return open_images(self.data, "test")
        if trained.data is None:
            raise OptionError(f"{self.student} does not say what to evaluate it on; name images with --data")
        return open_recorded(trained.data, "test", self.student)


def choose_evaluation_recipe(
    trained: TrainedStudent, images: Images, named: str | None = None, background: str | None = None
) -> RecipeSpec:
    """Choose how a student is shown images without randomness.

    Args:
        trained: the student.
        images: those.
        named: a recipe, as `recipe_named` takes it; None: what the recipe of its training views evaluates by.
        background: as `recipes.with_background` takes it; None: as while training.

    Raises:
        OptionError: the student names code that is not your own.
    """
    own = trained.recipe or trained.evaluation
    if own and named is None:
        require_own(trained.file, *own.code)
    if own is None:
        recipe = recipe_named(named) if named else evaluation_recipe(choose_recipe(images)[0])
    elif named is None and trained.recipe is None:
        recipe = own
    else:
        recipe = evaluation_recipe(own, named)
    return with_background(recipe, background)
