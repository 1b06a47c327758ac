"""One view: what augmentation makes of an image, as a pure function of (image, sample, seed).

All randomness of a view comes from generators keyed by (seed, sample) and nothing else: not the worker, the
batch, the rank, the order or a global RNG. So any view can be made again, alone, anywhere, and `digest` can
prove that it is the same one.

A recipe is data (`RecipeSpec`): torchvision v2 transforms by name with their arguments, or your own
``module:function`` called as ``function(image, **args)``. Both may draw from torch's global generator, yours
also from `random` and `numpy.random`: they are seeded with the key while a view is made, and restored afterwards.
"""

import functools
import random
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitcache.errors import DataError, OptionError, UnknownNameError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.plugins import load_callable
from logitcache.views.keys import key, preserve_rng

CROPS = ("RandomCrop", "CenterCrop")
RESIZES = ("RandomResizedCrop", "Resize")


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
        self._any_layout = bool(self._specs) and _takes_any_layout(self._specs[0])

    def __call__(self, image: Tensor, sample: int, seed: int) -> Tensor:
        """Make one view.

        Args:
            image: (C, H, W) uint8, in any memory layout.
            sample: index of the image in its data set.
            seed: augmentation seed.

        Returns:
            (C, h, w) uint8, contiguous.

        Raises:
            DataError: a step does not fit the image, or the result is not a (C, h, w) uint8 tensor.
        """
        return self.make_many(image, sample, (seed,))[0]

    def make_many(self, image: Tensor, sample: int, seeds: tuple[int, ...]) -> list[Tensor]:
        """Make one image's views under several seeds: what `__call__` gives for each."""
        _resize_in_integers()
        if not self._any_layout:
            image = image.contiguous()
        with preserve_rng(all_sources=self._own_code):
            return [self._make(image, sample, seed) for seed in seeds]

    def _make(self, image: Tensor, sample: int, seed: int) -> Tensor:
        view_key = key(seed, sample)
        # torch's CPU generator is a Mersenne Twister that takes the key's low 32 bits: views of *different*
        # samples may share a random stream once in 2^32, which changes nothing that this library promises.
        torch.default_generator.manual_seed(view_key)
        if self._own_code:
            random.seed(view_key)
            np.random.seed(view_key & 0xFFFF_FFFF)  # noqa: NPY002  (the global one is what your code draws from)
        view: Any = image.clone() if self._in_place and not self._any_layout else image
        for number, (spec, step) in enumerate(zip(self._specs, self.steps, strict=True)):
            try:
                view = step(view) if number or not self._any_layout else self._begin(image)
            except (TypeError, ValueError, RuntimeError) as error:
                if ":" in spec.transform:
                    raise  # what is wrong in your own code keeps its traceback
                raise DataError(
                    f"transform {spec.transform} {spec.args} does not fit {_describe(view)}: "
                    f"{(str(error) or type(error).__name__).splitlines()[0]}"
                ) from error
        if not isinstance(view, Tensor) or view.dtype != torch.uint8 or view.ndim != 3:
            raise DataError(
                f"recipe {self.recipe.name!r} must give a (C, h, w) uint8 tensor, found {_describe(view)}; "
                "models normalise by themselves, so leave ToDtype and Normalize out of the recipe"
            )
        return _apart(view, image)

    def _begin(self, image: Tensor) -> Tensor:
        """Take the first step from an image in any layout; contiguous, as sums of floats in others depend on it."""
        if (
            self._specs[0].transform in RESIZES
            and image.ndim == 3
            and image.shape[0] > 1
            and not image.stride(0)
        ):
            one: Tensor = self.steps[0](image[:1])  # all channels are this one
            return one.expand(image.shape[0], -1, -1).contiguous()
        return _apart(self.steps[0](image), image)


def _takes_any_layout(step: StepSpec) -> bool:
    """Tell whether a step makes the same pixels however the image lies in memory.

    Crops move pixels, and these kinds of resizing are computed in whole numbers. They then take their part of the
    image as the decoder wrote it, where anything else has the whole of it copied to channel after channel first.
    """
    if step.transform in CROPS:
        return True
    smooth = step.args.get("interpolation", "bilinear") in ("bilinear", "bicubic")
    return step.transform in RESIZES and smooth and step.args.get("antialias", True) is True


def _apart(view: Tensor, image: Tensor) -> Tensor:
    """Return a view, contiguous, in memory of its own: writing to it must not change the data set."""
    pixels = view.contiguous()
    is_image = pixels.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()
    return pixels.clone() if is_image else pixels


@functools.cache
def _resize_in_integers() -> None:
    """Have torchvision resize uint8 images by torch's integer kernel, whose pixels are the same on every CPU.

    By itself it takes that kernel where AVX2 makes it fast, and elsewhere goes through floats, which round otherwise.
    It stays so in this process: several threads may make views. A torchvision that chooses elsewhere is left alone.
    """
    with suppress(ImportError, AttributeError):
        from torchvision.transforms.v2.functional import _geometry

        _geometry._do_native_uint8_resize_on_cpu = _IntegersToo(_geometry._do_native_uint8_resize_on_cpu)


@dataclass(frozen=True)
class _IntegersToo:
    """Torchvision's choice of a kernel, but for bilinear resizing, which is always in integers."""

    choose: Callable[..., bool]

    def __call__(self, interpolation: Any, *args: Any, **options: Any) -> bool:
        return getattr(interpolation, "value", None) == "bilinear" or self.choose(
            interpolation, *args, **options
        )


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
    """A step of your own, loaded by name in every process."""

    def __init__(self, step: StepSpec) -> None:
        self.step = step
        self.function = load_callable(step.transform)

    def __call__(self, view: Tensor) -> Any:
        return self.function(view, **self.step.args)

    def __reduce__(self) -> tuple[type["_OwnStep"], tuple[StepSpec]]:
        return _OwnStep, (self.step,)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
