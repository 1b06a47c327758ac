"""From uint8 views to float32 logits: input adapter, precision and memory format around a model.

Teachers (stage one, or live) and students run through the same few lines.
"""

import torch
from torch import Tensor, nn

from logitcache.errors import OptionError
from logitcache.models import InputAdapter, Model
from logitcache.schema import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class ViewModel(nn.Module):
    """A model that takes views, (B, C, h, w) uint8, and gives logits, (B, num_classes) float32."""

    def __init__(self, model: Model, precision: Precision = "float32") -> None:
        super().__init__()
        self.adapter, self.module = InputAdapter(model.adapter), model.module
        self.dtype = DTYPES[precision]

    def forward(self, views: Tensor) -> Tensor:
        """Adapt, run under autocast, and return float32 logits."""
        images = self.adapter(views)
        if images.is_cuda:
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32):
            logits: Tensor = self.module(images)
        return logits.float()

    def on(self, device: torch.device) -> "ViewModel":
        """Move to a device; on CUDA, weights go channels-last as the images do."""
        self.to(device)
        return self.to(memory_format=torch.channels_last) if device.type == "cuda" else self


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" takes CUDA where there is one.

    Raises:
        OptionError: there is no such device here.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"no device {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not (cuda and (device.index or 0) < torch.cuda.device_count()):
        raise OptionError(f"device {name!r} is not there: CUDA devices found: {torch.cuda.device_count()}")
    return device


def choose_precision(name: Precision | str, device: torch.device) -> Precision:
    """Return the precision called `name`; "auto" is bfloat16 on CUDA and float32 on the CPU.

    Raises:
        OptionError: there is no such precision.
    """
    if name == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    for precision in DTYPES:
        if name == precision:
            return precision
    raise OptionError(f"precision must be auto, {', '.join(DTYPES)}, found {name!r}")
