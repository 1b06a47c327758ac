"""Store: a cache on disk or at a host. Create it, write shards, commit, resume, read. Only here is Zarr imported.

A shard is the unit of everything: it has a commit entry, the digest of its arrays, or it does not exist.
`CacheWriter` writes its files, flushes them, and commits last; `CacheReader` checks the digest of all that it reads.

- `reader`, `writer`: those two; `seed_writer` writes one seed's shards, `root` reads the root's spec and keys;
- `shards`: one shard in arrays and files, its digest and its commit;
- `statistics`: how the teacher's classes vary together, a small group of files in the root;
- `codecs`: an array's files packed and unpacked, bit for bit as Zarr does;
- `place`: where a cache lies, as the reader and the writer see it; `local` is a folder on a `disk`, `remote` one that
  fsspec reaches, `address` finds which from a path or URL;
- `copy`: seeds from one place to another; `derive`: a smaller cache from a larger one.
"""

from logitcache.store.reader import CacheReader
from logitcache.store.root import seed_list
from logitcache.store.seed_writer import SeedWriter
from logitcache.store.shards import Arrays, shard_digest
from logitcache.store.writer import CacheWriter

__all__ = ["Arrays", "CacheReader", "CacheWriter", "SeedWriter", "seed_list", "shard_digest"]
