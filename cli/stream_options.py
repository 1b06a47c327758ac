"""What ``logitcache train`` trains on, as options."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from logitcache.paths import expand_home
from logitcache.units import parse_size

from .shared_options import (
    OUTPUT,
    find_only_cache,
    parse_output_path,
    parse_seeds,
    parse_weights,
    pick_fields,
)

if TYPE_CHECKING:
    from logitcache.stream.stream_inputs import StreamInputs


def _option(text: str, *names: str, panel: str | None = "What is trained on", **options: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **options)


Caches = Annotated[
    list[str] | None,
    _option(
        "Cache, path or URL; by default the only one in caches/. Several are an ensemble.",
        "--cache",
        panel=None,
        metavar="CACHE",
    ),
]
MixWeights = Annotated[
    str | None, _option("Weights of an ensemble's caches, such as 2,1; even by default.", metavar="LIST")
]
MixSpaceName = Annotated[Literal["probability", "logit"], _option("What an ensemble averages.")]
Data = Annotated[
    str, _option("Images; by default those of the cache, else digits.", panel=None, metavar="NAME")
]
Recipe = Annotated[str, _option("How views are made, for training without a cache.", metavar="NAME")]
Background = Annotated[
    str | None,
    _option("Colour that transparent pictures are put on, for training without a cache.", metavar="COLOUR"),
]
Seeds = Annotated[
    str, _option("Augmentation seeds, such as 0-3,7; all complete ones by default.", metavar="LIST")
]
SeedOrderName = Annotated[Literal["mod", "random"], _option("Seeds in turn, or shuffled in rounds.")]
ViewsPerImage = Annotated[int, _option("Seeds of an image in one batch, decoded once.")]
Fraction = Annotated[float, _option("Of the samples to train on.")]
SamplesFile = Annotated[
    Path | None,
    _option("List of samples: numbers in text, or .npy.", "--samples", parser=expand_home, metavar="PATH"),
]
AllowDrift = Annotated[bool, _option("Train although views differ.", "--allow-drift")]
MissingImages = Annotated[
    Literal["error", "skip"], _option("Train without the cache's images that are gone, or not.", "--missing")
]
SpoolFolder = Annotated[
    Path | None,
    _option(
        "Folder of decoded seeds, for all runs here.", "--spool-dir", parser=parse_output_path, metavar="PATH"
    ),
]
SpoolLimit = Annotated[str, _option("What that folder may hold, such as 50GB.", metavar="SIZE")]
TeacherCache = Annotated[
    str | None,
    _option(
        "Cache of `dump --split test`: agreement with the teacher by epoch.",
        panel=OUTPUT,
        metavar="CACHE",
    ),
]


def read_inputs(options: Mapping[str, Any], needs_teacher: bool) -> "StreamInputs":
    """Return where batches come from; of what size follows from the protocol, unless it is given.

    Raises:
        NotFoundError, OptionError: no cache is named where one is needed, or an option cannot be read.
    """
    from logitcache.stream.batch import StreamConfig
    from logitcache.stream.stream_inputs import StreamInputs

    config = {
        "seeds": parse_seeds(options["seeds"]) if options["seeds"] != "auto" else (),
        "order": options["seed"],
    }
    inputs = {
        "caches": tuple(options["caches"] or ([find_only_cache()] if needs_teacher else [])),
        "mix_weights": parse_weights(options["mix_weights"]) if options["mix_weights"] else (),
        "spool_limit": parse_size(options["spool_limit"]),
        "config": StreamConfig(**pick_fields(options, StreamConfig) | config),
    }
    return StreamInputs(**pick_fields(options, StreamInputs) | inputs)
