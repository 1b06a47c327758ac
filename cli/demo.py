"""``logitcache demo``: both stages on real images, in under two minutes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from .shared_options import Device, Json, parse_output_path
from .terminal import console, say, show

if TYPE_CHECKING:
    from logitcache.demo import DemoReport


def demo(
    out: Annotated[
        Path,
        typer.Option(
            help="Folder; an earlier demo there is replaced.", parser=parse_output_path, metavar="PATH"
        ),
    ] = Path("demo"),
    data: Annotated[
        Literal["letters", "digits"], typer.Option(help="What to learn: 200 letters, or ten digits.")
    ] = "letters",
    repeats: Annotated[int, typer.Option(help="Students per loss; 0: as fits the data.", min=0)] = 0,
    student_epochs: Annotated[int, typer.Option(help="Epochs per student; 0: as fits.", min=0)] = 0,
    teacher_epochs: Annotated[int, typer.Option(help="Epochs of the teacher; 0: as fits.", min=0)] = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train a teacher on real images, cache its logits, and teach a small student by CE, KD and CMKD.

    Example: logitcache demo
    """
    import torch

    from logitcache.demo import DemoConfig
    from logitcache.demo import demo as run_demo

    torch.set_num_threads(1)  # these networks are so small that threads only get in each other's way
    settings = {"repeats": repeats, "student_epochs": student_epochs, "teacher_epochs": teacher_epochs}
    report = run_demo(out, DemoConfig(data, device=device, **settings), say)
    if not json:
        console.print(_table(report))
    show(report.to_dict(), _rows(report), as_json=json)


def _table(report: "DemoReport") -> Table:
    repeats = len(report.results[0].top1)
    table = Table(
        title=f"{report.student}, {report.student_parameters:,} parameters, {repeats} runs each",
        caption="± standard deviation; gains in points, of pairs of runs, ± standard error",
    )
    table.add_column("trained by")
    table.add_column(f"top-1 on {report.test_images:,} test {report.data}", justify="right")
    table.add_column("gain over CE", justify="right")
    for result in report.results:
        top1 = f"{100 * result.mean:.1f} ± {100 * result.std:.1f} %"
        table.add_row(result.loss, top1, str(result.gain or ""))
    table.add_section()
    table.add_row(
        f"teacher ({report.teacher_parameters:,} parameters)", f"{100 * report.teacher_top1:.1f} %", ""
    )
    return table


def _rows(report: "DemoReport") -> list[tuple[str, str]]:
    ratio = report.epoch_seconds_live / report.epoch_seconds_cached
    contents = f"top {report.top_k} of {report.num_classes} logits, {report.bytes_per_view:.1f} bytes a view"
    return [
        ("cache", f"{report.cached_views:,} views, {contents}"),
        ("dump", f"{report.dump_seconds:.1f} s, once"),
        ("epoch, cached", f"{report.epoch_seconds_cached:.2f} s"),
        ("epoch, live", f"{report.epoch_seconds_live:.2f} s with the teacher live, {ratio:.2f}x as long"),
        ("report", report.page),
    ]
