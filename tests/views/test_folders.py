"""Folders of images: files in one order wherever they lie, labels by class, and refusals that name the place."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pictures import image_folder, smooth, write
from refusals import refused

from logitcache.errors import DataError, ImageError, NotFoundError, OptionError, UnknownNameError
from logitcache.views.datasets import open_images
from logitcache.views.folders import FolderImages
from logitcache.views.images import UNLABELLED_CLASSES


def test_an_image_folder_gives_files_by_class_in_order_with_true_pixels(tmp_path: Path):
    root = image_folder(tmp_path)
    for split, folder in (("train", "train"), ("test", "val")):
        images = open_images(f"imagefolder:{root}", split)
        assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert images.num_classes == 3
        assert images.describe(4) == str(root / folder / "bee" / "1.png")
        for sample in range(9):
            expected = smooth(20 + sample // 3, 30 + sample % 3, flip=split == "test")
            assert (images.image(sample).permute(1, 2, 0).numpy() == expected).all()


def test_order_does_not_depend_on_how_the_disk_lists_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = image_folder(tmp_path)
    mine = open_images(f"imagefolder:{root}")
    listed = os.scandir

    class Backwards:
        def __init__(self, folder: Any) -> None:
            self.entries = iter(sorted(listed(folder), key=lambda entry: entry.name, reverse=True))

        def __iter__(self):
            return self.entries

        def __next__(self):
            return next(self.entries)

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    again = open_images(f"imagefolder:{root}")
    assert isinstance(mine, FolderImages)
    assert isinstance(again, FolderImages)
    assert again.files == mine.files
    assert again.fingerprint == mine.fingerprint


def test_a_folder_is_read_at_any_depth_suffixes_in_any_case_and_the_rest_left_out(tmp_path: Path):
    for name in ("b.PNG", "a/x.png", "a/deep/down/y.JPeG", "a.png", "Ω.png"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "png").touch()
    images = open_images(f"folder:{tmp_path}")
    assert isinstance(images, FolderImages)
    assert images.files == ["a.png", "a/deep/down/y.JPeG", "a/x.png", "b.PNG", "Ω.png"]
    assert images.labels.tolist() == [-1] * 5
    assert images.num_classes is None
    assert images.spec().num_classes == UNLABELLED_CLASSES
    assert images.spec(7).num_classes == 7
    assert all(images.image(i).shape == (3, 21, 34) for i in range(5))


def test_file_names_that_are_not_utf8_are_read_and_printed(tmp_path: Path):
    odd = os.fsdecode(b"caf\xe9.png")
    try:
        write(tmp_path / "a" / odd)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    write(tmp_path / "b" / "x.png")
    images = open_images(f"folder:{tmp_path}")
    assert images.image(0).shape == (3, 21, 34)
    assert images.describe(0).endswith("caf\\xe9.png")
    (tmp_path / "a" / odd).write_text("words")
    refused(ImageError, lambda: images.image(0), "caf\\xe9.png")
    (tmp_path / "train" / odd).mkdir(parents=True)
    (tmp_path / "train" / "b").mkdir()
    write(tmp_path / "train" / "b" / "x.png")
    refused(DataError, lambda: open_images(f"imagefolder:{tmp_path}"), "caf\\xe9.png: no images")


def test_the_fingerprint_of_a_folder_stays_when_it_moves(tmp_path: Path):
    root = image_folder(tmp_path / "here")
    before = open_images(f"imagefolder:{root}").fingerprint
    shutil.copytree(root, tmp_path / "there" / "deep")
    assert open_images(f"imagefolder:{tmp_path / 'there' / 'deep'}").fingerprint == before


def rename_file(root: Path) -> None:
    (root / "train" / "ant" / "1.png").rename(root / "train" / "ant" / "1b.png")


def rename_class(root: Path) -> None:
    (root / "train" / "ant").rename(root / "train" / "antelope")


def add_file(root: Path) -> None:
    write(root / "train" / "bee" / "9.png")


def remove_file(root: Path) -> None:
    (root / "train" / "cat" / "2.png").unlink()


def change_size(root: Path) -> None:
    with (root / "train" / "cat" / "2.png").open("ab") as file:
        file.write(b"\0")


def move_to_another_class(root: Path) -> None:
    (root / "train" / "ant" / "2.png").rename(root / "train" / "bee" / "3.png")


@pytest.mark.parametrize(
    "change", [rename_file, rename_class, add_file, remove_file, change_size, move_to_another_class]
)
def test_the_fingerprint_of_a_folder_changes_with(change: Callable[[Path], None], tmp_path: Path):
    root = image_folder(tmp_path)
    before = open_images(f"imagefolder:{root}").fingerprint
    assert open_images(f"imagefolder:{root}").fingerprint == before
    change(root)
    assert open_images(f"imagefolder:{root}").fingerprint != before


def test_classes_of_val_are_numbered_by_train(tmp_path: Path):
    root = image_folder(tmp_path)
    shutil.rmtree(root / "val" / "ant")
    images = open_images(f"imagefolder:{root}", "test")
    assert images.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert images.num_classes == 3


def test_val_alone_numbers_its_own_classes(tmp_path: Path):
    root = image_folder(tmp_path)
    shutil.rmtree(root / "train")
    assert open_images(f"imagefolder:{root}", "test").labels.max() == 2


def test_a_class_of_val_that_train_lacks_is_named(tmp_path: Path):
    root = image_folder(tmp_path)
    write(root / "val" / "dog" / "0.png")
    refused(DataError, lambda: open_images(f"imagefolder:{root}", "test"), "'dog'", f"{root}/train")


def test_a_class_without_images_is_named(tmp_path: Path):
    root = image_folder(tmp_path)
    (root / "train" / "dog").mkdir()
    (root / "train" / "dog" / "notes.txt").touch()
    refused(DataError, lambda: open_images(f"imagefolder:{root}"), str(root / "train" / "dog"), ".jpg")


def test_a_val_without_any_image_is_refused(tmp_path: Path):
    root = image_folder(tmp_path)
    for file in (root / "val").rglob("*.png"):
        file.unlink()
    refused(DataError, lambda: open_images(f"imagefolder:{root}", "test"), f"{root}/val: no images")


def test_one_class_is_not_enough(tmp_path: Path):
    write(tmp_path / "train" / "ant" / "0.png")
    refused(DataError, lambda: open_images(f"imagefolder:{tmp_path}"), "at least 2", "folder:PATH")


def test_folders_that_are_not_there_are_named_with_what_was_expected(tmp_path: Path):
    write(tmp_path / "picture.png")
    for name, split in (("none", "train"), ("none", "test"), ("", "train"), ("picture.png", "train")):
        root = tmp_path / name
        refused(
            NotFoundError,
            lambda root=root, split=split: open_images(f"imagefolder:{root}", split),
            f"expected {root}/train and {root}/val",
        )
    refused(
        NotFoundError, lambda: open_images(f"imagefolder:{tmp_path}/none"), f"{tmp_path}/none does not exist"
    )
    for name in ("none", "picture.png"):
        refused(
            NotFoundError,
            lambda name=name: open_images(f"folder:{tmp_path / name}"),
            "a folder of images",
            name,
        )


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_splits_own_folder_is_told_which_folder_to_name(tmp_path: Path, split: str):
    write(tmp_path / "train" / "ant" / "0.png")
    write(tmp_path / "val" / "ant" / "0.png")
    meant = f"did you mean imagefolder:{tmp_path}?"
    refused(NotFoundError, lambda: open_images(f"imagefolder:{tmp_path / split}"), meant)
    with pytest.raises(NotFoundError) as refusal:
        open_images(f"imagefolder:{tmp_path / split / 'ant'}")
    assert "did you mean" not in str(refusal.value)


def test_a_folder_without_images_and_a_test_split_without_labels_are_refused(tmp_path: Path):
    refused(DataError, lambda: open_images(f"folder:{tmp_path}"), "no images", ".webp")
    write(tmp_path / "a.png")
    refused(DataError, lambda: open_images(f"folder:{tmp_path}", "test"), "no test split")


def test_a_folder_that_links_lead_to_in_circles_is_read_once(tmp_path: Path):
    for name in ("a/1.png", "b/c/2.png"):
        write(tmp_path / "pictures" / name)
    root = tmp_path / "pictures"
    plain = open_images(f"folder:{root}")
    links = {"a/up": root, "b/c/self": root / "b" / "c", "b/side": root / "a", "z": root / "b"}
    for link, target in links.items():
        (root / link).symlink_to(target, target_is_directory=True)
    looped = open_images(f"folder:{root}")
    assert isinstance(plain, FolderImages)
    assert isinstance(looped, FolderImages)
    assert looped.files == plain.files == ["a/1.png", "b/c/2.png"]
    assert looped.fingerprint == plain.fingerprint
    (tmp_path / "entry").symlink_to(root, target_is_directory=True)
    assert open_images(f"folder:{tmp_path / 'entry'}").fingerprint == plain.fingerprint


def test_links_are_followed_and_those_out_of_a_class_bring_no_other_class_in(tmp_path: Path):
    for name in ("train/cat/1.png", "train/dog/2.png", "elsewhere/3.png"):
        write(tmp_path / name)
    (tmp_path / "train" / "cat" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "train" / "cat" / "up").symlink_to(tmp_path / "train", target_is_directory=True)
    images = open_images(f"imagefolder:{tmp_path}")
    assert isinstance(images, FolderImages)
    assert images.files == ["cat/1.png", "cat/more/3.png", "dog/2.png"]
    assert images.labels.tolist() == [0, 0, 1]


def test_a_broken_link_is_an_image_that_does_not_decode(tmp_path: Path):
    write(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    images = open_images(f"folder:{tmp_path}")
    assert images.image(0).shape == (3, 21, 34)
    refused(ImageError, lambda: images.image(1), "b.png")


@pytest.mark.parametrize("closed", ["train", "train/bee", "train/bee/deep"])
@pytest.mark.parametrize("kind", ["imagefolder", "folder"])
def test_a_folder_that_cannot_be_read_is_refused_and_not_left_out(
    kind: str, closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(image_folder(tmp_path) / "train" / "bee" / "deep" / "0.png")
    close_folder(tmp_path / closed, monkeypatch)
    words = (f"found {tmp_path / closed}: Permission denied", "let your user read it")
    refused(DataError, lambda: open_images(f"{kind}:{tmp_path}"), *words)


@pytest.mark.parametrize("closed", ["lost+found", "train/lost+found", "train/bee/.x"])
def test_a_hidden_folder_that_cannot_be_read_keeps_nothing_from_opening(
    closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (image_folder(tmp_path) / closed).mkdir()
    close_folder(tmp_path / closed, monkeypatch)
    assert len(open_images(f"imagefolder:{tmp_path}")) == 9
    assert len(open_images(f"folder:{tmp_path}")) == 18


def close_folder(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody list a folder, not even root, whom permissions do not hold up."""
    listed = os.scandir

    def scandir(folder: Any) -> Any:
        if Path(folder) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_name_longer_than_any_file_system_takes_is_refused_in_a_line():
    name = "a" * 300
    refused(UnknownNameError, lambda: open_images(name), "unknown data set")
    for kind in ("imagefolder", "folder"):
        refused(DataError, lambda kind=kind: open_images(f"{kind}:{name}"), "File name too long")


@pytest.mark.parametrize("name", ["digit", "digits:x", "imagefolder", "imagefolder:", "folder:", "", "mine:"])
def test_an_unknown_name_lists_or_suggests_what_is_known(name: str):
    refused(UnknownNameError, lambda: open_images(name), f"unknown data set {name!r}", "module:function")


@pytest.mark.parametrize(("below", "meant"), [("train", "imagefolder"), ("striped", "folder")])
def test_a_folder_alone_is_told_what_to_call_it(below: str, meant: str, tmp_path: Path):
    name = tmp_path / "x"  # far from every name that is known
    (name / below).mkdir(parents=True)
    refused(UnknownNameError, lambda: open_images(str(name)), f"did you mean {meant}:{name}?")


def test_a_split_is_train_or_test():
    refused(OptionError, lambda: open_images("digits", "val"), "train or test", "'val'")
