"""Recipes: which transforms make a view, by name, from a TOML file, or your own function."""

import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from logitcache.errors import FormatError, NotFoundError, OptionError, UnknownNameError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.paths import expand_home
from logitcache.plugins import load_callable


def recipe_named(name: str) -> RecipeSpec:
    """Return a recipe by name, ``NAME@SIZE`` (for another view size), TOML file or ``module:function``.

    A TOML file holds `name`, `version`, optionally `evaluation` and `background`, and one ``[[steps]]`` table per
    transform with `transform` and its arguments. A ``module:function`` is called as a single step.

    Raises:
        UnknownNameError: there is no such recipe.
        OptionError: the size is not one.
        NotFoundError: the TOML file is not there.
        FormatError: the TOML file is not a recipe.
    """
    if name.endswith(".toml"):
        return _recipe_from_toml(expand_home(name))
    if ":" in name:
        load_callable(name)
        return RecipeSpec(name, 1, (StepSpec(name),))
    base, at, size = name.partition("@")
    if base in _SIZED:
        if at and not (size.isdecimal() and 0 < int(size) <= 4096):
            raise OptionError(f"recipe {name!r}: expected a view size in pixels after @, found {size!r}")
        pixels = int(size) if at else 224
        evaluation = f"center@{size}" if at else "center"
        return RecipeSpec(name, 1, _SIZED[base](pixels), evaluation)
    if name not in _FIXED:
        size = re.search(r"\d*$", name)[0]  # type: ignore[index]
        known = [*_FIXED, *(f"{one}@{size}" if size else one for one in _SIZED)]
        raise UnknownNameError("recipe", name, known, "(or a .toml file, or module:function)")
    return RecipeSpec(name, 1, _FIXED[name], "identity")


NO_BACKGROUND = "none"  # in place of a colour: the alpha of transparent pictures is dropped


def with_background(recipe: RecipeSpec, background: str | None) -> RecipeSpec:
    """Return a recipe that puts transparent pictures on a colour; of "none" on none, of None as it is.

    Raises:
        OptionError: it is no colour.
    """
    if background is None:
        return recipe
    try:
        return replace(recipe, background=None if background == NO_BACKGROUND else background)
    except FormatError as error:
        raise OptionError(
            f"background: {error}; {NO_BACKGROUND} drops the alpha of transparent pictures"
        ) from error


def evaluation_recipe(recipe: RecipeSpec, name: str | None = None) -> RecipeSpec:
    """Return the recipe that test images get, on the background of the training views where it names no other.

    Args:
        recipe: of the training views.
        name: as `recipe_named` takes it; None: as `recipe` says.

    Raises:
        LogitCacheError: as `recipe_named` does.
    """
    found = recipe_named(name or recipe.evaluation)
    return replace(found, background=found.background or recipe.background)


_RECIPE_FILE = (
    "expected TOML with `name`, `version` and [[steps]] tables, each with `transform` and its arguments"
)


def _recipe_from_toml(path: Path) -> RecipeSpec:
    if not path.is_file():
        raise NotFoundError(f"recipe file {path} is not there; {_RECIPE_FILE}")
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        steps = [dict(step) for step in data.pop("steps", [])]
        parts = [{"transform": step.pop("transform", None), "args": step} for step in steps]
        return RecipeSpec.from_dict({"name": path.stem, "version": 1, **data, "steps": parts})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, ValueError, FormatError) as error:
        raise FormatError(f"recipe file {path}: {error}; {_RECIPE_FILE}") from error


_Steps = tuple[StepSpec, ...]
_FLIP = StepSpec("RandomHorizontalFlip")

_FIXED: dict[str, _Steps] = {
    "identity": (),
    "digits": (StepSpec("RandomCrop", {"size": 8, "padding": 1}),),
    "letters": (
        StepSpec("RandomCrop", {"size": 20, "padding": 2}),
        StepSpec("RandomErasing", {"p": 0.5, "scale": [0.02, 0.15]}),
    ),
    "cifar": (StepSpec("RandomCrop", {"size": 32, "padding": 4}), _FLIP),
}


def _resized_crop(size: int) -> StepSpec:
    return StepSpec("RandomResizedCrop", {"size": size, "interpolation": "bilinear", "antialias": True})


def _imagenet(size: int) -> _Steps:
    return (_resized_crop(size), _FLIP)


def _imagenet_ra(size: int) -> _Steps:
    return (_resized_crop(size), _FLIP, StepSpec("RandAugment", {"num_ops": 2, "magnitude": 9}))


def _imagenet_mixup(size: int) -> _Steps:
    return (*_imagenet(size), StepSpec("MixUp", {"alpha": 1.0}))


def _imagenet_strong(size: int) -> _Steps:
    erase = StepSpec("RandomErasing", {"p": 0.25})
    mixes = (
        StepSpec("MixUp", {"alpha": 0.8, "probability": 0.5}),
        StepSpec("CutMix", {"alpha": 1.0, "probability": 0.5}),
    )
    return (*_imagenet_ra(size), erase, *mixes)


def _center(size: int) -> _Steps:
    shorter_side = round(size * 256 / 224)
    resize = {"size": shorter_side, "interpolation": "bilinear", "antialias": True}
    return (StepSpec("Resize", resize), StepSpec("CenterCrop", {"size": size}))


_SIZED: dict[str, Callable[[int], _Steps]] = {
    "imagenet": _imagenet,
    "imagenet-ra": _imagenet_ra,
    "imagenet-mixup": _imagenet_mixup,
    "imagenet-strong": _imagenet_strong,
    "center": _center,
}
