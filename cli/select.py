"""``logitcache select``: the samples worth training on, by what the teacher said of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from logitcache.errors import OptionError, list_some
from logitcache.paths import expand_home
from logitcache.units import count, figures, share

from .progress import progress
from .shared_options import (
    MACHINE,
    Cache,
    CompleteSeeds,
    Device,
    Json,
    PrecisionName,
    Workers,
    parse_output_path,
    parse_seeds,
    pick_fields,
)
from .stream_options import MissingImages
from .terminal import say, show

if TYPE_CHECKING:
    from logitcache.train.selection_job import SelectionReport

MOST_CLASSES = 5  # that are named
SCORES = {
    "confidence": "probability of the teacher's class",
    "entropy": "entropy of the teacher in nats",
    "agreement": "share of seeds that agree",
    "margin": "lead of the teacher's class",
    "llkd": "the lower rank of the teacher's confidence and the student's entropy",
    "coreset": "distance to those kept",
    "robust": "what the student is unsure by, 1 − margin",
}


def select(
    context: typer.Context,
    cache: Cache,
    by: Annotated[
        Literal["confidence", "entropy", "agreement", "margin", "llkd", "coreset", "robust"],
        typer.Option(
            help="What is kept the highest of: the teacher's confidence, entropy, agreement between seeds, margin; "
            "llkd: sure teacher, unsure student; coreset: far from those kept; robust: unsure student, wrong teacher "
            "feared.",
            metavar="WAY",
        ),
    ],
    keep: Annotated[
        str, typer.Option(help="How many: up to 1 a share, 1 is all; above 1 a number.", metavar="N")
    ],
    out: Annotated[
        Path, typer.Option(help="List to write, .npy.", parser=parse_output_path, metavar="PATH")
    ] = Path("samples.npy"),
    lowest: Annotated[bool, typer.Option("--lowest", help="Keep the lowest instead of the highest.")] = False,
    balanced: Annotated[bool, typer.Option("--balanced", help="Keep the same share of each class.")] = False,
    student: Annotated[
        Path | None,
        typer.Option(
            help="Run folder of a student, for llkd, coreset and robust.",
            parser=expand_home,
            metavar="RUN",
        ),
    ] = None,
    mistakes: Annotated[
        float | None,
        typer.Option(
            help="Share of the teacher's answers that robust fears are wrong; as its labels say by default.",
            metavar="SHARE",
        ),
    ] = None,
    seeds: CompleteSeeds = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="The cache's images, for labels; of a student those that the cache names by default."
        ),
    ] = None,
    missing: MissingImages = "error",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images per forward of the student.", rich_help_panel=MACHINE)
    ] = 256,
    precision: PrecisionName = "auto",
    device: Device = "auto",
    workers: Workers = -1,
    json: Json = False,
) -> None:
    """Choose samples to train on by what the teacher said of them, for `train --samples`; no teacher runs.

    Example: logitcache select caches/vit_l-digits.zarr --by margin --lowest --keep 0.3
    """
    from logitcache.train.selection_job import SelectionJob

    given = {"keep": _parse_keep(keep), "seeds": parse_seeds(seeds) if seeds else ()}
    job = SelectionJob(**pick_fields(context.params, SelectionJob) | given)
    with progress("select", "steps") as advance:
        report = job.run(say, lambda done, total, what: advance(done, total, what))
    if lost := report.lost():
        advice = "keep more" if balanced else "--balanced keeps the same share of each"
        say(f"note: no sample is kept of {_name_lost(lost)}; {advice}")
    show(report.to_dict(), _rows(report), as_json=json)


def _parse_keep(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(
            f"--keep takes a share such as 0.3, or a number such as 5000, found {text!r}"
        ) from error


def _name_lost(lost: list[str]) -> str:
    return f"class {lost[0]}" if len(lost) == 1 else f"{len(lost):,} classes, {list_some(lost, len(lost))}"


def _rows(report: "SelectionReport") -> list[tuple[str, str]]:
    end = f"the {'lowest' if report.lowest else 'highest'} {report.by}"
    how = {
        "coreset": "each the farthest from those before",
        "robust": "drawn by what the student is unsure by",
    }
    each = ", the same share of each class" if report.balanced else ""
    rows = [
        ("samples", f"{report.samples}, {count(report.kept, 'sample')} of {report.of:,}"),
        ("kept", f"{how.get(report.by, end)}{each}"),
    ]
    left = "" if report.score_left is None else f", {figures(report.score_left)} of those left"
    rows.append(
        ("score", f"{SCORES[report.by]}: {figures(report.score_kept)} on average of those kept{left}")
    )
    if report.mistakes is not None:
        rows.append(("mistakes", f"{share(report.mistakes)} of the teacher's answers are taken for wrong"))
    if report.left_out:
        rows.append(("left out", f"{count(report.left_out, 'sample')} without a teacher or an image"))
    fewest = [f"{one.name} ({one.kept:,} of {one.of:,})" for one in report.classes[:MOST_CLASSES]]
    of = "" if report.labels else ", as the teacher says them"
    rows.append(("classes", f"fewest kept{of}: {', '.join(fewest)}"))
    return rows
