"""``logitcache stats``: what the teacher says of the data."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from logitcache.files import require_folder
from logitcache.units import share

from .progress import progress
from .shared_options import Cache, CompleteSeeds, Json, parse_output_path, parse_seeds
from .terminal import say, show

if TYPE_CHECKING:
    from logitcache.audit.stats import StatsReport

BARS = " ▁▂▃▄▅▆▇█"


def stats(
    cache: Cache,
    seeds: CompleteSeeds = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="The cache's images, for labels and names; no others are opened but those that ship."
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Neighbours and hard samples to list.")] = 8,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder for stats.png and hardest.png.", parser=parse_output_path, metavar="PATH"),
    ] = None,
    json: Json = False,
) -> None:
    """Show how right and how sure the teacher is by seed, what it confuses, and which samples are hard.

    Example: logitcache stats caches/vit_l-digits.zarr --pictures pictures
    """
    from logitcache.audit.pictures import draw_stats
    from logitcache.audit.stats import compute_stats
    from logitcache.store import CacheReader
    from logitcache.views.alignment import explain_how_to_show, open_images_to_show

    if pictures:
        require_folder(pictures)
    reader = CacheReader(cache)
    images, _ = open_images_to_show(reader, [data] if data else [])
    if images is None:
        say(f"note: without labels and names: {explain_how_to_show(reader)}")
    chosen = parse_seeds(seeds) if seeds else ()
    with progress("stats", "seeds") as advance:
        found = compute_stats(reader, images, chosen, most=most, on_progress=advance)
    files = draw_stats(found, pictures, images) if pictures else []
    rows = [*_rows(found, images.class_names if images else ()), *(("picture", str(file)) for file in files)]
    show({**found.to_dict(), "pictures": [str(file) for file in files]}, rows, as_json=json)


def _rows(found: "StatsReport", names: Sequence[str]) -> list[tuple[str, str]]:
    from logitcache.views.images import name_class

    rows = [("cache", found.path)]
    for seed in found.seeds:
        right = "" if seed.top1 is None else f"top-1 {100 * seed.top1:.2f} %, "
        confidence = f"confidence {seed.confidence:.3f}, entropy {seed.entropy:.3f} nats"
        rows.append((f"seed {seed.seed}", f"{right}{confidence}, tail {seed.tail_mass:.2g}"))
    if found.agreement is not None:
        rows.append(
            ("agreement", f"{100 * found.agreement:.2f} % of samples have the top class of the seed before")
        )
    most = f"{math.log(found.num_classes):.3g} nats, log of {found.num_classes} classes"
    rows.append(("entropy", f"0 [{_bars(found.entropy_bins)}] {most}"))
    if found.tail_bins:
        rows.append(("tail mass", f"1e-10 [{_bars(found.tail_bins)}] 1"))
    for p in found.neighbours:
        pair = f"{name_class(names, p.of)} with {name_class(names, p.other)}"
        rows.append(("confused", f"{pair}, which it gives {share(p.probability)} on average"))
    for hard in found.hardest:
        answer, probability = name_class(names, hard.teacher), share(hard.probability)
        if hard.label < 0:
            reason = f"its likeliest class has {probability}; the teacher says {answer}"
        else:
            label = name_class(names, hard.label)
            reason = f"label {label}, which the teacher gives {probability}; it says {answer}"
        rows.append(("hard", f"{hard.name}, {reason}"))
    return rows


def _bars(counts: tuple[int, ...]) -> str:
    largest = max(1, *counts)
    return "".join(BARS[-(-count * (len(BARS) - 1) // largest)] for count in counts)
