"""Data sets by name, in memory: true pixels in a stable order, and a fingerprint that knows what differs."""

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import write_cifar
from refusals import refused

from logitcache.bench.glyphs import draw_glyphs
from logitcache.errors import DataError, NotFoundError, UnknownNameError
from logitcache.views.datasets import ArrayImages, find_shipped, open_images

# Digits ---------------------------------------------------------------------------------------------------


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    with find_shipped("digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as ours:
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


# Letters --------------------------------------------------------------------------------------------------


def test_the_letters_are_in_other_typefaces_to_test_on_than_to_train_on():
    train, test = open_images("letters"), open_images("letters", "test")
    assert isinstance(train, ArrayImages)
    assert isinstance(test, ArrayImages)
    assert (train.images.shape, test.images.shape) == ((4800, 1, 20, 20), (1600, 1, 20, 20))
    assert np.bincount(train.labels).tolist() == [24] * 200
    assert np.bincount(test.labels).tolist() == [8] * 200
    trained_on = {image.numpy().tobytes() for image in train.images}
    assert sum(image.numpy().tobytes() in trained_on for image in test.images) < 16


def test_letters_have_their_names_and_every_class_looks_like_no_other():
    train = open_images("letters")
    assert train.class_names == open_images("letters", "test").class_names
    assert len(set(train.class_names)) == train.num_classes == 200
    assert "".join(train.class_names[:4]) == "ABCD"
    assert all(name.isalpha() and len(name) == 1 for name in train.class_names)
    first = [
        train.image(int(sample)).numpy().tobytes() for sample in np.unique(train.labels, return_index=True)[1]
    ]
    assert len(set(first)) > 190


def test_the_letters_are_as_they_are_drawn():
    ours = open_images("letters")
    drawn, labels = draw_glyphs(tuple(ours.class_names), "train")
    assert (labels == ours.labels).all()
    off = np.abs(
        drawn.astype(int) - ours.images[:, 0].numpy().astype(int)
    )  # another FreeType shades otherwise
    assert np.percentile(off, 99) < 32


@pytest.mark.parametrize("name", ["letters", "digits"])
def test_what_ships_is_no_folder_and_takes_no_path(name):
    assert open_images(name).name == name
    with pytest.raises(UnknownNameError, match=f"'{name}:x'"):
        open_images(f"{name}:x")


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
        array_images(labels=mine.labels.astype(np.float16)),
        array_images(labels=mine.labels[:, None]),
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
        ({"labels": np.array([0, 1, 0.5, 1])}, "float64"),
        ({"labels": np.array([0, 1, np.nan, 1])}, "float64"),
        ({"labels": np.eye(4)}, "one-hot labels take the class by .argmax(1)"),
        ({"labels": np.array([[1, 1], [0, 1], [1, 0], [0, 0]])}, "of several labels per image choose one"),
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


# CIFAR ----------------------------------------------------------------------------------------------------


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
