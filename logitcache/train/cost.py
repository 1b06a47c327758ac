"""What a forward pass costs: floating-point operations and seconds."""

import time

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from logitcache.models.forward import ViewModel


@torch.no_grad()
def count_flops(model: ViewModel, views: Tensor) -> int:
    """Count the floating-point operations of a forward: convolutions, matrix products, attention; no others.

    Attention is run as plain matrix products meanwhile: torch counts none of its fused encoder layers, and before
    2.15 no fused attention on the CPU either.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(views)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


@torch.inference_mode()
def time_forward(model: ViewModel, views: Tensor, most: int = 50, budget: float = 1.0) -> float:
    """Return the median seconds of a forward.

    Args:
        model: on the device of the views.
        views: (B, C, h, w) uint8.
        most: forwards that are timed, after one that is not.
        budget: seconds after which no further one begins.
    """
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < 2 or (len(seconds) <= most and time.perf_counter() - began < budget):
        start = time.perf_counter()
        model(views)
        if views.is_cuda:
            torch.cuda.synchronize(views.device)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))
