"""What ``logitcache dump`` keeps of the teacher's logits, and how it runs, as options."""

from typing import Annotated, Any, Literal

import typer

from .shared_options import MACHINE, parse_output_place


def _option(text: str, *names: str, default: str | bool = True, **options: Any) -> Any:
    return typer.Option(*names, help=text, show_default=default, **options)


def _contents(text: str, *names: str, default: str | bool = True, **options: Any) -> Any:
    return _option(text, *names, default=default, rich_help_panel="What is kept", **options)


def _machine(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=MACHINE)


Seeds = Annotated[
    str | None,
    _option("Augmentation seeds, such as 0-9 or 0,3,7; of the test split 0.", default="0-3", metavar="LIST"),
]
TopK = Annotated[int | None, _option("Logits to keep per view; of up to 16 classes all.", default="8")]
Calibration = Annotated[
    int | None,
    _contents(
        "Views for the class statistics, which complete the tail; if not given at most a fifth of the images, 256 "
        "at least; 0: none.",
        default="4096",
    ),
]
Profile = Annotated[
    str | None,
    _option(
        "default, compact (8-bit gaps), archive (pcodec), exact (all).", default="default", metavar="NAME"
    ),
]
Out = Annotated[
    str | None,
    _option("Cache; caches/TEACHER-DATA.zarr by default.", parser=parse_output_place, metavar="PATH"),
]
ShardSamples = Annotated[int, _contents("Samples per shard; 0: fitted to the data.")]
Grow = Annotated[bool, _contents("Append images that the cache has not yet.", "--grow")]
OnBadImage = Annotated[Literal["error", "skip"], _contents("Stop, or leave the sample without a teacher.")]
Compile = Annotated[bool, _machine("Compile the teacher by torch.compile.", "--compile")]
SeedsPerPass = Annotated[int, _machine("Seeds that share one decoding of each image.")]
Dask = Annotated[
    str | None, _machine("Processes that share the work: local:N, or a scheduler's tcp://HOST:PORT.")
]
