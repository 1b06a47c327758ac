"""Image sets: true pixels in a stable order, a fingerprint that knows what differs, and plain refusals."""

import os
import pickle
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from PIL import Image, ImageOps

from logitcache.datasets import ArrayImages, digits_file, open_images
from logitcache.errors import (
    DataError,
    ImageError,
    LogitCacheError,
    NotFoundError,
    OptionError,
    UnknownNameError,
)
from logitcache.folders import IMAGE_SUFFIXES, FolderImages, decode, printable
from logitcache.images import UNLABELLED_CLASSES, Images


def refused(kind: type[LogitCacheError], call: Callable[[], Any], *words: str) -> None:
    """The call is refused in one line that holds these words."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    message.encode()  # any terminal takes it
    for word in words:
        assert word in message


def smooth(height: int = 21, width: int = 34, flip: bool = False) -> np.ndarray:
    """Make a picture, (H, W, 3) uint8, that JPEG keeps nearly as it is."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 5, y * 9, (x + y) * 3], axis=-1).clip(0, 255).astype(np.uint8)
    return 255 - pixels if flip else pixels


GRAY = smooth()[..., 0]
GRAY_RGB = np.repeat(GRAY[..., None], 3, axis=-1)
SIXTEEN_BITS = (GRAY.astype(np.uint16) << 8) + 77


def write(path: Path, pixels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}.get(
            path.suffix.lower(), path.suffix[1:].upper()
        )
        Image.fromarray(smooth() if pixels is None else pixels).save(file, format=kind)
    return path


def image_folder(root: Path) -> Path:
    for split in ("train", "val"):
        for number, name in enumerate(("ant", "bee", "cat")):
            for i in range(3):
                pixels = smooth(20 + number, 30 + i, flip=split == "val")
                write(root / split / name / f"{i}.png", pixels)
    return root


# Digits ---------------------------------------------------------------------------------------------------


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    with digits_file().open("rb") as file, np.load(file, allow_pickle=False) as ours:
        assert (ours["images"] == theirs.images).all()
        assert (ours["labels"] == theirs.target).all()
        test = ours["test"]
    for split, rows in (("train", ~test), ("test", test)):
        images = open_images("digits", split)
        assert isinstance(images, ArrayImages)
        assert (images.labels == theirs.target[rows]).all()
        scaled = np.round(theirs.images[rows] * 255 / 16)
        assert (images.images[:, 0].numpy() == scaled).all()
        assert images.images.max() == 255


