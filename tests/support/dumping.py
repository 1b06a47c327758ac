"""A small teacher, dumps of digits by it, and what tells whether two caches hold the same."""

from pathlib import Path
from typing import Any

import numpy as np
from small import few_digits
from statistics_numbers import numbers_of

from logitcache.dump.job import DumpReport, dump
from logitcache.dump.settings import DumpConfig
from logitcache.format.identity import RecipeSpec
from logitcache.models.build import Model, build_model
from logitcache.store import CacheReader
from logitcache.views.images import Images
from logitcache.views.recipes import recipe_named

RECIPE = recipe_named("digits")


def a_teacher(seed: int = 0) -> Model:
    return build_model("digits_small", num_classes=10, view_size=8, weights="random", seed=seed)


def dump_digits(
    out: Path, n: int = 300, teacher: Model | None = None, recipe: RecipeSpec = RECIPE, **options: object
) -> DumpReport:
    settings = {"seeds": (0, 1), "top_k": 4, "shard_samples": 64, "batch_size": 24, "workers": 0, **options}
    return dump(out, few_digits(n), recipe, teacher or a_teacher(), DumpConfig(**settings))  # type: ignore[arg-type]


def arrays_of(cache: Path) -> dict[tuple[int, int, str], np.ndarray]:
    reader = CacheReader(cache)
    return {
        (seed, shard, name): values
        for seed in reader.seeds()
        for shard in range(reader.spec.layout.shards)
        for name, values in reader.read(seed, shard).items()
    }


def assert_same(cache: Path, other: Path) -> None:
    statistics, others = CacheReader(cache).statistics(), CacheReader(other).statistics()
    assert numbers_of(statistics) == numbers_of(others)
    mine, theirs = arrays_of(cache), arrays_of(other)
    assert mine.keys() == theirs.keys()
    for key, values in mine.items():
        np.testing.assert_array_equal(values, theirs[key], err_msg=str(key))


IDENTITY = recipe_named("identity")


def taught(out: Path, images: Images, **options: Any) -> CacheReader:
    settings = {"seeds": (0,), "profile": "exact", "shard_samples": 32, "workers": 0, **options}
    dump(out, images, IDENTITY, a_teacher(), DumpConfig(**settings))
    return CacheReader(out)
