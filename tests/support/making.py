"""Pictures to view, recipes to view them by, and the generators that no view may touch."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitcache.format.identity import RecipeSpec, StepSpec

RANDOM_RECIPES = ["digits", "cifar", "imagenet@16", "imagenet-ra@16", "imagenet-strong@16"]

# A named recipe with the side of its views.
SIZES = {"digits": 8, "cifar": 32, "imagenet@24": 24, "imagenet-ra@24": 24, "center@24": 24, "center": 224}


def picture(channels: int = 3, height: int = 37, width: int = 45, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)


def steps(*transforms: str, **args: Any) -> RecipeSpec:
    return RecipeSpec("mine", 1, tuple(StepSpec(t, args) for t in transforms))


def global_states() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return (
        torch.default_generator.get_state().tolist(),
        random.getstate(),
        (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
    )


def disturb(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.rand(seed % 7)