def test_the_split_of_the_digits_is_disjoint_and_stratified():
    train, test = open_images("digits"), open_images("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.num_classes == test.num_classes == 10
    every = np.bincount(np.concatenate([train.labels, test.labels]))
    assert np.abs(np.bincount(test.labels) - every * 360 / 1797).max() < 1
    assert train.fingerprint != test.fingerprint


# In memory ------------------------------------------------------------------------------------------------


def array_images(**changes: Any) -> ArrayImages:
    pixels = torch.arange(4 * 3 * 5 * 5, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(4, 3, 5, 5)
    options: dict[str, Any] = {"name": "mine", "split": "train", "images": pixels, "labels": np.arange(4) % 2}
    return ArrayImages(**{**options, "num_classes": 3, "recipe": "cifar", **changes})


def test_a_fingerprint_changes_with_a_pixel_a_label_the_shape_or_the_order():
    mine = array_images()
    brighter = mine.images.clone()
    brighter[3, 2, 4, 4] += 1
    order = [1, 0, 2, 3]
    others = [
        array_images(images=brighter),
        array_images(labels=np.array([0, 1, 0, 2])),
        array_images(images=mine.images.reshape(4, 3, 25, 1)),
        array_images(images=mine.images[order]),
        array_images(labels=mine.labels[order]),
        array_images(images=mine.images[:3], labels=mine.labels[:3]),
    ]
    prints = {images.fingerprint for images in (mine, *others)}
    assert len(prints) == 1 + len(others)


def test_a_fingerprint_does_not_change_with_the_name_nor_with_how_memory_lies():
    mine = array_images()
    fortran = mine.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    wide = np.repeat(mine.labels, 2)[::2]
    for same in (
        array_images(name="elsewhere", recipe="center"),
        array_images(images=fortran),
        array_images(labels=wide),
        array_images(labels=mine.labels.astype(np.int32)),
    ):
        assert same.fingerprint == mine.fingerprint
        assert same.labels.dtype == np.int64
        assert torch.equal(same.image(2), mine.image(2))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"images": torch.zeros(4, 3, 5, 5)}, "torch.float32"),
        ({"images": torch.zeros(4, 5, 5, dtype=torch.uint8)}, "(4, 5, 5)"),
        ({"images": torch.zeros(0, 3, 5, 5, dtype=torch.uint8), "labels": np.zeros(0, int)}, "(0, 3, 5, 5)"),
        ({"labels": np.arange(3)}, "(3,)"),
        ({"labels": np.zeros((4, 2), int)}, "(4, 2)"),
        ({"labels": np.zeros(4)}, "float64"),
        ({"labels": np.array([0, 1, 2, 3])}, "found 3"),
        ({"labels": np.array([0, -2, 1, 1])}, "found -2"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(changes: dict[str, Any], found: str):
    refused(DataError, lambda: array_images(**changes), "mine: ", found)


def test_a_spec_says_what_a_cache_records():
    images = array_images(labels=np.array([0, -1, 1, 2]))
    spec = images.spec()
    assert (spec.name, spec.split, spec.n, spec.num_classes) == ("mine", "train", 4, 3)
    assert spec.fingerprint == images.fingerprint
    assert images.spec(99).num_classes == 3


# Decoding -------------------------------------------------------------------------------------------------

PALETTE = Image.fromarray(smooth()).quantize(16)
PALETTE_RGB = np.array(PALETTE.convert("RGB"))
RGBA = Image.fromarray(np.dstack([smooth(), GRAY]))
FILES: dict[str, tuple[Image.Image, dict[str, Any], np.ndarray, float]] = {
    # file: (image, how to save it, the pixels that must come back, by how much they may differ on average)
    "rgb.jpg": (Image.fromarray(smooth()), {"quality": 95}, smooth(), 1.5),
    "upper.JPEG": (Image.fromarray(smooth()), {"quality": 95}, smooth(), 1.5),
    "gray.jpg": (Image.fromarray(GRAY), {"quality": 95}, GRAY_RGB, 1.5),
    "cmyk.jpg": (Image.fromarray(smooth()).convert("CMYK"), {"quality": 95}, smooth(), 2.5),
    "rgb.png": (Image.fromarray(smooth()), {}, smooth(), 0),
    "gray.png": (Image.fromarray(GRAY), {}, GRAY_RGB, 0),
    "bits.png": (Image.fromarray(GRAY > 99), {}, (GRAY_RGB > 99) * 255, 0),
    "gray-alpha.png": (Image.fromarray(GRAY).convert("LA"), {}, GRAY_RGB, 0),
    "rgba.png": (RGBA, {}, smooth(), 0),
    "palette.png": (PALETTE, {}, PALETTE_RGB, 0),
    "palette-clear.png": (PALETTE, {"transparency": 3}, PALETTE_RGB, 0),
    "palette-veiled.png": (PALETTE, {"transparency": bytes(range(16))}, PALETTE_RGB, 0),
    "sixteen.png": (Image.fromarray(SIXTEEN_BITS), {}, GRAY_RGB, 0),
    "sixteen.tiff": (Image.fromarray(SIXTEEN_BITS), {}, GRAY_RGB, 0),
    "sixteen.pgm": (Image.fromarray(SIXTEEN_BITS), {}, GRAY_RGB, 0),
    "rgb.tif": (Image.fromarray(smooth()), {}, smooth(), 0),
    "cmyk.tif": (Image.fromarray(smooth()).convert("CMYK"), {}, smooth(), 0),
    "rgb.bmp": (Image.fromarray(smooth()), {}, smooth(), 0),
    "palette.BMP": (PALETTE, {}, PALETTE_RGB, 0),
    "rgb.ppm": (Image.fromarray(smooth()), {}, smooth(), 0),
    "gray.pgm": (Image.fromarray(GRAY), {}, GRAY_RGB, 0),
    "rgb.webp": (Image.fromarray(smooth()), {"lossless": True}, smooth(), 0),
    "rgba.webp": (RGBA, {"lossless": True, "exact": True}, smooth(), 0),
    "still.gif": (PALETTE, {}, PALETTE_RGB, 0),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_kind_decodes_to_rgb(name: str, tmp_path: Path):
    image, options, expected, tolerance = FILES[name]
    image.save(tmp_path / name, **options)
    found = decode(tmp_path / name)
    assert found.dtype == torch.uint8
    assert found.shape == (3, *expected.shape[:2])
    assert found.is_contiguous()
    error = np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected)
    assert error.mean() <= tolerance


def test_every_suffix_that_is_listed_is_decoded():
    assert {Path(name).suffix.lower() for name in FILES} == set(IMAGE_SUFFIXES)


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp"])
def test_an_animation_is_its_first_frame(name: str, tmp_path: Path):
    other = Image.fromarray(smooth(flip=True)).quantize(16)
    lossless = {"lossless": True} if name.endswith("webp") else {}
    PALETTE.save(tmp_path / name, save_all=True, append_images=[other, PALETTE], **lossless)
    assert (decode(tmp_path / name).permute(1, 2, 0).numpy() == PALETTE_RGB).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_picture_is_turned_as_its_exif_says(suffix: str, orientation: int, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(suffix, {})
    Image.fromarray(smooth()).save(path, exif=exif, **options)
    upright = Image.fromarray(smooth())
    upright.getexif()[0x0112] = orientation
    expected = np.array(ImageOps.exif_transpose(upright)).astype(int)
    found = decode(path).permute(1, 2, 0).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < (1.5 if suffix == "jpg" else 1e-9)


@pytest.mark.parametrize("name", [n for n in FILES if not n.endswith(".png")] + ["rgb.png"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5])
def test_a_truncated_file_is_named(name: str, part: float, tmp_path: Path):
    image, options, *_ = FILES[name]
    image.save(tmp_path / name, **options)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * part)])
    refused(ImageError, lambda: decode(tmp_path / name), str(tmp_path / name), "--on-bad-image skip")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"these are words and no picture\n" * 9])
