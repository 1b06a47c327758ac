"""``logitcache report``: one page of what runs and caches hold."""

from pathlib import Path
from typing import Annotated

import typer

from logitcache.units import size

from .progress import progress
from .shared_options import Json, parse_output_path
from .terminal import say, show


def report(
    paths: Annotated[
        list[str], typer.Argument(help="Run folders, folders of them, and caches; caches may be URLs.")
    ],
    out: Annotated[
        Path, typer.Option(help="The page to write.", parser=parse_output_path, metavar="PATH")
    ] = Path("report.html"),
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="The caches' images, several times for several; no others are shown but those that ship."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page: students, curves, settings that differ, what caches hold, hard samples.

    Example: logitcache report runs/* caches/vit_l-pets.zarr --data imagefolder:/data/pets
    """
    from logitcache.report.page import report as write_report

    with progress("report", "seeds") as advance:
        facts = write_report(out, paths, data=data or (), on_progress=advance)
    for note in facts.notes:
        say(f"note: {note}")
    runs, kinds = sum(len(g.runs) + len(g.copies) for g in facts.groups), len(facts.groups)
    rows = [
        ("page", f"{out}, {size(out.stat().st_size)}"),
        ("runs", f"{runs}, of {kinds} kind{'s' if kinds > 1 else ''}" if runs else "none"),
        ("caches", str(len(facts.caches) or "none")),
    ]
    show({"page": str(out), **facts.to_dict()}, rows, as_json=json)
