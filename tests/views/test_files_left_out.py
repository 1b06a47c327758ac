"""Files of a folder that are left out: hidden ones, and those of kinds that earlier versions did not take."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import image_folder, write
from refusals import refused

from logitcache.dump.inputs import DumpInputs
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import DataError, MismatchError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.models.build import build_model
from logitcache.store import CacheReader
from logitcache.views.alignment import align_images
from logitcache.views.datasets import open_images
from logitcache.views.folders import BEFORE_HIDING, FolderImages

DUMPING = DumpConfig(seeds=(0,), top_k=2, workers=0, device="cpu")

HIDDEN = (
    ".ipynb_checkpoints/0-checkpoint.png",
    "__MACOSX/ant/._0.png",
    "@eaDir/0.png",
    "lost+found/0.png",
    "$RECYCLE.BIN/0.png",
    "__pycache__/0.png",
    "~snapshot/ant/0.png",
    "Network Trash Folder/0.png",
    "ant/._0.png",
    "ant/.ipynb_checkpoints/0-checkpoint.png",
    "bee/more/@eaDir/0.png",
)


@pytest.mark.parametrize("name", HIDDEN)
def test_what_systems_hide_is_neither_class_nor_image_and_is_told(name: str, tmp_path: Path):
    root = image_folder(tmp_path)
    before = {split: open_images(f"imagefolder:{root}", split) for split in ("train", "test")}
    for folder in ("train", "val"):
        write(root / folder / name)
    for split, folder in (("train", "train"), ("test", "val")):
        images = open_images(f"imagefolder:{root}", split)
        assert images.fingerprint == before[split].fingerprint
        assert images.class_names == ["ant", "bee", "cat"]
        assert images.note.endswith(str(root / folder / name))
        assert before[split].note == ""
    unlabelled = open_images(f"folder:{root}")
    assert len(unlabelled) == 18
    assert unlabelled.note.endswith(f"{root / 'train' / name} and 1 other")


@pytest.mark.parametrize(
    ("names", "data", "found"),
    [
        (["train/ant/0.png", "train/.bee/0.png"], "imagefolder", "found 1 (left out as hidden"),
        (
            ["train/ant/0.png", "train/bee/0.png", "train/cat/.hid/0.png"],
            "imagefolder",
            "cat: no images (left",
        ),
        ([".all/0.png"], "folder", "no images (left out as hidden"),
    ],
)
def test_hidden_images_are_named_where_nothing_else_is_there(
    names: list[str], data: str, found: str, tmp_path: Path
):
    for name in names:
        write(tmp_path / name)
    refused(DataError, lambda: open_images(f"{data}:{tmp_path}"), found, str(tmp_path / names[-1]), "rename")


def test_hidden_folders_without_images_are_not_worth_a_word(tmp_path: Path):
    root = image_folder(tmp_path)
    (root / "train" / ".git" / "objects").mkdir(parents=True)
    (root / "train" / ".DS_Store").touch()
    (root / "train" / "ant" / "Thumbs.db").touch()
    assert open_images(f"imagefolder:{root}").note == ""


def test_a_folder_below_hidden_ones_and_a_link_into_one_are_shown(tmp_path: Path):
    root = image_folder(tmp_path / ".data")
    assert len(open_images(f"imagefolder:{root}")) == 9
    write(tmp_path / "shown" / ".store" / "1.png")
    (tmp_path / "shown" / "pictures").symlink_to(tmp_path / "shown" / ".store", target_is_directory=True)
    images = open_images(f"folder:{tmp_path / 'shown'}")
    assert isinstance(images, FolderImages)
    assert images.files == ["pictures/1.png"]


def as_before(root: Path, hidden_class: bool = False) -> FolderImages:
    """Open a folder as it was opened before anything was left out."""
    images = FolderImages.labelled(f"imagefolder:{root}", root, "train", BEFORE_HIDING)
    if not hidden_class:
        return images
    labels = np.concatenate([[0], images.labels + 1])
    name = ".ipynb_checkpoints/0-checkpoint.png"
    return FolderImages(images.name, "train", root / "train", [name, *images.files], labels, 4)


def test_an_earlier_cache_that_holds_hidden_images_keeps_their_numbers(tmp_path: Path):
    root = image_folder(tmp_path / "d")
    write(root / "train" / "bee" / "._0.png")
    old = as_before(root)
    assert len(old) == 10
    cache = dumped_cache(tmp_path / "c.zarr", old)
    notes: list[str] = []
    inputs = DumpInputs("resnet8", "random", f"imagefolder:{root}", cache.spec.recipe)
    images, recipe, teacher = inputs.open(notes.append)
    dump(tmp_path / "c.zarr", images, recipe, teacher, DUMPING, on_note=notes.append)
    assert not [note for note in notes if "hidden" in note]
    dump(tmp_path / "new.zarr", images, recipe, teacher, DUMPING, on_note=notes.append)
    assert [str(root) in note for note in notes if "hidden" in note] == [True]
    found = align_images(cache, open_images(f"imagefolder:{root}"))
    assert isinstance(found, FolderImages)
    assert found.files == old.files
    assert found.note == ""


def test_an_earlier_cache_with_a_hidden_class_is_refused_and_told_why(tmp_path: Path):
    root = image_folder(tmp_path / "d")
    write(root / "train" / ".ipynb_checkpoints" / "0-checkpoint.png")
    cache = dumped_cache(tmp_path / "c.zarr", as_before(root, hidden_class=True))
    images = open_images(f"imagefolder:{root}")
    words = ["dataset.num_classes: expected 4, found 3", "0-checkpoint.png: the cache may hold them"]
    refused(MismatchError, lambda: align_images(cache, images), *words)


def dumped_cache(out: Path, images: FolderImages) -> CacheReader:
    teacher = build_model("resnet8", num_classes=images.num_classes or 0, view_size=8, weights="random")
    recipe = RecipeSpec("small", 1, (StepSpec("Resize", {"size": [8, 8]}),))
    dump(out, images, recipe, teacher, DUMPING)
    return CacheReader(out)


def test_a_cache_made_before_some_kinds_of_files_were_taken_goes_on_without_them(tmp_path: Path):
    root = image_folder(tmp_path / "d")
    old = open_images(f"imagefolder:{root}")
    assert isinstance(old, FolderImages)
    cache = dumped_cache(tmp_path / "c.zarr", old)
    for split in ("train", "val"):
        shutil.copy(root / split / "bee" / "0.png", root / split / "bee" / "0.apng")
    new = open_images(f"imagefolder:{root}")
    assert len(new) == 10
    notes: list[str] = []
    images, recipe, teacher = DumpInputs("resnet8", "random", f"imagefolder:{root}", cache.spec.recipe).open()
    dump(tmp_path / "c.zarr", images, recipe, teacher, DUMPING, on_note=notes.append)
    assert [note for note in notes if "0.apng" in note and "--grow" in note]
    found = align_images(cache, new)
    assert isinstance(found, FolderImages)
    assert (found.files, found.left_out) == (old.files, 0)
    grown = align_images(cache, new, grow=True)
    assert (len(grown), grown.describe(9)) == (10, str(root / "train" / "bee" / "0.apng"))
    write(root / "train" / "bee" / "9.png")
    assert (
        align_images(cache, open_images(f"imagefolder:{root}")).left_out == 2
    )  # as ever when data has grown


def test_an_earlier_cache_of_hidden_images_goes_on_beside_later_kinds(tmp_path: Path):
    root = image_folder(tmp_path / "d")
    write(root / "train" / "bee" / "._0.png")
    cache = dumped_cache(tmp_path / "c.zarr", as_before(root))
    shutil.copy(root / "train" / "bee" / "0.png", root / "train" / "bee" / "0.apng")
    found = align_images(cache, open_images(f"imagefolder:{root}"))
    assert isinstance(found, FolderImages)
    assert found.files == as_before(root).files
