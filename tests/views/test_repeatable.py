"""Randomness that no seed reaches is found before a dump, and named."""

import random
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from dumping import RECIPE, a_teacher
from torch import Tensor

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import DataError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.views.datasets import load_digits
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.own_images import wrap_images
from logitcache.views.repeatable import require_repeatable

OWN = np.random.default_rng()
CALLS = count()


def add(view: Tensor, noise: object) -> Tensor:
    return (view.int() + torch.as_tensor(noise)).clamp(0, 255).byte()


def from_own_generator(view: Tensor) -> Tensor:
    return add(view, OWN.integers(-9, 9, tuple(view.shape)))


def from_a_counter(view: Tensor) -> Tensor:
    return add(view, next(CALLS) % 200)


def from_the_clock(view: Tensor) -> Tensor:
    return add(view, time.perf_counter_ns() % 97)


def from_global_generators(view: Tensor) -> Tensor:
    numbers = random.randrange(9), int(np.random.randint(9)), int(torch.randint(9, ()))  # noqa: NPY002
    return add(view, sum(numbers))


def recipe_of(*functions: Callable[[Tensor], Tensor]) -> RecipeSpec:
    own = [StepSpec(f"{__name__}:{function.__name__}") for function in functions]
    return RecipeSpec("own", 1, (*RECIPE.steps, *own), "identity")


class Items:
    """A data set of its own: (image, label) pairs, changed as they are read."""

    classes = tuple("0123456789")

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        data = load_digits("train")
        self.images, self.targets, self.change = data.images[:40], data.labels[:40].tolist(), change

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(self.images[index]), self.targets[index]


@pytest.mark.parametrize("function", [from_own_generator, from_a_counter, from_the_clock])
def test_a_random_step_is_named_before_the_dump(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    recipe = recipe_of(from_global_generators, function, from_global_generators)
    images = wrap_images(Items(lambda image: image), "items")
    with pytest.raises(DataError, match=f"step {__name__}:{function.__name__} of recipe 'own' makes another"):
        dump(tmp_path / "c.zarr", images, recipe, a_teacher(), DumpConfig((0,), workers=0))
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize(
    "function", [from_own_generator, from_a_counter, from_the_clock, from_global_generators]
)
def test_a_random_data_set_is_named_before_the_dump(
    function: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    images = wrap_images(Items(function), "items")
    with pytest.raises(DataError, match="of items is another image when it is read again"):
        dump(tmp_path / "c.zarr", images, RECIPE, a_teacher(), DumpConfig((0,), workers=0))
    assert not (tmp_path / "c.zarr").exists()


def test_what_draws_from_seeded_generators_passes_and_leaves_them_as_they_were() -> None:
    images = wrap_images(Items(lambda image: image), "items")
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    expected = random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    require_repeatable(KeyedViews(images, recipe_of(from_global_generators)))
    assert (random.random(), np.random.random(), float(torch.rand(()))) == expected  # noqa: NPY002


def test_a_cache_that_is_there_is_not_gone_on_with_by_a_step_that_became_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, recipe = wrap_images(Items(lambda image: image), "items"), recipe_of(from_global_generators)
    dump(tmp_path / "c.zarr", images, recipe, a_teacher(), DumpConfig((0,), workers=0))
    monkeypatch.setitem(globals(), "from_global_generators", from_own_generator)
    with pytest.raises(DataError, match=r"step .*from_global_generators"):
        dump(tmp_path / "c.zarr", images, recipe, a_teacher(), DumpConfig((0, 1), workers=0))
