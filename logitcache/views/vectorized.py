"""Whole batches of keyed views of images that lie in memory, bit for bit what `ViewMaker` makes one by one.

A view made alone spends its time on seeding a generator and on the way through torchvision; for small images the
pixels cost next to nothing. Here the numbers that torchvision's steps would draw are drawn for thousands of views at
once, with NumPy: the Mersenne Twister of torch's CPU generator, seeded by each view's key. What a step does is then a
choice of rows and columns, composed and gathered with integers only, on any device.

Recipes of `RandomCrop`, `CenterCrop`, the two flips and `RandomErasing` (cutout) can be made so. Others cannot, and
an engine that would make other views than `ViewMaker` does (torch or torchvision draw in another way, say) is not
used: `VectorizedViews.build` compares.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from logitcache.views.images import Images
from logitcache.views.keys import pair_keys
from logitcache.views.maker import ViewMaker
from logitcache.views.mt19937 import MAX_WORDS, Ints, ViewGenerators, is_exact_range

VIEWS_COMPARED = 64
"""Views that an engine makes in both ways before it is used."""
MAX_DEVICE_BYTES = 4 << 30
"""Bytes of images that may move to a GPU; more stay in main memory."""


# Steps ----------------------------------------------------------------------------------------------------


class Frame(NamedTuple):
    """Which pixel of its image each pixel of a view shows.

    Attributes:
        rows: (B, 1 + E, h) int64; in plane 0 the image's row, counted from 1, or 0 where there is none; in plane e
            whether the row is within the e-th rectangle that was erased.
        columns: (B, 1 + E, w) int64, likewise.
    """

    rows: Tensor
    columns: Tensor


class Step(Protocol):
    """One step of a recipe for many views: first drawn (NumPy), then placed (torch, on any device)."""

    @property
    def words(self) -> int:
        """32-bit words of its generator that a view takes at most."""

    @property
    def numbers(self) -> int:
        """Numbers that a view needs, such as a corner or a flip."""

    def draw(self, generators: ViewGenerators) -> Ints:
        """Draw for n views; (n, numbers) int64."""

    def place(self, frame: Frame, drawn: Tensor) -> Frame:
        """Move B views' frame by (B, numbers) drawn int64."""


@dataclass(frozen=True)
class _Crop:
    """Pads, then cuts windows of `size` out, at random where `slack` leaves a choice."""

    padding: tuple[int, int, int, int]
    """Left, right, top, bottom."""
    size: tuple[int, int]
    slack: tuple[int, int]
    numbers: int = 2

    @property
    def words(self) -> int:
        return sum(s > 0 for s in self.slack)

    def draw(self, generators: ViewGenerators) -> Ints:
        corner = np.zeros((len(generators), 2), np.int64)
        for axis, slack in enumerate(self.slack):
            if slack:  # torchvision draws nothing where there is no choice
                corner[:, axis] = generators.randint(slack + 1, np.arange(len(generators)))
        return corner

    def place(self, frame: Frame, drawn: Tensor) -> Frame:
        left, right, top, bottom = self.padding
        rows = _window(F.pad(frame.rows, (top, bottom)), drawn[:, 0], self.size[0])
        return Frame(rows, _window(F.pad(frame.columns, (left, right)), drawn[:, 1], self.size[1]))


@dataclass(frozen=True)
class _CenterCrop:
    top: int
    left: int
    size: tuple[int, int]
    words: int = 0
    numbers: int = 0

    def draw(self, generators: ViewGenerators) -> Ints:
        return np.zeros((len(generators), 0), np.int64)

    def place(self, frame: Frame, drawn: Tensor) -> Frame:
        rows = frame.rows[:, :, self.top : self.top + self.size[0]]
        return Frame(rows, frame.columns[:, :, self.left : self.left + self.size[1]])


@dataclass(frozen=True)
class _Flip:
    p: float
    horizontal: bool
    words: int = 1
    numbers: int = 1

    def draw(self, generators: ViewGenerators) -> Ints:
        return _draw_happens(generators, self.p)[:, None].astype(np.int64)

    def place(self, frame: Frame, drawn: Tensor) -> Frame:
        axis = frame.columns if self.horizontal else frame.rows
        axis = torch.where(drawn[:, :, None] > 0, axis.flip(2), axis)
        return frame._replace(columns=axis) if self.horizontal else frame._replace(rows=axis)


