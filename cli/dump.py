"""``logitcache dump``: stage one, the teacher's logits into a cache."""

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Device, Json, PrecisionName, Workers, cache_path, parse_seeds
from .terminal import progress, say, show

if TYPE_CHECKING:
    from logitcache.dump import DumpReport


def dump(
    teacher: Annotated[str, typer.Option(help="vit_l, resnet50, wrn_40_2, timm:NAME, module:function …")],
    weights: Annotated[str, typer.Option(help="auto, default, random, or a file.")] = "auto",
    data: Annotated[
        str, typer.Option(help="digits, cifar10, cifar100, imagefolder:PATH, folder:PATH, module:function.")
    ] = "digits",
    split: Annotated[
        Literal["train", "test"],
        typer.Option(help="Which images; test: to compare students with the teacher."),
    ] = "train",
    seeds: Annotated[
        str,
        typer.Option(help="Augmentation seeds, such as 0-9 or 0,3,7; by default 0-3, of the test split 0."),
    ] = "auto",
    top_k: Annotated[int, typer.Option(help="Logits to keep per view.")] = 16,
    profile: Annotated[
        str, typer.Option(help="default, compact (8-bit gaps), archive (pcodec), exact (all).")
    ] = "default",
    recipe: Annotated[
        str, typer.Option(help="How views are made: digits, cifar, imagenet[@SIZE], imagenet-ra, FILE.toml …")
    ] = "auto",
    out: Annotated[str | None, typer.Option(help="Cache; caches/TEACHER-DATA.zarr by default.")] = None,
    num_classes: Annotated[int, typer.Option(help="Classes of the teacher, for unlabelled images.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Views per forward; 0: 64 on the CPU, 256 on CUDA.")] = 0,
    precision: PrecisionName = "auto",
    device: Device = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the teacher by torch.compile.")] = False,
    workers: Workers = -1,
    seeds_per_pass: Annotated[int, typer.Option(help="Seeds that share one decoding of each image.")] = 1,
    on_bad_image: Annotated[
        Literal["error", "skip"], typer.Option(help="Stop, or leave the sample without a teacher.")
    ] = "error",
    shard_samples: Annotated[int, typer.Option(help="Samples per shard; 0: fitted to the data.")] = 0,
    grow: Annotated[bool, typer.Option("--grow", help="Append images that the cache has not yet.")] = False,
    dask: Annotated[
        str | None,
        typer.Option(help="Processes that share the work: local:N, or a scheduler's tcp://HOST:PORT."),
    ] = None,
    json: Json = False,
) -> None:
    """Run the teacher once per augmentation seed and keep its compressed top-k logits.

    Started again, it goes on at the first missing shard; more seeds can be added at any time, and
    with --grow images that came later. Several GPUs of one machine share the work under torchrun:
    torchrun --nproc-per-node N -m logitcache_cli dump …

    Example: logitcache dump --teacher vit_l --data imagefolder:/data/imagenet --seeds 0-9
    """
    from logitcache.dump import DumpConfig
    from logitcache.ranks import dump_in_ranks
    from logitcache.sources import Sources
    from logitcache.world import World

    sources = Sources(teacher, weights, data, recipe, num_classes, split)
    config = DumpConfig(
        seeds=parse_seeds(seeds if seeds != "auto" else "0-3" if split == "train" else "0"),
        top_k=top_k,
        profile=profile,
        batch_size=batch_size,
        precision=precision,
        device=device,
        compile=compile,
        workers=workers,
        seeds_per_pass=seeds_per_pass,
        on_bad_image=on_bad_image,
        shard_samples=shard_samples,
        grow=grow,
    )
    path = out or cache_path(teacher, data, split)
    world = World.here()
    with progress(f"dump {teacher}", "views", shown=world.rank == 0) as advance:
        began = time.perf_counter()

        def on_progress(views: int, total: int) -> None:
            advance(views, total, f"{views / (time.perf_counter() - began):,.0f} views/s")

        def on_note(text: str) -> None:
            say(f"note: {text}")

        if dask:
            from logitcache.cluster import dump_on_dask

            done: DumpReport | None = dump_on_dask(dask, path, sources, config, on_progress, on_note)
        else:
            done = dump_in_ranks(world, path, sources, config, on_progress, on_note)
    if done:
        show(done.to_dict(), _rows(done), as_json=json)


def _rows(done: "DumpReport") -> list[tuple[str, str]]:
    bad = f"; images that did not decode: {done.bad_images}" if done.bad_images else ""
    return [
        ("cache", done.path),
        ("views", f"{done.views:,} now, {done.views_in_cache:,} in the cache for these seeds{bad}"),
        ("time", f"{done.seconds:.1f} s, {done.views_per_second:,.0f} views/s"),
    ]
