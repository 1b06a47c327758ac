"""What the contests learn: images, their views, networks; which training images are held out to tune on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from logitcache.bench.emoji import EMOJI_RECIPE, load_emoji
from logitcache.bench.glyphs import rare_glyphs
from logitcache.format.identity import RecipeSpec
from logitcache.views.datasets import ArrayImages, load_digits, load_letters
from logitcache.views.keys import permutation
from logitcache.views.recipes import recipe_named


def split_images(images: ArrayImages) -> tuple[ArrayImages, ArrayImages]:
    """Split images, by a keyed choice, into four fifths to train on and one fifth to validate on."""
    order = permutation(len(images), 2024)
    fit, held_out = (np.sort(rows) for rows in np.split(order, [len(images) * 4 // 5]))
    return _choose(images, fit), _choose(images, held_out)


def split_vendors(images: ArrayImages) -> tuple[ArrayImages, ArrayImages]:
    """Split emoji into those of all vendors but the last, to train on, and the last's, to validate on."""
    last = np.arange(len(images)) >= len(images) - (images.num_classes or 0)
    fit, held_out = np.flatnonzero(~last), np.flatnonzero(last)
    return _choose(images, fit), _choose(images, held_out)


@dataclass(frozen=True)
class Task:
    """What is learnt: images, how they are viewed, names of teacher and student; how training images are held out."""

    train: ArrayImages
    test: ArrayImages
    recipe: RecipeSpec
    teacher: str
    student: str
    split: Callable[[ArrayImages], tuple[ArrayImages, ArrayImages]] = split_images


def digits_task() -> Task:
    """Return the digits that ship, and a student of 868 parameters."""
    train, test = load_digits("train"), load_digits("test")
    return Task(train, test, recipe_named(train.recipe), "digits_teacher", "digits_tiny")


def letters_task() -> Task:
    """Return the letters that ship, for the digits' networks: they see them at 8 x 8 pixels, which is hard."""
    train, test = load_letters("train"), load_letters("test")
    return Task(train, test, recipe_named(train.recipe), "digits_teacher", "digits_small")


def demo_task() -> Task:
    """Return the letters that ship, for networks that see all of their pixels."""
    return replace(letters_task(), teacher="letters_teacher", student="letters_small")


def demo_large_task() -> Task:
    """Return the same with a teacher twice as wide."""
    return replace(demo_task(), teacher="letters_large")


def letters_large_task() -> Task:
    """Return the letters for the digits' networks, with a teacher twice as wide."""
    return replace(letters_task(), teacher="digits_large")


def rare_letters_task() -> Task:
    """Return 151 other letters, a convolutional teacher of another kind, and the same student."""
    train, test = rare_glyphs("train"), rare_glyphs("test")
    return Task(train, test, recipe_named(train.recipe), "resnet8", "digits_small")


def emoji_task() -> Task:
    """Return 256 emoji as three vendors draw them, to be told in the drawings of a fourth."""
    networks = ("logitcache.bench.emoji:emoji_teacher", "logitcache.bench.emoji:emoji_small")
    return Task(load_emoji("train"), load_emoji("test"), EMOJI_RECIPE, *networks, split_vendors)


def emoji_large_task() -> Task:
    """Return the same with a teacher twice as wide."""
    return replace(emoji_task(), teacher="logitcache.bench.emoji:emoji_large")


def _choose(images: ArrayImages, rows: npt.NDArray[np.int64]) -> ArrayImages:
    classes = images.num_classes or 0
    pixels = images.images[torch.from_numpy(rows)]
    return ArrayImages(images.name, "train", pixels, images.labels[rows], classes, images.recipe)
