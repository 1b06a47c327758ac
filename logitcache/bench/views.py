"""How fast views are made: keyed against plain torchvision, and whole batches against one by one.

All ways run in one thread, as in a worker, and the time counted is that of the processor: other work on the machine
then blurs the ratios less.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from logitcache.batched import BatchedViews
from logitcache.bench.compare import Comparison, Seconds
from logitcache.datasets import ArrayImages, digits
from logitcache.errors import LogitCacheError
from logitcache.loader import InMemory, KeyedViews, Pair
from logitcache.views import ViewMaker, key, recipe_named

TURNS = 8
ONE_BY_ONE = 64
AT_ONCE = 8192
BATCH = 256


@dataclass(frozen=True)
class Way:
    """A way to make views: `make` gets the number of its turn and makes `views` of them; `prepare` is not timed."""

    views: int
    make: Callable[[int], object]
    prepare: Callable[[int], object] = lambda turn: None


def measure(*, rounds: int = 20) -> list[Comparison]:
    """Time ways to make views, in turns, so that all share the machine's load.

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
    with _one_thread():
        for images in (digits(), cifar):
            rows += _small(images, rounds)
        rows += _large("imagenet", generator, rounds)
    return rows


def _small(images: ArrayImages, rounds: int) -> list[Comparison]:
    recipe = recipe_named(images.recipe)
    views = KeyedViews(images, recipe)
    engine = BatchedViews.of(images, views.maker)
    if engine is None:
        raise LogitCacheError(f"views of recipe {recipe.name!r} are not made by whole batches here")

    def pairs(turn: int, n: int) -> list[Pair]:
        return [((turn * n + i) % len(images), turn) for i in range(n)]

    def at_once(turn: int) -> None:
        all_pairs = pairs(turn, AT_ONCE)
        batches = [all_pairs[start : start + BATCH] for start in range(0, AT_ONCE, BATCH)]
        for _ in InMemory(views, engine, batches):
            pass

    def plain(turn: int) -> Tensor:
        return torch.stack([_plain(views.maker, images.image(i)) for i, _ in pairs(turn, ONE_BY_ONE)])

    times = _in_turns(
        {
            "unkeyed": Way(ONE_BY_ONE, plain),
            "keyed": Way(ONE_BY_ONE, lambda turn: views.__getitems__(pairs(turn, ONE_BY_ONE))),
            "batched": Way(AT_ONCE, at_once),
        },
        rounds,
    )
    return [
        _row(recipe.name, "batched", "keyed", times, 1 / 20),
        _row(recipe.name, "batched", "unkeyed", times, None),
        _row(recipe.name, "keyed", "unkeyed", times, None),
    ]


def _large(name: str, generator: torch.Generator, rounds: int) -> list[Comparison]:
    sides = torch.randint(256, 501, (TURNS, 2), generator=generator).tolist()
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sides]
    maker = ViewMaker(recipe_named(name))

    def seed(turn: int) -> None:  # the time follows the crop: both ways are to make the same one
        torch.manual_seed(key(turn, turn % TURNS))

    ways = {
        "unkeyed": Way(1, lambda turn: _plain(maker, images[turn % TURNS]), seed),
        "keyed": Way(1, lambda turn: maker(images[turn % TURNS], turn % TURNS, turn)),
    }
    times = _in_turns(ways, rounds * 8)  # as each turn is short
    return [_row(name, "keyed", "unkeyed", times, 1.03)]


def _plain(maker: ViewMaker, image: Tensor) -> Tensor:
    """A view as torchvision makes it for anybody, by the same transforms."""
    for step in maker.steps:
        image = step(image)
    return image.contiguous()


def _in_turns(ways: dict[str, Way], rounds: int) -> dict[str, Seconds]:
    """Seconds per view of each way in each round of `TURNS`."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        spent = dict.fromkeys(ways, 0.0)
        for turn in range(TURNS):
            for name, way in sorted(
                ways.items(), reverse=bool(turn % 2)
            ):  # neither always finds a warm cache
                way.prepare(number * TURNS + turn)
                start = time.thread_time()
                way.make(number * TURNS + turn)
                spent[name] += time.thread_time() - start
        if number:
            for name, way in ways.items():
                times[name].append(spent[name] / (TURNS * way.views))
    return {name: np.array(seconds) for name, seconds in times.items()}


def _row(recipe: str, name: str, against: str, times: dict[str, Seconds], wanted: float | None) -> Comparison:
    of = {"made": name, "recipe": recipe}
    return Comparison.between(of, against, times[name], times[against], wanted, views=1)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
