"""The recipe of a folder by the size of its pictures: the same on every machine, never above 224, and told."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import write
from PIL import Image
from specs import often

from logitcache.dump.inputs import DumpInputs
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.store import CacheReader
from logitcache.views.datasets import choose_recipe, open_images
from logitcache.views.own_images import wrap_images
from logitcache.views.picture_sample import LOOKED_AT, SIDES, PictureSample, spread_evenly


def folder(root: Path, *sizes: tuple[int, int], split: str = "train") -> Path:
    for name in ("ant", "bee"):
        for number, (height, width) in enumerate(sizes):
            write(root / split / name / f"{number}.png", np.zeros((height, width, 3), dtype=np.uint8))
    return root


@pytest.mark.parametrize(
    ("side", "recipe"),
    [
        (1, 32),
        (16, 32),
        (32, 32),
        (47, 32),
        (48, 64),
        (63, 64),
        (64, 64),
        (72, 64),
        (80, 96),
        (128, 128),
        (200, 192),
        (208, 224),
        (224, 224),
        (5000, 224),
    ],
)
def test_views_are_as_large_as_the_pictures_in_steps(side: int, recipe: int):
    expected = "imagenet" if recipe == 224 else f"imagenet@{recipe}"
    assert PictureSample((side,)).choose_recipe() == expected


@often
@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=80))
def test_the_median_chooses_whatever_the_order(sides: list[int]):
    chosen = PictureSample(tuple(sides)).choose_recipe()
    assert PictureSample(tuple(sorted(sides))).choose_recipe() == chosen
    middle = sorted(sides)[(len(sides) - 1) // 2]
    size = int(chosen.partition("@")[2] or 224)
    assert size in SIDES
    assert abs(size - min(middle, 224)) <= max(16, 32 - middle)


def test_a_folder_chooses_and_says_so_and_test_images_go_by_the_training_ones(tmp_path: Path):
    root = folder(folder(tmp_path, (64, 80), (64, 64), (300, 64)), (200, 300), split="val")
    notes: list[str] = []
    inputs = DumpInputs("resnet8", "random", f"imagefolder:{root}")
    assert inputs.open(notes.append).recipe.name == "imagenet@64"
    told = [note for note in notes if "shorter sides are 64 pixels" in note]
    assert len(told) == 1
    assert "--recipe NAME@SIZE" in told[0]
    assert choose_recipe(open_images(f"imagefolder:{root}", "test"))[0].name == "imagenet@64"
    test = DumpInputs("resnet8", "random", f"imagefolder:{root}", split="test")
    assert test.open().recipe.name == "center@64"


def test_small_pictures_are_said_to_be_enlarged(tmp_path: Path):
    recipe, reason = choose_recipe(open_images(f"imagefolder:{folder(tmp_path, (8, 9), (12, 10))}"))
    assert recipe.name == "imagenet@32"
    assert reason == "the pictures' shorter sides are 8 pixels (median of 4 looked at), and are enlarged"


def test_a_named_recipe_and_images_in_memory_are_not_chosen_for(tmp_path: Path):
    notes: list[str] = []
    root = folder(tmp_path, (64, 64))
    named = DumpInputs("resnet8", "random", f"imagefolder:{root}", "imagenet@96").open(notes.append)
    assert named.recipe.name == "imagenet@96"
    assert not [note for note in notes if "shorter sides" in note]
    assert choose_recipe(open_images("digits"))[0].name == "digits"


def test_a_data_set_of_ones_own_chooses_by_its_images():
    data = [(Image.new("RGB", (96, 120)), i % 2) for i in range(6)]
    assert choose_recipe(wrap_images(data, "mine"))[0].name == "imagenet@96"


def test_a_cache_keeps_its_recipe_when_larger_pictures_come(tmp_path: Path):
    root, out = folder(tmp_path / "d", (32, 32)), tmp_path / "c.zarr"
    config = DumpConfig(seeds=(0,), top_k=2, workers=0, device="cpu", grow=True)
    dump(out, *DumpInputs("resnet8", "random", f"imagefolder:{root}").open(), config)
    folder(root, *[(32, 32)] + [(200, 200)] * 5)
    assert choose_recipe(open_images(f"imagefolder:{root}"))[0].name == "imagenet@192"
    cache = CacheReader(out)
    dump(out, *DumpInputs("resnet8").with_defaults_of(cache).open(), config)
    assert (CacheReader(out).spec.recipe.name, CacheReader(out).spec.dataset.n) == ("imagenet@32", 12)


def test_few_files_are_looked_at_and_those_that_do_not_open_are_passed_over(tmp_path: Path):
    files = [tmp_path / f"{i:04}.png" for i in range(1000)]
    for file in files[::2]:
        write(file, np.zeros((40, 50, 3), dtype=np.uint8))
    sample = PictureSample.of_files(files, str)
    assert len(sample.sides) == sum(number % 2 == 0 for number in spread_evenly(1000, LOOKED_AT)) > 0
    assert set(sample.sides) == {40}
    assert PictureSample.of_files([], str).choose_recipe() == "imagenet"
