"""How fast the parts are on your machine, against plain alternatives: ratios measured in one run."""

import os
import platform
from typing import Any, Protocol

import torch

from logitcache.versions import library_versions


class Cells(Protocol):
    """A row of figures that can be shown in a table."""

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""


def conditions(device: torch.device) -> dict[str, Any]:
    """Return JSON values that say what a measurement was made on: device, threads, load, versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "versions": library_versions(),
    }