def test_what_is_only_called_an_image_is_named(suffix: str, content: bytes, tmp_path: Path):
    path = tmp_path / f"words{suffix}"
    path.write_bytes(content)
    refused(ImageError, lambda: decode(path), str(path))


def test_a_reason_is_given_in_words(tmp_path: Path):
    empty, words = tmp_path / "empty.jpg", tmp_path / "words.jpg"
    empty.touch()
    words.write_text("words")
    refused(ImageError, lambda: decode(empty), "(it is empty)")
    refused(ImageError, lambda: decode(words), "(it is not an image that Pillow knows)")


def test_a_file_that_claims_ten_thousand_million_pixels_is_an_image_error(tmp_path: Path):
    (tmp_path / "bomb.pgm").write_bytes(b"P5 100000 100000 255\n")
    refused(ImageError, lambda: decode(tmp_path / "bomb.pgm"), "bomb.pgm")


def test_a_file_that_is_gone_and_a_folder_are_named(tmp_path: Path):
    (tmp_path / "folder.png").mkdir()
    for name in ("none.png", "folder.png"):
        refused(ImageError, lambda name=name: decode(tmp_path / name), name)


@pytest.mark.parametrize(
    "name", ["rgb.jpg", "rgb.png", "rgb.tif", "still.gif", "rgb.webp", "rgb.bmp", "gray.pgm"]
)
def test_damaged_bytes_give_a_picture_or_an_image_error(name: str, tmp_path: Path):
    image, options, *_ = FILES[name]
    path = tmp_path / name
    image.save(path, **options)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 200), 3):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            found = decode(path)
        except ImageError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert (found.dtype, found.ndim, len(found)) == (torch.uint8, 3, 3)


def test_a_path_prints_whatever_its_bytes():
    assert printable(Path("/a/ü.png")) == "/a/ü.png"
    assert printable(Path(os.fsdecode(b"/a/\xff.png"))) == "/a/\\xff.png"
    assert printable(Path("/a/\x1b[31m b\n.png")) == "/a/\\x1b[31m b\\n.png"


# Folders --------------------------------------------------------------------------------------------------


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
    for name in ("none", "picture.png"):
        refused(
            NotFoundError,
            lambda name=name: open_images(f"folder:{tmp_path / name}"),
            "a folder of images",
            name,
        )


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


# CIFAR ----------------------------------------------------------------------------------------------------


