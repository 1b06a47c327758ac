"""``logitcache demo``: both stages on real digits, in under two minutes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    repeats: Annotated[int, typer.Option(help="Students per loss.")] = 6,
    student_epochs: Annotated[int, typer.Option(help="Epochs per student.")] = 8,
    teacher_epochs: Annotated[int, typer.Option(help="Epochs of the teacher.")] = 25,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train a teacher on real digits, cache its logits, and teach a small student by CE, KD and CMKD.

    Example: logitcache demo
    """
    import torch

    from logitcache.demo import DemoConfig
    from logitcache.demo import demo as run_demo

    torch.set_num_threads(1)  # these networks are so small that threads only get in each other's way
    config = DemoConfig(
        repeats=repeats, student_epochs=student_epochs, teacher_epochs=teacher_epochs, device=device
    )
    report = run_demo(out, config, say)
    if not json:
        console.print(_table(report))
    show(report.to_dict(), _rows(report), as_json=json)


def _table(report: "DemoReport") -> Table:
    repeats = len(report.results[0].top1)
    table = Table(title=f"{report.student}, {report.student_parameters:,} parameters, {repeats} runs each")
    table.add_column("trained by")
    table.add_column("top-1 on 360 test digits", justify="right")
    for result in report.results:
        table.add_row(result.loss.upper(), f"{100 * result.mean:.1f} ± {100 * result.std:.1f} %")
    table.add_section()
    table.add_row(
        f"its teacher ({report.teacher_parameters:,} parameters)", f"{100 * report.teacher_top1:.1f} %"
    )
    return table


def _rows(report: "DemoReport") -> list[tuple[str, str]]:
    ratio = report.epoch_seconds_live / report.epoch_seconds_cached
    return [
        ("cache", f"{report.cached_views:,} views, {report.bytes_per_view:.1f} bytes each"),
        ("dump", f"{report.dump_seconds:.1f} s, once"),
        ("epoch, cached", f"{report.epoch_seconds_cached:.2f} s"),
        ("epoch, live", f"{report.epoch_seconds_live:.2f} s with the teacher live, {ratio:.2f}x as long"),
        ("report", report.page),
    ]
