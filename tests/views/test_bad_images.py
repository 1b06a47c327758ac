"""Images that are left out as they do not decode are named, with the reason, wherever they are counted."""

import json
import shutil
from pathlib import Path

import pytest
from command import fails, succeeds
from pictures import image_folder, picture_folder

from logitcache.views.bad_images import MOST_EXPLAINED, BadImage, explain_bad_images, list_bad_images
from logitcache.views.datasets import open_images

BAD = {"ant/1.png": b"", "bee/0.png": b"no picture", "cat/0.png": b"", "cat/1.png": b"", "cat/2.png": b"II"}


def spoiled_folder(root: Path) -> Path:
    image_folder(root)
    for name, data in BAD.items():
        (root / "train" / name).write_bytes(data)
    return root


def test_each_has_its_file_and_reason_and_one_that_was_mended_has_none(tmp_path: Path):
    root = spoiled_folder(tmp_path)
    images = open_images(f"imagefolder:{root}")
    found = explain_bad_images(images, [3, 1, 1, 0])
    assert [(bad.sample, bad.image) for bad in found] == [(i, images.describe(i)) for i in (0, 1, 3)]
    assert [bad.reason for bad in found] == [None, "it is empty", "it is not an image that Pillow knows"]
    assert str(found[1]) == f"{images.describe(1)} (it is empty)"


def test_a_line_names_the_first_few_and_counts_the_others():
    bad = [BadImage(i, f"{i}.png", "it is empty" if i < MOST_EXPLAINED else None) for i in range(5)]
    assert list_bad_images(bad[:1]) == "0.png (it is empty)"
    assert list_bad_images(bad[:4], "--json lists all").endswith(
        "2.png (it is empty) and 1 other; --json lists all"
    )
    assert list_bad_images(bad).endswith(" and 2 others")


def test_dump_info_and_verify_name_what_was_left_out(tmp_path: Path):
    root = spoiled_folder(tmp_path / "d")
    words = [
        "dump",
        "--teacher",
        "resnet8",
        "--data",
        f"imagefolder:{root}",
        "--recipe",
        "center@8",
        "--workers",
        0,
    ]
    words += ["--seeds", "0-1", "--on-bad-image", "skip", "--out"]
    told = json.loads(succeeds(*words, "c.zarr", "--json", cwd=tmp_path))
    samples = [1, 3, 6, 7, 8]
    expected = [str(root / "train" / name) for name in sorted(BAD)]
    assert told["bad_images"] == 5
    assert [(bad["sample"], bad["image"]) for bad in told["bad"]] == list(zip(samples, expected, strict=True))
    line = f"left out 5 images that do not decode: {expected[0]} (it is empty), {expected[1]} (it is not an image"
    assert line in " ".join(succeeds(*words, "d.zarr", cwd=tmp_path).split())
    for command in ("info", "verify"):
        told = json.loads(succeeds(command, "c.zarr", "--json", cwd=tmp_path))
        assert [bad["image"] for bad in told["left_out"]] == expected
        assert told["left_out"][0]["reason"] == "it is empty"
        text = " ".join(succeeds(command, "c.zarr", cwd=tmp_path).split())
        assert f"left out 5 images without a teacher: {expected[0]} (it is empty)" in text
        assert "and 2 others; --json lists all" in text
    shutil.move(root, tmp_path / "elsewhere")
    told = json.loads(succeeds("info", "c.zarr", "--json", cwd=tmp_path))
    assert [bad["sample"] for bad in told["left_out"]] == samples
    assert told["left_out"][0]["image"] == f"sample 1 of imagefolder:{root}"
    data = f"imagefolder:{tmp_path / 'elsewhere'}"
    told = json.loads(succeeds("verify", "c.zarr", "--data", data, "--json", cwd=tmp_path))
    assert told["left_out"][0]["image"] == str(tmp_path / "elsewhere" / "train" / "ant" / "1.png")


def test_a_cache_of_sound_images_leaves_nothing_out(tmp_path: Path):
    words = ["dump", "--teacher", "digits_tiny", "--seeds", "0", "--workers", 0, "--out", "c.zarr"]
    assert json.loads(succeeds(*words, "--json", cwd=tmp_path))["bad"] == []
    assert json.loads(succeeds("info", "c.zarr", "--json", cwd=tmp_path))["left_out"] == []
    assert "left out" not in succeeds("verify", "c.zarr", cwd=tmp_path)


def test_verify_opens_the_data_that_is_named(tmp_path: Path):
    root = spoiled_folder(tmp_path / "d")
    spoiled_folder(tmp_path / "same")
    picture_folder(tmp_path / "other")
    words = (
        "--recipe",
        "center@8",
        "--workers",
        0,
        "--seeds",
        0,
        "--on-bad-image",
        "skip",
        "--out",
        "c.zarr",
    )
    succeeds("dump", "--teacher", "resnet8", "--data", f"imagefolder:{root}", *words, cwd=tmp_path)
    verify = ("verify", "c.zarr", "--data")
    assert "nowhere does not exist" in fails(*verify, "imagefolder:nowhere", cwd=tmp_path)
    assert f"{tmp_path}/same/train/" in succeeds(*verify, f"imagefolder:{tmp_path}/same", cwd=tmp_path)
    with pytest.warns(
        UserWarning, match="samples without a teacher are named by number alone, as .*other images"
    ):
        assert "sample 1 of" in succeeds(*verify, "imagefolder:other", cwd=tmp_path)
