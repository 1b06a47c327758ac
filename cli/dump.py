"""``logitcache dump``: stage one, the teacher's logits into a cache."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import asked
from .options import MACHINE, Device, Json, PrecisionName, Workers, cache_path, given, parse_seeds
from .progress import progress
from .terminal import say, show

if TYPE_CHECKING:
    from logitcache.dump import DumpReport


def _kept(text: str, *names: str, default: str | None = None) -> Any:
    return typer.Option(
        *names, help=text, rich_help_panel="What is kept", show_default=default if default else True
    )


def _run(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=MACHINE)


def dump(
    context: typer.Context,
    teacher: asked.Teacher,
    weights: asked.Weights = "auto",
    data: asked.Data = "auto",
    split: asked.Split = None,
    recipe: asked.Recipe = "auto",
    num_classes: asked.NumClasses = None,
    input_size: asked.InputSize = 0,
    seeds: Annotated[
        str | None, _kept("Augmentation seeds, such as 0-9 or 0,3,7; of the test split 0.", default="0-3")
    ] = None,
    top_k: Annotated[int | None, _kept("Logits to keep per view.", default="16")] = None,
    profile: Annotated[
        str | None,
        _kept("default, compact (8-bit gaps), archive (pcodec), exact (all).", default="default"),
    ] = None,
    out: Annotated[str | None, _kept("Cache; caches/TEACHER-DATA.zarr by default.")] = None,
    shard_samples: Annotated[int, _kept("Samples per shard; 0: fitted to the data.")] = 0,
    grow: Annotated[bool, _kept("Append images that the cache has not yet.", "--grow")] = False,
    on_bad_image: Annotated[
        Literal["error", "skip"], _kept("Stop, or leave the sample without a teacher.")
    ] = "error",
    batch_size: asked.BatchSize = 0,
    precision: PrecisionName = "auto",
    device: Device = "auto",
    compile: Annotated[bool, _run("Compile the teacher by torch.compile.", "--compile")] = False,
    workers: Workers = -1,
    seeds_per_pass: Annotated[int, _run("Seeds that share one decoding of each image.")] = 1,
    dask: Annotated[
        str | None, _run("Processes that share the work: local:N, or a scheduler's tcp://HOST:PORT.")
    ] = None,
    json: Json = False,
) -> None:
    """Run the teacher once per augmentation seed and keep its compressed top-k logits.

    Started again, it goes on at the first missing shard; more seeds can be added at any time, and
    with --grow images that came later. Options that are not given are then as the cache has them.
    Several GPUs of one machine share the work under torchrun:
    torchrun --nproc-per-node N -m logitcache_cli dump …

    Example: logitcache dump --teacher vit_l --data imagefolder:/data/imagenet --seeds 0-9
    """
    chosen = {"seeds": parse_seeds(seeds)} if seeds else {}
    path = out or cache_path(teacher, data, split)

    def on_note(text: str) -> None:
        say(f"note: {text}")

    with progress(f"dump {teacher}", "views", first="loading images and teacher") as advance:
        from logitcache.dump import DumpConfig
        from logitcache.ranks import dump_in_ranks
        from logitcache.sources import Sources
        from logitcache.world import World

        sources = Sources(**given(context.params, Sources))
        config = DumpConfig(**given(context.params, DumpConfig) | chosen)
        if dask:
            from logitcache.cluster import dump_on_dask

            done: DumpReport | None = dump_on_dask(dask, path, sources, config, advance, on_note)
        else:
            done = dump_in_ranks(World.here(), path, sources, config, advance, on_note)
    if done:
        show(done.to_dict(), _rows(done), as_json=json)


def _rows(done: "DumpReport") -> list[tuple[str, str]]:
    right = done.teacher_top1
    known = (
        [] if right is None else [("teacher", f"right in {100 * right:.1f} % of the labelled views made now")]
    )
    bad = f"; images that did not decode: {done.bad_images}" if done.bad_images else ""
    return [
        ("cache", done.path),
        ("views", f"{done.views:,} now, {done.views_in_cache:,} in the cache for these seeds{bad}"),
        *known,
        ("time", f"{done.seconds:.1f} s, {done.views_per_second:,.0f} views/s"),
    ]
