"""An image that did not decode when a cache was made has no teacher: what becomes of it since costs nothing."""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command import fails, logitcache, succeeds
from growing import folder_images, folder_teacher, paint
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed import BOTH
from pictures import picture_folder

from logitcache.distributed import World
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import DataError, DriftError, ImageError, MismatchError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.store import CacheReader
from logitcache.stream.batch import Batch, StreamConfig
from logitcache.stream.stream import Stream
from logitcache.stream.stream_inputs import StreamInputs
from logitcache.train.launch import TrainJob
from logitcache.train.variants import VariantInputs
from logitcache.views.alignment import align_images
from logitcache.views.images import MissingImagesWarning
from logitcache.views.without_teacher import find_without_teacher

NAMES = tuple(f"{i:02}" for i in range(9))
SEEDS = (0, 3)
CROP = StepSpec("RandomCrop", {"size": 8})
RECIPES = {
    "plain": RecipeSpec("cropped", 1, (CROP,), "center@8"),
    "mixed": RecipeSpec("mixed", 1, (CROP, *BOTH), "center@8"),
}
BROKEN = {4: "cat/04.png", 9: "dog/00.png", 16: "dog/07.png"}
OTHERS = tuple(i for i in range(2 * len(NAMES)) if i not in BROKEN)


def options(**more: object) -> DumpConfig:
    settings = {"top_k": 2, "batch_size": 4, "shard_samples": 4, "workers": 0, "on_bad_image": "skip", **more}
    return DumpConfig(SEEDS, **settings)  # type: ignore[arg-type]


