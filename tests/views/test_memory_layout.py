"""A view does not depend on how its image lies in memory: it is torchvision's of a plain (C, H, W) tensor."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import FIRST, LAYOUTS
from making import picture
from PIL import Image
from torch import Tensor

from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.views.decoding import WHOLE, pillow_to_tensor
from logitcache.views.jpeg import agrees_with_pillow
from logitcache.views.keys import key, preserve_rng
from logitcache.views.maker import ViewMaker
from logitcache.views.recipes import recipe_named

NAMED = ["identity", "cifar", "imagenet@16", "imagenet-ra@16", "center@16", "imagenet-strong@16"]
AFTER = (StepSpec("ColorJitter", {"contrast": 0.5, "hue": 0.1}), StepSpec("RandomErasing", {"inplace": True}))


def plain(recipe: RecipeSpec, image: Tensor, sample: int, seed: int) -> Tensor:
    """Make a view by torchvision's transforms alone."""
    with preserve_rng():
        torch.manual_seed(key(seed, sample))
        for step in ViewMaker(recipe).steps:
            image = step(image)
    return image


def check(recipe: RecipeSpec, layout: str, height: int, width: int, seed: int) -> None:
    image = LAYOUTS[layout](picture(3, height, width, seed))
    before = image.clone()
    expected = plain(recipe, image.contiguous().clone(), seed, 7)
    view = ViewMaker(recipe)(image, seed, 7)
    assert view.is_contiguous()
    assert torch.equal(view, expected)
    assert view.untyped_storage().data_ptr() != image.untyped_storage().data_ptr()
    assert torch.equal(image, before)


SIDES = st.integers(24, 150)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMED)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 1 << 40))
def test_a_named_recipe_makes_torchvisions_views(
    layout: str, name: str, height: int, width: int, seed: int
) -> None:
    check(recipe_named(name), layout, height, width, seed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("first", FIRST, ids=lambda first: first[0])
@given(height=SIDES, width=SIDES, seed=st.integers(0, 1 << 40), more=st.booleans())
def test_steps_make_torchvisions_views(
    layout: str, first: tuple[str, dict[str, Any]], height: int, width: int, seed: int, more: bool
) -> None:
    recipe = RecipeSpec("mine", 1, (StepSpec(*first), *(AFTER if more else ())))
    check(recipe, layout, height, width, seed)


PROGRAM = """
import torch
from layouts import FIRST, LAYOUTS
from making import picture
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.views.maker import ViewMaker, digest
for first in FIRST:
    maker = ViewMaker(RecipeSpec("mine", 1, (StepSpec(*first),)))
    for layout in LAYOUTS.values():
        image = layout(picture(3, 90, 70))
        assert digest(maker(image, 1, 2)) == digest(maker(image.contiguous(), 1, 2)), first
"""


def test_so_it_is_on_a_cpu_without_vector_instructions() -> None:
    folders = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": folders}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, timeout=240)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA", "I;16", "La", "RGBa"])
@pytest.mark.parametrize("size", [(WHOLE + 3, 2), (1, WHOLE + 5), (700, 401)])
@pytest.mark.parametrize("background", [None, "#10c040"])
def test_a_large_picture_is_converted_as_a_small_one(
    mode: str, size: tuple[int, int], background: str | None
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = (
        Image.fromarray(pixels, "RGBA") if mode != "I;16" else Image.fromarray(pixels.view(np.uint16)[..., 0])
    )
    way = {"La": "LA", "LA": "LA", "RGBa": "RGBA", "RGBA": "RGBA", "I;16": "I;16"}.get(mode, "RGB")
    image = image if mode == "I;16" else image.convert(way).convert(mode)
    if mode == "I;16":
        image.format = "PNG"
    found = pillow_to_tensor(image, None, background)
    side = 1 << 17 if min(size) < 3 else 200  # of tiles, which are converted whole
    width, height = size
    columns = []
    for x in range(0, width, side):
        boxes = [(x, y, min(width, x + side), min(height, y + side)) for y in range(0, height, side)]
        columns.append(torch.cat([pillow_to_tensor(image.crop(b), image, background) for b in boxes], 1))
    assert torch.equal(found, torch.cat(columns, 2))


PEAK = """
import re, sys
from pathlib import Path
from logitcache.views.decoding import decode_image
from logitcache.views.maker import ViewMaker
from logitcache.views.recipes import recipe_named
def read(name): return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
maker = ViewMaker(recipe_named("imagenet@64"))
small, large = map(Path, sys.argv[1:])
maker(decode_image(small), 0, 0)
before = read("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
for seed in range(8):
    maker(decode_image(large), 0, seed)
print(read("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells of no peak")
def test_a_view_of_24_megapixels_takes_little_more_than_two_decoded_images(tmp_path: Path) -> None:
    files = [tmp_path / "small.jpg", tmp_path / "large.jpg"]
    for file, size in zip(files, [(60, 40), (6000, 4000)], strict=True):
        Image.radial_gradient("L").resize(size).convert("RGB").save(file)
    words = [sys.executable, "-c", PEAK, *map(str, files)]
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=240)
    most = 2.2 if agrees_with_pillow() else 2.4
    assert 1.0 < int(run.stdout) / (6000 * 4000 * 3) < most
