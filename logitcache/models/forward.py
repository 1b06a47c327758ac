"""From uint8 views to float32 logits: input adapter, precision and memory format around a model.

Teachers (stage one, or live) and students run through the same few lines.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from logitcache.errors import DeviceMemoryError, OptionError
from logitcache.format.identity import Precision
from logitcache.models.answers import take_logits
from logitcache.models.build import InputAdapter, Model
from logitcache.paths import name_user

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class ViewModel(nn.Module):
    """A model that takes views, (B, C, h, w) uint8, and gives logits, (B, num_classes) float32.

    Args:
        model: with the input adapter that it wants.
        precision: of the forward pass, under autocast.
        channels_last: images and weights in channels-last memory format; None: on CUDA.
    """

    def __init__(
        self, model: Model, precision: Precision = "float32", channels_last: bool | None = None
    ) -> None:
        super().__init__()
        self.adapter, self.module = InputAdapter(model.adapter), model.module
        self.dtype, self.channels_last = DTYPES[precision], channels_last
        self._name, self._num_classes, self._heads = model.name, model.num_classes, model.heads

    def forward(self, views: Tensor) -> Tensor:
        """Adapt, run under autocast, and return float32 logits; (B, 2, num_classes) of two heads in training.

        Raises:
            WeightsError: what the module answers are no logits of its classes.
        """
        images = self.adapter(views)
        if self._channels_last_on(images.device):
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32):
            answer = self.module(images)
        return take_logits(answer, views.shape[0], self._num_classes, self._name, self._heads).float()

    def on(self, device: torch.device) -> "ViewModel":
        """Move to a device, and the weights into the memory format that the images will have."""
        self.to(device)
        return self.to(memory_format=torch.channels_last) if self._channels_last_on(device) else self

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the forward by `torch.compile`, also for a user without a name."""
        name_user()
        super().compile(*args, **options)

    def _channels_last_on(self, device: torch.device) -> bool:
        return device.type == "cuda" if self.channels_last is None else self.channels_last


class BatchHalver:
    """Runs a model on batches; each time the device is out of memory, it halves how many views run at once.

    Args:
        model: what to run.
        on_halved: called with a message each time.
    """

    def __init__(self, model: ViewModel, on_halved: Callable[[str], None] | None = None) -> None:
        self.model, self.on_halved = model, on_halved
        self.limit: int | None = None

    def __call__(self, views: Tensor) -> Tensor:
        """(B, C, h, w) uint8 -> (B, num_classes) float32.

        Raises:
            DeviceMemoryError: not even one view fits.
        """
        while True:
            size = min(self.limit or len(views), len(views))
            try:
                return torch.cat([self.model(part) for part in torch.split(views, size)])
            except torch.OutOfMemoryError as error:
                if size == 1:
                    half = " or --precision bfloat16" if self.model.dtype is torch.float32 else ""
                    raise DeviceMemoryError(
                        f"one view of shape {tuple(views.shape[1:])} does not fit the memory of {views.device}; "
                        f"take a smaller model{half}, or free the device"
                    ) from error
                self.limit = -(-size // 2)
            torch.cuda.empty_cache()  # outside the handler, which would keep the failed forward alive
            if self.on_halved:
                self.on_halved(f"out of memory: the model now runs on {self.limit} views at a time")


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" takes CUDA where there is one.

    Raises:
        OptionError: there is no such device here.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    expected = "expected auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"no device {name!r}; {expected}") from error
    if device.type == "cuda" and not (cuda and (device.index or 0) < torch.cuda.device_count()):
        raise OptionError(f"device {name!r} is not there: CUDA devices found: {torch.cuda.device_count()}")
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).item()
        except Exception as error:  # each kind of device refuses by an exception of its own
            reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0][:120]
            raise OptionError(f"device {name!r} cannot be used here ({reason}); {expected}") from error
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
