"""Emoji are made from folders laid out as the packages are: the same classes of each vendor, on white."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from logitcache.bench import contest, emoji
from logitcache.bench.tasks import emoji_large_task, emoji_task
from logitcache.errors import DataError, NotFoundError
from logitcache.models.build import build_model
from logitcache.views.maker import ViewMaker

SHADES = {vendor: 60 * n for n, vendor in enumerate(emoji.VENDORS)}


def entry(n: int, **fields: Any) -> dict[str, Any]:
    found = {
        "short_name": f"e{n}",
        "unified": f"1F{n:03X}",
        "image": f"{n}.png",
        "sort_order": n,
        "category": "Objects",
    }
    return {**found, **{f"has_img_{vendor}": True for vendor in emoji.VENDORS}, **fields}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six emoji that all vendors draw, listed backwards, and four that are none of the task's."""
    monkeypatch.setattr(emoji, "CLASSES", 3)
    monkeypatch.setenv("LOGITCACHE_EMOJI", str(tmp_path))
    entries = [entry(n) for n in range(6)]
    entries += [
        entry(6, category="Flags"),
        entry(7, category="Component"),
        entry(8, unified="1F469-200D-1F692"),
    ]
    entries += [entry(9, has_img_twitter=False)]
    for vendor in emoji.VENDORS:
        package = tmp_path / f"emoji-datasource-{vendor}"
        pictures = package / "img" / vendor / "64"
        pictures.mkdir(parents=True)
        (package / "emoji.json").write_text(json.dumps(entries[::-1]))
        for n in range(6):
            picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))  # black, where it is transparent
            picture.paste((SHADES[vendor], 40 * n, 0, 255), (0, 0, 32, 64))
            picture.save(pictures / f"{n}.png")
    return tmp_path


def test_every_vendor_draws_each_class_and_one_vendor_is_for_the_test_alone(folder: Path) -> None:
    task = emoji_task()
    assert task.train.class_names == task.test.class_names == ("e0", "e2", "e4")
    assert task.train.images.shape == (9, 3, 24, 24)
    assert task.test.images.shape == (3, 3, 24, 24)
    for images, vendors in ((task.train, emoji.TRAIN_VENDORS), (task.test, [emoji.TEST_VENDOR])):
        assert images.labels.tolist() == [0, 1, 2] * len(vendors)
        drawn = [[SHADES[vendor], 40 * n, 0] for vendor in vendors for n in (0, 2, 4)]
        assert images.images[:, :, 12, 2].tolist() == drawn
        assert (images.images[:, :, :, 12:] == 255).all()
    fit, held_out = task.split(task.train)
    assert torch.equal(torch.cat([fit.images, held_out.images]), task.train.images)
    assert set(held_out.images[:, 0, 12, 2].tolist()) == {SHADES["google"]}


def test_views_of_emoji_stay_on_white_and_fit_the_networks(folder: Path) -> None:
    task, large = emoji_task(), emoji_large_task()
    views = torch.stack([ViewMaker(task.recipe)(task.train.image(0), 0, seed) for seed in range(20)])
    assert views.shape == (20, 3, 24, 24)
    assert set(views.unique().tolist()) <= {SHADES["apple"], 0, 255}
    parameters = [
        sum(
            p.numel()
            for p in build_model(name, num_classes=3, view_size=24, weights="random").module.parameters()
        )
        for name in (task.student, task.teacher, large.teacher)
    ]
    assert parameters == sorted(set(parameters))


def test_what_is_missing_is_named_with_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = folder / "emoji-datasource-google" / "img" / "google" / "64" / "2.png"
    picture.write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=r"2\.png, found cannot identify .* version 16\.0\.0 of emoji-datasource-google"
    ):
        emoji.load_emoji()
    picture.unlink()
    with pytest.raises(DataError, match=r"2\.png, found none"):
        emoji.load_emoji()
    emoji_list = folder / "emoji-datasource-apple" / "emoji.json"
    for text, found in (
        ("[]", "found 0 of them"),
        ("[{}]", "no field 'sort_order'"),
        ("{", "found "),
        ("[1]", "found "),
    ):
        emoji_list.write_text(text)
        with pytest.raises(DataError, match=f"expected a list of 3 emoji or more .*{found}"):
            emoji.load_emoji()
    emoji_list.unlink()
    with pytest.raises(
        NotFoundError, match=r"expected emoji-datasource-apple/emoji.json in .*: install the npm packages"
    ):
        emoji.load_emoji()
    monkeypatch.delenv("LOGITCACHE_EMOJI")
    with pytest.raises(
        NotFoundError, match=r"do not ship: install .*, version 16\.0\.0, and name the folder"
    ):
        emoji.load_emoji("test")
    monkeypatch.setattr("sys.argv", ["contest", "emoji"])
    with pytest.raises(SystemExit, match=r"do not ship: install .*, version 16\.0\.0"):
        contest.main()
