"""``logitcache bench``: how fast the parts are here, against plain alternatives."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .options import Device, Json
from .terminal import console, say, show

if TYPE_CHECKING:
    from logitcache.bench.losses import Row


def bench(
    suite: Annotated[Literal["losses"], typer.Argument(help="What to measure.")],
    rounds: Annotated[int, typer.Option(min=2, help="How often each step is timed.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 256,
    threads: Annotated[int, typer.Option(min=0, help="Threads on the CPU; 0: as torch chooses.")] = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Measure speed as ratios to a plain alternative, timed in turns so that both share the machine's load.

    losses: forward and backward of kd and cmkd against the dense F.kl_div, of the rank term against a softmax
    of the same logits, and of the soft ranks against plain autograd and Blondel's.

    Example: logitcache bench losses
    """
    import torch

    from logitcache.bench import conditions
    from logitcache.bench.losses import measure
    from logitcache.forward import choose_device

    if threads:
        torch.set_num_threads(threads)
    where = choose_device(device)
    made_on = conditions(where)
    say(f"bench {suite}: {rounds} rounds, about a minute on two cores")
    rows = measure(batch=batch, rounds=rounds, device=where)
    if not json:
        console.print(_table(rows, batch))
    show({"suite": suite, **made_on, "rows": [row.to_dict() for row in rows]}, _about(made_on), as_json=json)


def _table(rows: "list[Row]", batch: int) -> Table:
    table = Table(
        title=f"forward and backward, {batch} rows", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in ("loss", "against", "C", "k", "ms", "other", "ratio, quartiles", "wanted"):
        table.add_column(name, justify="left" if name == "loss" else "right", no_wrap=True)
    for row in rows:
        ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f}–{row.ratio_high:.2f})"
        sizes = (f"{row.classes}", f"{row.k}", f"{row.ms:.3g}", f"{row.ms_against:.3g}")
        table.add_row(row.name, row.against, *sizes, ratio, f"≤ {row.wanted:g}")
    return table


def _about(made_on: dict[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in made_on["versions"].items())
    return [
        ("device", f"{made_on['device']}, {made_on['threads']} threads on {made_on['cores']} cores"),
        ("load", f"{made_on['load']} when it began"),
        ("versions", versions),
    ]