@dataclass(frozen=True)
class _Erasing:
    """Erases a rectangle of random area and aspect; gives up after ten that do not fit, as torchvision does."""

    p: float
    scale: tuple[float, float]
    log_ratio: tuple[float, float]
    size: tuple[int, int]
    words: int = 1 + 10 * 2 + 2
    numbers: int = 4

    def draw(self, generators: ViewGenerators) -> Ints:
        height, width = self.size
        box = np.zeros((len(generators), 4), np.int64)
        rest = np.flatnonzero(_draw_happens(generators, self.p))
        for _ in range(10):
            area = height * width * generators.uniform(*self.scale, rest).astype(np.float64)
            h, w = _choose_sides(area, generators.uniform(*self.log_ratio, rest))
            fits = (h < height) & (w < width)
            good, h, w = rest[fits], h[fits], w[fits]
            top = generators.randint(height - h + 1, good)
            box[good] = np.stack([top, generators.randint(width - w + 1, good), h, w], 1)
            rest = rest[~fits]
        return box

    def place(self, frame: Frame, drawn: Tensor) -> Frame:
        top, left, h, w = drawn.unbind(1)
        return Frame(_within(frame.rows, top, h), _within(frame.columns, left, w))


def _draw_happens(generators: ViewGenerators, p: float) -> npt.NDArray[np.bool_]:
    return generators.uniform(0, 1, np.arange(len(generators))) < np.float32(p)


def _choose_sides(area: npt.NDArray[np.float64], log_ratio: npt.NDArray[np.float32]) -> tuple[Ints, Ints]:
    """Height and width of rectangles as torchvision rounds them.

    It takes float32's exp, whose last bits depend on the machine and on how many are taken at once. So where four
    units in the last place would round to another side, torch is asked for that one alone, as torchvision does.
    """
    ratio = np.exp(log_ratio.astype(np.float64))
    h, w = _round_sides(area, ratio)
    for slightly in (1 - 2.0**-21, 1 + 2.0**-21):
        other_h, other_w = _round_sides(area, ratio * slightly)
        for i in np.flatnonzero((other_h != h) | (other_w != w)):
            ratio[i] = torch.exp(torch.tensor([log_ratio[i]])).item()
    return _round_sides(area, ratio)


def _round_sides(area: npt.NDArray[np.float64], ratio: npt.NDArray[np.float64]) -> tuple[Ints, Ints]:
    sides = np.sqrt(area * ratio), np.sqrt(area / ratio)
    return np.rint(sides[0]).astype(np.int64), np.rint(sides[1]).astype(np.int64)


def _window(axis: Tensor, start: Tensor, size: int) -> Tensor:
    at = start[:, None] + torch.arange(size, device=axis.device)
    return axis.gather(2, at[:, None].expand(-1, axis.shape[1], -1))


def _within(axis: Tensor, start: Tensor, length: Tensor) -> Tensor:
    at = torch.arange(axis.shape[2], device=axis.device)
    plane = (at >= start[:, None]) & (at < (start + length)[:, None])
    return torch.cat([axis, plane[:, None].long()], 1)


# Recipes --------------------------------------------------------------------------------------------------


class _CompiledRecipe(NamedTuple):
    steps: list[Step]
    size: tuple[int, int]
    """Of the views: height, width."""
    blank: int
    """What padding and erasing leave."""


def _compile_recipe(transforms: Sequence[Any], size: tuple[int, int]) -> _CompiledRecipe | None:
    """Compile torchvision transforms for images of one size; None where one of them is not supported here."""
    steps: list[Step] = []
    blanks: set[float] = set()
    for transform in transforms:
        step = _compile_step(transform, size, blanks)
        if step is None:
            return None
        steps.append(step)
        size = step.size if isinstance(step, _Crop | _CenterCrop) else size
    blank = blanks.pop() if blanks else 0
    if blanks or blank not in range(256) or sum(step.words for step in steps) > MAX_WORDS:
        return None
    return _CompiledRecipe(steps, size, int(blank))


def _compile_step(transform: Any, size: tuple[int, int], blanks: set[float]) -> Step | None:
    from torchvision.transforms import v2

    kind = type(transform)
    if kind is v2.RandomHorizontalFlip or kind is v2.RandomVerticalFlip:
        return _Flip(transform.p, kind is v2.RandomHorizontalFlip)
    if kind is v2.CenterCrop:
        (height, width), (h, w) = size, transform.size
        if h > height or w > width:
            return None
        return _CenterCrop(round((height - h) / 2), round((width - w) / 2), (h, w))
    if kind is v2.RandomCrop:
        padding = tuple(transform.padding or (0, 0, 0, 0))
        h, w = transform.size
        slack = size[0] + sum(padding[2:]) - h, size[1] + sum(padding[:2]) - w
        if transform.pad_if_needed or min(*padding, *slack) < 0:
            return None
        if any(padding):
            if transform.padding_mode != "constant" or not isinstance(transform.fill, int | float):
                return None
            blanks.add(transform.fill)
        return _Crop(padding, (h, w), slack)
    if kind is v2.RandomErasing:
        smallest, largest = transform.scale
        low, high = transform.ratio
        if transform.value is None or len(transform.value) != 1 or smallest > largest or not 0 < low <= high:
            return None
        blanks.update(transform.value)
        low, high = torch.log(torch.tensor(transform.ratio)).tolist()  # in float32, as torchvision has it
        if not (is_exact_range(smallest, largest) and is_exact_range(low, high)):
            return None
        return _Erasing(transform.p, (smallest, largest), (low, high), size)
    return None


