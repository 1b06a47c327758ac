"""What a dump starts from: teacher, data and recipe by the names of the command line, which any process can open."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from logitcache.errors import OptionError
from logitcache.format.identity import RecipeSpec, TeacherSpec
from logitcache.models.build import Model, build_model
from logitcache.models.catalog import canonical_name
from logitcache.models.weights import read_header
from logitcache.paths import expand_home
from logitcache.plugins import require_own
from logitcache.store import CacheReader
from logitcache.views.datasets import choose_recipe, choose_shipped, describe_transparency, open_images
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.recipes import NO_BACKGROUND, evaluation_recipe, recipe_named, with_background

FROM_WEIGHTS = "the teacher's weights were trained on such"
IMAGENET_CLASSES = 1000  # of a teacher, where neither images nor user say


class OpenedInputs(NamedTuple):
    """Images, the recipe of their views, and the teacher of these views."""

    images: Images
    recipe: RecipeSpec
    teacher: Model


@dataclass(frozen=True)
class DumpInputs:
    """Teacher, weights, data and recipe by name; all but the teacher may be left open.

    Attributes:
        teacher: as `models.build.build_model` takes it.
        weights: likewise; "auto" leaves it open.
        data: as `datasets.open_images` takes it; "auto": digits or letters, as the teacher is named.
        recipe: as `views.recipe_named` takes it, "auto": the one that fits the data; of the test split what that one
            evaluates by is taken. Or that of a cache, as it is.
        background: colour that transparent pictures are put on, as `recipes.with_background` takes it; None: as the
            recipe says, or else the teacher's weights, of that on which they were trained.
        num_classes: of the teacher, where the images have no classes; None: 1,000.
        split: "train" or "test"; None: train.
        input_size: pixels a side that the teacher sees, as `models.build.build_model` takes it; 0 leaves it open.
    """

    teacher: str
    weights: str = "auto"
    data: str = "auto"
    recipe: str | RecipeSpec = "auto"
    background: str | None = None
    num_classes: int | None = None
    split: str | None = None
    input_size: int = 0

    def with_defaults_of(self, cache: CacheReader) -> Self:
        """Return these inputs; those left open are as in a cache, of which another teacher takes the views alone.

        Raises:
            OptionError: the cache names code that is not your own, or a file of weights, which must be given.
        """
        spec, auto = cache.spec, "auto"
        require_own(cache.path, *(spec.recipe.code if self.recipe == auto else ()))
        require_own(cache.path, *((spec.dataset.name,) if self.data == auto else ()))
        background = self.background
        if isinstance(self.recipe, str) and self.recipe != auto and background is None:
            background = recipe_named(self.recipe).background or spec.recipe.background or NO_BACKGROUND
        views = replace(
            self,
            background=background,
            data=spec.dataset.name if self.data == auto else self.data,
            recipe=spec.recipe if self.recipe == auto else self.recipe,
            num_classes=self.num_classes or spec.dataset.num_classes,
            split=self.split or spec.dataset.split,
        )
        if canonical_name(self.teacher) != spec.teacher.name:
            return views
        weights = recorded_weights(spec.teacher) if self.weights == auto else self.weights
        return replace(views, weights=weights, input_size=self.input_size or spec.teacher.adapter.size)

    def open(self, on_note: Callable[[str], None] | None = None) -> OpenedInputs:
        """Open images, recipe and teacher; notes tell of views, transparent pictures and random weights.

        Raises:
            LogitCacheError: as `open_images`, `recipe_named` and `build_model` do.
        """
        data = choose_shipped([self.teacher]) if self.data == "auto" else self.data
        images = open_images(data, self.split or "train")
        recipe, reason = self._choose_recipe(images, on_note)
        side = max(KeyedViews(images, recipe).any_view().shape[1:])
        classes = images.num_classes or self.num_classes or IMAGENET_CLASSES
        teacher = build_model(
            self.teacher,
            num_classes=classes,
            view_size=side,
            weights=self.weights,
            input_size=self.input_size,
        )
        if on_note and teacher.weights.startswith("random"):
            on_note(
                f"{teacher.name} has random weights ({teacher.weights}): fine to try things, not to learn from"
            )
        if on_note and reason:
            learnt = teacher.weights.startswith("file:") and reason != FROM_WEIGHTS
            others = f"those that {teacher.name} was trained on" if learnt else "others"
            on_note(
                f"views are {recipe.name}'s, {side} pixels a side, as {reason}; --recipe NAME@SIZE makes {others}"
            )
        if on_note and (note := teacher.describe_resizing(side, self.input_size)):
            on_note(note)
        return OpenedInputs(images, recipe, teacher)

    def _choose_recipe(self, images: Images, on_note: Callable[[str], None] | None) -> tuple[RecipeSpec, str]:
        """Return the recipe, and why it is that one where it was chosen by the pictures."""
        reason, recorded = "", isinstance(self.recipe, RecipeSpec)
        if self.recipe == "auto":
            recipe, reason = choose_recipe(images, self.background)
            trained_on = self._find_training_recipe(images)
            if trained_on is not None and trained_on != recipe:
                recipe, reason = trained_on, FROM_WEIGHTS
        elif isinstance(self.recipe, RecipeSpec):
            recipe = with_background(self.recipe, self.background)
        else:
            recipe = with_background(recipe_named(self.recipe), self.background)
            training = self._read_training_recipe(images)
            if training and training.background and not recipe.background and self.background is None:
                recipe = with_background(recipe, training.background)
                if on_note:
                    on_note(
                        f"views are on {training.background}, as {FROM_WEIGHTS}; --background {NO_BACKGROUND} "
                        "leaves it out"
                    )
        if self.split == "test" and not recorded:
            of_training, recipe = recipe, evaluation_recipe(recipe)
            if on_note and recipe != of_training and self.recipe != "auto":
                on_note(f"test images are viewed by {recipe.name}, which {of_training.name} evaluates by")
        advice = "--background white puts them on white" + (
            ", in a cache of another --out" if recorded else ""
        )
        if on_note and (note := describe_transparency(images, recipe, advice)):
            on_note(note)
        return recipe, reason

    def _find_training_recipe(self, images: Images) -> RecipeSpec | None:
        """Return the recipe that a file of weights was trained on, on another background where one is given.

        One that names code is not taken at the word of a file.

        Raises:
            WeightsError: the file is damaged.
        """
        training = self._read_training_recipe(images)
        return with_background(training, self.background) if training and not training.code else None

    def _read_training_recipe(self, images: Images) -> RecipeSpec | None:
        """Return what a file of weights says that it was trained on, where that is of such classes.

        Raises:
            WeightsError: the file is damaged.
        """
        file = expand_home(self.weights)
        header = read_header(file) if file.is_file() else None
        if header is None:
            return None
        same = header.num_classes == images.num_classes and header.class_names == tuple(images.class_names)
        return header.training if same else None


def recorded_weights(teacher: TeacherSpec) -> str:
    """Return the weights that a cache names, as `build_model` takes them.

    Raises:
        OptionError: they came from a file, which has to be named.
    """
    kind, _, name = teacher.weights.partition(":")
    if kind == "file":
        raise OptionError(
            f"the teacher's weights came from the file {name}; name it with --weights, "
            f"its SHA-256 over tensors must be {teacher.weights_sha256[:12]}…"
        )
    return kind
