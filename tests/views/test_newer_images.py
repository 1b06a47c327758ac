"""Files that were replaced after a cache was made of them, by others of the same size, are told."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from breaking import rewrite
from command import logitcache, succeeds
from pictures import write

from logitcache.audit.recheck import recheck_views
from logitcache.models.build import build_model
from logitcache.store import CacheReader
from logitcache.views.alignment import align_images
from logitcache.views.changes import describe_newer_images, find_newer_images
from logitcache.views.datasets import open_images
from logitcache.views.folders import FolderImages

N = 48
DUMP = ["dump", "--teacher", "resnet8", "--recipe", "imagenet@32", "--workers", 0, "--shard-samples", 16]


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def is_canary(cache: CacheReader, sample: int) -> bool:
    layout = cache.spec.layout
    return sample in layout.canary_samples(layout.shard_of(sample))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for i in range(N):
        write(folder / "d" / "train" / "ab"[i % 2] / f"{i:02}.bmp", picture(i))
    succeeds(*DUMP, "--data", "imagefolder:d", "--seeds", "0-2", "--out", "c.zarr", cwd=folder)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A cache, and the files that it was made of, which are a little older."""
    shutil.copytree(made / "d", tmp_path / "d")
    shutil.copytree(made / "c.zarr", tmp_path / "c.zarr")
    times = open_images(f"imagefolder:{tmp_path / 'd'}").times()
    assert times is not None
    set_time(tmp_path / "c.zarr", times.max() + 0.001)
    time.sleep(0.02)  # a disk's clock ticks every few milliseconds
    return tmp_path


def set_time(cache: Path, at: float) -> None:
    for file in cache.rglob("zarr.json"):
        os.utime(file, (at, at))


def newer(folder: Path) -> list[int]:
    reader = CacheReader(folder / "c.zarr")
    return find_newer_images(reader, open_images(f"imagefolder:{folder / 'd'}")).tolist()


def some_without_canary(folder: Path, count: int = 3) -> list[Path]:
    reader, images = CacheReader(folder / "c.zarr"), open_images(f"imagefolder:{folder / 'd'}")
    assert isinstance(images, FolderImages)
    samples = [i for i in range(N) if not is_canary(reader, i)]
    return [images.root / images.files[i] for i in samples[:count]]


def overwrite(file: Path) -> None:
    write(file, picture(999))


def rename_over(file: Path) -> None:
    """Replace it by a file that says it was written long ago."""
    other = write(file.parents[3] / "other.bmp", picture(999))
    os.utime(other, (1e9, 1e9))
    other.rename(file)


@pytest.mark.parametrize("replace", [overwrite, rename_over])
def test_replaced_files_of_the_same_size_are_told_and_asked_for_first(
    replace: Callable[[Path], None], copied: Path
):
    assert newer(copied) == []
    files = some_without_canary(copied)
    for file in files:
        replace(file)
    told = newer(copied)
    assert len(told) == 3
    images = open_images(f"imagefolder:{copied / 'd'}")
    assert [Path(images.describe(i)) for i in told] == files
    words = ["--data", f"imagefolder:{copied / 'd'}", "--workers", 0]
    training = [
        "train",
        "--student",
        "resnet8",
        "--loss",
        "kd",
        "--cache",
        "c.zarr",
        *words,
        "--epochs",
        1,
        "--out",
        "run",
    ]
    ended = logitcache(*training, cwd=copied)
    assert ended.exit_code == 0
    assert "note: 3 of 48 images were changed or touched since c.zarr was made, first " in ended.output
    assert f"`logitcache verify c.zarr --replay 50 --data imagefolder:{copied / 'd'}` asks" in ended.output
    checking = ["verify", "c.zarr", "--replay", 3, "--data", f"imagefolder:{copied / 'd'}"]
    ended = logitcache(*checking, cwd=copied)
    assert ended.exit_code == 1
    assert "3 views are off by more than rounding; worst: " in ended.output
    worst = json.loads(logitcache(*checking, "--json", cwd=copied).stdout)["replay"]
    assert worst["worst_image"] in map(str, files)
    assert worst["worst_image"] == images.describe(worst["worst"][0])
    assert f"{worst['worst_image']} (sample {worst['worst'][0]}) under seed" in " ".join(ended.output.split())


