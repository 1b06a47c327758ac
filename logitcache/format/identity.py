"""What identifies a cache: which teacher, which images, which views, and how numbers are rounded and coded."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from logitcache.errors import FormatError, UnknownNameError
from logitcache.format.spec import Spec, absent_if_none, parse_json, require

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class AdapterSpec(Spec):
    """How one model's input is made: uint8 views of any size become float images of this form.

    `size` is the side in pixels; `mean` and `std` are per channel, for pixels scaled to [0, 1].
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        require(self.channels in (1, 3), f"channels must be 1 or 3, found {self.channels}")
        require(1 <= self.size <= 65_536, f"size must be 1 to 65536 pixels, found {self.size}")
        require(
            len(self.mean) == len(self.std) == self.channels and all(s > 0 for s in self.std),
            f"mean and std must hold {self.channels} values, std positive; found {self.mean} and {self.std}",
        )
        require(
            all(map(math.isfinite, (*self.mean, *self.std))),
            f"mean and std must be finite, found {self.mean} and {self.std}",
        )


@dataclass(frozen=True)
class TeacherSpec(Spec):
    """Which teacher: `weights_sha256` identifies it, `weights` only says where they came from."""

    name: str
    weights: str
    weights_sha256: str
    precision: Precision
    adapter: AdapterSpec


@dataclass(frozen=True)
class DatasetSpec(Spec):
    """Which images, in which order. `fingerprint` identifies them; `name` only says where to find them."""

    name: str
    split: str
    n: int
    num_classes: int
    fingerprint: str

    def __post_init__(self) -> None:
        require(1 <= self.n <= 1 << 40, f"n must be 1 to 2^40 samples, found {self.n}")
        require(2 <= self.num_classes <= 1 << 31, f"num_classes must be 2 to 2^31, found {self.num_classes}")


@dataclass(frozen=True)
class PartSpec(Spec):
    """How far a data set had grown: its first `n` samples, in the order of the cache, have this fingerprint."""

    n: int
    fingerprint: str


@dataclass(frozen=True)
class StepSpec(Spec):
    """One step of a recipe: a torchvision v2 transform by name, or your own ``module:function``."""

    transform: str
    args: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        parse_json(self.args, f"arguments of {self.transform}")


MIXES = ("MixUp", "CutMix")


def join_background(recipe: str, background: str | None) -> str:
    """Write a recipe's name for people, with the background where there is one: "center@32 on #ffffff"."""
    return recipe if background is None else f"{recipe} on {background}"


@dataclass(frozen=True)
class RecipeSpec(Spec):
    """A named, versioned list of view transforms; `evaluation` names the recipe that test images get.

    Steps that mix a view with another image's come last. Transparent pictures are put on `background` before the
    first step: a colour, "white" or "#ffffff", kept as the latter; None drops their alpha, as torchvision's loader
    does.
    """

    name: str
    version: int
    steps: tuple[StepSpec, ...]
    evaluation: str = "center"
    background: str | None = absent_if_none()

    def __post_init__(self) -> None:
        object.__setattr__(self, "background", parse_colour(self.background))
        names = [step.transform for step in self.steps]
        late = next((name for name in names[len(self.own_steps) :] if name not in MIXES), None)
        require(late is None, f"MixUp and CutMix must be a recipe's last steps, found {late} behind them")

    @property
    def title(self) -> str:
        """Name for people, with the background where there is one."""
        return join_background(self.name, self.background)

    @property
    def own_steps(self) -> tuple[StepSpec, ...]:
        """Steps that see one image alone."""
        return tuple(itertools.takewhile(lambda step: step.transform not in MIXES, self.steps))

    @property
    def mix_steps(self) -> tuple[StepSpec, ...]:
        """Steps that mix a view with another image's."""
        return self.steps[len(self.own_steps) :]

    @property
    def view_size(self) -> int | None:
        """Longer side of a view in pixels, where the last step that has a size says so."""
        sizes = [step.args["size"] for step in self.own_steps if "size" in step.args]
        sides = sizes[-1] if sizes and isinstance(sizes[-1], list | tuple) else sizes[-1:]
        return max((side for side in sides if isinstance(side, int)), default=None)

    @property
    def code(self) -> tuple[str, ...]:
        """Names of code of the user's own, ``module:function``, that runs when its views are made or evaluated."""
        names = (*(step.transform for step in self.steps), self.evaluation)
        return tuple(name for name in names if ":" in name)

    @property
    def sha256(self) -> str:
        """Digest of the background, if any, and the steps: two recipes with equal digests make equal views."""
        background = [] if self.background is None else [{"background": self.background}]
        steps = json.dumps([*background, *(step.to_dict() for step in self.steps)], sort_keys=True)
        return hashlib.sha256(steps.encode()).hexdigest()


