"""``logitcache verify``: is a cache sound, and are its logits still its teacher's."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from logitcache.units import count, figures

from .progress import progress
from .shared_options import Cache, Device, Json, Workers, advise_skip, parse_seeds, pick_fields
from .terminal import show

if TYPE_CHECKING:
    from logitcache.audit.checkup import CheckupReport

LINES = 20
_MENDED = {"class_statistics": "class statistics, estimated by the teacher again"}


def _teacher_option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="The teacher, for --repair and --replay")


def verify(
    context: typer.Context,
    cache: Cache,
    seeds: Annotated[str | None, typer.Option(help="Augmentation seeds; all by default.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what is damaged; dump damaged shards again.")
    ] = False,
    replay: Annotated[int, typer.Option(help="Run the teacher again on so many random views.")] = 0,
    teacher: Annotated[
        str | None, _teacher_option("The cache's teacher, if its name is another here.")
    ] = None,
    weights: Annotated[str | None, _teacher_option("Its weights; to be named where they are a file.")] = None,
    data: Annotated[str | None, _teacher_option("The cache's images, if their name is another here.")] = None,
    seed: Annotated[int, _teacher_option("Of the choice that --replay makes.")] = 0,
    batch_size: Annotated[
        int, _teacher_option("Views per forward, as `dump` had it; 0: as `dump` chooses.")
    ] = 0,
    on_bad_image: Annotated[
        Literal["error", "skip"], _teacher_option("In a repair: as `dump` had it.")
    ] = "error",
    device: Device = "auto",
    workers: Workers = -1,
    json: Json = False,
) -> None:
    """Check every checksum, digest and number of a cache; exit code 0 says that it is clean, 1 that it is not.

    With --repair, damaged shards are dumped again, damaged class statistics estimated again; with --replay, the
    teacher is asked again and compared.

    Example: logitcache verify caches/vit_l-digits.zarr

    Example: logitcache verify caches/vit_l-pets.zarr --repair --replay 100 --weights vit_l.safetensors
    """
    from logitcache.audit.checkup import CheckupConfig, check_cache

    chosen = {"seeds": parse_seeds(seeds) if seeds else None}
    config = CheckupConfig(**pick_fields(context.params, CheckupConfig) | chosen)
    with advise_skip(on_bad_image, cached=True), progress("verify", "pieces") as advance:
        report = check_cache(cache, config, advance)
    show(report.to_dict(), _rows(report), as_json=json)
    if not report.clean:
        raise typer.Exit(1)


def _rows(report: "CheckupReport") -> list[tuple[str, str]]:
    from logitcache.store import seed_list
    from logitcache.views.bad_images import list_bad_images

    found, strays = report.found, sum(seed.strays for seed in report.found.seeds)
    rows = [
        ("cache", found.path),
        ("checked", f"{count(found.shards, 'shard')}, {count(found.views, 'view')}"),
    ]
    if report.left_out:
        which = list_bad_images(report.left_out, "--json lists all")
        rows.append(("left out", f"{count(len(report.left_out), 'image')} without a teacher: {which}"))
    partial = [seed for seed in found.seeds if seed.committed < seed.shards]
    if partial:
        shards = sum(seed.shards - seed.committed for seed in partial)
        named = seed_list([seed.seed for seed in partial])
        rows.append(
            (
                "missing",
                f"{count(shards, 'shard')} of {named}; `logitcache dump` goes on there",
            )
        )
    if strays:
        files = count(strays, "file that belongs", "files that belong")
        rows.append(("strays", f"{files} to no commit: left by a crash, or not a cache's"))
    rows += [("problem", str(problem)) for problem in found.problems[:LINES]]
    if len(found.problems) > LINES:
        rows.append(("", f"and {len(found.problems) - LINES:,} more; --json lists all"))
    if repaired := report.repair:
        rows += [("mended", _MENDED.get(name, name)) for name in repaired.mended]
        if repaired.redumped or not repaired.mended:
            same = f"{repaired.identical:,} of them to the digest they had"
            rows.append(("repaired", f"{count(len(repaired.redumped), 'shard')} dumped again, {same}"))
    if replayed := report.replay:
        most, mean = figures(replayed.max_error, 2), figures(replayed.mean_error, 2)
        error = f"logits off by {most} at most, {mean} on average"
        rows.append(
            (
                "replay",
                f"{count(replayed.views, 'view')}: top-1 {100 * replayed.top1_agreement:.4g} % equal, {error}",
            )
        )
        if replayed.off and replayed.worst:
            worst = (
                f"worst: {replayed.worst_image} (sample {replayed.worst[0]}) under seed {replayed.worst[1]}"
            )
            rows.append(
                (
                    "problem",
                    f"{count(replayed.off, 'view is', 'views are')} off by more than rounding; {worst}",
                )
            )
        if replayed.drift:
            rows.append(("problem", str(replayed.drift)))
    return [*rows, ("result", "clean" if report.clean else "not clean")]
