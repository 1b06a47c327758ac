"""``logitcache bench``: how fast the parts are here, against plain alternatives."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .options import Device, Json
from .terminal import console, say, show

if TYPE_CHECKING:
    from logitcache.bench import Cells


def bench(
    suite: Annotated[Literal["losses", "views", "store", "dump"], typer.Argument(help="What to measure.")],
    rounds: Annotated[int, typer.Option(min=0, help="How often each step is timed; 0: 20, of dump 4.")] = 0,
    batch: Annotated[int, typer.Option(min=0, help="Rows of a batch; 0: 256 of losses, 1024 of store.")] = 0,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads on the CPU; 0: as torch chooses; views: 1.")
    ] = 0,
    device: Device = "cpu",
    n: Annotated[
        int, typer.Option("--n", min=0, help="store: views, 0: 262144; dump: pictures, 0: 256.")
    ] = 0,
    logits: Annotated[Path | None, typer.Option(help="store: an .npz of real logits (n, C).")] = None,
    folder: Annotated[Path | None, typer.Option(help="store: where to write.", exists=True)] = None,
    json: Json = False,
) -> None:
    """Measure speed as ratios to a plain alternative, timed in turns so that both share the machine's load.

    losses: forward and backward of kd and cmkd against the dense F.kl_div, of the rank term against a softmax
    of the same logits, and of the soft ranks against plain autograd and Blondel's.

    views: keyed views against torchvision's own, and whole batches of small images against one by one, on the CPU.

    store: bytes per view, and what they keep of the teacher; writing, decoding, looking up, opening; memory.

    dump: stage one against a bare loop that stores nothing, and one decoding for eight seeds against eight.

    Example: logitcache bench store
    """
    import torch

    from logitcache.bench import conditions, dump, losses, store, views
    from logitcache.forward import choose_device

    if threads := 1 if suite == "views" else threads:
        torch.set_num_threads(threads)
    where = choose_device(device if suite in ("losses", "dump") else "cpu")
    rounds = rounds or (4 if suite == "dump" else 20)
    made_on = conditions(where)
    say(f"bench {suite}: {rounds} rounds, a minute or two on two cores")
    tables: dict[str, Sequence[Cells]]
    if suite == "store":
        found = store.measure(
            n=n or 262_144, batch=batch or 1024, rounds=rounds, logits=logits, folder=folder
        )
        report: dict[str, Any] = found.to_dict()
        what = f"{found.views:,} views, k = {found.k}, {found.about}"
        takes = f"speed, {batch or 1024:,} views a take"
        tables = {what: found.sizes, takes: found.speeds, "memory": found.peaks}
    else:
        rows: Sequence[losses.Row | views.Row | dump.Row]
        if suite == "losses":
            title, rows = (
                "forward and backward",
                losses.measure(batch=batch or 256, rounds=rounds, device=where),
            )
        elif suite == "views":
            title, rows = "views, the ratio that of their times", views.measure(rounds=rounds)
        else:
            title, rows = "stage one", dump.measure(pictures=n or 256, rounds=rounds, device=where)
        report, tables = {"rows": [row.to_dict() for row in rows]}, {title: rows}
    if not json:
        for heading, lines in tables.items():
            console.print(_table(heading, [line.cells() for line in lines]))
    show({"suite": suite, **made_on, **report}, _about(made_on), as_json=json)


def _table(title: str, rows: Sequence[dict[str, str]]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(rows[0] if rows else ()):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    return table


def _about(made_on: dict[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in made_on["versions"].items())
    return [
        ("device", f"{made_on['device']}, {made_on['threads']} threads on {made_on['cores']} cores"),
        ("load", f"{made_on['load']} when it began"),
        ("versions", versions),
    ]
