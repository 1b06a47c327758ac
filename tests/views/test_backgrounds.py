"""Transparent pictures on a recipe's background: the same pixels wherever they are viewed, old ones as they were."""

import dataclasses
import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import GRAY, SIXTEEN_BITS, smooth, write
from PIL import Image
from refusals import refused
from specs import often, small_cache, through_json

from logitcache.distributed import ALONE
from logitcache.dump.inputs import DumpInputs
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import DriftError, FormatError, ImageError, MismatchError, OptionError
from logitcache.format.identity import RecipeSpec, StepSpec, parse_colour
from logitcache.format.schema import CacheSpec
from logitcache.models.build import build_model
from logitcache.store import CacheReader
from logitcache.stream.batch import StreamConfig
from logitcache.stream.stream import Stream
from logitcache.stream.stream_inputs import StreamInputs
from logitcache.views.alignment import open_images_to_show
from logitcache.views.datasets import describe_transparency, open_images
from logitcache.views.decoding import pillow_to_tensor
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.own_images import wrap_images
from logitcache.views.recipes import evaluation_recipe, recipe_named, with_background
from logitcache.views.replay import prove_replay

SMALL = RecipeSpec("small", 1, (StepSpec("Resize", {"size": [8, 8]}),), "identity")
ON_WHITE = dataclasses.replace(SMALL, background="white")
CONFIG = DumpConfig(seeds=(0,), top_k=2, workers=0, device="cpu")


