"""What ``logitcache train`` trains on, as options."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from logitcache.units import parse_size

from .shared_options import given, parse_numbers, parse_seeds, the_only_cache

if TYPE_CHECKING:
    from logitcache.train.launch import Supply


def _of(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="What is trained on")


Cache = Annotated[
    list[str] | None, _of("Cache, path or URL; by default the only one in caches/. Several are an ensemble.")
]
MixWeights = Annotated[str | None, _of("Weights of an ensemble's caches, such as 2,1; even by default.")]
MixSpaceName = Annotated[Literal["probability", "logit"], _of("What an ensemble averages.")]
Data = Annotated[str, _of("Images; by default those of the cache, else digits.")]
Recipe = Annotated[str, _of("How views are made, for training without a cache.")]
Seeds = Annotated[str, _of("Augmentation seeds; all complete ones by default.")]
SeedOrderName = Annotated[Literal["mod", "random"], _of("Seeds in turn, or shuffled in rounds.")]
ViewsPerImage = Annotated[int, _of("Seeds of an image in one batch, decoded once.")]
Fraction = Annotated[float, _of("Of the samples to train on.")]
Samples = Annotated[Path | None, _of("List of samples: numbers in text, or .npy.")]
AllowDrift = Annotated[bool, _of("Train although views differ.", "--allow-drift")]
SpoolDir = Annotated[Path | None, _of("Folder of decoded seeds, for all runs here.")]
SpoolLimit = Annotated[str, _of("What that folder may hold, such as 50GB.")]
TeacherCache = Annotated[
    str | None, _of("Cache of `dump --split test`: agreement with the teacher by epoch.")
]


def supply(options: Mapping[str, Any], needs_teacher: bool, batch_size: int) -> "Supply":
    """Return where batches come from, of a protocol's size unless another is given.

    Raises:
        NotFoundError, OptionError: no cache is named where one is needed, or an option cannot be read.
    """
    from logitcache.train.launch import Supply

    read = {
        "caches": tuple(options["cache"] or ([the_only_cache()] if needs_teacher else [])),
        "mix_weights": parse_numbers(options["mix_weights"]) if options["mix_weights"] else (),
        "seeds": parse_seeds(options["seeds"]) if options["seeds"] != "auto" else (),
        "order": options["seed"],
        "spool_folder": options["spool_dir"],
        "spool_limit": parse_size(options["spool_limit"]),
    }
    return Supply(**{"batch_size": batch_size} | given(options, Supply) | read)
