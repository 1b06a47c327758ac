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
    suite: Annotated[Literal["losses", "views", "store"], typer.Argument(help="What to measure.")],
    rounds: Annotated[int, typer.Option(min=2, help="How often each step is timed.")] = 20,
    batch: Annotated[int, typer.Option(min=0, help="Rows of a batch; 0: 256 of losses, 1024 of store.")] = 0,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads on the CPU; 0: as torch chooses; views: 1.")
    ] = 0,
    device: Device = "cpu",
    n: Annotated[int, typer.Option("--n", min=1, help="store: views; ImageNet has 1281167.")] = 262_144,
    logits: Annotated[Path | None, typer.Option(help="store: an .npz of real logits (n, C).")] = None,
    folder: Annotated[Path | None, typer.Option(help="store: where to write.", exists=True)] = None,
    json: Json = False,
) -> None:
    """Measure speed as ratios to a plain alternative, timed in turns so that both share the machine's load.

    losses: forward and backward of kd and cmkd against the dense F.kl_div, of the rank term against a softmax
    of the same logits, and of the soft ranks against plain autograd and Blondel's.

    views: keyed views against torchvision's own, and whole batches of small images against one by one, on the CPU.

    store: bytes per view, and what they keep of the teacher; writing, decoding, looking up, opening; memory.

    Example: logitcache bench store
    """
    import torch

    from logitcache.bench import conditions, losses, store, views
    from logitcache.forward import choose_device

    if threads := 1 if suite == "views" else threads:
        torch.set_num_threads(threads)
    where = choose_device(device if suite == "losses" else "cpu")
    made_on = conditions(where)
    say(f"bench {suite}: {rounds} rounds, a minute or two on two cores")
    tables: dict[str, Sequence[Cells]]
    if suite == "store":
        found = store.measure(n=n, batch=batch or 1024, rounds=rounds, logits=logits, folder=folder)
        report: dict[str, Any] = found.to_dict()
        what = f"{found.views:,} views, k = {found.k}, {found.about}"
        tables = {
            what: found.sizes,
            f"speed, {batch or 1024:,} views a take": found.speeds,
            "memory": found.peaks,
        }
    else:
        ways, title = (
            (views.measure(rounds=rounds), "views, the ratio that of their times")
            if suite == "views"
            else (losses.measure(batch=batch or 256, rounds=rounds, device=where), "forward and backward")
        )
        report, tables = {"rows": [row.to_dict() for row in ways]}, {title: ways}
    if not json:
        for title, rows in tables.items():
            console.print(_table(title, [row.cells() for row in rows]))
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
