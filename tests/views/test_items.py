"""Labels are what the items say, however a data set lists them; one that changes, or that no item gives, is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import image_folder
from refusals import refused
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder

from logitcache.errors import DataError, ImageError
from logitcache.views.datasets import wrap_images


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
    said = [int(data[i][1]) for i in range(len(data))]
    assert images.labels.tolist() == said
    assert images.num_classes == max(said) + 1
    assert all(images.image(i).shape[0] == 3 for i in range(len(data)))
    named = {"plain": ["ant", "bee", "cat"], "to tensors": ["ant", "bee", "cat"]}
    assert images.class_names == named.get(kind, [])


def test_listed_labels_spare_reading_all_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("logitcache.views.datasets.LOOKED_AT", 3)
    data = Counted(str(image_folder(tmp_path) / "train"))
    wrap_images(Subset(data, range(9)), "mine")
    assert data.reads == 3 + 9  # looked at, then those of the fingerprint


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
