"""``logitcache plan``: what a cache will cost and keep, measured on a sample."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from logitcache.units import parse_size, size, span

from . import teacher_options as asked
from .progress import progress
from .shared_options import Device, Json, PrecisionName, Workers, given, parse_seeds
from .terminal import console, say, show

if TYPE_CHECKING:
    from logitcache.dump.plan import Plan

LEAST = 1e-12  # what is less is rounding


def plan(
    context: typer.Context,
    teacher: asked.Teacher,
    weights: asked.Weights = "auto",
    data: asked.Data = "auto",
    recipe: asked.Recipe = "auto",
    num_classes: asked.NumClasses = None,
    input_size: asked.InputSize = 0,
    seeds: Annotated[str, typer.Option(help="Augmentation seeds that the cache will hold.")] = "0-9",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of one student run.")] = 100,
    images: Annotated[int, typer.Option(min=1, help="Images to try.")] = 512,
    top_k: Annotated[str, typer.Option(help="Numbers of logits to compare.")] = "4,8,16,32,64,128",
    budget: Annotated[
        str | None,
        typer.Option(
            help="Pick the best cache of at most this size, such as 20GB; without, the smallest that is near enough."
        ),
    ] = None,
    batch_size: asked.BatchSize = 0,
    precision: PrecisionName = "auto",
    device: Device = "auto",
    workers: Workers = -1,
    json: Json = False,
) -> None:
    """Measure on a sample what each k and profile costs and keeps, how long a dump takes, and when it pays.

    Example: logitcache plan --teacher vit_l --data imagefolder:/data/imagenet --seeds 0-299 --budget 20GB
    """
    read = {
        "seeds": len(parse_seeds(seeds)),
        "ks": parse_seeds(top_k),
        "budget": parse_size(budget) if budget else None,
    }
    with progress(f"plan {teacher}", "views", first="loading images and teacher") as advance:
        from logitcache.dump.inputs import DumpInputs
        from logitcache.dump.plan import PlanConfig, plan_cache

        config = PlanConfig(**given(context.params, PlanConfig) | read)
        inputs = DumpInputs(**given(context.params, DumpInputs)).open(lambda text: say(f"note: {text}"))
        found = plan_cache(*inputs, config, lambda views: advance(views.done, views.total))
    if not json:
        console.print(_table(found))
    show(found.to_dict(), _rows(found), as_json=json)


def _table(found: "Plan") -> Table:
    title = f"{found.n:,} images under {found.seeds} seeds, measured on {found.views:,} views"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in ("k", "profile", "B/view", "in all", "KL T=1", "T=2", "T=4", "1 − r", "order", "tail"):
        table.add_column(name, justify="left" if name == "profile" else "right", no_wrap=True)
    for c in found.choices:
        small = map(_small, (*c.kl, 1 - min(c.pearson)))
        cells = (f"{c.k}", c.profile, f"{c.bytes_per_view:.1f}", size(c.bytes_in_all), *small)
        style = "bold" if c == found.chosen else None
        if not c.beaten:
            table.add_row(*cells, f"{c.order:.3f}", _small(c.tail_mass), style=style)
    return table


def _rows(found: "Plan") -> list[tuple[str, str]]:
    c, beaten = found.chosen, sum(c.beaten for c in found.choices)
    kept = f"--top-k {c.k} --profile {c.profile}, {size(c.bytes_in_all)}: " if c else ""
    left = f"{beaten} that another beats in bytes, KL and order; --json has them"
    hours = ", ".join(f"{number}: {span(3600 * h)}" for number, h in found.hours.items())
    once, live = (span(3600 * hours) for hours in (found.cache_hours, found.live_hours))
    return [
        ("take", f"{kept}{found.reason}"),
        *([("left out", left)] if beaten else []),
        ("teacher", f"{found.views_per_second:,.0f} views/s on this device"),
        ("to dump", f"on so many of them, {hours}"),
        (
            "pays",
            f"from student run {found.pays_from} of {found.epochs} epochs on: {once} of the teacher once, "
            f"against {live} in each run with it live",
        ),
    ]


def _small(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-") if value > LEAST else "0"
