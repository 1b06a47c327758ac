"""Before anything is dumped: are a few views the same when they are made twice?

Views under one seed can be made again only if all randomness goes through the recipe's keyed generators. A data set
that augments by itself, or a step with a generator of its own, would be found out by the canaries, after the dump.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from logitcache.errors import DataError
from logitcache.views.folders import FolderImages
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.keys import preserve_rng
from logitcache.views.maker import ViewMaker, digest

SAMPLES = 16  # made twice
SEEDS = (0, 1)


class _Look(NamedTuple):
    """Digests of an image, and of its views under `SEEDS`; None and none where they cannot be made."""

    image: int | None
    views: tuple[int, ...]


def require_repeatable(views: KeyedViews) -> None:
    """Make views of a few samples twice, in two orders and with other states of the global generators, and compare.

    What depends on the process (on Python's hash seed, say) is not seen so.

    Raises:
        DataError: an image or a view is another the second time; the message names the data set's item, or the step.
    """
    own_steps = [step for step in views.maker.recipe.own_steps if ":" in step.transform]
    in_files = type(views.images) is FolderImages
    if not own_steps and (in_files or views.images.pixels() is not None):
        return  # torchvision's transforms of images in files or in memory: no code of the user's own
    samples = sorted({number * len(views) // SAMPLES for number in range(SAMPLES)})
    with preserve_rng(all_sources=True):
        first = [_look(views, sample) for sample in samples]
        _seed_all(1)
        again = [_look(views, sample) for sample in reversed(samples)]
        for sample, before, after in zip(samples, first, reversed(again), strict=True):
            if before.image != after.image:
                raise DataError(
                    f"{views.images.describe(sample)} is another image when it is read again, so the data set is "
                    "random by itself and no seed can make its views again; leave random transforms out of the data "
                    "set, and put them into the recipe"
                )
            if before.views != after.views:
                step = _name_random_step(views, sample)
                raise DataError(
                    f"{step} of recipe {views.maker.recipe.name!r} makes another view of "
                    f"{views.images.describe(sample)} when it is made again under the same seed; let it draw from "
                    "the global generators of torch, random or numpy.random, which each view seeds, and keep no state"
                )


def _look(views: KeyedViews, sample: int) -> _Look:
    try:
        image = views.images.image(sample)
    except DataError:  # the dump will say so, or leave it out
        return _Look(None, ())
    seen = digest(image)
    try:
        return _Look(seen, tuple(map(digest, views.maker.make_many(image, sample, SEEDS))))
    except DataError:
        return _Look(seen, ())


def _name_random_step(views: KeyedViews, sample: int) -> str:
    """Find the first step behind which views differ from time to time."""
    recipe = views.maker.recipe
    for count, step in enumerate(recipe.own_steps, 1):
        maker = ViewMaker(replace(recipe, steps=recipe.own_steps[:count]))
        if ":" in step.transform and _differs(views, maker, sample, range(4)):
            return f"step {step.transform}"
    return "a step"


def _differs(views: KeyedViews, maker: ViewMaker, sample: int, seeds: Sequence[int]) -> bool:
    try:
        image = views.images.image(sample)
        first = maker.make_many(image, sample, tuple(seeds))
        _seed_all(2)
        again = maker.make_many(image, sample, tuple(seeds))
        return not all(map(torch.equal, first, again))
    except DataError:  # what it gives is no view before the steps that follow
        return False


def _seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (whatever the user's code draws from)
