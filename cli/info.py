"""``logitcache info``: what a cache holds."""

from typing import Any

from logitcache.format.identity import join_background
from logitcache.units import count, figures, size

from .shared_options import Cache, Json
from .terminal import show


def info(
    cache: Cache,
    json: Json = False,
) -> None:
    """Show a cache at a glance: teacher, data, views, seeds, size, how sure the teacher is, who can use it.

    Example: logitcache info caches/vit_l-digits.zarr
    """
    from logitcache.audit.summary import summarize
    from logitcache.store import CacheReader

    found = summarize(CacheReader(cache))
    show(found, _rows(found), as_json=json)


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    teacher, data, recipe = found["teacher"], found["dataset"], found["recipe"]
    side, teacher_side = found["view_size"], teacher["adapter"]["size"]
    incomplete = [
        f"seed {s['seed']}: {s['shards_done']} of {count(s['shards'], 'shard')}"
        for s in found["seeds"]
        if not s["complete"]
    ]
    title = join_background(f"{recipe['name']} v{recipe['version']}", recipe.get("background"))
    views = f"{side} × {side} pixels" if side else "of the images' own size"
    resized = f", for the teacher resized to {teacher_side}" if side not in (None, teacher_side) else ""
    return [
        ("cache", f"{found['path']} (format {found['format_version']}, profile {found['profile']})"),
        ("teacher", f"{teacher['name']}, weights {teacher['weights']}, {teacher['precision']}"),
        (
            "data",
            f"{data['name']}, {data['split']}: {count(found['n'], 'image')}, {found['num_classes']:,} classes",
        ),
        (
            "views",
            f"{title}, {views}{resized}; top {found['k']} logits kept",
        ),
        *([("left out", _left_out(found["left_out"]))] if found["left_out"] else []),
        ("seeds", "; ".join([f"{found['complete']} complete", *incomplete])),
        *(
            [("class statistics", _statistics(found["class_statistics"]))]
            if found["class_statistics"]
            else []
        ),
        ("size", _size(found["bytes_on_disk"], found["bytes_per_sample_view"])),
        ("answers", _answers(found)),
        ("to use", f"students of {found['num_classes']:,} classes, with --data {data['name']}"),
        ("versions", _versions(found)),
    ]


def _left_out(found: list[dict[str, Any]]) -> str:
    from logitcache.views.bad_images import BadImage, list_bad_images

    which = list_bad_images([BadImage.from_dict(each) for each in found], "--json lists all")
    return f"{count(len(found), 'image')} without a teacher: {which}"


def _size(total: int | None, per_view: float | None) -> str:
    if total is None:
        return "not told by this host"
    return size(total) if per_view is None else f"{size(total)}, {per_view:.1f} bytes per sample and view"


def _statistics(found: dict[str, Any]) -> str:
    return f"of {found['views']:,} views, {count(found['factors'], 'factor')}"


def _answers(found: dict[str, Any]) -> str:
    if found["damaged"]:
        return f"not told: {found['damaged']}"
    if not (confidence := found["confidence"]):
        return "none yet"
    mass = [f"{figures(100 * value, 2)} % at T = {t}" for t, value in confidence["mean_tail_mass"].items()]
    top1 = f"mean top-1 probability {100 * confidence['mean_top1_probability']:.1f} %"
    return f"{top1}, tail mass {', '.join(mass)}"


def _versions(found: dict[str, Any]) -> str:
    other = [f"{name} {there}, here {here}" for name, (there, here) in found["other_versions"].items()]
    if not other:
        return "made with the library versions that are here"
    return f"made with {'; '.join(other)}: views are proved before use"
