"""Audit: what a cache holds, whether it is sound, and how it is mended.

`verify` checks every digest and every number, `repair` dumps damaged shards again, `rerun` asks the teacher again,
`summarize` sums a cache up for people. `rules` says what the numbers of a valid shard satisfy.
"""
