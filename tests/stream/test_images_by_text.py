"""Images are taken as text, as `open_images` reads it, wherever they are taken."""

from pathlib import Path

import pytest
import torch
from command import succeeds

from logitcache import CachedViews, KeyedViews, Stream, open_images, recipe_named
from logitcache.errors import UnknownNameError


def test_text_is_the_images_that_it_names(tmp_path: Path) -> None:
    dump = ("dump", "--teacher", "digits_tiny", "--data", "digits", "--workers", 0, "--out", "a.zarr")
    succeeds(*dump, cwd=tmp_path)
    cache, digits = tmp_path / "a.zarr", open_images("digits")
    assert torch.equal(CachedViews("digits", cache)[3][0], CachedViews(digits, cache)[3][0])
    recipe = recipe_named("digits")
    assert torch.equal(KeyedViews("digits", recipe)[3, 0].views, KeyedViews(digits, recipe)[3, 0].views)
    for make in (
        lambda images: Stream.from_cache(cache, images, workers=0),
        lambda images: Stream.from_caches([cache, cache], images, workers=0),
        lambda images: Stream.plain(images, recipe, seeds=(0,), workers=0),
    ):
        first, second = (next(iter(make(images).epoch(0))) for images in ("digits", digits))
        assert torch.equal(first.views, second.views)
        with pytest.raises(UnknownNameError, match="did you mean digits"):
            make("digitz")