# The engine -----------------------------------------------------------------------------------------------


class VectorizedViews:
    """Makes views of images in memory by whole batches; `build` one, which compares it with `ViewMaker`."""

    def __init__(self, images: Tensor, recipe: _CompiledRecipe) -> None:
        self._images, self._recipe = images, recipe

    @classmethod
    def build(cls, images: Images, maker: ViewMaker, device: torch.device | str = "cpu") -> Self | None:
        """Return an engine whose views are those of `maker`, on a device, or None.

        None for images that are not one tensor in memory, and for recipes with other steps than those above. None,
        with a warning, where views made both ways differ.
        """
        pixels = images.pixels()
        if pixels is None:
            return None
        recipe = _compile_recipe(maker.steps, (pixels.shape[2], pixels.shape[3]))
        if recipe is None:
            return None
        where = torch.device(device) if pixels.nbytes <= MAX_DEVICE_BYTES else torch.device("cpu")
        engine = cls(pixels.to(where), recipe)
        samples = np.arange(VIEWS_COMPARED) * len(images) // VIEWS_COMPARED
        seeds = (pair_keys(samples, np.arange(VIEWS_COMPARED)) >> np.uint64(1)).astype(np.int64)
        views = engine.make(samples, engine.draw(samples, seeds)).cpu()
        for sample, seed, view in zip(samples.tolist(), seeds.tolist(), views, strict=True):
            if not torch.equal(view, maker(images.image(sample), sample, seed)):
                warnings.warn(
                    f"views of recipe {maker.recipe.name!r} are made one by one: torch and torchvision here draw "
                    "otherwise than its whole batches know",
                    stacklevel=2,
                )
                return None
        return engine

    def draw(self, samples: Ints, seeds: Ints) -> Ints:
        """Draw the random numbers of n views; cheapest per view for thousands at once.

        Args:
            samples: (n,) int64.
            seeds: (n,) int64.

        Returns:
            (n, p) int64, for `make`; any rows of it may go together.
        """
        steps = self._recipe.steps
        generators = ViewGenerators(pair_keys(seeds, samples), sum(step.words for step in steps))
        return np.concatenate(
            [np.zeros((len(samples), 0), np.int64), *(s.draw(generators) for s in steps)], 1
        )

    def make(self, samples: Ints, drawn: Ints) -> Tensor:
        """Make views, (B, C, h, w) uint8 on the engine's device, of (B,) samples and what was drawn for them."""
        device = self._images.device
        images = self._images.index_select(0, torch.from_numpy(samples).to(device))
        if not self._recipe.steps:
            return images
        b, _, height, width = images.shape
        frame = Frame(_number_from_one(b, height, device), _number_from_one(b, width, device))
        numbers = torch.from_numpy(drawn).to(device)
        for step in self._recipe.steps:
            frame = step.place(frame, numbers[:, : step.numbers])
            numbers = numbers[:, step.numbers :]
        return _gather(images, frame, self._recipe)


def _number_from_one(b: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(1, length + 1, device=device).expand(b, 1, length)


def _gather(images: Tensor, frame: Frame, recipe: _CompiledRecipe) -> Tensor:
    b, c, height, width = images.shape
    h, w = recipe.size
    framed = F.pad(images, (1, 0, 1, 0), value=recipe.blank)  # row 0 and column 0 are what no image has
    first = torch.arange(0, b * c * (height + 1), height + 1, device=images.device)
    lines = (first.view(b, c, 1) + frame.rows[:, :1]).flatten()
    rows = (
        framed.view(-1, width + 1).index_select(0, lines).view(b, c, h, width + 1)
    )  # whole rows: fast copies
    views = rows.gather(3, frame.columns[:, :1, None].expand(b, c, h, w))
    if frame.rows.shape[1] > 1:
        erased = (frame.rows[:, 1:, :, None] & frame.columns[:, 1:, None, :]).any(1, keepdim=True)
        views.masked_fill_(erased, recipe.blank)
    return views
