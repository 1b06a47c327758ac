"""Pictures that tests write: into files, folders of classes, and CIFAR's own format."""

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets as tv
from PIL import Image


def smooth(height: int = 21, width: int = 34, flip: bool = False) -> np.ndarray:
    """Make a picture, (H, W, 3) uint8, that JPEG keeps nearly as it is."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 5, y * 9, (x + y) * 3], axis=-1).clip(0, 255).astype(np.uint8)
    return 255 - pixels if flip else pixels


GRAY = smooth()[..., 0]
GRAY_RGB = np.repeat(GRAY[..., None], 3, axis=-1)
SIXTEEN_BITS = (GRAY.astype(np.uint16) << 8) + 77


def tiff(bits: int, sample_format: int, data: np.ndarray, min_is: int = 1) -> bytes:
    """Write a plain TIFF of one channel, whose samples Pillow would not write."""
    height, width = GRAY.shape
    body = data.tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, min_is), (273, 4, 134)]
    tags += [(277, 3, 1), (278, 3, height), (279, 4, len(body)), (339, 3, sample_format)]
    entries = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + b"\0\0\0\0" + body


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


def picture_folder(root: Path, bad: int | None = None) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.jpg")
    if bad is not None:
        (root / "train" / "cat" / f"{bad}.jpg").write_bytes(b"no picture")
    return root
