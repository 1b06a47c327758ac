"""Views: what augmentation makes of an image, as a pure function of (image, sample, seed).

All randomness of a view comes from generators keyed by (seed, sample) and nothing else: not the worker, the
batch, the rank, the order or a global RNG. So any view can be made again, alone, anywhere, and `digest` can
prove that it is the same one.

A recipe is data (`RecipeSpec`): torchvision v2 transforms by name with their arguments, or your own
``module:function`` called as ``function(image, **args)``. Both may draw from torch's global generator, yours
also from `random` and `numpy.random`: while a view is made these are the keyed ones, and afterwards they are
as they were.
"""

import random
import re
import tomllib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.errors import DataError, FormatError, NotFoundError, OptionError, UnknownNameError
from logitcache.format.schema import RecipeSpec, StepSpec
from logitcache.plugins import load_callable

_UINT64 = (1 << 64) - 1


# Keyed randomness -----------------------------------------------------------------------------------------


def key(*parts: int) -> int:
    """Mix integers into one of 64 bits, each part avalanching over the ones before it.

    A chain of SplitMix64 finalisers (Steele et al., "Fast splittable pseudorandom number generators", 2014).
    """
    return int(_mixed(*parts))


def keys(seeds: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return ``key(seed, sample)`` of each of n pairs; all (n,)."""
    return np.asarray(_mixed(seeds.astype(np.uint64), samples.astype(np.uint64)), np.uint64)


def _mixed(*parts: Any) -> Any:
    state: Any = 0
    for part in parts:  # numbers, or arrays of uint64, which wrap by themselves
        state = (state + 0x9E3779B97F4A7C15 + (part & _UINT64)) & _UINT64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _UINT64
        state = state ^ (state >> 31)
    return state


def permutation(n: int, *parts: int) -> npt.NDArray[np.int64]:
    """Return a permutation of range(n), (n,) int64, that depends on `parts` alone (Philox, keyed)."""
    return np.random.Generator(np.random.Philox(key=key(*parts))).permutation(n)


@contextmanager
def preserved_rng(*, all_sources: bool = False) -> Iterator[None]:
    """Give torch's CPU generator (and `random`, `numpy.random`) back in the state they came in."""
    torch_state = torch.default_generator.get_state()
    others = (random.getstate(), np.random.get_state()) if all_sources else None  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        if others is not None:
            random.setstate(others[0])
            np.random.set_state(others[1])  # noqa: NPY002


# Making views ---------------------------------------------------------------------------------------------


class ViewMaker:
    """Makes the views of one recipe, before any mixing; picklable, stateless between calls.

    Raises:
        UnknownNameError: a step names no torchvision v2 transform.
        OptionError: a step's arguments do not fit its transform.
    """

    def __init__(self, recipe: RecipeSpec) -> None:
        self.recipe = recipe
        self._specs = recipe.own_steps
        self.steps = [_build_step(step) for step in self._specs]
        self._own_code = any(":" in step.transform for step in self._specs)
        self._in_place = self._own_code or any(step.args.get("inplace") for step in self._specs)

    def __call__(self, image: Tensor, sample: int, seed: int) -> Tensor:
        """Make one view.

        Args:
            image: (C, H, W) uint8.
            sample: index of the image in its data set.
            seed: augmentation seed.

        Returns:
            (C, h, w) uint8, contiguous.

        Raises:
            DataError: a step does not fit the image, or the result is not a (C, h, w) uint8 tensor.
        """
        return self.many(image, sample, (seed,))[0]

    def many(self, image: Tensor, sample: int, seeds: tuple[int, ...]) -> list[Tensor]:
        """Make one image's views under several seeds: what `__call__` gives for each."""
        with preserved_rng(all_sources=self._own_code):
            return [self._make(image, sample, seed) for seed in seeds]

    def _make(self, image: Tensor, sample: int, seed: int) -> Tensor:
        view_key = key(seed, sample)
        # torch's CPU generator is a Mersenne Twister that takes the key's low 32 bits: views of *different*
        # samples may share a random stream once in 2^32, which changes nothing that this library promises.
        torch.default_generator.manual_seed(view_key)
        if self._own_code:
            random.seed(view_key)
            np.random.seed(view_key & 0xFFFF_FFFF)  # noqa: NPY002  (the global one is what your code draws from)
        view: Any = image.clone() if self._in_place else image
        for spec, step in zip(self._specs, self.steps, strict=True):
            try:
                view = step(view)
            except (TypeError, ValueError, RuntimeError) as error:
                if ":" in spec.transform:
                    raise  # what is wrong in your own code keeps its traceback
                raise DataError(
                    f"transform {spec.transform} {spec.args} does not fit {_form(view)}: "
                    f"{(str(error) or type(error).__name__).splitlines()[0]}"
                ) from error
        if not isinstance(view, Tensor) or view.dtype != torch.uint8 or view.ndim != 3:
            raise DataError(
                f"recipe {self.recipe.name!r} must give a (C, h, w) uint8 tensor, found {_form(view)}; "
                "models normalise by themselves, so leave ToDtype and Normalize out of the recipe"
            )
        made: Tensor = view.contiguous()
        is_image = made.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()
        return made.clone() if is_image else made  # what becomes of a view must not reach the data set


def digest(view: Tensor) -> int:
    """CRC-32 of a view's shape (as "(C, h, w)") followed by its pixels, (C, h, w) uint8; 1 where that is 0."""
    shape = ", ".join(map(str, view.shape))
    return zlib.crc32(view.cpu().contiguous().numpy().data, zlib.crc32(f"({shape})".encode())) or 1


def _build_step(step: StepSpec) -> Callable[[Tensor], Any]:
    if ":" in step.transform:
        return _OwnStep(step)
    from torchvision.transforms import InterpolationMode, v2

    known = {n for n, v in vars(v2).items() if isinstance(v, type) and issubclass(v, v2.Transform)}
    if step.transform not in known:
        raise UnknownNameError("transform", step.transform, known, "(or give your own as module:function)")
    args = dict(step.args)
    try:
        if "interpolation" in args:
            args["interpolation"] = InterpolationMode(args["interpolation"])
        return getattr(v2, step.transform)(**args)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise OptionError(f"transform {step.transform} does not take {step.args}: {error}") from error


class _OwnStep:
    """A step of the user's, loaded again by name in every process."""

    def __init__(self, step: StepSpec) -> None:
        self.step = step
        self.function = load_callable(step.transform)

    def __call__(self, view: Tensor) -> Any:
        return self.function(view, **self.step.args)

    def __reduce__(self) -> tuple[type["_OwnStep"], tuple[StepSpec]]:
        return _OwnStep, (self.step,)


def _form(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


# Recipes --------------------------------------------------------------------------------------------------


def recipe_named(name: str) -> RecipeSpec:
    """Return a recipe by name, ``NAME@SIZE`` (for another view size), TOML file or ``module:function``.

    A TOML file holds `name`, `version`, optionally `evaluation`, and one ``[[steps]]`` table per transform
    with `transform` and its arguments. A ``module:function`` is called as a single step.

    Raises:
        UnknownNameError: there is no such recipe.
        OptionError: the size is not one.
        NotFoundError: the TOML file is not there.
        FormatError: the TOML file is not a recipe.
    """
    if name.endswith(".toml"):
        return _recipe_from_toml(Path(name))
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


def _recipe_from_toml(path: Path) -> RecipeSpec:
    if not path.is_file():
        raise NotFoundError(f"recipe file {path} is not there; `logitcache init` writes an example")
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        steps = [dict(step) for step in data.pop("steps", [])]
        parts = [{"transform": step.pop("transform", None), "args": step} for step in steps]
        return RecipeSpec.from_dict({"name": path.stem, "version": 1, **data, "steps": parts})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, ValueError, FormatError) as error:
        raise FormatError(
            f"recipe file {path}: {error}; expected `name`, `version` and [[steps]] tables, each with "
            "`transform` and its arguments"
        ) from error


_Steps = tuple[StepSpec, ...]
_FLIP = StepSpec("RandomHorizontalFlip")

_FIXED: dict[str, _Steps] = {
    "identity": (),
    "digits": (StepSpec("RandomCrop", {"size": 8, "padding": 1}),),
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
