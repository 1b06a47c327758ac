"""``logitcache verify``: is a cache sound, and does its teacher still say so."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .progress import progress
from .shared_options import Cache, Device, Json, Workers, parse_seeds, pick_fields
from .terminal import show

if TYPE_CHECKING:
    from logitcache.audit.checkup import CheckupReport

LINES = 20


def _again(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="The teacher, for --repair and --replay")


def verify(
    context: typer.Context,
    cache: Cache,
    seeds: Annotated[str | None, typer.Option(help="Augmentation seeds; all by default.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Dump damaged shards again.")] = False,
    replay: Annotated[int, typer.Option(help="Run the teacher again on so many random views.")] = 0,
    teacher: Annotated[str | None, _again("The cache's teacher, if its name is another here.")] = None,
    weights: Annotated[str | None, _again("Its weights; to be named where they are a file.")] = None,
    data: Annotated[str | None, _again("The cache's images, if their name is another here.")] = None,
    seed: Annotated[int, _again("Of the choice that --replay makes.")] = 0,
    batch_size: Annotated[int, _again("Views per forward, as `dump` had it; 0: as `dump` chooses.")] = 0,
    on_bad_image: Annotated[Literal["error", "skip"], _again("In a repair: as `dump` had it.")] = "error",
    device: Device = "auto",
    workers: Workers = -1,
    json: Json = False,
) -> None:
    """Check every checksum, digest and number of a cache; exit code 0 says that it is clean, 1 that it is not.

    With --repair, damaged shards are dumped again; with --replay, the teacher is asked again and compared.

    Example: logitcache verify caches/vit_l-digits.zarr

    Example: logitcache verify caches/vit_l-pets.zarr --repair --replay 100 --weights vit_l.safetensors
    """
    from logitcache.audit.checkup import CheckupConfig, check_cache

    chosen = {"seeds": parse_seeds(seeds) if seeds else None}
    config = CheckupConfig(**pick_fields(context.params, CheckupConfig) | chosen)
    with progress("verify", "pieces") as advance:
        done = check_cache(cache, config, advance)
    show(done.to_dict(), _rows(done), as_json=json)
    if not done.clean:
        raise typer.Exit(1)


def _rows(done: "CheckupReport") -> list[tuple[str, str]]:
    found, strays = done.found, sum(seed.strays for seed in done.found.seeds)
    rows = [("cache", found.path), ("checked", f"{found.shards:,} shards, {found.views:,} views")]
    if strays:
        rows.append(
            ("strays", f"{strays:,} files that belong to no commit: left by a crash, or not a cache's")
        )
    rows += [("problem", str(problem)) for problem in found.problems[:LINES]]
    if len(found.problems) > LINES:
        rows.append(("", f"and {len(found.problems) - LINES:,} more; --json lists all"))
    if fixed := done.repair:
        rows += [("mended", name) for name in fixed.mended]
        same = f"{fixed.identical:,} of them to the digest they had"
        rows.append(("repaired", f"{len(fixed.redumped):,} shards dumped again, {same}"))
    if replay := done.replay:
        error = f"logits off by {replay.max_error:.2g} at most, {replay.mean_error:.2g} on average"
        rows.append(
            ("replay", f"{replay.views:,} views: top-1 {100 * replay.top1_agreement:.4g} % equal, {error}")
        )
        if replay.off and replay.worst:
            worst = f"worst: sample {replay.worst[0]} under seed {replay.worst[1]}"
            rows.append(("problem", f"{replay.off:,} views are off by more than rounding; {worst}"))
        if replay.drift:
            rows.append(("problem", str(replay.drift)))
    return [*rows, ("result", "clean" if done.clean else "not clean")]
