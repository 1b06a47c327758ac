"""The commands of docs/training.md for CIFAR-100 and ImageNet run, on a few files of the true formats."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from console import ROOT
from PIL import Image
from test_cli import succeeds
from test_datasets import write_cifar

PAGE = (ROOT / "docs" / "training.md").read_text()
CIFAR, IMAGENET = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SMALL = {"vit_l": "resnet18", "resnet32x4": "resnet8", "resnet8x4": "resnet8"}


def run_shortened(block: str, folder: Path) -> None:
    """Run the commands with less to do: two seeds, one epoch, smaller networks."""
    for line in block.splitlines():
        words = shlex.split(line.replace("/data/imagenet", str(folder / "imagenet")))
        words = [re.sub(r"^0-\d+$", "0-1", SMALL.get(word, word)) for word in words]
        if words[1] == "train":
            words += ["--epochs", "1", "--milestones", "0.5", "--batch-size", "4"]
        succeeds(*words[1:], cwd=folder)


def test_the_pair_of_cifar_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "data", "cifar100", monkeypatch)
    run_shortened(CIFAR, tmp_path)
    assert {run.name for run in (tmp_path / "runs").iterdir()} >= {"teacher"}
    assert len(list((tmp_path / "runs").glob("*/last.safetensors"))) == 4


def test_the_pair_of_imagenet(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, kind in ((s, k) for s in ("train", "val") for k in ("n01440764", "n01443537")):
        folder = tmp_path / "imagenet" / split / kind
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{kind}_{number}.JPEG")
    run_shortened(IMAGENET, tmp_path)
    assert len(list((tmp_path / "runs").glob("*/last.safetensors"))) == 1
