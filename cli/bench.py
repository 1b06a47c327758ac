"""``logitcache bench``: how fast the parts are here, against plain alternatives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.measure import Measurement
from rich.table import Table

from logitcache.files import require_file, require_folder
from logitcache.paths import expand_home

from .shared_options import Device, Json, parse_output_path
from .terminal import console, say, show


def bench(
    suite: Annotated[
        Literal["losses", "views", "store", "scale", "dump", "train", "all"],
        typer.Argument(help="What to measure."),
    ],
    rounds: Annotated[int, typer.Option(min=0, help="How often each ratio is taken; 0: as fits.")] = 0,
    batch: Annotated[int, typer.Option(min=0, help="Rows of a batch; 0: as fits.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads on the CPU; 0: as torch chooses.")] = 0,
    device: Device = "cpu",
    n: Annotated[
        int, typer.Option("--n", min=0, help="Views, samples (scale), pictures (dump, train); 0: as fits.")
    ] = 0,
    logits: Annotated[
        Path | None,
        typer.Option(help="store: an .npz of real logits (n, C).", parser=expand_home, metavar="PATH"),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="store, scale: where to write.", parser=expand_home, metavar="PATH")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="scale: an SVG file to draw.", parser=parse_output_path, metavar="PATH"),
    ] = None,
    json: Json = False,
) -> None:
    """Measure speed as ratios to a plain alternative, timed in turns so that both share the machine's load.

    losses: forward and backward of every loss, and what completing a tail takes, against the dense F.kl_div; soft
    ranks against plain autograd and Blondel's.

    views: keyed views against torchvision's own, and whole batches of small images against one by one, on one thread.

    store: bytes per view, and what they keep of the teacher; writing, decoding, looking up, opening; memory.

    scale: the cost of a view as samples, seeds and k grow; ImageNet-21k under 300 seeds, extrapolated.

    dump: stage one against a bare loop that stores nothing, and one decoding for eight seeds against eight.

    train: distilling from a cache against plain training and against a live teacher; loading; memory.

    Example: logitcache bench store
    """
    from logitcache.bench.suites import SUITES, BenchConfig, run_suite

    if folder:
        require_folder(folder)
    if plot:
        require_file(plot, "scaling.svg")
    config = BenchConfig(rounds, batch, n, threads, device, logits, folder, plot)
    names, results = list(SUITES) if suite == "all" else [suite], []
    minutes = sum(SUITES[name].seconds for name in names) / 60
    say(f"bench {suite}: expected to take {minutes:.1f} minutes on two cores that do nothing else")
    for name in names:
        result = run_suite(name, config)
        results.append(result)
        for title, rows in {} if json else result.tables.items():
            console.print(_table(title, [row.cells() for row in rows]))
        say(f"bench {name}: took {result.seconds:.0f} s, expected {SUITES[name].seconds} s")
    values = [result.to_dict() for result in results]
    show({"suites": values} if suite == "all" else values[0], _rows(results[0].conditions), as_json=json)


def _table(title: str, rows: Sequence[dict[str, str]]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(rows[0] if rows else ()):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    unbounded = console.options.update(max_width=1000)
    if Measurement.get(console, unbounded, table).maximum > console.width:
        table.padding = 0
    return table


def _rows(conditions: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    return [
        ("device", f"{conditions['device']}, {conditions['threads']} threads on {conditions['cores']} cores"),
        ("load", f"{conditions['load']} when it began"),
        ("versions", versions),
    ]
