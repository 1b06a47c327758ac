"""First steps of recipes, and ways in which an image, (3, H, W), may lie in memory."""

from typing import Any

import torch
from torch import Tensor

FIRST: list[tuple[str, dict[str, Any]]] = [
    *(
        ("RandomResizedCrop", {"size": 16, "interpolation": interpolation, "antialias": antialias})
        for interpolation in ("bilinear", "bicubic", "nearest", "nearest-exact")
        for antialias in (True, False)
    ),
    ("RandomResizedCrop", {"size": [9, 70], "scale": [0.01, 0.02]}),
    ("Resize", {"size": 20}),
    ("Resize", {"size": [50, 7], "interpolation": "bicubic"}),
    ("RandomCrop", {"size": 30, "padding": 4, "padding_mode": "reflect", "pad_if_needed": True}),
    ("RandomCrop", {"size": 30, "padding": 3, "fill": [1, 2, 3]}),
    ("CenterCrop", {"size": 60}),
    ("RandomHorizontalFlip", {}),
    ("ColorJitter", {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5}),
]


def rows_of_pixels(image: Tensor) -> Tensor:
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


LAYOUTS = {
    "planes": lambda image: image,
    "rows of pixels": rows_of_pixels,
    "columns of pixels": lambda image: image.transpose(1, 2).contiguous().transpose(1, 2),
    "turned": lambda image: rows_of_pixels(image.transpose(1, 2)).transpose(1, 2),
    "part": lambda image: rows_of_pixels(torch.nn.functional.pad(image, (3, 5, 2, 7)))[:, 2:-7, 3:-5],
    "one channel": lambda image: image[:1].expand(3, -1, -1),
}
