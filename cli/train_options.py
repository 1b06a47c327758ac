"""The settings of ``logitcache train`` as options: what is given replaces the protocol's."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from logitcache.errors import OptionError
from logitcache.train.config import PROTOCOL_NAMES, PROTOCOLS, TrainConfig

from .shared_options import pick_fields

if TYPE_CHECKING:
    from logitcache.train.variants import VariantInputs


def _setting(panel: str, name: str, text: str) -> Any:
    """Make the option of a setting; what it shows as its default is the protocol digits', as None stands for."""
    values = {**PROTOCOLS["digits"].config.to_dict(), "batch_size": PROTOCOLS["digits"].batch_size}
    shown: str | bool = False if values[name] in (None, []) else str(values[name]).strip("[]")
    return typer.Option(
        help=text, rich_help_panel=f"{panel} (defaults: of --protocol digits)", show_default=shown
    )


ProtocolName = Annotated[
    str, typer.Option(help=f"Settings by name: {', '.join(PROTOCOL_NAMES)}; auto: what fits the data.")
]

Epochs = Annotated[int | None, _setting("Schedule", "epochs", "Passes over the data.")]
BatchSize = Annotated[int | None, _setting("Schedule", "batch_size", "Views per step.")]
Lr = Annotated[float | None, _setting("Schedule", "lr", "Peak learning rate.")]
Schedule = Annotated[
    Literal["cosine", "multistep", "constant"] | None,
    _setting("Schedule", "schedule", "The rate after warm-up."),
]
Milestones = Annotated[
    str | None, _setting("Schedule", "milestones", "Epochs of multistep, such as 150,180,210.")
]
Gamma = Annotated[float | None, _setting("Schedule", "gamma", "Factor at a milestone.")]
WarmupEpochs = Annotated[float | None, _setting("Schedule", "warmup_epochs", "Epochs of linear warm-up.")]

Optimizer = Annotated[
    Literal["sgd", "adamw", "lamb"] | None,
    _setting("Optimiser", "optimizer", "Optimiser; lamb is timm's, an extra."),
]
Momentum = Annotated[float | None, _setting("Optimiser", "momentum", "Of SGD.")]
Nesterov = Annotated[bool | None, _setting("Optimiser", "nesterov", "Nesterov's momentum, of SGD.")]
Betas = Annotated[str | None, _setting("Optimiser", "betas", "Of AdamW and LAMB, such as 0.9,0.999.")]
WeightDecay = Annotated[
    float | None, _setting("Optimiser", "weight_decay", "Weight decay, of weights alone.")
]
DecayAll = Annotated[bool | None, _setting("Optimiser", "decay_all", "Decay biases and norms too.")]
ClipNorm = Annotated[
    float | None, _setting("Optimiser", "clip_norm", "Largest norm of all gradients together.")
]
Ema = Annotated[
    float | None, _setting("Optimiser", "ema", "Decay of an average of weights, kept in their place.")
]

Accumulate = Annotated[
    int | None, _setting("Memory and speed", "accumulate", "Pieces that a batch is run in.")
]
ChannelsLast = Annotated[
    bool | None, _setting("Memory and speed", "channels_last", "Memory order; by default on CUDA.")
]
Compile = Annotated[
    bool | None, _setting("Memory and speed", "compile", "Compile students with torch.compile.")
]
GradCheckpointing = Annotated[
    bool | None,
    _setting(
        "Memory and speed",
        "grad_checkpointing",
        "Recompute activations in the backward pass (timm's models).",
    ),
]
SyncBatchNorm = Annotated[
    bool | None, _setting("Memory and speed", "sync_batch_norm", "Batch norm over all ranks, on GPUs.")
]


def read_variants(context: typer.Context) -> "VariantInputs":
    """Return what each student is trained with: every --variant of the other options, or these alone.

    Raises:
        OptionError: a loss is given that every variant replaces, or something cannot be read.
    """
    from logitcache.train.variants import VariantInputs

    options = context.params
    texts = tuple(options["variant"] or ())
    source = context.get_parameter_source("loss")
    given = source is not None and source.name == "COMMANDLINE"
    settings = pick_fields(options, TrainConfig)
    variants = VariantInputs(**pick_fields(options, VariantInputs) | {"settings": settings, "texts": texts})
    if given and not variants.uses_loss(options["student"]):
        raise OptionError(
            f"every --variant has a loss of its own, so --loss {options['loss']} would train nobody; leave it out or "
            f"give it a variant: --variant loss={options['loss']}"
        )
    return variants
