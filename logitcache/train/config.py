"""How a student is trained: every setting of optimiser and schedule, and published sets of settings by name."""

import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from logitcache.errors import FormatError, OptionError, UnknownNameError
from logitcache.format.spec import Spec
from logitcache.units import count


@dataclass(frozen=True)
class TrainConfig(Spec):
    """The settings of one student's training; the defaults are those of the protocol `digits`.

    Attributes:
        epochs: passes over the data.
        optimizer: "sgd", "adamw", or "lamb" (timm's; the extra `timm`).
        lr: peak learning rate.
        momentum: of SGD.
        nesterov: Nesterov's momentum, of SGD.
        betas: of AdamW and LAMB.
        weight_decay: on weights of two or more dimensions.
        decay_all: on biases and norms too, as the KD papers' code has it.
        schedule: the rate after warm-up: "cosine" falls to 0 at the end, "multistep" is multiplied by `gamma` at
            each milestone, "constant" stays.
        milestones: epochs of "multistep", rising; may be fractions.
        gamma: factor at a milestone.
        warmup_epochs: epochs of linear warm-up; may be a fraction.
        clip_norm: largest norm of all gradients together; None leaves them.
        accumulate: pieces that a batch is run in, one after another, when it does not fit the device's memory.
            Their gradients are summed to the whole batch's; but batch norm, and losses that compare the rows of a
            batch, see a piece at a time, and where labels are missing each piece averages over its own.
        ema: decay of an exponential moving average of weights and buffers, by step; it is then what is evaluated
            and kept. None keeps the weights themselves.
        precision: "auto" (bfloat16 on CUDA), "float32", "bfloat16" or "float16".
        channels_last: images and weights in channels-last order; None: on CUDA.
        compile: by `torch.compile`.
        grad_checkpointing: activations are computed again in the backward pass, where the model can (timm's can).
        sync_batch_norm: batch norm over the batches of all ranks, on GPUs; else each rank normalises its own.
        seed: of dropout and whatever else draws while training.
    """

    epochs: int = 20
    optimizer: Literal["sgd", "adamw", "lamb"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay_all: bool = False
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 1.0
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None
    precision: str = "auto"
    channels_last: bool | None = None
    compile: bool = False
    grad_checkpointing: bool = False
    sync_batch_norm: bool = False
    seed: int = 0

    def check(self) -> None:
        """Insist on values that can be trained with.

        Raises:
            OptionError: one cannot.
        """
        multistep = self.schedule == "multistep"
        problems = {
            f"epochs must be at least 1, found {self.epochs}": self.epochs < 1,
            f"optimizer must be sgd, adamw or lamb, found {self.optimizer!r}": self.optimizer
            not in ("sgd", "adamw", "lamb"),
            f"lr must be above 0, found {self.lr}": not 0 < self.lr < math.inf,
            f"momentum must be 0 to below 1, found {self.momentum}": not 0 <= self.momentum < 1,
            "nesterov needs a momentum above 0; give one, or --no-nesterov": self.optimizer == "sgd"
            and self.nesterov
            and self.momentum == 0,
            f"betas must be 0 to below 1, found {self.betas}": not all(0 <= beta < 1 for beta in self.betas),
            f"weight decay must be 0 or more, found {self.weight_decay}": not 0
            <= self.weight_decay
            < math.inf,
            f"schedule must be cosine, multistep or constant, found {self.schedule!r}": self.schedule
            not in ("cosine", "multistep", "constant"),
            f"milestones must rise, above 0, found {self.milestones}": not all(
                a < b for a, b in zip((0, *self.milestones), self.milestones, strict=False)
            ),
            "schedule multistep needs milestones": multistep and not self.milestones,
            f"a milestone at epoch {max(self.milestones, default=0):g} never comes in {count(self.epochs, 'epoch')}; "
            "give milestones that fit": multistep and max(self.milestones, default=0) >= self.epochs,
            f"gamma must be above 0 and at most 1, found {self.gamma}": not 0 < self.gamma <= 1,
            f"warm-up must be 0 epochs or more, found {self.warmup_epochs}": not 0
            <= self.warmup_epochs
            < math.inf,
            f"clip_norm must be above 0, found {self.clip_norm}": self.clip_norm is not None
            and not 0 < self.clip_norm < math.inf,
            f"accumulate must be at least 1, found {self.accumulate}": self.accumulate < 1,
            f"ema must be above 0 and below 1, found {self.ema}": self.ema is not None
            and not 0 < self.ema < 1,
        }
        if found := next((text for text, wrong in problems.items() if wrong), None):
            raise OptionError(found)

    def replace(self, changes: Mapping[str, object]) -> "TrainConfig":
        """Return these settings with some replaced; a value may be text, as on a command line.

        Raises:
            UnknownNameError: there is no such setting.
            OptionError: a value is of another type, or cannot be trained with.
        """
        hints = typing.get_type_hints(TrainConfig)
        if unknown := next((name for name in changes if name not in hints), None):
            raise UnknownNameError("setting", unknown, hints)
        values = {name: _parse(hints[name], value) for name, value in changes.items()}
        try:
            config = TrainConfig.from_dict({**self.to_dict(), **values})
        except FormatError as error:
            message = str(error).removeprefix("TrainConfig.")
            if wrong := next((name for name in _LISTS if message.startswith(name)), None):
                message = f"{wrong}: expected {_LISTS[wrong]}, found {changes[wrong]!r}"
            raise OptionError(message) from error
        config.check()
        return config


_LISTS = {"betas": "two numbers such as 0.9,0.999", "milestones": "numbers such as 150,180,210"}


def _parse(hint: Any, value: object) -> object:
    """Parse text by the type of its field: "150,180" as a list, "0.1" as a number; what does not parse stays text."""
    if not isinstance(value, str):
        return value
    listed = typing.get_origin(hint) is tuple and not value.startswith("[")
    try:
        return json.loads(f"[{value}]" if listed else value)
    except ValueError:
        return value


@dataclass(frozen=True)
class TrainProtocol:
    """Settings of training that have a name.

    Attributes:
        config: its settings.
        batch_size: views per step, of all ranks together.
        source: where the values come from.
    """

    config: TrainConfig
    batch_size: int
    source: str


_STEPPED = TrainConfig(schedule="multistep", nesterov=False, decay_all=True, warmup_epochs=0.0)

PROTOCOLS = {
    "digits": TrainProtocol(TrainConfig(), 64, "ours, for the digits that ship"),
    "cifar-kd": TrainProtocol(
        _STEPPED.replace({"epochs": 240, "milestones": (150, 180, 210), "lr": 0.05, "weight_decay": 5e-4}),
        64,
        "the KD papers' on CIFAR-100, since CRD (arXiv 1910.10699); its MobileNets and ShuffleNets take lr 0.01",
    ),
    "imagenet-kd": TrainProtocol(
        _STEPPED.replace({"epochs": 100, "milestones": (30, 60, 90), "lr": 0.2, "weight_decay": 1e-4}),
        512,
        "the KD papers' on ImageNet, as in DKD (arXiv 2203.08679)",
    ),
    "patient": TrainProtocol(
        TrainConfig(300, "adamw", lr=1e-3, weight_decay=0.01, warmup_epochs=5.0, clip_norm=1.0),
        512,
        "after 'A good teacher is patient and consistent' (arXiv 2106.05237), for caches of mixed views: its "
        "Adam, cosine and clipping; the paper goes on for up to 9,600 epochs; rate and decay are ours",
    ),
}


FEW_IMAGES = 20_000  # below, a protocol of the papers takes too few steps
MANY_IMAGES = 200_000  # from here on ImageNet's protocol, whatever their size
SMALL_VIEW = 64  # pixels a side, up to which CIFAR's protocol is the one that is used
FEW_STEPS = 3_000  # that a student from random weights wants, about
SMALL_BATCH = 2_000  # images below which batches are small, so that there are steps at all
MOST_EPOCHS = 100  # of few images, whatever the steps


def protocol_for_few(n: int, batch_size: int | None = None, views_per_image: int = 1) -> TrainProtocol:
    """Return the protocol `few`, of n images: epochs enough for some 3,000 steps, at least 20 and at most 100.

    Args:
        n: images, of each of which an epoch shows `views_per_image` views.
        batch_size: views per step; None: what suits so many images.
        views_per_image: see `StreamConfig`.
    """
    batch_size = batch_size or (16 if n < SMALL_BATCH else 64)
    epochs = min(MOST_EPOCHS, max(20, round(FEW_STEPS * batch_size / (n * max(1, views_per_image)))))
    return TrainProtocol(
        TrainConfig(epochs), batch_size, "ours: as digits, for as many steps as few images allow"
    )


PROTOCOL_NAMES = ("auto", "few", *PROTOCOLS)


def protocol_named(name: str) -> TrainProtocol:
    """Return the published protocol called `name`, or ours for the digits.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in PROTOCOLS:
        raise UnknownNameError("protocol", name, PROTOCOL_NAMES)
    return PROTOCOLS[name]


def possible_protocols(name: str) -> list[TrainProtocol]:
    """Return what `choose_protocol` may come to, before the data is known.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in ("auto", "few"):
        return [protocol_named(name)]
    few = protocol_for_few(1)
    return [few] if name == "few" else [few, *PROTOCOLS.values()]


def choose_protocol(
    name: str, data: str, n: int, view_size: int, batch_size: int | None = None, views_per_image: int = 1
) -> tuple[str, TrainProtocol]:
    """Return a protocol with its name; "auto" and "few" are by the data.

    Args:
        name: one of `PROTOCOL_NAMES`.
        data: name of the data set, as `open_images` takes it.
        n: its number of training images.
        view_size: longer side of its views, in pixels.
        batch_size, views_per_image: as `protocol_for_few` takes them.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name == "auto":
        few = "digits" if data == "digits" else "few"
        many = "cifar-kd" if view_size <= SMALL_VIEW and n < MANY_IMAGES else "imagenet-kd"
        name = few if n < FEW_IMAGES else many
    if name == "few":
        return name, protocol_for_few(n, batch_size, views_per_image)
    return name, protocol_named(name)