def write_cifar(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write small files in CIFAR's true format and have torchvision accept their digests."""
    import hashlib

    loader = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100}[kind]
    folder = root / loader.base_folder
    folder.mkdir(parents=True)
    key = "labels" if kind == "cifar10" else "fine_labels"
    classes = [f"class {i}" for i in range(10 if kind == "cifar10" else 100)]
    rng = np.random.default_rng(1)
    truth: dict[str, Any] = {}

    def dump(name: str, data: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(data, protocol=2))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for split, attribute in (("train", "train_list"), ("test", "test_list")):
        listed, pixels, labels = [], [], []
        for name, _ in getattr(loader, attribute):
            rows = rng.integers(0, 256, (4, 3072), dtype=np.uint8)  # 1,024 red, then green, then blue
            numbers = rng.integers(0, len(classes), 4).tolist()
            listed.append([name, dump(name, {"data": rows, key: numbers, "batch_label": name})])
            pixels.append(rows)
            labels += numbers
        truth[split] = (np.concatenate(pixels).reshape(-1, 3, 32, 32), labels)
        monkeypatch.setattr(loader, attribute, listed)
    meta = loader.meta
    digest = dump(meta["filename"], {meta["key"]: classes})
    monkeypatch.setattr(loader, "meta", {**meta, "md5": digest})
    return truth


