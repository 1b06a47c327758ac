"""``logitcache dump``: stage one, the teacher's logits into a cache."""

import os
from typing import TYPE_CHECKING

import typer

from logitcache.units import count, rate

from . import dump_options, teacher_options
from .calibrate import calibration_rows
from .progress import progress
from .shared_options import (
    Device,
    Json,
    PrecisionName,
    Workers,
    advise_skip,
    default_cache_path,
    describe_single_seed,
    parse_seeds,
    pick_fields,
)
from .terminal import say, show

if TYPE_CHECKING:
    from logitcache.dump.filler import ViewsDone
    from logitcache.dump.job import DumpReport


def dump(
    context: typer.Context,
    teacher: teacher_options.Teacher,
    weights: teacher_options.Weights = "auto",
    data: teacher_options.Data = "auto",
    recipe: teacher_options.Recipe = "auto",
    seeds: dump_options.Seeds = None,
    top_k: dump_options.TopK = None,
    profile: dump_options.Profile = None,
    out: dump_options.Out = None,
    background: teacher_options.Background = None,
    split: teacher_options.Split = None,
    num_classes: teacher_options.NumClasses = None,
    input_size: teacher_options.InputSize = 0,
    calibration: dump_options.Calibration = None,
    shard_samples: dump_options.ShardSamples = 0,
    grow: dump_options.Grow = False,
    on_bad_image: dump_options.OnBadImage = "error",
    batch_size: teacher_options.BatchSize = 0,
    precision: PrecisionName = "auto",
    device: Device = "auto",
    compile: dump_options.Compile = False,
    workers: Workers = -1,
    seeds_per_pass: dump_options.SeedsPerPass = 1,
    dask: dump_options.Dask = None,
    json: Json = False,
) -> None:
    """Run the teacher once per augmentation seed and keep its compressed top-k logits.

    Started again, it goes on at the first missing shard; more seeds can be added at any time, and
    with --grow images that came later. Options that are not given are then as the cache has them.
    Several GPUs of one machine share the work under torchrun:
    torchrun --nproc-per-node N -m logitcache_cli dump …

    Example: logitcache dump --teacher vit_l --data imagefolder:/data/imagenet --seeds 0-9
    """
    parsed = {"seeds": parse_seeds(seeds)} if seeds is not None else {}
    path = out or default_cache_path(teacher, data, split)

    def on_note(text: str) -> None:
        say(f"note: {text}")

    if seeds is not None and not os.path.exists(path) and (single := describe_single_seed(seeds)):
        on_note(single)
    loading = "loading images and teacher"
    with (
        advise_skip(on_bad_image, out=str(path)),
        progress(f"dump {teacher}", "views", first=loading) as advance,
    ):
        from logitcache.distributed import World
        from logitcache.dump.inputs import DumpInputs
        from logitcache.dump.settings import DumpConfig
        from logitcache.dump.torchrun import dump_under_torchrun

        def on_progress(views: "ViewsDone") -> None:
            advance(views.done, views.total)

        inputs = DumpInputs(**pick_fields(context.params, DumpInputs))
        config = DumpConfig(**pick_fields(context.params, DumpConfig) | parsed)
        if dask:
            from logitcache.dump.dask_cluster import dump_on_dask

            report: DumpReport | None = dump_on_dask(dask, path, inputs, config, on_progress, on_note)
        else:
            report = dump_under_torchrun(World.from_environment(), path, inputs, config, on_progress, on_note)
    if report:
        show(report.to_dict(), _rows(report), as_json=json)


def _rows(report: "DumpReport") -> list[tuple[str, str]]:
    from logitcache.views.bad_images import UNDECODABLE, list_bad_images

    rows = [
        ("cache", report.path),
        ("views", f"{report.views:,} now, {report.views_in_cache:,} in the cache for these seeds"),
    ]
    if report.bad:
        which = list_bad_images(report.bad, "--json lists all")
        rows.append(("left out", f"{count(report.bad_images, *UNDECODABLE)}: {which}"))
    if report.teacher_top1 is not None:
        right = f"right in {100 * report.teacher_top1:.1f} % of the labelled views made now"
        rows.append(("teacher", right))
    if report.calibration is not None:
        rows += calibration_rows(report.calibration)
    pace = f", {rate(report.views_per_second)} views/s" if report.views else ""
    return [*rows, ("time", f"{report.seconds:.1f} s{pace}")]
