"""``logitcache copy``: a cache, or some of its seeds, to another place."""

from typing import TYPE_CHECKING, Annotated

import typer

from logitcache.units import size

from .progress import progress
from .shared_options import Json, parse_output_place, parse_seeds
from .terminal import show

if TYPE_CHECKING:
    from logitcache.store.copy import CopyReport


def copy(
    source: Annotated[str, typer.Argument(help="Cache to copy: a path or URL.")],
    destination: Annotated[
        str, typer.Argument(help="Where to: a path, s3://…, gs://….", parser=parse_output_place)
    ],
    seeds: Annotated[str | None, typer.Option(help="Seeds to copy, such as 0-3; all by default.")] = None,
    workers: Annotated[int, typer.Option(help="Shards that are copied at once.")] = 4,
    json: Json = False,
) -> None:
    """Copy a cache between disks and object stores, and check it at the far end.

    Started again, it goes on where it stopped.

    Example: logitcache copy caches/vit_l-digits.zarr s3://lab/vit_l-digits.zarr --seeds 0-3
    """
    from logitcache.store.copy import copy_cache

    chosen = parse_seeds(seeds) if seeds else ()
    with progress("copy", "shards") as advance:
        report = copy_cache(
            source,
            destination,
            seeds=chosen,
            workers=workers,
            on_progress=advance,
        )
    show(report.to_dict(), _rows(report), as_json=json)


def _rows(report: "CopyReport") -> list[tuple[str, str]]:
    return [
        ("cache", report.path),
        (
            "shards",
            f"{report.shards_copied:,} copied, {report.shards_there:,} there already; every one checked",
        ),
        ("time", f"{report.seconds:.1f} s, {size(report.bytes_copied / report.seconds)}/s"),
    ]