@pytest.mark.parametrize(("kind", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_gives_the_pixels_and_labels_of_its_files(kind: str, classes: int, tmp_path: Path, monkeypatch):
    truth = write_cifar(tmp_path, kind, monkeypatch)
    for split in ("train", "test"):
        images = open_images(f"{kind}:{tmp_path}", split)
        pixels, labels = truth[split]
        assert len(images) == len(labels) == (20 if (kind, split) == ("cifar10", "train") else 4)
        assert all((images.image(i).numpy() == pixels[i]).all() for i in range(len(images)))
        assert images.labels.tolist() == labels
        assert images.num_classes == classes
        assert images.recipe == "cifar"
    monkeypatch.setenv("LOGITCACHE_DATA", str(tmp_path))
    assert open_images(kind, "test").fingerprint == images.fingerprint


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_that_is_not_there_and_cannot_be_had_says_what_to_do(kind: str, tmp_path: Path, monkeypatch):
    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    refused(
        NotFoundError,
        lambda: open_images(f"{kind}:{tmp_path}"),
        f"{kind} is not in {tmp_path}",
        "no network here",
        "-python.tar.gz",
        f"{kind}:ROOT",
    )


# Your own -------------------------------------------------------------------------------------------------

OWN = """
import numpy as np, torch
from PIL import Image
from logitcache.datasets import ArrayImages
from logitcache.folders import FolderImages

PIXELS = np.arange(6 * 8 * 8 * 3).reshape(6, 8, 8, 3).astype(np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]

class Pairs:
    def __init__(self, make, labels=LABELS, **attributes):
        self.make, self.labels = make, labels
        vars(self).update(attributes)
    def __len__(self):
        return len(self.labels)
    def __getitem__(self, i):
        return self.make(i), self.labels[i]

def tensor(i): return torch.from_numpy(PIXELS[i]).permute(2, 0, 1)
def pil(i): return Image.fromarray(PIXELS[i])
def bad_third(i):
    if i == 3: raise OSError("image file is truncated")
    return pil(i)

def images(split):
    return ArrayImages("x", "x", torch.stack([tensor(i) for i in range(6)]), np.array(LABELS), 3, "x")
def tensors(split): return Pairs(tensor)
def pils(split): return Pairs(pil)
def gray(split): return Pairs(lambda i: pil(i).getchannel(0))
def palette(split): return Pairs(lambda i: pil(i).quantize(8))
def rgba(split): return Pairs(lambda i: pil(i).convert("RGBA"))
def bits(split): return Pairs(lambda i: Image.fromarray(PIXELS[i, :, :, 0] > 99))
def sixteen(split): return Pairs(lambda i: Image.fromarray(PIXELS[i, :, :, 0].astype(np.uint16) << 8))
def classes(split): return Pairs(tensor, classes=list("abcdefg"), targets=torch.tensor(LABELS))
def one_bad(split): return Pairs(bad_third, targets=LABELS)
def none_labelled(split): return Pairs(tensor, [-1] * 6)
def by_split(split): return Pairs(tensor, LABELS if split == "train" else LABELS[:3])

def gives_none(split): return None
def gives_function(split): return lambda: 1
def gives_numbers(split): return [1, 2, 3]
def gives_nothing(split): return []
def gives_floats(split): return Pairs(lambda i: tensor(i) / 255)
def gives_arrays(split): return Pairs(lambda i: PIXELS[i] / 255)
def gives_four_channels(split): return Pairs(lambda i: torch.zeros(4, 8, 8, dtype=torch.uint8))
def gives_text_labels(split): return Pairs(tensor, list("abcabc"))
def gives_float_labels(split): return Pairs(tensor, [0.5] * 6)
def gives_short_targets(split): return Pairs(tensor, targets=[0, 1])
def gives_large_labels(split): return Pairs(tensor, classes=["a", "b"])
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "images_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "images_of_mine", raising=False)
    import images_of_mine

    return images_of_mine


@pytest.mark.parametrize("function", ["images", "tensors", "pils"])
def test_own_images_come_as_images_as_tensors_or_as_pillows(own: Any, function: str):
    images = open_images(f"images_of_mine:{function}", "test")
    assert isinstance(images, Images)
    assert (images.name, images.split) == (f"images_of_mine:{function}", "test")
    assert images.labels.tolist() == own.LABELS
    assert images.num_classes == 3
    assert all((images.image(i).permute(1, 2, 0).numpy() == own.PIXELS[i]).all() for i in range(6))
    assert "sample 2" in images.describe(2)


@pytest.mark.parametrize("function", ["gray", "palette", "rgba", "bits", "sixteen"])
def test_own_pillows_of_any_mode_become_gray_or_rgb(own: Any, function: str):
    first = own.PIXELS[0]
    expected = {
        "gray": first[None, ..., 0],
        "palette": np.array(own.pil(0).quantize(8).convert("RGB")).transpose(2, 0, 1),
        "rgba": first.transpose(2, 0, 1),
        "bits": (first[None, ..., 0] > 99) * 255,
        "sixteen": first[None, ..., 0],
    }[function]
    found = open_images(f"images_of_mine:{function}").image(0)
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape
    assert (found.numpy() == expected).all()


def test_own_classes_and_targets_are_taken_from_the_data_set(own: Any):
    images = open_images("images_of_mine:classes")
    assert images.num_classes == 7
    assert images.labels.tolist() == own.LABELS
    assert open_images("images_of_mine:none_labelled").num_classes is None


def test_own_function_is_called_with_the_split(own: Any):
    assert [len(open_images("images_of_mine:by_split", split)) for split in ("train", "test")] == [6, 3]


def test_the_fingerprint_of_own_images_changes_with_a_pixel_a_shape_and_a_label(own: Any, monkeypatch):
    before = open_images("images_of_mine:tensors").fingerprint
    assert open_images("images_of_mine:pils").fingerprint == before
    with monkeypatch.context() as patch:
        changed = own.PIXELS.copy()
        changed[5, 7, 7, 2] += 1
        patch.setattr(own, "PIXELS", changed)
        pixel = open_images("images_of_mine:tensors").fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(own, "PIXELS", own.PIXELS.reshape(6, 4, 16, 3))
        shape = open_images("images_of_mine:tensors").fingerprint
    own.LABELS[0] = 1
    label = open_images("images_of_mine:tensors").fingerprint
    assert len({before, pixel, shape, label}) == 4


def test_an_own_image_that_does_not_open_is_an_image_error_and_no_end_of_the_rest(own: Any):
    images = open_images("images_of_mine:one_bad")
    refused(ImageError, lambda: images.image(3), "sample 3 of images_of_mine:one_bad", "truncated")
    assert images.image(4).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        ("gives_none", "NoneType"),
        ("gives_function", "function"),
        ("gives_numbers", "(image, label) pair"),
        ("gives_nothing", "for 0 images"),
        ("gives_floats", "(3, 8, 8) torch.float32; leave ToTensor"),
        ("gives_arrays", "(8, 8, 3) float64"),
        ("gives_four_channels", "(4, 8, 8)"),
        ("gives_text_labels", "<U1 labels"),
        ("gives_float_labels", "float64 labels"),
        ("gives_short_targets", "(2,) for 6 images"),
        ("gives_large_labels", "found 2"),
    ],
)
def test_a_wrong_return_is_named_with_what_was_found(own: Any, function: str, found: str):
    refused(DataError, lambda: open_images(f"images_of_mine:{function}"), f"images_of_mine:{function}", found)


def test_own_code_that_is_not_there_is_refused_by_name(own: Any):
    refused(NotFoundError, lambda: open_images("images_of_nobody:f"), "images_of_nobody")
    refused(UnknownNameError, lambda: open_images("images_of_mine:tensor_s"), "tensors")
