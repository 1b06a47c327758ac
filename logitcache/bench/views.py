"""How fast views are made: keyed against plain torchvision, and whole batches against one by one.

All ways run in one thread, as in a worker, and it is processor time that is counted: other work on the machine then
blurs the ratios less.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from logitcache.bench.compare import Comparison, Seconds, time_interleaved
from logitcache.errors import LogitCacheError
from logitcache.teacher.completion import on_one_thread
from logitcache.views.datasets import ArrayImages, load_digits
from logitcache.views.keyed_views import KeyedViews, Pair
from logitcache.views.keys import key
from logitcache.views.loader import VectorizedLoader
from logitcache.views.maker import ViewMaker
from logitcache.views.recipes import recipe_named
from logitcache.views.vectorized import VectorizedViews

TURNS = 8  # of a way in one round, of which the mean counts
ONE_BY_ONE = 64  # views of a turn that are made one by one
AT_ONCE = 8192  # views of a turn that are made by whole batches
BATCH = 256


def measure(*, rounds: int = 20) -> list[Comparison]:
    """Time ways to make views, in interleaved rounds.

    The images: the digits, random ones of CIFAR's size, and random ones of 256 to 500 pixels a side, held decoded.

    Args:
        rounds: how often each ratio is taken; one more is not counted.

    Raises:
        LogitCacheError: the recipes of small images are not made by whole batches here.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    cifar = ArrayImages("random", "train", pixels, np.zeros(len(pixels), np.int64), 10, "cifar")
    rows = []
    with on_one_thread():
        for images in (load_digits(), cifar):
            rows += _compare_small(images, rounds)
        rows += _compare_large("imagenet", generator, rounds)
    return rows


def _compare_small(images: ArrayImages, rounds: int) -> list[Comparison]:
    recipe = recipe_named(images.recipe)
    views = KeyedViews(images, recipe)
    engine = VectorizedViews.build(images, views.maker)
    if engine is None:
        raise LogitCacheError(f"views of recipe {recipe.name!r} are not made by whole batches here")

    def pairs(turn: int, n: int) -> list[Pair]:
        return [((turn * n + i) % len(images), turn) for i in range(n)]

    def batched(turn: int) -> None:
        all_pairs = pairs(turn, AT_ONCE)
        batches = [all_pairs[start : start + BATCH] for start in range(0, AT_ONCE, BATCH)]
        for _ in VectorizedLoader(views, engine, batches):
            pass

    def unkeyed(turn: int) -> Tensor:
        return torch.stack([_plain_view(views.maker, images.image(i)) for i, _ in pairs(turn, ONE_BY_ONE)])

    times = _time_rounds(
        {
            "unkeyed": unkeyed,
            "keyed": lambda turn: views.__getitems__(pairs(turn, ONE_BY_ONE)),
            "batched": batched,
        },
        rounds,
    )
    for name, count in (("unkeyed", ONE_BY_ONE), ("keyed", ONE_BY_ONE), ("batched", AT_ONCE)):
        times[name] /= count
    return [
        _row(recipe.name, "batched", "keyed", times, 1 / 20),
        _row(recipe.name, "batched", "unkeyed", times, None),
        _row(recipe.name, "keyed", "unkeyed", times, None),
    ]


def _compare_large(name: str, generator: torch.Generator, rounds: int) -> list[Comparison]:
    sides = torch.randint(256, 501, (TURNS, 2), generator=generator).tolist()
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sides]
    maker = ViewMaker(recipe_named(name))

    def seed_torch(
        name: str, turn: int
    ) -> None:  # time depends on the crop: both ways are to make the same one
        if name == "unkeyed":
            torch.manual_seed(key(turn, turn % TURNS))

    ways: dict[str, Callable[[int], object]] = {
        "unkeyed": lambda turn: _plain_view(maker, images[turn % TURNS]),
        "keyed": lambda turn: maker(images[turn % TURNS], turn % TURNS, turn),
    }
    times = _time_rounds(ways, rounds * 8, seed_torch)  # as each turn is short
    return [_row(name, "keyed", "unkeyed", times, 1.03)]


def _plain_view(maker: ViewMaker, image: Tensor) -> Tensor:
    """Make a view as torchvision makes it for anybody, by the same transforms."""
    for step in maker.steps:
        image = step(image)
    return image.contiguous()


def _time_rounds(
    ways: dict[str, Callable[[int], object]],
    rounds: int,
    prepare: Callable[[str, int], object] = lambda name, turn: None,
) -> dict[str, Seconds]:
    """Return the seconds of each way in each round, a mean of `TURNS` turns."""
    turns = time_interleaved(ways, rounds * TURNS, time.thread_time, prepare)
    return {name: seconds.reshape(rounds, TURNS).mean(1) for name, seconds in turns.items()}


def _row(recipe: str, name: str, against: str, times: dict[str, Seconds], wanted: float | None) -> Comparison:
    of = {"made": name, "recipe": recipe}
    return Comparison.between(of, against, times[name], times[against], wanted, views=1)
