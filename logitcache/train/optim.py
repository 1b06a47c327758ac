"""The optimiser, the learning rate by step, and the moving average that a `TrainConfig` asks for."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from logitcache.errors import OptionError
from logitcache.models.forward import ViewModel
from logitcache.train.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimiser of a model's parameters.

    Raises:
        OptionError: it needs a package that is not installed.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {
            "params": [p for p in parameters if p.ndim <= 1],
            "weight_decay": config.weight_decay if config.decay_all else 0.0,
        },
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    if config.optimizer == "lamb":
        return _lamb(groups, config)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def _lamb(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    try:
        from timm.optim import Lamb
    except ImportError:
        raise OptionError("optimizer lamb needs timm; pip install 'logitcache[timm]'") from None
    optimizer: torch.optim.Optimizer = Lamb(groups, lr=config.lr, betas=config.betas, max_grad_norm=None)
    return optimizer


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0 over all epochs of `steps` each."""
    return config.lr * _share_of_peak(config, step, steps)


def _share_of_peak(config: TrainConfig, step: int, steps: int) -> float:
    warmup, total = config.warmup_epochs * steps, config.epochs * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "multistep":
        return config.gamma ** sum(step >= at * steps for at in config.milestones)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))


class MovingAverage(AveragedModel):
    """An exponential moving average of a model, buffers too; it begins at the weights of its first update."""

    module: ViewModel

    def __init__(self, model: ViewModel, decay: float) -> None:
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(model, multi_avg_fn=average, use_buffers=True)
