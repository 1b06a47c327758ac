"""``logitcache calibrate``: class statistics for a cache that has none."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from logitcache.units import count

from . import dump_options
from .progress import progress
from .shared_options import Cache, Device, Json, Workers, advise_skip, pick_fields
from .terminal import say, show

if TYPE_CHECKING:
    from logitcache.dump.calibration import Calibration


def _teacher_option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="The teacher")


def calibrate(
    context: typer.Context,
    cache: Cache,
    teacher: Annotated[
        str | None, _teacher_option("The cache's teacher, if its name is another here.")
    ] = None,
    weights: Annotated[str | None, _teacher_option("Its weights; to be named where they are a file.")] = None,
    data: Annotated[str | None, _teacher_option("The cache's images, if their name is another here.")] = None,
    calibration: dump_options.Calibration = None,
    on_bad_image: Annotated[
        Literal["error", "skip"], _teacher_option("Stop, or leave the sample out.")
    ] = "error",
    batch_size: Annotated[int, _teacher_option("Views per forward; 0: 64 on the CPU, 256 on CUDA.")] = 0,
    device: Device = "auto",
    workers: Workers = -1,
    json: Json = False,
) -> None:
    """Add class statistics to a cache that has none: they tell the logits that its rows do not list.

    `dump` does this for every new cache. What the cache holds stays as it is, to the last byte.

    Example: logitcache calibrate caches/vit_l-pets.zarr --weights vit_l.safetensors
    """
    with (
        advise_skip(on_bad_image, cached=True),
        progress(f"calibrate {cache}", "views", first="loading images and teacher"),
    ):
        from logitcache.audit.checkup import open_teacher
        from logitcache.dump.late_calibration import calibrate_cache
        from logitcache.dump.settings import DumpConfig
        from logitcache.store import CacheReader

        images, model = open_teacher(CacheReader(cache).spec, teacher, weights, data)
        config = DumpConfig(**pick_fields(context.params, DumpConfig))
        found = calibrate_cache(cache, images, model, config, on_note=lambda text: say(f"note: {text}"))
    show(found.to_dict(), [("cache", str(cache)), *calibration_rows(found)], as_json=json)


def calibration_rows(found: "Calibration") -> list[tuple[str, str]]:
    """Return what a calibration came to, as rows to print."""
    from logitcache.teacher.reach import describe_split_tails

    even, completed = (" / ".join(f"{kl:.3f}" for kl in kls) for kls in (found.even, found.completed))
    if found.kept:
        what = f"from {found.views:,} views, {count(found.factors, 'factor')}"
    else:
        what = f"none: {found.views:,} views say that an even tail is nearer to this teacher"
    rows = [
        ("class statistics", what),
        ("KL, T = 1 / 2 / 4", f"{completed} from the teacher on views held out; with an even tail {even}"),
    ]
    if found.unmasked and not found.kept:
        rows.append(("masked classes", describe_split_tails(found.unmasked)))
    return rows
