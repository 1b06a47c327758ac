"""Labels are what the items say, however a data set lists them; one that changes, or that no item gives, is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import image_folder
from PIL import Image
from refusals import refused
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder

from logitcache.errors import DataError, ImageError
from logitcache.views.own_images import wrap_images


def only_ants(label: int) -> int:
    return int(label == 0)


class Wrapper(Dataset[Any]):
    """A data set of one's own around another, which numbers the classes anew."""

    def __init__(self, data: Any, **attributes: Any) -> None:
        self.data = data
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        image, label = self.data[i]
        return image, (label + 1) % 3


class Listed(list[Any]):
    """Pairs, with a list of labels beside them."""

    def __init__(self, pairs: list[Any], targets: list[int]) -> None:
        super().__init__(pairs)
        self.targets = targets


def one_hot(label: int) -> torch.Tensor:
    return torch.eye(3)[label]


class Bare:
    """Pairs, each made by one's own code, and attributes."""

    def __init__(self, make: Callable[[int], Any], **attributes: Any) -> None:
        self.make = make
        vars(self).update(attributes)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


class Raising(Bare):
    """Every list that is looked for beside the items raises."""

    @property
    def targets(self) -> Any:
        raise RuntimeError("not downloaded")

    labels = classes = samples = target_transform = targets


def gray(i: int) -> torch.Tensor:
    return torch.full((1, 8, 8), i, dtype=torch.uint8)


class Counted(ImageFolder):
    reads = 0

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return super().__getitem__(index)


