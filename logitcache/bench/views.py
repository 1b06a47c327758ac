"""How fast views are made: keyed against torchvision, whole batches against one by one, files against ImageFolder.

All ways run in one thread, as in a worker, and it is processor time that is counted: other work on the machine then
blurs the ratios less.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitcache.bench.compare import Comparison, Seconds, time_interleaved
from logitcache.errors import LogitCacheError
from logitcache.teacher.completion import on_one_thread
from logitcache.views.datasets import ArrayImages, load_digits
from logitcache.views.folders import FolderImages
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

SIZES = {
    "0.1 MP": (274, 365),
    "500 × 375": (375, 500),
    "1 MP": (866, 1155),
    "12 MP": (3000, 4000),
    "24 MP": (4000, 6000),
}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {  # suffix, Pillow's mode, how it is saved
    "JPEG": (".jpg", "RGB", {"quality": 90}),
    "progressive": (".jpg", "RGB", {"quality": 90, "progressive": True}),
    "gray JPEG": (".jpg", "L", {"quality": 90}),
    "CMYK JPEG": (".jpg", "CMYK", {"quality": 90}),
    "PNG": (".png", "RGB", {"compress_level": 1}),
    "WebP": (".webp", "RGB", {"quality": 80, "method": 0}),
}
FILES = [
    *(("JPEG", size) for size in SIZES),
    *((kind, size) for size in ("500 × 375", "12 MP") for kind in KINDS if kind != "JPEG"),
]
WANTED = {
    ("ToImage", "500 × 375"): 1 / 1.25,
    ("PIL", "500 × 375"): 1 / 1.25,
    ("ToImage", "12 MP"): 0.29,
}  # of JPEG
MEGAPIXELS = 4  # of a round of one way: small pictures are taken several times


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


def measure_files(*, rounds: int = 10) -> list[Comparison]:
    """Time views of picture files, of several sizes and formats, against torchvision's `ImageFolder`.

    That has the same transforms, of a PIL image, or of a tensor, which `ToImage` makes first. The latter makes the
    same views. A plain loader by PIL is the former.

    Args:
        rounds: how often each ratio is taken; one more is not counted.
    """
    rows = []
    with on_one_thread(), tempfile.TemporaryDirectory() as folder:
        for number, (kind, size) in enumerate(FILES):
            rows += _compare_file(kind, size, Path(folder) / str(number), rounds)
    return rows


def _compare_file(kind: str, size: str, folder: Path, rounds: int) -> list[Comparison]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    suffix, mode, options = KINDS[kind]
    height, width = SIZES[size]
    (folder / "class").mkdir(parents=True)
    _draw(height, width).convert(mode).save(folder / "class" / f"picture{suffix}", **options)
    recipe = recipe_named("imagenet@64")
    steps = ViewMaker(recipe).steps
    views = KeyedViews(FolderImages.unlabelled("folder", folder, "train"), recipe)
    to_tensor = v2.PILToTensor()
    plain = {
        "PIL": ImageFolder(folder, v2.Compose([*steps, to_tensor])),
        "ToImage": ImageFolder(folder, v2.Compose([v2.ToImage(), *steps])),
    }
    turns = max(1, round(MEGAPIXELS * 1e6 / height / width))

    def load(name: str, number: int) -> None:
        for turn in range(number * turns, (number + 1) * turns):
            if name == "here":
                views[0, turn]
            else:
                torch.default_generator.manual_seed(key(turn, 0))  # the same crop
                plain[name][0]

    ways = {name: lambda number, name=name: load(name, number) for name in ("here", *plain)}
    times = {
        name: seconds / turns for name, seconds in time_interleaved(ways, rounds, time.thread_time).items()
    }
    of = {"file": kind, "size": size}
    return [
        Comparison.between(
            of, name, times["here"], times[name], WANTED.get((name, size), 1.0) if kind == "JPEG" else 1.0, 1
        )
        for name in plain
    ]


def _draw(height: int, width: int) -> Any:
    """Draw a picture of soft shapes and some grain, as a photograph has."""
    from PIL import Image

    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(shapes).resize((width, height), Image.Resampling.BICUBIC)).astype(
        np.int16
    )
    grain = rng.integers(-8, 9, soft.shape, dtype=np.int16)
    return Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8))


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