def spoil(pets: Path) -> None:
    for name in BROKEN.values():
        (pets / "train" / name).write_bytes(b"")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Images of which three are broken, and a cache for each recipe."""
    folder = paint(tmp_path / "pets", NAMES)
    spoil(folder)
    for name, recipe in RECIPES.items():
        dump(tmp_path / f"{name}.zarr", folder_images(folder), recipe, folder_teacher(), options())
    return folder


def cache_of(pets: Path, name: str = "plain") -> CacheReader:
    return CacheReader(pets.parent / f"{name}.zarr")


def all_batches(pets: Path, name: str) -> Iterator[Batch]:
    images = folder_images(pets)
    stream = Stream.from_cache(cache_of(pets, name), images, batch_size=3, workers=0, device="cpu")
    for epoch in range(2):
        yield from stream.epoch(epoch)


def as_tensors(batch: Batch) -> list[torch.Tensor]:
    assert batch.teacher is not None
    parts = [batch.views, batch.labels, batch.samples, batch.seeds, batch.partners]
    return [part for part in parts if part is not None] + [batch.teacher.ids, batch.teacher.top]


def mend(pets: Path, name: str) -> None:
    label, file = name.split("/")
    paint(pets, (file.removesuffix(".png"),), (label,))


@pytest.mark.parametrize("recipe", RECIPES)
def test_batches_are_those_of_before_whatever_became_of_it(recipe: str, pets: Path) -> None:
    before = [as_tensors(batch) for batch in all_batches(pets, recipe)]
    assert before

    @given(fates=st.lists(st.sampled_from(["broken", "gone", "mended"]), min_size=3, max_size=3))
    @settings(max_examples=10, deadline=None)
    def check(fates: list[str]) -> None:
        spoil(pets)
        for fate, name in zip(fates, BROKEN.values(), strict=True):
            if fate == "gone":
                (pets / "train" / name).unlink()
            elif fate == "mended":
                mend(pets, name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MissingImagesWarning)
            after = [as_tensors(batch) for batch in all_batches(pets, recipe)]
        assert len(after) == len(before)
        for mine, theirs in zip(after, before, strict=True):
            assert all(map(torch.equal, mine, theirs))
        told = [str(one.message) for one in caught if one.category is MissingImagesWarning]
        assert len(told) == (set(fates) != {"broken"})  # one line, and none where nothing happened
        for fate, name in zip(fates, BROKEN.values(), strict=True):
            if told:
                assert fate == "broken" or f"{pets}/train/{name}" in told[0]
                assert "names, times and canaries alone prove the others" in told[0]

    check()


def test_an_image_with_a_teacher_is_missed_and_named_without_them(pets: Path) -> None:
    for name in ("cat/04.png", "dog/03.png"):
        (pets / "train" / name).unlink()
    with pytest.raises(MismatchError) as refused:
        align_images(cache_of(pets), folder_images(pets))
    assert f"missing images: expected none, found 1: {pets}/train/dog/03.png" in str(refused.value)
    with pytest.warns(
        MissingImagesWarning, match=r"1 of 18 images .*dog/03.png, beside 1 that had no teacher"
    ):
        images = align_images(cache_of(pets), folder_images(pets), missing="skip")
    assert images.missing.tolist() == [4, 12]
    assert images.unneeded.tolist() == [4]


@pytest.mark.parametrize("mended", [False, True])
def test_a_changed_image_with_a_teacher_is_refused_as_ever(mended: bool, pets: Path) -> None:
    file = pets / "train" / "dog" / "03.png"
    file.write_bytes(file.read_bytes() + b"more")
    if mended:
        mend(pets, "cat/04.png")
    with pytest.raises(MismatchError, match="were changed since it was made: changed images: ") as refused:
        align_images(cache_of(pets), folder_images(pets))
    assert str(file) in str(refused.value.fields[0].found)
    fingerprint = cache_of(pets).spec.dataset.fingerprint
    assert f"dataset.fingerprint: expected {fingerprint[:12]}…, found " in str(refused.value)
    assert fingerprint not in str(refused.value)


def test_a_changed_image_with_a_teacher_is_refused_while_one_without_is_gone(pets: Path) -> None:
    file = pets / "train" / "dog" / "03.png"
    file.write_bytes(file.read_bytes() + b"more")
    (pets / "train" / "cat" / "04.png").unlink()
    with pytest.raises(MismatchError, match=r"missing images: expected none, found 1: .*cat/04.png"):
        align_images(cache_of(pets), folder_images(pets))


def test_an_image_that_decodes_no_more_is_not_to_be_mended(pets: Path) -> None:
    dump(
        pets.parent / "long.zarr",
        folder_images(pets),
        RECIPES["plain"],
        folder_teacher(),
        options(shard_samples=18),
    )
    reader = cache_of(pets, "long")
    proved = {sample for seed in SEEDS for sample in reader.canaries(seed)}
    images = folder_images(pets)
    file = Path(images.describe(next(i for i in OTHERS if i not in proved)))
    file.write_bytes(b"".ljust(file.stat().st_size, b"\0"))
    inputs = StreamInputs(
        StreamConfig(batch_size=4, workers=0, device="cpu"), (str(reader.path),), data=images.name
    )
    job = TrainJob(("digits_tiny",), VariantInputs("kd", settings={"epochs": 1}), inputs, pets.parent / "run")
    with pytest.raises(
        ImageError, match=r"put it back as it was, or remove it and give --missing skip"
    ) as refused:
        job.run(World(), print)
    assert "mend" not in str(refused.value)


def test_a_mended_image_in_a_copy_is_refused_and_the_advice_works(pets: Path) -> None:
    """All files of a copy are newer than the cache, so no times tell which of them was changed."""
    copied = pets.parent / "copied"
    shutil.copytree(pets, copied)
    mend(copied, "dog/00.png")
    with pytest.raises(MismatchError, match="if only what has no teacher was mended") as refused:
        align_images(cache_of(pets), folder_images(copied))
    assert all(f"{copied}/train/{name}" in str(refused.value) for name in BROKEN.values())
    (copied / "train" / "dog" / "00.png").unlink()
    with pytest.warns(MissingImagesWarning, match="1 is missing"):
        images = align_images(cache_of(pets), folder_images(copied))
    assert images.unneeded.tolist() == [9]


def test_canaries_prove_the_others(pets: Path) -> None:
    """All files of a copy are newer than the cache, so no times tell which of them was changed."""
    copied = pets.parent / "copied"
    shutil.copytree(pets, copied)
    (copied / "train" / "cat" / "04.png").unlink()
    file = Path(folder_images(copied).describe(min(cache_of(pets).canaries(0))))
    size = file.stat().st_size
    paint(pets.parent / "other", ("x",), ("z",))
    file.write_bytes((pets.parent / "other" / "train" / "z" / "x.png").read_bytes().ljust(size, b"\0"))
    with pytest.warns(MissingImagesWarning), pytest.raises(DriftError, match=str(file)):
        Stream.from_cache(cache_of(pets), folder_images(copied), workers=0)


@pytest.mark.filterwarnings("ignore::logitcache.views.images.MissingImagesWarning")
@pytest.mark.parametrize("fate", ["gone", "mended"])
def test_a_dump_goes_on_without_it(fate: str, pets: Path) -> None:
    (pets / "train" / "cat" / "04.png").unlink()
    if fate == "mended":
        mend(pets, "cat/04.png")
    out, recipe, teacher = cache_of(pets).path, RECIPES["plain"], folder_teacher()
    with pytest.raises(DataError, match="no view of it can be made"):
        dump(out, folder_images(pets), recipe, teacher, DumpConfig((0, 3, 5), workers=0))
    config = DumpConfig((0, 3, 5), batch_size=4, workers=0, on_bad_image="skip")
    report = dump(out, folder_images(pets), recipe, teacher, config)
    assert [bad.sample for bad in report.bad if bad.sample == 4] == [4]
    whole = CacheReader(out)
    assert find_without_teacher(whole, np.arange(18)).tolist() == sorted(BROKEN)
    spoil(pets)
    assert (
        align_images(whole, folder_images(pets)).missing.tolist() == []
    )  # the data of before is its data still
    again = dump(pets.parent / "again.zarr", folder_images(pets), recipe, teacher, options(seeds_per_pass=1))
    assert again.bad_images == 3
    for shard in range(whole.spec.layout.shards):
        assert whole.commit(3, shard) == CacheReader(again.path).commit(3, shard)


def test_nothing_is_known_of_what_is_not_committed(pets: Path) -> None:
    reader, every = cache_of(pets), np.arange(18)
    assert find_without_teacher(reader, every).tolist() == sorted(BROKEN)
    assert find_without_teacher(reader, np.array([3, 9])).tolist() == [9]
    shard = reader.spec.layout.shard_of(9)
    for seed in SEEDS:
        (entry,) = (Path(reader.path) / f"seed-{seed}" / "commit" / "c").glob(f"{shard}*")
        entry.unlink()
    left = [i for i in BROKEN if reader.spec.layout.shard_of(i) != shard]
    assert find_without_teacher(CacheReader(reader.path), every).tolist() == left


def test_a_run_goes_on_and_each_command_says_a_line(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures", bad=3)
    bad = folder / "train" / "cat" / "3.jpg"
    views = ("--data", "imagefolder:pictures", "--recipe", "imagenet@32", "--workers", 0)
    made = ("dump", "--teacher", "resnet8", *views, "--on-bad-image", "skip", "--out", "c.zarr", "--seeds")
    succeeds(*made, "0-1", cwd=tmp_path)
    training = ("train", "--student", "resnet8", "--cache", "c.zarr", "--epochs", 1, "--batch-size", 4)
    succeeds(*training, "--workers", 0, "--out", "run", cwd=tmp_path)
    bad.unlink()
    ended = logitcache("train", "--out", "run", "--resume", cwd=tmp_path)
    assert ended.exit_code == 0, ended.output
    ended = logitcache(*training, "--workers", 0, "--out", "other", cwd=tmp_path)
    assert ended.exit_code == 0, ended.output
    gone = "note: of the images that c.zarr has no teacher for, 1 is missing (pictures/train/cat/3.jpg), "
    assert gone in " ".join(ended.stderr.split())
    told = json.loads(succeeds("info", "c.zarr", "--json", cwd=tmp_path))["left_out"]
    assert [one["reason"] for one in told] == ["it is missing"]
    bad.write_bytes((bad.parent / "2.jpg").read_bytes())
    ended = logitcache(*training, "--workers", 0, "--out", "third", cwd=tmp_path)
    assert "1 was changed since (pictures/train/cat/3.jpg), and left out" in " ".join(ended.stderr.split())
    assert "changed or touched" not in ended.stderr  # no row of it is there to ask for
    told = json.loads(succeeds("info", "c.zarr", "--json", cwd=tmp_path))["left_out"]
    assert "it was changed since the cache was made" in told[0]["reason"]
    bad.unlink()
    assert "missing" not in json.loads((tmp_path / "other" / "config.json").read_text())["stream"]
    with pytest.warns(MissingImagesWarning, match="1 is missing"):
        line = fails(*made[:-5], "--out", "c.zarr", "--seeds", "0-2", cwd=tmp_path)
    assert line.endswith("no view of it can be made; leave it out with --on-bad-image skip")
