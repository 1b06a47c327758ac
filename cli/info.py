"""``logitcache info``: what a cache holds."""

from typing import Annotated, Any

import typer

from .options import Json
from .terminal import show, size


def info(
    cache: Annotated[str, typer.Argument(help="Path of the cache.")],
    json: Json = False,
) -> None:
    """Show what a cache holds: teacher, data, recipe, seeds, size.

    Example: logitcache info caches/vit_l-digits.zarr
    """
    from logitcache.store import CacheReader

    found = CacheReader(cache).info()
    show(found, _rows(found), as_json=json)


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    teacher, data, recipe = found["teacher"], found["dataset"], found["recipe"]
    per_view = found["bytes_per_sample_view"]
    seeds = [
        (f"seed {s['seed']}", "complete" if s["complete"] else f"{s['shards_done']} of {s['shards']} shards")
        for s in found["seeds"]
    ]
    return [
        ("cache", f"{found['path']} (format {found['format_version']}, profile {found['profile']})"),
        ("teacher", f"{teacher['name']}, weights {teacher['weights']}, {teacher['precision']}"),
        ("data", f"{data['name']}, {data['split']}: {found['n']:,} images, {found['num_classes']:,} classes"),
        ("views", f"{recipe['name']} v{recipe['version']}, top {found['k']} logits kept"),
        *seeds,
        ("size", f"{size(found['bytes_on_disk'])}, {per_view or 0:.1f} bytes per sample and view"),
    ]
