"""``logitcache plan``: what a cache will cost and keep, measured on a sample."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from logitcache.units import count, figures, parse_size, rate, size, span

from . import teacher_options
from .progress import progress
from .shared_options import (
    Device,
    Json,
    PrecisionName,
    Workers,
    advise_skip,
    describe_single_seed,
    parse_ks,
    parse_seeds,
    pick_fields,
)
from .terminal import console, say, show

if TYPE_CHECKING:
    from logitcache.dump.plan import Choice, Plan

COLUMNS = ["k", "profile", "B/view", "in all", "KL T=1", "T=2", "T=4", "lost", "1 − r", "order", "tail"]
ROUNDING = 1e-12  # what is less is 0


def plan(
    context: typer.Context,
    teacher: teacher_options.Teacher,
    weights: teacher_options.Weights = "auto",
    data: teacher_options.Data = "auto",
    recipe: teacher_options.Recipe = "auto",
    background: teacher_options.Background = None,
    num_classes: teacher_options.NumClasses = None,
    input_size: teacher_options.InputSize = 0,
    seeds: Annotated[
        str, typer.Option(help="Augmentation seeds that the cache will hold.", metavar="LIST")
    ] = "0-9",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of one student run.")] = 100,
    images: Annotated[int, typer.Option(min=1, help="Images to try.")] = 512,
    top_k: Annotated[
        str, typer.Option(help="Numbers of logits to compare.", metavar="LIST")
    ] = "4,8,16,32,64,128",
    budget: Annotated[
        str | None,
        typer.Option(
            help="Pick the best cache of at most this size, such as 20GB; without, the smallest that is near enough.",
            metavar="SIZE",
        ),
    ] = None,
    on_bad_image: Annotated[
        Literal["error", "skip"],
        typer.Option(help="An image that does not decode: stop, or leave it out."),
    ] = "error",
    batch_size: teacher_options.BatchSize = 0,
    precision: PrecisionName = "auto",
    device: Device = "auto",
    workers: Workers = -1,
    json: Json = False,
) -> None:
    """Measure on a sample what each k and profile costs and keeps, how long a dump takes, and when it pays.

    Example: logitcache plan --teacher vit_l --data imagefolder:/data/imagenet --seeds 0-299 --budget 20GB
    """
    parsed = {
        "seeds": len(parse_seeds(seeds)),
        "ks": parse_ks(top_k),
        "budget": parse_size(budget) if budget else None,
    }
    if single := describe_single_seed(seeds):
        say(f"note: {single}")
    with (
        advise_skip(on_bad_image),
        progress(f"plan {teacher}", "views", first="loading images and teacher") as advance,
    ):
        from logitcache.dump.inputs import DumpInputs
        from logitcache.dump.plan import PlanConfig, plan_cache

        config = PlanConfig(**pick_fields(context.params, PlanConfig) | parsed)
        inputs = DumpInputs(**pick_fields(context.params, DumpInputs)).open(lambda text: say(f"note: {text}"))
        if inputs.images.note:
            say(f"note: {inputs.images.note}")
        found = plan_cache(*inputs, config, lambda views: advance(views.done, views.total))
    if not json:
        console.print(_table(found))
    show(found.to_dict(), _rows(found), as_json=json)


def _table(plan: "Plan") -> Table:
    title = f"{count(plan.n, 'image')} under {count(plan.seeds, 'seed')}, measured on {plan.views:,} views"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "profile" else "right", no_wrap=True)
    for choice in plan.choices:
        if choice.beaten and choice != plan.default:
            continue
        table.add_row(
            f"{choice.k}",
            choice.profile,
            f"{choice.bytes_per_view:.1f}",
            size(choice.bytes_in_all),
            *map(_small, choice.kl),
            f"{choice.lost:.1%}",
            _small(1 - min(choice.pearson)),
            f"{choice.order:.3f}",
            _small(choice.tail_mass),
            style="bold" if choice == plan.chosen else None,
        )
    return table


def _rows(plan: "Plan") -> list[tuple[str, str]]:
    chosen, beaten = plan.chosen, sum(choice.beaten for choice in plan.choices)
    options = (
        f"--top-k {chosen.k} --profile {chosen.profile}, {size(chosen.bytes_in_all)}: " if chosen else ""
    )
    beaten -= plan.default is not None and plan.default.beaten
    left_out = f"{beaten} that another beats in bytes, KL and order; --json has them"
    hours = ", ".join(f"{number}: {span(3600 * h)}" for number, h in plan.hours.items())
    once, live = (span(3600 * hours) for hours in (plan.cache_hours, plan.live_hours))
    return [
        ("take", f"{options}{plan.reason}"),
        *([("default", _describe_default(plan.default))] if plan.default not in (None, chosen) else []),
        *([("left out", left_out)] if beaten else []),
        ("teacher", f"{rate(plan.views_per_second)} views/s on this device"),
        ("to dump", f"on so many of them, {hours}"),
        (
            "pays",
            f"from student run {plan.pays_from} of {count(plan.epochs, 'epoch')} on: {once} of the teacher once, "
            f"against {live} in each run with it live",
        ),
    ]


def _describe_default(default: "Choice") -> str:
    loses = f"loses {default.lost:.1%} of what the teacher tells"
    return f"--top-k {default.k} --profile {default.profile}, {size(default.bytes_in_all)}, as without them: {loses}"


def _small(value: float) -> str:
    """Write a small number by a power of ten, one that is not small as it is."""
    if value <= ROUNDING:
        return "0"
    return f"{value:.1e}".replace("e-0", "e-") if value < 0.995 else figures(value, 2)
