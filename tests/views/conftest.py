"""Code of the user's own."""

import sys
from pathlib import Path

import pytest

OWN_CODE = """
import random

import numpy as np
import torch


def draw_torch(image):
    return image + torch.randint(0, 1 << 6, image.shape, dtype=torch.uint8)


def draw_random(image):
    noise = [random.randrange(64) for _ in range(image.numel())]
    return image + torch.tensor(noise, dtype=torch.uint8).reshape(image.shape)


def draw_numpy(image):
    return image + torch.from_numpy(np.random.randint(0, 64, image.shape).astype(np.uint8))


def in_place(image, by):
    return image.add_(by)


def as_float(image):
    return image / 255


def as_list(image):
    return image.tolist()


def broken(image):
    raise ValueError("a bug of mine")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module of the user's own."""
    (tmp_path / "views_of_mine.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "views_of_mine", raising=False)
    return "views_of_mine"
