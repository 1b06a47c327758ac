"""The soak: faults of every kind against a small cache, for developers; `make soak` runs it, the tests a slice.

Whatever is done to a cache, to the disk under it, or to the process that works on it, three things must not happen:
a wrong number that nobody noticed, a shard that was committed and is no longer there, and waiting without end.
"""
