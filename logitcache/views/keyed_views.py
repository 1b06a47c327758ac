"""Views by (sample, seed): a torch data set without state.

The index of a batch is a list of such pairs, so workers, resume and ranks need no special case. Pairs of one sample
that stand side by side decode its image once.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from logitcache.errors import DataError, ImageError, OptionError
from logitcache.format.identity import RecipeSpec
from logitcache.units import count
from logitcache.views.datasets import take_images
from logitcache.views.images import Images
from logitcache.views.maker import ViewMaker
from logitcache.views.mixing import Mixer

Pair = tuple[int, int]
OnBadImage = Literal["error", "skip"]


class ViewBatch(NamedTuple):
    """Views of B (sample, seed) pairs.

    Attributes:
        views: (B, C, h, w) uint8.
        labels: (B,) int64, −1 where there is none.
        samples: (B,) int64.
        seeds: (B,) int64.
        valid: (B,) bool, False where the image does not decode (and `on_bad_image` is "skip").
        error: why the batch could not be made, or "".
        partners: (B,) int64, the sample that a view is mixed with (its own where it is not); None where the
            recipe does not mix.
        shares: (B,) float32, of the view's own image; None likewise.
    """

    views: Tensor
    labels: Tensor
    samples: Tensor
    seeds: Tensor
    valid: Tensor
    error: str = ""
    partners: Tensor | None = None
    shares: Tensor | None = None


def check_batch(batch: ViewBatch) -> ViewBatch:
    """Return the batch, or raise the error that kept it from being made.

    Raises:
        DataError: an image does not decode, or the views do not form a batch.
    """
    if batch.error:
        raise DataError(batch.error)
    return batch


class KeyedViews(Dataset[ViewBatch]):
    """Views of images by (sample, seed): ``views[sample, seed]`` is a batch of one.

    Transparent images are put on the recipe's background first. Images may be text for `open_images`, too, or a
    map-style data set of (image, label).
    """

    def __init__(self, images: Images | Any, recipe: RecipeSpec, on_bad_image: OnBadImage = "error") -> None:
        self.images, self.maker = take_images(images).on_background(recipe.background), ViewMaker(recipe)
        self.on_bad_image = on_bad_image
        self.mixer = Mixer.from_recipe(recipe)
        self._any_view: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        images = f"{self.images.name}, {self.images.split}: {count(len(self), 'image')}"
        return f"KeyedViews({images} by {self.maker.recipe.title})"

    def __getitem__(self, pair: Pair) -> ViewBatch:
        return self.__getitems__([pair])

    def __getitems__(self, pairs: Sequence[Pair]) -> ViewBatch:
        """Make a batch of B pairs; this is what a DataLoader worker calls.

        Raises:
            OptionError: a sample is not one of the images.
        """
        batch = self._make(pairs)
        return self._mix(batch, pairs) if self.mixer.steps and not batch.error else batch

    def makeable(self, seed: int) -> npt.NDArray[np.bool_]:
        """(n,) bool: the samples whose views under a seed can be made, as no image that they take is missing."""
        missing = self.images.missing
        found = np.ones(len(self), dtype=np.bool_)
        found[missing] = False
        found[self.mixer.find_mixed(missing.tolist(), seed, self.images.populations())] = False
        return found

    def _make(self, pairs: Sequence[Pair]) -> ViewBatch:
        samples, seeds, labels = self.to_tensors(pairs)
        try:
            views = self._make_views(pairs)
            good = [view for view in views if view is not None] or [self.any_view()]
        except DataError as error:  # raised in a worker it would arrive wrapped in a traceback
            none = torch.zeros(len(pairs), dtype=torch.bool)
            return ViewBatch(torch.empty(0), labels, samples, seeds, none, str(error))
        valid = torch.tensor([view is not None for view in views])
        filled = [torch.zeros_like(good[0]) if view is None else view for view in views]
        if odd := next((i for i, view in enumerate(filled) if view.shape != good[0].shape), None):
            first = next(i for i, view in enumerate(views) if view is not None)
            sized = filled[odd].shape[1:] != good[0].shape[1:]
            advice = "end the recipe with a crop or resize to a fixed size"
            problem = (
                f"views of one batch must have one size, found {tuple(good[0].shape)} of "
                f"{self.images.describe(pairs[first][0])} and {tuple(filled[odd].shape)} of "
                f"{self.images.describe(pairs[odd][0])}; "
                f"{advice if sized else 'let the data set give gray and colour images in one mode, such as RGB'}"
            )
            return ViewBatch(torch.empty(0), labels, samples, seeds, valid, problem)
        return ViewBatch(torch.stack(filled), labels, samples, seeds, valid)

    def _mix(self, batch: ViewBatch, pairs: Sequence[Pair]) -> ViewBatch:
        """Mix views as the recipe says, each with its partner's view under the same seed."""
        partners, shares = batch.samples.clone(), torch.ones(len(pairs))
        mixes = [self.mixer.draw(*pair, self.images.population(pair[0])) for pair in pairs]
        drawn = [(row, mix) for row, mix in enumerate(mixes) if mix]
        if drawn:
            others = self._make([(mix.partner, pairs[row][1]) for row, mix in drawn])
            if others.error:
                return others._replace(labels=batch.labels, samples=batch.samples, seeds=batch.seeds)
            if others.views.shape[1:] != batch.views.shape[1:]:
                problem = (
                    f"views that are mixed must have one size, found {tuple(batch.views.shape[1:])} and "
                    f"{tuple(others.views.shape[1:])}; let a crop or resize to a fixed size come before"
                )
                return batch._replace(error=problem)
            for (row, mix), other, valid in zip(drawn, others.views, others.valid, strict=True):
                batch.views[row], shares[row] = mix.apply(batch.views[row], other)
                partners[row] = mix.partner
                batch.valid[row] &= valid
        return batch._replace(partners=partners, shares=shares)

    def to_tensors(self, pairs: Iterable[Pair]) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples, seeds and labels of B pairs; all (B,) int64.

        Raises:
            OptionError: a sample is not one of the images.
        """
        table = np.fromiter(chain.from_iterable(pairs), np.int64).reshape(-1, 2)
        samples, seeds = np.ascontiguousarray(table.T)
        if (odd := samples[(samples < 0) | (samples >= len(self))]).size:
            raise OptionError(f"{self.images.name} has samples 0 to {len(self) - 1}, asked for {odd[0]}")
        labels = self.images.labels[samples]
        return torch.from_numpy(samples), torch.from_numpy(seeds), torch.from_numpy(labels)

    def _make_views(self, pairs: Sequence[Pair]) -> list[Tensor | None]:
        views: list[Tensor | None] = []
        start = 0
        while start < len(pairs):
            sample = pairs[start][0]
            stop = start + 1
            while stop < len(pairs) and pairs[stop][0] == sample:
                stop += 1
            try:
                image = self.images.image(sample)
                views += self.maker.make_many(image, sample, tuple(seed for _, seed in pairs[start:stop]))
            except ImageError:
                if self.on_bad_image == "error":
                    raise
                views += [None] * (stop - start)
            except DataError as error:
                if self.images.describe(sample) in str(error):
                    raise
                raise DataError(f"{self.images.describe(sample)}: {error}") from error
            start = stop
        return views

    def any_view(self) -> Tensor:
        """Return a view, (C, h, w) uint8, of the first image that decodes, to know its shape.

        Raises:
            DataError: not one decodes.
        """
        if self._any_view is None:  # kept, as whole batches of bad images may follow each other
            self._any_view = self._make_any_view()
        return self._any_view

    def _make_any_view(self) -> Tensor:
        for sample in range(len(self)):
            try:
                return self.maker(self.images.image(sample), sample, 0)
            except ImageError:
                continue
        raise DataError(f"{self.images.name}: not one image decodes")
