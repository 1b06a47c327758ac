"""``logitcache bench``: how fast the parts are here, against plain alternatives."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .options import Device, Json
from .terminal import console, say, show

if TYPE_CHECKING:
    import torch

    from logitcache.bench import losses, views


def bench(
    suite: Annotated[Literal["losses", "views"], typer.Argument(help="What to measure.")],
    rounds: Annotated[int, typer.Option(min=2, help="How often each step is timed.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a batch; of losses.")] = 256,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads on the CPU; 0: as torch chooses; views: 1.")
    ] = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Measure speed as ratios to a plain alternative, timed in turns so that both share the machine's load.

    losses: forward and backward of kd and cmkd against the dense F.kl_div, of the rank term against a softmax
    of the same logits, and of the soft ranks against plain autograd and Blondel's.

    views: keyed views against torchvision's own, and whole batches of small images against one by one, on the CPU.

    Example: logitcache bench losses
    """
    import torch

    from logitcache.bench import conditions
    from logitcache.forward import choose_device

    if threads := 1 if suite == "views" else threads:
        torch.set_num_threads(threads)
    where = choose_device("cpu" if suite == "views" else device)
    made_on = conditions(where)
    say(f"bench {suite}: {rounds} rounds, about a minute on two cores")
    rows, table = _views(rounds) if suite == "views" else _losses(batch, rounds, where)
    if not json:
        console.print(table)
    show({"suite": suite, **made_on, "rows": [row.to_dict() for row in rows]}, _about(made_on), as_json=json)


def _losses(batch: int, rounds: int, where: "torch.device") -> "tuple[list[losses.Row], Table]":
    from logitcache.bench.losses import measure

    rows = measure(batch=batch, rounds=rounds, device=where)
    table = _table(f"forward and backward, {batch} rows", "loss", "against", "C", "k", "ms", "other")
    for row in rows:
        sizes = (f"{row.classes}", f"{row.k}", f"{row.ms:.3g}", f"{row.ms_against:.3g}")
        table.add_row(row.name, row.against, *sizes, *_ratio(row))
    return rows, table


def _views(rounds: int) -> "tuple[list[views.Row], Table]":
    from logitcache.bench.views import measure

    rows = measure(rounds=rounds)
    table = _table("views, the ratio that of their times", "recipe", "made", "against", "views/s", "other")
    for row in rows:
        rates = (f"{row.views_per_second:,.0f}", f"{row.views_per_second_against:,.0f}")
        table.add_row(row.recipe, row.name, row.against, *rates, *_ratio(row))
    return rows, table


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in (*names, "ratio, quartiles", "wanted"):
        table.add_column(name, justify="left" if name == names[0] else "right", no_wrap=True)
    return table


def _ratio(row: "losses.Row | views.Row") -> tuple[str, str]:
    digits = 2 if row.ratio >= 0.1 else 3
    low, middle, high = (f"{x:.{digits}f}" for x in (row.ratio_low, row.ratio, row.ratio_high))
    return f"{middle} ({low}–{high})", "" if row.wanted is None else f"≤ {row.wanted:g}"


def _about(made_on: dict[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in made_on["versions"].items())
    return [
        ("device", f"{made_on['device']}, {made_on['threads']} threads on {made_on['cores']} cores"),
        ("load", f"{made_on['load']} when it began"),
        ("versions", versions),
    ]
