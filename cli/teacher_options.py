"""The inputs of ``dump`` and ``plan`` as options: the teacher, the images, how they are viewed."""

from typing import Annotated, Literal

import typer

from .shared_options import MACHINE

INPUTS = "Teacher and images"  # panel of --help

Teacher = Annotated[
    str, typer.Option(help="vit_l, resnet50, wrn_40_2, timm:NAME, module:function …", metavar="NAME")
]
Weights = Annotated[
    str, typer.Option(help="auto, default (torchvision's), random, or a file.", metavar="NAME")
]
Data = Annotated[
    str,
    typer.Option(
        help="digits, letters, cifar10, cifar100, imagefolder:PATH, folder:PATH, module:function.",
        show_default="digits",
        metavar="NAME",
    ),
]
Split = Annotated[
    Literal["train", "test"] | None,
    typer.Option(
        help="Which images; test: to compare students with the teacher.",
        show_default="train",
        rich_help_panel=INPUTS,
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        help="How views are made: letters, cifar, imagenet[@SIZE], imagenet-ra, FILE.toml …; auto: as fits them.",
        metavar="NAME",
    ),
]
Background = Annotated[
    str | None,
    typer.Option(
        help="Colour that transparent pictures are put on, such as white or #808080; none: their alpha is dropped.",
        show_default="as the recipe says",
        rich_help_panel=INPUTS,
        metavar="COLOUR",
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        help="Classes of the teacher, for unlabelled images.", show_default="1000", rich_help_panel=INPUTS
    ),
]
InputSize = Annotated[
    int,
    typer.Option(
        min=0,
        help="Pixels a side that the teacher sees; 0: as its weights were trained, or as the views are.",
        rich_help_panel=INPUTS,
    ),
]
BatchSize = Annotated[
    int, typer.Option(help="Views per forward; 0: 64 on the CPU, 256 on CUDA.", rich_help_panel=MACHINE)
]
