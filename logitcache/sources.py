"""What stage one starts from, by the names that the command line takes: a few words that any process can open."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from logitcache.datasets import Images, open_images
from logitcache.loader import KeyedViews
from logitcache.models import Model, build
from logitcache.schema import RecipeSpec, Spec
from logitcache.views import recipe_named


class Opened(NamedTuple):
    """Images, the recipe of their views, and the teacher of these views."""

    images: Images
    recipe: RecipeSpec
    teacher: Model


@dataclass(frozen=True)
class Sources(Spec):
    """Teacher, weights, data and recipe by name.

    Attributes:
        teacher: as `models.build` takes it.
        weights: likewise.
        data: as `datasets.open_images` takes it.
        recipe: as `views.recipe_named` takes it, "auto": the one that fits the data; of the test split what that one
            evaluates by is taken.
        num_classes: of the teacher, where the images have no classes.
        split: "train" or "test".
        input_size: pixels a side that the teacher sees, as `models.build` takes it.
    """

    teacher: str
    weights: str = "auto"
    data: str = "digits"
    recipe: str = "auto"
    num_classes: int = 1000
    split: str = "train"
    input_size: int = 0

    def open(self, on_note: Callable[[str], None] | None = None) -> Opened:
        """Open them; raises what these three functions raise, and has notes on random weights and resized views."""
        images = open_images(self.data, self.split)
        recipe = recipe_named(images.recipe if self.recipe == "auto" else self.recipe)
        given = recipe
        if self.split == "test":
            recipe = recipe_named(recipe.evaluation)
        if on_note and recipe != given and self.recipe != "auto":
            on_note(f"test images are viewed by {recipe.name}, which {given.name} evaluates by")
        side = max(KeyedViews(images, recipe).any_view().shape[1:])
        classes = images.num_classes or self.num_classes
        teacher = build(
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
        if on_note and teacher.adapter.size != side:
            on_note(
                f"{teacher.name} sees views of {side} pixels resized to {teacher.adapter.size}; "
                "--input-size gives it another size"
            )
        return Opened(images, recipe, teacher)
