"""Students with layer norms (ViTs, Swin, ConvNeXt): AdamW, as they are trained with, in place of a protocol's SGD.

At the rates of the protocols' SGD they learn little or nothing; `docs/training.md` has numbers.
"""

import dataclasses

from torch import nn

from logitcache.models.build import Model
from logitcache.train.variants import Variant

SETTINGS = {
    "optimizer": "adamw",
    "lr": 5e-4,
    "weight_decay": 0.05,
    "decay_all": False,
    "schedule": "cosine",
    "clip_norm": 1.0,
}
MOST_WARMUP = 5.0  # epochs, and at most a tenth of all
HIGH_RATE = 5e-3  # of SGD, from which they are at risk


def has_layer_norms(model: Model) -> bool:
    """Say whether the module normalises by layers anywhere."""
    return any(isinstance(module, nn.LayerNorm) for module in model.module.modules())


def suit_layer_norms(model: Model, variant: Variant) -> Variant:
    """Return what a student is trained with in place of a protocol's own, where nobody gave optimiser or rate."""
    if {"optimizer", "lr"} & variant.given or not has_layer_norms(model):
        return variant
    warmup = {"warmup_epochs": min(MOST_WARMUP, variant.config.epochs / 10)}
    changes = {name: value for name, value in (SETTINGS | warmup).items() if name not in variant.given}
    return dataclasses.replace(variant, config=variant.config.replace(changes))


def describe_layer_norms(model: Model, variant: Variant) -> str | None:
    """Say what of its optimiser a user may not expect."""
    if not has_layer_norms(model):
        return None
    config = variant.config
    if config.optimizer == "sgd" and config.lr >= HIGH_RATE:
        return (
            f"{model.name} has layer norms: by SGD at {config.lr:g} such networks mostly learn little; try "
            f"--optimizer adamw --lr {SETTINGS['lr']}"
        )
    suited = config.optimizer == SETTINGS["optimizer"] and config.lr == SETTINGS["lr"]
    if suited and not {"optimizer", "lr"} & variant.given:
        return (
            f"{model.name} has layer norms, so it is trained by AdamW at {config.lr:g}, whatever the protocol; "
            "--optimizer and --lr choose otherwise"
        )
    return None
