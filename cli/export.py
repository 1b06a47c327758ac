"""``logitcache export``: a trained student as ONNX or TorchScript."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from logitcache.units import size

from .shared_options import (
    STUDENT,
    Architecture,
    BestOrLast,
    Json,
    Student,
    StudentInputSize,
    parse_output_path,
)
from .terminal import show

if TYPE_CHECKING:
    from logitcache.format.identity import RecipeSpec
    from logitcache.models.build import Model


def export(
    student: Student,
    format: Annotated[Literal["onnx", "torchscript"], typer.Option(help="What to write.")] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(help="File; beside the weights by default.", parser=parse_output_path, metavar="PATH"),
    ] = None,
    weights: BestOrLast = "best",
    architecture: Architecture = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Its classes, where the file does not say.", rich_help_panel=STUDENT)
    ] = None,
    input_size: StudentInputSize = 0,
    json: Json = False,
) -> None:
    """Write a student to one file that runs without logitcache, after proof that the file answers as it does.

    It takes (batch, channels, size, size) uint8 images of the network's own size, and normalises them itself.

    Example: logitcache export runs/resnet18-cmkd-0 --format onnx
    """
    from logitcache.models.export import export_model
    from logitcache.train.trained import TrainedStudent

    trained = TrainedStudent.find(student, weights)
    model = trained.build_model(architecture, num_classes, input_size=input_size)
    report = export_model(model, out or trained.file.with_suffix(f".{format}"), format)
    shape = ", ".join(map(str, report.input))
    rows = [
        ("file", f"{report.path}, {size(report.bytes)}"),
        ("student", f"{model.name}, {trained.file}"),
        *([("shown", _shown(model, viewed_by))] if (viewed_by := model.evaluation or model.training) else []),
        ("takes", f"uint8 (batch, {shape}), gives float32 (batch, {report.num_classes})"),
        ("proof", f"logits off by {report.difference:.1e} at most, on random views"),
    ]
    show({"student": model.name, "weights": str(trained.file), **report.to_dict()}, rows, as_json=json)


def _shown(model: "Model", viewed_by: "RecipeSpec") -> str:
    alpha = "alpha dropped" if viewed_by.background is None else f"on {viewed_by.background}"
    steps = f"by {model.evaluation.name}, " if model.evaluation else ""
    return f"pictures upright, {alpha}, {steps}resized to {model.adapter.size}"
