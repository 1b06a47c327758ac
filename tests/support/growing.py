"""Folders of images that grow, caches of them, and a small cache before and after its growth."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small_caches import SMALL, fill

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.models.build import Model, build_model
from logitcache.store import CacheReader, CacheWriter
from logitcache.views.datasets import open_images
from logitcache.views.images import Images
from logitcache.views.recipes import recipe_named

OLD, NEW = ("b", "d", "f", "h", "k"), ("a", "c", "i", "z")

GROWN = SMALL.grown(dataclasses.replace(SMALL.dataset, n=12, fingerprint="grown"))  # shards of 4, 3, 4 and 1
KEYS = np.arange(100, 112, dtype=np.uint64)


def before_growth(cache: Path) -> Path:
    """Seed 1 complete, seed 2 without its short last shard."""
    CacheWriter.open(cache, SMALL, KEYS[:7])
    fill(cache, SMALL, seeds=(1,))
    return fill(cache, SMALL, seeds=(2,), shards=[0])


def grow(cache: Path) -> None:
    CacheWriter.open(cache, GROWN, KEYS, grow=True)
    fill(cache, GROWN, seeds=(1, 2, 3))


def paint(root: Path, names: tuple[str, ...], classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Write images whose pixels are a function of their path."""
    for label in classes:
        (root / "train" / label).mkdir(parents=True, exist_ok=True)
        for name in names:
            pixels = np.random.default_rng([ord(c) for c in label + name]).integers(
                0, 256, (12, 12, 3), np.uint8
            )
            Image.fromarray(pixels).save(root / "train" / label / f"{name}.png")
    return root


def folder_images(root: Path) -> Images:
    return open_images(f"imagefolder:{root}")


def folder_teacher() -> Model:
    return build_model("digits_small", num_classes=2, view_size=8, weights="random")


def dump_folder(out: Path, images: Images, recipe: str = "center@8", **options: Any) -> None:
    """Batches of one, so that a sample's numbers are its own whatever shard it is in."""
    settings = {"seeds": (0, 1), "top_k": 1, "batch_size": 1, "shard_samples": 4, "workers": 0, **options}
    dump(out, images, recipe_named(recipe), folder_teacher(), DumpConfig(**settings))


def by_key(cache: Path) -> dict[tuple[int, int, str], bytes]:
    """Every sample's numbers by seed and key."""
    reader = CacheReader(cache)
    keys = reader.keys()
    assert keys is not None
    return {
        (seed, int(keys[sample]), name): values[row].tobytes()
        for seed in reader.seeds()
        for shard in range(reader.spec.layout.shards)
        for name, values in reader.read(seed, shard).items()
        for row, sample in enumerate(reader.spec.layout.samples_of(shard))
        if name != "canary"
    }