class Regrouped(ImageFolder):
    """Its `targets` are the folders', its items' labels are not."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image, only_ants(label)


SETS: dict[str, Callable[[str], Any]] = {
    "plain": ImageFolder,
    "target_transform": lambda root: ImageFolder(root, target_transform=only_ants),
    "renumbered": lambda root: ImageFolder(root, target_transform=[2, 0, 1].__getitem__),
    "to tensors": lambda root: ImageFolder(root, target_transform=torch.tensor),
    "own class": Regrouped,
    "subset": lambda root: Subset(ImageFolder(root, target_transform=only_ants), [8, 0, 4, 1]),
    "subset of own class": lambda root: Subset(Regrouped(root), range(1, 9)),
    "concat": lambda root: ConcatDataset([ImageFolder(root, target_transform=only_ants), ImageFolder(root)]),
    "subset of concat": lambda root: Subset(
        ConcatDataset([Regrouped(root), ImageFolder(root)]), range(5, 15)
    ),
    "one-hot": lambda root: ImageFolder(root, target_transform=one_hot),
    "wrapper": lambda root: Wrapper(ImageFolder(root)),
    "wrapper with the targets of another": lambda root: Wrapper(
        ImageFolder(root), targets=ImageFolder(root).targets, classes=["a", "b", "c"]
    ),
    "tensors": lambda root: TensorDataset(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.arange(6) % 3),
    "fake": lambda root: FakeData(9, (3, 8, 8), 4, target_transform=lambda label: 3 - label),
}


@pytest.mark.parametrize("kind", SETS)
def test_labels_are_what_the_items_say(kind: str, tmp_path: Path):
    data = SETS[kind](str(image_folder(tmp_path) / "train"))
    images = wrap_images(data, "mine")
    said = [data[i][1] for i in range(len(data))]
    said = [int(label.argmax() if kind == "one-hot" else label) for label in said]
    assert images.labels.tolist() == said
    assert images.num_classes == max(said) + 1
    assert all(images.image(i).shape[0] == 3 for i in range(len(data)))
    named = kind in ("plain", "to tensors", "one-hot")
    assert images.class_names == (["ant", "bee", "cat"] if named else [])


def test_listed_labels_spare_reading_all_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("logitcache.views.own_images.LOOKED_AT", 3)
    data = Counted(str(image_folder(tmp_path) / "train"))
    wrap_images(Subset(data, range(9)), "mine")
    assert data.reads == 3 + 9  # looked at, then those of the fingerprint


@pytest.mark.parametrize(
    "label",
    [
        float,
        np.float32,
        lambda i: np.eye(3)[i],
        lambda i: one_hot(i) * 0.9 + 0.1 / 3,
        lambda i: np.array([i]),
        lambda i: torch.tensor([float(i)]),
        lambda i: [i],
    ],
    ids=["float", "float32", "one-hot", "smoothed", "array of one", "tensor of one", "list of one"],
)
def test_labels_are_compared_by_value_with_the_listed_ones(label: Callable[[int], Any]):
    for targets in ([0, 1, 2, 0, 1, 2], np.array([[0], [1], [2]] * 2), torch.arange(6) % 3):
        images = wrap_images(Bare(lambda i: (gray(i), label(i % 3)), targets=targets), "mine")
        assert images.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert [int(images.image(i)[0, 0, 0]) for i in range(6)] == list(range(6))


def test_one_hot_labels_of_other_classes_than_the_listed_are_refused():
    data = Bare(lambda i: (gray(i), one_hot((i + 1) % 3)), targets=[0, 1, 2] * 2)
    refused(
        DataError, lambda: wrap_images(data, "mine"), "mine: ", "one-hot labels take the class by .argmax(1)"
    )


@pytest.mark.parametrize(
    "classes", [None, 10, len, "abc", {"a", "b"}, [].append], ids=lambda value: str(type(value))
)
def test_classes_that_are_no_list_of_names_are_passed_over(classes: Any):
    images = wrap_images(Bare(lambda i: (gray(i), i % 2), classes=classes), "mine")
    assert (images.class_names, images.num_classes) == ([], 2)


@pytest.mark.parametrize("around", [lambda data: data, lambda data: Subset(data, range(6))])
def test_lists_that_raise_are_passed_over_and_the_items_read(around: Callable[[Any], Any]):
    images = wrap_images(around(Raising(lambda i: (gray(i), i % 2))), "mine")
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert images.describe(3) == "sample 3 of mine"


def test_a_subset_of_more_than_there_is_and_a_length_that_raises_are_told_in_a_line():
    data = Subset(Listed([(gray(i), i % 2) for i in range(6)], [0, 1] * 3), [0, 9])
    refused(DataError, lambda: wrap_images(data, "mine"), "sample 1 of mine", "IndexError")
    refused(DataError, lambda: wrap_images(Subset(data, None), "mine"), "mine: len()", "TypeError")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("item", "found"),
    [
        (lambda i: gray(i).expand(3, -1, -1), "one Tensor, (3, 8, 8) torch.uint8"),
        (lambda i: np.zeros((8, 8, 3), np.uint8), "one ndarray, (8, 8, 3) uint8"),
        (lambda i: (gray(i),), "tuple of 1"),
        (lambda i: "a.png", "found str"),
    ],
)
def test_an_item_that_is_no_pair_is_told_how_to_be_one(item: Callable[[int], Any], found: str):
    refused(DataError, lambda: wrap_images(Bare(item), "mine"), found, "without labels give -1 as label")


@pytest.mark.parametrize(
    ("shape", "advice", "convert"),
    [
        ((8, 9, 3), "PIL.Image.fromarray(image) ", Image.fromarray),
        ((8, 9), "PIL.Image.fromarray(image) ", Image.fromarray),
        ((8, 9, 1), "PIL.Image.fromarray(image[:, :, 0]) ", lambda image: Image.fromarray(image[:, :, 0])),
        ((3, 8, 9), "torch.from_numpy(image) ", torch.from_numpy),
        ((1, 8, 9), "torch.from_numpy(image) ", torch.from_numpy),
    ],
)
def test_an_array_is_told_how_to_be_an_image(
    shape: tuple[int, ...], advice: str, convert: Callable[[Any], Any]
):
    array = np.zeros(shape, np.uint8)
    refused(DataError, lambda: wrap_images(Bare(lambda i: (array, i % 2)), "mine"), f"; {advice}")
    assert wrap_images(Bare(lambda i: (convert(array), i % 2)), "mine").image(0).shape[1:] == (8, 9)


def test_unlabelled_images_may_have_one_class_name():
    images = wrap_images(Bare(lambda i: (gray(i), -1), classes=["all"]), "mine")
    assert images.num_classes is None


def test_gray_images_are_shown_in_colour_where_others_are():
    images = wrap_images(Bare(lambda i: (gray(i) if i else gray(i).expand(3, -1, -1), i % 2)), "mine")
    assert images.image(1).shape == (3, 8, 8)
    assert torch.equal(images.image(1), gray(1).expand(3, -1, -1))


def test_a_label_unlike_the_listed_one_is_told_when_its_image_is_read():
    labels = [i % 2 for i in range(600)]
    pairs = [
        (torch.zeros(1, 4, 4, dtype=torch.uint8), 0 if i == 301 else label) for i, label in enumerate(labels)
    ]
    images = wrap_images(Listed(pairs, labels), "mine")
    assert images.image(300).shape == (1, 4, 4)
    refused(DataError, lambda: images.image(301), "sample 301 of mine says label 0", "1 when it was opened")


def test_labels_drawn_anew_at_each_read_are_refused(tmp_path: Path):
    rng = np.random.default_rng(0)
    folder = str(image_folder(tmp_path) / "train")
    images = wrap_images(ImageFolder(folder, target_transform=lambda _: int(rng.integers(1000))), "mine")
    refused(DataError, lambda: images.image(0), "label must not change")


@pytest.mark.parametrize("kind", ["subset", "concat", "wrapper"])
def test_an_item_that_does_not_decode_is_named_by_its_file_and_the_others_are_read(kind: str, tmp_path: Path):
    root = image_folder(tmp_path) / "train"
    bad = root / "bee" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    data = SETS[kind](str(root)) if kind != "subset" else Subset(ImageFolder(str(root)), [5, 4, 0])
    images = wrap_images(data, "mine")
    at = 1 if kind == "subset" else 4
    words = [str(bad)] if kind != "wrapper" else []
    refused(ImageError, lambda: images.image(at), f"sample {at} of mine", "does not decode (", *words)
    assert images.labels[at] == {"subset": 1, "concat": 0, "wrapper": -1}[kind]
    assert images.image(at + 1).shape[0] == 3
