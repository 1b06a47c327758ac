"""What ``dump`` and ``plan`` ask of whom, as options: the teacher, the images, how they are viewed."""

from typing import Annotated, Any, Literal

import typer

from .options import MACHINE


def _of(text: str, panel: str = "What is asked") -> Any:
    return typer.Option(help=text, rich_help_panel=panel)


Teacher = Annotated[str, _of("vit_l, resnet50, wrn_40_2, timm:NAME, module:function …")]
Weights = Annotated[str, _of("auto, default (torchvision's), random, or a file.")]
Data = Annotated[str, _of("digits, cifar10, cifar100, imagefolder:PATH, folder:PATH, module:function.")]
Split = Annotated[Literal["train", "test"], _of("Which images; test: to compare students with the teacher.")]
Recipe = Annotated[
    str,
    _of(
        "How views are made: digits, cifar, imagenet[@SIZE], imagenet-ra, FILE.toml …; auto: as fits the images."
    ),
]
NumClasses = Annotated[int, _of("Classes of the teacher, for unlabelled images.")]
BatchSize = Annotated[int, _of("Views per forward; 0: 64 on the CPU, 256 on CUDA.", MACHINE)]
