"""The settings of ``logitcache train`` as options: what is given replaces the protocol's."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

import typer

from logitcache.protocols import PROTOCOLS, TrainConfig


def _of(panel: str, text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=f"{panel} (by default the protocol's)")


ProtocolName = Annotated[str, typer.Option(help=f"Settings by name: {', '.join(PROTOCOLS)}.")]

Epochs = Annotated[int | None, _of("Schedule", "Passes over the data.")]
BatchSize = Annotated[int | None, _of("Schedule", "Views per step.")]
Lr = Annotated[float | None, _of("Schedule", "Peak learning rate.")]
Schedule = Annotated[
    Literal["cosine", "multistep", "constant"] | None, _of("Schedule", "The rate after warm-up.")
]
Milestones = Annotated[str | None, _of("Schedule", "Epochs of multistep, such as 150,180,210.")]
Gamma = Annotated[float | None, _of("Schedule", "Factor at a milestone.")]
WarmupEpochs = Annotated[float | None, _of("Schedule", "Epochs of linear warm-up.")]

Optimizer = Annotated[
    Literal["sgd", "adamw", "lamb"] | None, _of("Optimiser", "Optimiser; lamb is timm's, an extra.")
]
Momentum = Annotated[float | None, _of("Optimiser", "Of SGD.")]
Nesterov = Annotated[bool | None, _of("Optimiser", "Nesterov's momentum, of SGD.")]
Betas = Annotated[str | None, _of("Optimiser", "Of AdamW and LAMB, such as 0.9,0.999.")]
WeightDecay = Annotated[float | None, _of("Optimiser", "Weight decay, not on biases and norms.")]
DecayAll = Annotated[bool | None, _of("Optimiser", "Decay biases and norms too.")]
ClipNorm = Annotated[float | None, _of("Optimiser", "Largest norm of all gradients together.")]
Ema = Annotated[float | None, _of("Optimiser", "Decay of an average of weights, kept in their place.")]

Accumulate = Annotated[int | None, _of("Memory and speed", "Pieces that a batch is run in.")]
ChannelsLast = Annotated[bool | None, _of("Memory and speed", "Memory order; by default on CUDA.")]
Compile = Annotated[bool | None, _of("Memory and speed", "Compile students with torch.compile.")]
GradCheckpointing = Annotated[
    bool | None, _of("Memory and speed", "Recompute activations in the backward pass (timm's models).")
]


def given(options: Mapping[str, object]) -> dict[str, object]:
    """Return those of a command's options that are settings of a training and were given."""
    names = {field.name for field in fields(TrainConfig)}
    return {name: value for name, value in options.items() if name in names and value is not None}
