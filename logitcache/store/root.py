"""What stands in a cache's root: its spec, its sample keys, and which seeds it has."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logitcache.errors import NotFoundError
from logitcache.format.schema import CacheSpec
from logitcache.store.codecs import unpack
from logitcache.store.disk import HOW_TO_RESTORE, reading
from logitcache.store.local import suggest_caches
from logitcache.store.place import KEYS, Place
from logitcache.store.shards import COMMIT, most_bytes, open_group, parse_root, require_form, shard_file

Keys = npt.NDArray[np.uint64]
SEED = re.compile("seed-(0|[1-9][0-9]{0,18})")


def read_root(place: Place) -> CacheSpec:
    """Read the spec of the cache at `place`.

    Raises:
        NotFoundError: there is none.
        FormatError: it is damaged, or newer than this library.
        StorageError: the disk or the host said no.
    """
    with reading(place, HOW_TO_RESTORE):
        if not (found := place.fetch(["zarr.json"])):
            if not place.writable:
                raise NotFoundError(f"no cache at {place}; check the URL")
            if not place.vacant():
                if len(place.fetch(["config.json", "metrics.jsonl"])) == 2:
                    raise NotFoundError(
                        f"no cache at {place}, which is a run folder of `logitcache train`; name a cache"
                    )
                raise NotFoundError(
                    f"no cache at {place}, where something else is ({_describe(place)}); name a cache, or an empty "
                    "place to make one"
                )
            advice = suggest_caches(place) or f"; `logitcache dump --out {place}` makes one"
            raise NotFoundError(f"no cache at {place}{advice}")
        attributes = open_group(found).attrs.asdict()
    return parse_root(attributes, place)


def _describe(place: Place) -> str:
    """Say what is at a place that is not a cache: a file, or the first names in a folder."""
    if isinstance(place.path, Path) and not place.path.is_dir():
        return "a file"
    names = sorted(place.names())
    first = ", ".join(name if name.isprintable() else repr(name) for name in names[:3])
    return f"{first} and {len(names) - 3:,} more" if len(names) > 3 else first


def read_keys(place: Place, spec: CacheSpec) -> Keys | None:
    """Read the sample keys of the cache at `place`, (n,) uint64, for the samples of `spec`; None if it has none.

    Raises:
        FormatError: they are damaged.
        StorageError: the disk or the host said no.
    """
    array, name = spec.key_array(), f"{KEYS}/zarr.json"
    with reading(f"{place}/{KEYS}"):
        metadata = place.fetch([name, "zarr.json"])
        if not metadata.get(name):
            return None
        require_form(open_group(metadata), [array], place, longer=True)  # longer while a cache grows
        shards = range(spec.layout.shards)
        files = place.fetch((shard_file(array, shard) for shard in shards), most_bytes(spec))
        rows = [
            unpack(files.get(shard_file(array, shard)), array, len(spec.layout.samples_of(shard)))
            for shard in shards
        ]
    return np.concatenate(rows)


def seeds_begun(place: Place) -> list[int]:
    """List the seeds of the cache at `place` that have been begun, in rising order."""
    seeds = seeds_named(place)
    begun = place.nonempty(f"seed-{seed}/{COMMIT}" for seed in seeds)
    return [seed for seed in seeds if f"seed-{seed}/{COMMIT}" in begun]


def seeds_named(place: Place) -> list[int]:
    """List the seeds that have a folder in the cache at `place`, in rising order."""
    return sorted(int(name[5:]) for name in place.names() if SEED.fullmatch(name))


def seed_list(seeds: list[int]) -> str:
    """Return seeds as text: "seeds 0-3, 7", "seed 5" or "no seed"."""
    if not seeds:
        return "no seed"
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"seed{'s' if len(seeds) > 1 else ''} {text}"
