"""``logitcache derive``: a smaller cache from a larger one, without the teacher."""

from typing import Annotated

import typer

from logitcache.units import count

from .calibrate import calibration_rows
from .progress import progress
from .shared_options import CompleteSeeds, Json, parse_output_place, parse_seeds
from .terminal import show


def derive(
    source: Annotated[str, typer.Argument(help="Cache to derive from.")],
    out: Annotated[str, typer.Argument(help="Cache to make, or to go on with.", parser=parse_output_place)],
    top_k: Annotated[
        int | None, typer.Option(help="Logits to keep per view; by default as the source.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="How to store the gaps; as the source, or default where that is exact.")
    ] = None,
    seeds: CompleteSeeds = None,
    json: Json = False,
) -> None:
    """Make a cache of fewer logits, or in a smaller profile, from another one: the teacher is not needed.

    From an exact cache the rows are those that a dump would have stored; class statistics are estimated from some of
    its views. Started again, it goes on where it was.

    Example: logitcache derive exact.zarr small.zarr --top-k 8 --profile compact
    """
    from logitcache.dump.late_calibration import calibrate_derived
    from logitcache.store import CacheReader
    from logitcache.store.derive import derive_cache

    chosen = parse_seeds(seeds) if seeds else ()
    with progress("derive", "views") as advance:
        report = derive_cache(
            source,
            out,
            top_k=top_k,
            profile=profile,
            seeds=chosen,
            on_progress=advance,
        )
    reader = CacheReader(source)
    calibration = None if reader.spec.tail_size else calibrate_derived(reader, out)
    rows = [
        ("cache", report.path),
        ("keeps", f"top {report.k} logits, profile {report.profile}"),
        ("views", f"{report.views:,} under {count(len(report.seeds), 'seed')}"),
        ("shards", f"{report.shards_written} written, {report.shards_there} there already"),
    ]
    if calibration is not None:
        rows += calibration_rows(calibration)
    show(report.to_dict() | {"calibration": calibration and calibration.to_dict()}, rows, as_json=json)