def clear(height: int = 20, width: int = 30, alpha: int = 0) -> Image.Image:
    """Draw a picture whose left half is opaque, and whose right half hides its colours."""
    mask = np.full((height, width), 255, dtype=np.uint8)
    mask[:, width // 2 :] = alpha
    return Image.fromarray(np.dstack([smooth(height, width), mask]))


def clear_folder(root: Path) -> Path:
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                clear(20 + i).save(root / split / name / f"{i}.png")
    return root


# What a recipe says ---------------------------------------------------------------------------------------


def test_a_recipe_without_a_background_reads_and_hashes_as_before_there_were_any():
    assert "background" not in through_json(SMALL)
    assert "background" not in json.dumps(through_json(small_cache()))
    digits = recipe_named("digits")
    steps = '[{"args": {"padding": 1, "size": 8}, "transform": "RandomCrop"}]'
    assert digits.sha256 == hashlib.sha256(steps.encode()).hexdigest()
    assert (
        RecipeSpec.from_dict(
            {"name": "digits", "version": 1, "steps": [], "evaluation": "identity"}
        ).background
        is None
    )


@pytest.mark.parametrize("text", ["white", "#fff", "#FFFFFF", "rgb(255, 255, 255)", "hsl(0, 0%, 100%)"])
def test_one_colour_is_one_recipe_however_it_is_written(text: str):
    assert dataclasses.replace(SMALL, background=text) == ON_WHITE
    assert through_json(dataclasses.replace(SMALL, background=text))["background"] == "#ffffff"


@pytest.mark.parametrize("text", ["", "snowy", "#ffff", "#ffffff00", "rgba(1, 2, 3, 4)", "#fffffg", "none "])
def test_what_is_no_colour_is_refused(text: str):
    refused(
        FormatError, lambda: dataclasses.replace(SMALL, background=text), "expected a colour such as white"
    )
    refused(OptionError, lambda: with_background(SMALL, text), "background: expected a colour", "none drops")


@often
@given(st.tuples(*[st.integers(0, 255)] * 3), st.tuples(*[st.integers(0, 255)] * 3))
def test_backgrounds_tell_recipes_apart(one: tuple[int, int, int], other: tuple[int, int, int]):
    a, b = (dataclasses.replace(SMALL, background=f"#{bytes(colour).hex()}") for colour in (one, other))
    assert (a.sha256 == b.sha256) == (one == other)
    assert a.sha256 != SMALL.sha256
    assert RecipeSpec.from_dict(through_json(a)) == a
    assert parse_colour(a.background) == a.background


def test_a_toml_file_names_a_background_and_evaluation_goes_by_it(tmp_path: Path):
    file = tmp_path / "r.toml"
    file.write_text('name = "r"\nversion = 1\nevaluation = "center@8"\nbackground = "red"\n')
    recipe = recipe_named(str(file))
    assert recipe.background == "#ff0000"
    assert evaluation_recipe(recipe) == dataclasses.replace(recipe_named("center@8"), background="#ff0000")
    assert with_background(recipe, None) == recipe
    assert with_background(recipe, "none").background is None
    assert with_background(recipe, "blue").background == "#0000ff"
    file.write_text('background = "snowy"\n')
    refused(FormatError, lambda: recipe_named(str(file)), str(file), "snowy")


def test_a_cache_on_a_background_is_of_version_3_and_another_than_one_without():
    plain = small_cache()
    spec = CacheSpec.new(plain.teacher, plain.dataset, ON_WHITE, k=4, versions={}, calibrated=True)
    assert (spec.format_version, plain.format_version) == (3, 1)
    assert CacheSpec.from_dict(through_json(spec)) == spec
    differing = [str(f) for f in spec.differences(plain) if f.field == "recipe_sha256"]
    assert "small on #ffffff" in differing[0]


# Pixels ---------------------------------------------------------------------------------------------------


@often
@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_a_pixel_lies_between_its_colour_and_the_background_in_proportion(value: int, alpha: int, below: int):
    image = Image.new("LA", (1, 1), (value, alpha))
    found = int(pillow_to_tensor(image, background=f"#{bytes([below] * 3).hex()}"))
    assert abs(found - (value * alpha + below * (255 - alpha)) / 255) <= 0.5
    assert min(value, below) <= found <= max(value, below)


KINDS: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "rgba": (clear(), {}),
    "gray with alpha": (clear().convert("LA"), {}),
    "palette": (Image.fromarray(GRAY // 2).convert("P"), {"transparency": 0}),
    "palette, veiled": (Image.fromarray(GRAY // 2).convert("P"), {"transparency": bytes([0, 128])}),
    "gray, one clear": (Image.fromarray(GRAY), {"transparency": 0}),
    "colour, one clear": (Image.fromarray(smooth()), {"transparency": (0, 0, 0)}),
    "1 bit, one clear": (Image.fromarray(GRAY > 99), {"transparency": 0}),
    "16 bits, one clear": (Image.fromarray(SIXTEEN_BITS), {"transparency": 77}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_transparency_is_put_on_the_background_and_opaque_pixels_stay(
    name: str, tmp_path: Path
):
    image, options = KINDS[name]
    image.save(tmp_path / "0.png", **options)
    images = open_images(f"folder:{tmp_path}")
    dropped, found = images.image(0), images.on_background("#ff0000").image(0)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    is_red = (found == red).all(0)
    assert is_red.any()
    assert ((found == dropped).all(0) | (found[1:] <= dropped[1:]).all(0)).all()
    assert (found == dropped).all(0).any()
    sample = images.sample_pictures()
    assert sample
    assert sample.transparent == 1


def test_opaque_alpha_is_not_transparent(tmp_path: Path):
    clear(alpha=255).save(tmp_path / "0.png")
    images = open_images(f"folder:{tmp_path}")
    assert torch.equal(images.image(0), images.on_background("#ff0000").image(0))
    assert describe_transparency(images, SMALL, "x") is None


def test_a_data_set_of_pil_images_takes_the_same_path_and_keeps_its_fingerprint():
    data = [(clear(20 + i), i % 2) for i in range(4)]
    images = wrap_images(data, "mine")
    on_white = images.on_background("#ffffff")
    expected = np.array(
        Image.alpha_composite(Image.new("RGBA", data[1][0].size, "white"), data[1][0]).convert("RGB")
    )
    difference = on_white.image(1).permute(1, 2, 0).numpy().astype(int) - expected
    assert np.abs(difference).max() <= 1
    assert on_white.fingerprint == images.fingerprint == on_white.fingerprint_of(slice(None))
    assert (images.image(1).permute(1, 2, 0).numpy() == smooth(21, 30)).all()
    note = describe_transparency(images, SMALL, "advice")
    assert note
    assert note.startswith("4 of 4 pictures looked at are transparent, first sample 0 of mine")
    assert describe_transparency(images, ON_WHITE, "advice") is None


def test_gray_data_stays_gray_on_gray_and_is_in_colour_on_a_colour():
    data = [(clear().convert("LA"), i % 2) for i in range(2)]
    images = wrap_images(data, "mine")
    shapes = [images.on_background(colour).image(0).shape[0] for colour in (None, "#808080", "#ff0000")]
    assert shapes == [1, 1, 3]
    again = images.on_background("#ff0000").on_background(None)
    assert torch.equal(again.image(0), images.image(0))


# From the dump to the student -----------------------------------------------------------------------------


def dumped(root: Path, out: Path, recipe: RecipeSpec, data: str = "imagefolder") -> CacheReader:
    images = open_images(f"{data}:{root}")
    teacher = build_model("resnet8", num_classes=2, view_size=8, weights="random")
    dump(out, images, recipe, teacher, CONFIG)
    return CacheReader(out)


def test_a_cache_goes_by_its_background_wherever_it_is_read(tmp_path: Path):
    root = clear_folder(tmp_path / "d")
    cache = dumped(root, tmp_path / "white.zarr", ON_WHITE)
    plain = dumped(root, tmp_path / "plain.zarr", SMALL)
    images = open_images(f"imagefolder:{root}")
    views = KeyedViews(images, ON_WHITE)
    assert prove_replay(cache, views, [0]) > 0
    with pytest.raises(DriftError):
        prove_replay(cache, KeyedViews(images, SMALL), [0])
    stream = Stream.from_cache(cache, images, batch_size=2, workers=0, device="cpu")
    batch = next(iter(stream.epoch(0)))
    for view, sample in zip(batch.views, batch.samples.tolist(), strict=True):
        assert torch.equal(view, views[sample, 0].views[0])
        assert not torch.equal(view, KeyedViews(images, SMALL)[sample, 0].views[0])
    assert stream.evaluation == dataclasses.replace(recipe_named("identity"), background="#ffffff")
    for reader, right in ((cache, 255), (plain, int(smooth(20, 30)[0, -1, 0]))):
        shown, _ = open_images_to_show(reader, [f"imagefolder:{root}"])
        assert shown
        assert int(shown.image(0)[0, 0, -1]) == right


def test_a_dump_that_goes_on_keeps_the_background_and_refuses_another(tmp_path: Path):
    root = clear_folder(tmp_path / "d")
    out = tmp_path / "c.zarr"
    inputs = DumpInputs("resnet8", "random", f"imagefolder:{root}", "center@8", background="white")
    notes: list[str] = []
    dump(out, *inputs.open(notes.append), CONFIG)
    assert not [note for note in notes if "transparent" in note]
    cache = CacheReader(out)
    assert cache.spec.recipe.background == "#ffffff"
    for going_on in (DumpInputs("resnet8"), DumpInputs("resnet8", recipe="center@8")):
        assert going_on.with_defaults_of(cache).open().recipe == cache.spec.recipe
    for other in ("none", "black"):
        opened = DumpInputs("resnet8", background=other).with_defaults_of(cache).open()
        with pytest.raises(MismatchError, match="center@8 on #ffffff"):
            dump(out, *opened, CONFIG)


def test_the_test_split_goes_on_the_background_of_its_recipe(tmp_path: Path):
    root = clear_folder(tmp_path)
    inputs = DumpInputs("resnet8", "random", f"imagefolder:{root}", "imagenet@8", "white", split="test")
    assert inputs.open().recipe == dataclasses.replace(recipe_named("center@8"), background="#ffffff")


def test_transparent_pictures_without_a_background_are_told_once_with_what_to_do(tmp_path: Path):
    root = clear_folder(tmp_path)
    notes: list[str] = []
    DumpInputs("resnet8", "random", f"imagefolder:{root}").open(notes.append)
    told = [note for note in notes if "transparent" in note]
    assert len(told) == 1
    assert "6 of 6 pictures" in told[0]
    assert str(root / "train" / "ant" / "0.png") in told[0]
    assert "--background white" in told[0]


def test_training_without_a_cache_takes_a_background_and_from_a_cache_refuses_it(tmp_path: Path):
    root = clear_folder(tmp_path / "d")
    lines: list[str] = []
    config = StreamConfig(batch_size=2, workers=0, device="cpu")
    inputs = StreamInputs(config, data=f"imagefolder:{root}", recipe="center@8", background="white")
    stream = inputs.open(1, ALONE, lines.append)
    assert stream.views.maker.recipe.background == "#ffffff"
    assert not lines
    cache = dumped(root, tmp_path / "c.zarr", SMALL)
    cached = StreamInputs(config, (cache,))
    cached.open(1, ALONE, lines.append)
    assert [line for line in lines if "transparent" in line and "logitcache dump" in line]
    with_one = dataclasses.replace(cached, background="white")
    refused(OptionError, lambda: with_one.open(1, ALONE, lines.append), "--background white", "leave it out")


def test_a_background_of_images_without_alpha_is_said_to_change_nothing(tmp_path: Path):
    note = describe_transparency(open_images("digits"), ON_WHITE, "x")
    assert note == "digits has no alpha, so that the background changes nothing"
    write(tmp_path / "0.png")
    assert describe_transparency(open_images(f"folder:{tmp_path}"), ON_WHITE, "x") is None


def test_a_truncated_transparent_item_does_not_keep_a_data_set_from_opening() -> None:
    files = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(file := BytesIO(), "PNG")
        files.append(file.getvalue())
    files[1] = files[1][:2000]

    class Lazy:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            return Image.open(BytesIO(files[i])), i % 2

    images = wrap_images(Lazy(), "mine")
    with pytest.raises(ImageError):
        images.image(1)
    assert images.image(2).shape == (3, 40, 40)