def parse_colour(text: str | None) -> str | None:
    """Return a colour, of a name or as CSS writes it, as "#rrggbb"; None for none.

    Raises:
        FormatError: it is no colour, or one that lets through what is behind it.
    """
    if text is None or re.fullmatch("#[0-9a-f]{6}", text):
        return text
    from PIL import ImageColor

    try:
        colour: tuple[int, ...] = ImageColor.getrgb(text)
        red, green, blue = colour
    except ValueError as error:
        raise FormatError(f"expected a colour such as white or #808080, found {text!r}") from error
    return f"#{red:02x}{green:02x}{blue:02x}"


@dataclass(frozen=True)
class Profile(Spec):
    """How numbers are rounded, coded and compressed.

    Attributes:
        name: what people call it.
        gap_dtype: what a gap is rounded to.
        gap_coding: what is stored: gaps, or their differences from rank to rank (of the bits, for float16).
        scalar_bits: explicit bits of mantissa kept of `top` and the tail's numbers; 23 is all of float32.
        codec: "blosc" every Zarr v3 reader has; "pcodec" is smaller, and fewer have it.
        gap_step: gap = whole number × step, for uint8.
    """

    name: str
    gap_dtype: Literal["float16", "float32", "uint8"]
    gap_coding: Literal["values", "differences"]
    scalar_bits: int
    codec: Literal["blosc", "pcodec"]
    gap_step: float | None = None

    def __post_init__(self) -> None:
        require(
            (self.gap_step is not None) == (self.gap_dtype == "uint8")
            and (self.gap_step is None or self.gap_step > 0),
            f"uint8 gaps need a positive gap_step and others none, found {self.gap_dtype}, {self.gap_step}",
        )
        require(1 <= self.scalar_bits <= 23, f"scalar_bits must be 1 to 23, found {self.scalar_bits}")
        require(
            self.gap_coding == "values" or self.gap_dtype != "float32",
            "float32 gaps are stored as values, found differences",
        )
        require(
            self.codec == "blosc" or self.gap_dtype != "uint8",
            "pcodec has no uint8: expected gap_dtype float16 or float32",
        )

    @property
    def installed(self) -> bool:
        """Whether the package of its codec is installed."""
        return self.codec != "pcodec" or find_spec("pcodec") is not None

    @property
    def stored_gap(self) -> str:
        """The dtype of the array `gap`."""
        return "uint16" if (self.gap_dtype, self.gap_coding) == ("float16", "differences") else self.gap_dtype


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("default", "float16", "values", scalar_bits=10, codec="blosc"),
        Profile("compact", "uint8", "differences", scalar_bits=7, codec="blosc", gap_step=0.0625),
        Profile("archive", "float16", "differences", scalar_bits=10, codec="pcodec"),
        Profile("exact", "float32", "values", scalar_bits=23, codec="blosc"),
    )
}


def profile_named(name: str) -> Profile:
    """Return the profile called `name`.

    Raises:
        UnknownNameError: there is no such profile.
    """
    if name not in PROFILES:
        raise UnknownNameError("profile", name, PROFILES)
    return PROFILES[name]
