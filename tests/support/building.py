"""Small models, and how building one is refused."""

import refusals
import torch

from logitcache.errors import LogitCacheError
from logitcache.models.build import InputAdapter, Model, build_model


def tiny(
    weights: str = "random", seed: int = 0, num_classes: int = 10, name: str = "digits_tiny", heads: int = 1
) -> Model:
    return build_model(name, num_classes=num_classes, view_size=8, weights=weights, seed=seed, heads=heads)


def refused(kind: type[LogitCacheError], *words: str, **options: object) -> None:
    """Building with these options is refused in one line that holds these words."""
    settings = {"name": "digits_tiny", "num_classes": 10, "view_size": 8, **options}
    refusals.refused(kind, lambda: build_model(**settings), *words)  # type: ignore[arg-type]


def logits(model: Model, views: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.module.eval()(InputAdapter(model.adapter)(views))
