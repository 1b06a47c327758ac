"""Teachers that misbehave on a worker, by name for other processes."""

import contextlib
import multiprocessing
import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from logitcache.format.identity import AdapterSpec
from logitcache.models.build import build_model

FLAG = "LOGITCACHE_TEST_FLAG"


class _Fatal(nn.Module):
    """Kills workers of a cluster that run it on a whole batch: the first one, or any."""

    def __init__(self, inner: nn.Module, *, once: bool) -> None:
        super().__init__()
        self.inner, self.once = inner, once

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 8 and multiprocessing.parent_process():
            with contextlib.suppress(FileExistsError):
                Path(os.environ[FLAG]).touch(exist_ok=not self.once)
                os.kill(os.getpid(), signal.SIGKILL)
        logits: Tensor = self.inner(images)
        return logits


def fatal(num_classes: int) -> tuple[nn.Module, AdapterSpec]:
    model = build_model("digits_small", num_classes=num_classes, view_size=8, weights="random")
    return _Fatal(model.module, once=True), model.adapter


def deadly(num_classes: int) -> tuple[nn.Module, AdapterSpec]:
    model = build_model("digits_small", num_classes=num_classes, view_size=8, weights="random")
    return _Fatal(model.module, once=False), model.adapter


def infinite(num_classes: int) -> tuple[nn.Module, AdapterSpec]:
    model = build_model("digits_small", num_classes=num_classes, view_size=8, weights="random")
    module = model.module
    last = next(m for m in reversed(list(module.modules())) if isinstance(m, nn.Linear))
    with torch.no_grad():
        last.bias[3] = float("inf")
    return module, model.adapter
