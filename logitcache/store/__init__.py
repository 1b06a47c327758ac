"""The cache on disk: create, write shards, commit, resume, read. The only room that speaks Zarr.

A shard is the unit of everything: it has its commit entry, the digest of what it holds, or it does not exist.
`CacheWriter` writes data, makes it durable, and commits last; `CacheReader` checks the digest of all it reads.
Inside, `shards` says what a shard is in arrays, and `disk` what the disk says.
"""

from logitcache.store.reader import CacheReader, seed_list
from logitcache.store.shards import Arrays, shard_digest
from logitcache.store.writer import CacheWriter, SeedWriter

__all__ = ["Arrays", "CacheReader", "CacheWriter", "SeedWriter", "seed_list", "shard_digest"]
