"""How many bytes a cache will have, before it is made: its metadata as they will be, its shards by a sample of rows.

A cache of few samples is mostly metadata, keys and class statistics, so nothing of it is left out.
"""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from logitcache.format.class_statistics import ClassStatistics
from logitcache.format.schema import ArraySpec, CacheSpec
from logitcache.store.codecs import pack
from logitcache.store.seed_writer import seed_metadata
from logitcache.store.shards import Arrays, group_metadata, root_attributes
from logitcache.store.statistics import pack_statistics

INDEX_ENTRY = 16  # bytes of a chunk in the index of its file
INDEX_END = 4
WINDOWS = 8  # of the sampled rows, at most, of which a small chunk is made for its size


class CacheSize(NamedTuple):
    """Bytes of a cache.

    Attributes:
        once: of its root, sample keys and class statistics.
        seed: of each seed.
    """

    once: int
    seed: int


def forecast_size(
    spec: CacheSpec, rows: Arrays, seeds: Iterable[int], statistics: ClassStatistics | None = None
) -> CacheSize:
    """Foretell the size of a cache with sample keys.

    Args:
        spec: of the cache.
        rows: a sample of its rows in stored dtypes, by name of `CacheSpec.arrays`: those by sample, (r, …) each. Of
            larger chunks the size is told by how it grows from a quarter of these rows to half.
        seeds: that it will hold.
        statistics: that it will hold, if its spec is calibrated.
    """
    random = np.random.default_rng(0)
    keys = random.integers(0, 1 << 64, spec.shard_samples, dtype=np.uint64, endpoint=False)
    digests = random.integers(0, 1 << 32, spec.canaries, dtype=np.uint32, endpoint=False)
    of_rows = {a.name: _forecast_array(a, rows[a.name], spec) for a in spec.arrays() if a.shards}
    of_keys = _forecast_array(spec.key_array(), keys, spec)
    of_shard = _chunk_size(digests[None], spec.canary_array(), 1) + _chunk_size(
        keys[:1], spec.commit_array(), 1
    )
    metadata = sum(map(len, seed_metadata(spec).values()))
    once = len(group_metadata([], root_attributes(spec))["zarr.json"]) + of_keys
    once += len(group_metadata([spec.key_array()])[f"{spec.key_array().name}/zarr.json"])
    once += len(json.dumps({"seeds": list(seeds)}))
    if statistics is not None:
        once += sum(map(len, pack_statistics(spec, statistics).values()))
    return CacheSize(once, metadata + sum(of_rows.values()) + spec.layout.shards * of_shard)


def _forecast_array(array: ArraySpec, values: npt.NDArray[Any], spec: CacheSpec) -> int:
    """Foretell the bytes of an array's files, all shards together."""
    step, total = array.chunks[0], 0.0
    sizes: dict[int, float] = {}
    for length in (len(spec.layout.samples_of(shard)) for shard in range(spec.layout.shards)):
        for rows in (min(step, length - first) for first in range(0, length, step)):
            if rows not in sizes:
                sizes[rows] = _forecast_chunk(array, values, rows)
            total += sizes[rows]
        if array.shards:
            total += INDEX_ENTRY * (array.shards[0] // step) + INDEX_END
    return round(total)


def _forecast_chunk(array: ArraySpec, values: npt.NDArray[Any], rows: int) -> float:
    """Foretell the bytes of a chunk that holds so many rows, and zeros up to its size."""
    if rows <= len(values):
        starts = np.linspace(0, len(values) - rows, min(WINDOWS, len(values) // rows), dtype=int)
        return float(np.mean([_chunk_size(values[at : at + rows], array, array.chunks[0]) for at in starts]))
    half, quarter = (max(1, len(values) // parts) for parts in (2, 4))
    two, four = (
        float(
            np.mean(
                [_chunk_size(values[at * step :][:step], array, step) for at in range(len(values) // step)]
            )
        )
        for step in (half, quarter)
    )
    growth = (two - four) / (half - quarter) if half > quarter else two
    return two + growth * (rows - half)


def _chunk_size(values: npt.NDArray[Any], array: ArraySpec, step: int) -> int:
    """Return the bytes of values as a chunk of `step` rows; 0 if they are all zeros, which need none."""
    chunk = dataclasses.replace(array, chunks=(step, *array.chunks[1:]), shards=None)
    return len(pack(values, chunk) or b"")
