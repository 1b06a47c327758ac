"""Audit: what a cache holds, whether it is sound, and how damaged shards are dumped again.

- `summary`: a cache in a few lines, for `info`;
- `stats`: what the teacher says of the data, for `stats`; `pictures` draws it;
- `verify`: every checksum, digest and number of a cache; `invariants`: what the numbers of any valid shard satisfy;
- `repair`: damaged shards are deleted and dumped again, class statistics estimated again;
- `recheck`: the teacher is run again on random views, and compared with the cache;
- `checkup`: these three, as `verify --repair --replay` runs them.
"""
