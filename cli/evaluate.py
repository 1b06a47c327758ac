"""``logitcache evaluate``: what a trained student is worth, and what it costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from logitcache.errors import OptionError

from .shared_options import Device, Json, PrecisionName, StudentSize, Workers
from .terminal import say, show

if TYPE_CHECKING:
    from logitcache.train.evaluation import EvaluationReport


def evaluate(
    student: Annotated[Path, typer.Argument(help="Run folder, or a file of weights.")],
    weights: Annotated[Literal["best", "last"], typer.Option(help="Which of a run folder.")] = "best",
    architecture: Annotated[
        str | None, typer.Option("--student", help="Its architecture, where the file does not say.")
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(help="Its classes, where the file does not say; those of the images by default."),
    ] = None,
    input_size: StudentSize = 0,
    data: Annotated[str, typer.Option(help="Images; by default those that the run was trained on.")] = "auto",
    recipe: Annotated[str, typer.Option(help="How views are made; by default as while training.")] = "auto",
    teacher_cache: Annotated[
        str | None, typer.Option(help="Cache of the teacher's answers, of `dump --split test`.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward.")] = 256,
    precision: PrecisionName = "auto",
    device: Device = "auto",
    workers: Workers = -1,
    most: Annotated[int, typer.Option(min=0, help="Confused pairs of classes to list.")] = 5,
    json: Json = False,
) -> None:
    """Evaluate a trained student on a test set: accuracy, calibration, confusion, speed, size.

    Example: logitcache evaluate runs/resnet18-cmkd-0
    """
    from logitcache.models.forward import ViewModel, choose_device, choose_precision
    from logitcache.plugins import require_own
    from logitcache.store import CacheReader
    from logitcache.train.evaluation import Evaluation
    from logitcache.train.evaluation import evaluate as evaluated
    from logitcache.train.trained import Trained
    from logitcache.views.datasets import open_images, open_recorded
    from logitcache.views.recipes import recipe_named

    trained = Trained.find(student, weights)
    if data == "auto" and trained.data is None:
        raise OptionError(f"{student} does not say what to evaluate it on; name images with --data")
    if recipe == "auto" and trained.recipe:
        require_own(trained.file, *trained.recipe.code)
    told = trained.data if data == "auto" else None
    images = open_recorded(told, "test", student) if told else open_images(data, "test")
    seen = trained.recipe or recipe_named(images.recipe)
    made_by = recipe_named(seen.evaluation if recipe == "auto" else recipe)
    where = choose_device(device)
    cache = CacheReader(teacher_cache) if teacher_cache else None
    options = {"batch_size": batch_size, "workers": workers}
    evaluation = Evaluation(images, made_by, cache, **options, device=where)
    classes = num_classes or trained.num_classes or images.num_classes  # `evaluate` says where they differ
    side = max(evaluation.views.any_view().shape[1:])
    built = trained.model(architecture, classes, side, input_size)
    model = ViewModel(built, choose_precision(precision, where)).on(where)
    found = evaluated(model, evaluation, built.num_classes)
    if told and weights == "best" and student.is_dir():
        say(
            "note: these weights are of the epoch best on these images, which flatters; --weights last takes the last"
        )
    about = {"student": built.name, "weights": str(trained.file)}
    rows = [
        ("student", f"{built.name}, {trained.file}"),
        *_rows(found, most, images.class_names, built.num_classes),
    ]
    show(about | found.to_dict(), rows, as_json=json)


def _rows(
    found: "EvaluationReport", most: int, names: Sequence[str], num_classes: int
) -> list[tuple[str, str]]:
    from logitcache.views.images import called

    rows = [("data", f"{found.data}, {found.split}: {found.images:,} images by {found.recipe}")]
    if found.top1 is not None and found.top5 is not None:
        of_five = f", top-5 {100 * found.top5:.2f} %" if num_classes > 5 else ""
        rows.append(("right", f"top-1 {100 * found.top1:.2f} %{of_five}"))
        rows.append(("sure", f"NLL {found.nll:.4f}, calibration error (ECE) {100 * (found.ece or 0):.2f} %"))
    if found.agreement is not None:
        right = f" right in {100 * found.teacher_top1:.2f} %," if found.teacher_top1 is not None else ""
        agrees = f"agrees in {100 * found.agreement:.2f} %, KL {found.kl:.4f}"
        rows.append(("teacher", f"{found.teacher}{right} {agrees}"))
    unit, name = next((u, n) for u, n in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (0, "k")) if found.flops >= u)
    flops = f"{found.flops / (unit or 1e3):.3g} {name}FLOPs"
    rows.append(("size", f"{found.parameters:,} parameters, {flops} a view of {found.input_size} pixels"))
    speed = f"{found.images_per_second:,.0f} images/s on {found.device} in batches of {found.batch_size}"
    rows.append(("speed", f"{speed}, {found.precision}"))
    confused = found.confusion.most(most)
    return rows + [("confused", f"{called(names, a)} as {called(names, b)}: {n}") for a, b, n in confused]
