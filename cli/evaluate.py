"""``logitcache evaluate``: what a trained student is worth, and what it costs."""

from typing import TYPE_CHECKING, Annotated

import typer

from logitcache.units import count, operations, rate

from .shared_options import (
    MACHINE,
    STUDENT,
    Architecture,
    BestOrLast,
    Device,
    Json,
    OnBadTestImage,
    PrecisionName,
    Student,
    StudentInputSize,
    Workers,
    advise_skip,
    pick_fields,
)
from .terminal import say, show

if TYPE_CHECKING:
    from logitcache.train.evaluation_job import StudentEvaluation


def evaluate(
    context: typer.Context,
    student: Student,
    weights: BestOrLast = "best",
    data: Annotated[
        str, typer.Option(help="Images; by default those that the run was trained on.", metavar="NAME")
    ] = "auto",
    recipe: Annotated[
        str, typer.Option(help="How views are made; by default as while training.", metavar="NAME")
    ] = "auto",
    background: Annotated[
        str | None,
        typer.Option(
            help="Colour that transparent pictures are put on, or none; by default as while training.",
            metavar="COLOUR",
        ),
    ] = None,
    teacher_cache: Annotated[
        str | None,
        typer.Option(help="Cache of the teacher's answers, of `dump --split test`.", metavar="CACHE"),
    ] = None,
    most: Annotated[int, typer.Option(min=0, help="Confused pairs of classes to list.")] = 5,
    on_bad_image: OnBadTestImage = "error",
    architecture: Architecture = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            help="Its classes, where the file does not say; those of the images by default.",
            rich_help_panel=STUDENT,
        ),
    ] = None,
    input_size: StudentInputSize = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images per forward.", rich_help_panel=MACHINE)
    ] = 256,
    precision: PrecisionName = "auto",
    device: Device = "auto",
    workers: Workers = -1,
    json: Json = False,
) -> None:
    """Evaluate a trained student on a test set: accuracy, calibration, confusion, speed, size.

    Example: logitcache evaluate runs/resnet18-cmkd-0
    """
    from logitcache.train.evaluation_job import EvaluationJob

    with advise_skip(on_bad_image):
        evaluation = EvaluationJob(**pick_fields(context.params, EvaluationJob)).run(say)
    show(evaluation.to_dict(), _rows(evaluation, most), as_json=json)


def _rows(evaluation: "StudentEvaluation", most: int) -> list[tuple[str, str]]:
    from logitcache.views.bad_images import UNDECODABLE, list_bad_images
    from logitcache.views.images import name_class

    report, names = evaluation.report, evaluation.class_names
    rows = [
        ("student", f"{evaluation.student}, {evaluation.weights}"),
        ("data", f"{report.data}, {report.split}: {count(report.images, 'image')} by {report.recipe}"),
    ]
    if report.bad:
        which = list_bad_images(report.bad, "--json lists all")
        rows.append(("left out", f"{count(report.left_out, *UNDECODABLE)}: {which}"))
    if report.top1 is not None and report.top5 is not None:
        top5 = f", top-5 {100 * report.top5:.2f} %" if evaluation.num_classes > 5 else ""
        rows.append(("right", f"top-1 {100 * report.top1:.2f} %{top5}"))
        ece = f"calibration error (ECE) {100 * (report.ece or 0):.2f} %"
        rows.append(("sure", f"NLL {report.nll:.4f}, {ece}"))
    if report.agreement is not None:
        right = f" right in {100 * report.teacher_top1:.2f} %," if report.teacher_top1 is not None else ""
        agrees = f"agrees in {100 * report.agreement:.2f} %, KL {report.kl:.4f}"
        rows.append(("teacher", f"{report.teacher}{right} {agrees}"))
    flops = f"{operations(report.flops)}FLOPs a view of {report.input_size} pixels"
    rows.append(("size", f"{report.parameters:,} parameters, {flops}"))
    speed = f"{rate(report.images_per_second)} images/s on {report.device} in batches of {report.batch_size}"
    rows.append(("speed", f"{speed}, {report.precision}"))
    confused = report.confusion.most(most)
    return rows + [
        ("confused", f"{name_class(names, a)} as {name_class(names, b)}: {n}") for a, b, n in confused
    ]
