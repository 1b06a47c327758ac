"""The settings of ``logitcache train`` as options: what is given replaces the protocol's."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from logitcache.errors import OptionError
from logitcache.train.config import PROTOCOL_NAMES, PROTOCOLS, TrainConfig

from .shared_options import is_given, pick_fields

if TYPE_CHECKING:
    from logitcache.train.variants import VariantInputs

BY_PROTOCOL = "by the protocol"


def _setting(panel: str | None, text: str, metavar: str | None = None) -> Any:
    """Make the option of a setting, which the protocol has where it is not given."""
    shown = BY_PROTOCOL if panel is None else False  # a panel says it in its title
    title = panel and f"{panel} (default: {BY_PROTOCOL})"
    return typer.Option(help=text, rich_help_panel=title, show_default=shown, metavar=metavar)


def protocol_default(name: str) -> object:
    """Return what the protocol `digits` has of a setting, as an example of what it takes; None of what is none."""
    values = {**PROTOCOLS["digits"].config.to_dict(), "batch_size": PROTOCOLS["digits"].batch_size}
    value = values.get(name)
    return ",".join(map(str, value)) or None if isinstance(value, list) else value


ProtocolName = Annotated[
    str,
    typer.Option(
        help=f"Settings by name: {', '.join(PROTOCOL_NAMES)}; auto: what fits the data.",
        rich_help_panel=f"Schedule (default: {BY_PROTOCOL})",
        metavar="NAME",
    ),
]

Epochs = Annotated[int | None, _setting(None, "Passes over the data.")]
BatchSize = Annotated[int | None, _setting(None, "Views per step.")]
Lr = Annotated[float | None, _setting(None, "Peak learning rate.")]
Schedule = Annotated[
    Literal["cosine", "multistep", "constant"] | None,
    _setting("Schedule", "The rate after warm-up."),
]
Milestones = Annotated[str | None, _setting("Schedule", "Epochs of multistep, such as 150,180,210.", "LIST")]
Gamma = Annotated[float | None, _setting("Schedule", "Factor at a milestone.")]
WarmupEpochs = Annotated[float | None, _setting("Schedule", "Epochs of linear warm-up.")]

Optimizer = Annotated[
    Literal["sgd", "adamw", "lamb"] | None,
    _setting("Optimiser", "Optimiser; lamb is timm's, an extra."),
]
Momentum = Annotated[float | None, _setting("Optimiser", "Of SGD.")]
Nesterov = Annotated[bool | None, _setting("Optimiser", "Nesterov's momentum, of SGD.")]
Betas = Annotated[str | None, _setting("Optimiser", "Of AdamW and LAMB, such as 0.9,0.999.", "A,B")]
WeightDecay = Annotated[float | None, _setting("Optimiser", "Weight decay, of weights alone.")]
DecayAll = Annotated[bool | None, _setting("Optimiser", "Decay biases and norms too.")]
ClipNorm = Annotated[float | None, _setting("Optimiser", "Largest norm of all gradients together.")]
Ema = Annotated[float | None, _setting("Optimiser", "Decay of an average of weights, kept in their place.")]

Accumulate = Annotated[int | None, _setting("Memory and speed", "Pieces that a batch is run in.")]
ChannelsLast = Annotated[bool | None, _setting("Memory and speed", "Memory order; by default on CUDA.")]
Compile = Annotated[bool | None, _setting("Memory and speed", "Compile students with torch.compile.")]
GradCheckpointing = Annotated[
    bool | None,
    _setting(
        "Memory and speed",
        "Recompute activations in the backward pass (timm's models).",
    ),
]
SyncBatchNorm = Annotated[bool | None, _setting("Memory and speed", "Batch norm over all ranks, on GPUs.")]


def read_variants(context: typer.Context) -> "VariantInputs":
    """Return what each student is trained with: every --variant of the other options, or these alone.

    Raises:
        OptionError: a loss is given that every variant replaces, or something cannot be read.
    """
    from logitcache.train.variants import VariantInputs

    options = context.params
    texts = tuple(options["variant"] or ())
    settings = pick_fields(options, TrainConfig)
    variants = VariantInputs(**pick_fields(options, VariantInputs) | {"settings": settings, "texts": texts})
    if is_given(context, "loss") and not variants.uses_loss(options["student"]):
        raise OptionError(
            f"every --variant has a loss of its own, so --loss {options['loss']} would train nobody; leave it out or "
            f"give it a variant: --variant loss={options['loss']}"
        )
    return variants