def test_each_newer_image_is_asked_for_once_before_any_is_again(copied: Path):
    """Each image's answers are off by a power of two of its own: the mean tells which were asked for."""
    files = some_without_canary(copied, 12)
    data = f"imagefolder:{copied / 'd'}"
    images = open_images(data)
    samples = [i for i in range(N) if Path(images.describe(i)) in files]
    times = images.times()
    assert times is not None
    for seed in range(3):
        for shard in range(3):

            def spoil(arrays: dict[str, np.ndarray], start: int = 16 * shard) -> None:
                for number, sample in enumerate(samples):
                    if start <= sample < start + 16:
                        arrays["top"][sample - start] += 2.0 ** (number + 1)

            rewrite(copied / "c.zarr", seed, shard, spoil)
    set_time(copied / "c.zarr", times.max() + 0.001)
    for file in files:
        file.touch()
    assert newer(copied) == samples
    reader = CacheReader(copied / "c.zarr")
    teacher = build_model("resnet8", num_classes=2, view_size=32, weights="random")
    for seed in range(3):
        once = recheck_views(reader, open_images(data), teacher, 12, seed=seed, device="cpu")
        assert (once.views, once.off) == (12, 12)
        assert once.mean_error * 12 == pytest.approx(2.0**13 - 2, abs=1.5)
    twice = recheck_views(reader, open_images(data), teacher, 24, device="cpu")
    assert twice.mean_error * 24 == pytest.approx(2 * (2.0**13 - 2), abs=1.5)


def test_the_advice_for_a_newer_image_can_be_pasted(copied: Path):
    odd = copied / "my caches" / "c.zarr"
    shutil.copytree(copied / "c.zarr", odd)
    times = open_images(f"imagefolder:{copied / 'd'}").times()
    assert times is not None
    set_time(odd, times.max() + 0.001)
    some_without_canary(copied, 1)[0].touch()
    told = describe_newer_images(CacheReader(odd), open_images(f"imagefolder:{copied / 'd'}"))
    assert told is not None
    assert told.startswith(f"1 of 48 images was changed or touched since {odd} was made")
    assert f"`logitcache verify '{odd}' --replay 50 " in told


def test_a_data_set_that_was_copied_later_is_told_nothing_of(copied: Path):
    set_time(copied / "c.zarr", 1e9)
    assert newer(copied) == []
    reader = CacheReader(copied / "c.zarr")
    assert describe_newer_images(reader, open_images(f"imagefolder:{copied / 'd'}")) is None


def test_files_that_came_before_the_cache_grew_are_not_newer(copied: Path):
    for i in range(N, N + 16):
        write(copied / "d" / "train" / "a" / f"{i:02}.bmp", picture(i))
    data = f"imagefolder:{copied / 'd'}"
    growing = ["dump", "--teacher", "resnet8", "--grow", "--data", data, "--workers", 0]
    succeeds(*growing, "--out", "c.zarr", cwd=copied)
    reader = CacheReader(copied / "c.zarr")
    images = align_images(reader, open_images(data))
    assert len(images) == N + 16
    assert find_newer_images(reader, images).tolist() == []


def test_a_sample_that_verify_tells_of_is_named(copied: Path):
    rewrite(copied / "c.zarr", 1, 2, lambda arrays: arrays["top"].__setitem__(5, np.inf))
    file = open_images(f"imagefolder:{copied / 'd'}").describe(2 * 16 + 5)
    words = ("verify", "c.zarr", "--data", f"imagefolder:{copied / 'd'}")
    ended = logitcache(*words, cwd=copied)
    assert ended.exit_code == 1
    assert f"the first is sample 37 ({file})" in " ".join(ended.output.split())
    (problem,) = json.loads(logitcache(*words, "--json", cwd=copied).stdout)["found"]["problems"]
    assert (problem["sample"], problem["image"]) == (37, file)
    shutil.move(copied / "d", copied / "elsewhere")
    (problem,) = json.loads(logitcache("verify", "c.zarr", "--json", cwd=copied).stdout)["found"]["problems"]
    assert (problem["sample"], problem["image"]) == (37, None)
