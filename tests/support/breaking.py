"""Caches of digits, and ways to break them."""

import dataclasses
from pathlib import Path

from logitcache.dump.settings import DumpConfig
from logitcache.store import CacheReader, CacheWriter
from logitcache.views.recipes import recipe_named

RECIPE = recipe_named("digits")
N = 150  # three shards, the last one shorter
SPEED = DumpConfig(batch_size=24, workers=0)


def config_of(**options: object) -> DumpConfig:
    return dataclasses.replace(SPEED, top_k=4, shard_samples=64, **options)  # type: ignore[arg-type]


def rewrite(cache: Path, seed: int, shard: int, change) -> None:
    """Commit other numbers in a shard's place, as a broken writer would have."""
    reader = CacheReader(cache)
    arrays = {name: values.copy() for name, values in reader.read(seed, shard).items()}
    change(arrays)
    with CacheWriter(reader.place, reader.spec).seed(seed) as own:
        own.delete(shard)
        own.write(shard, arrays)


def flip(file: Path, at: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)
