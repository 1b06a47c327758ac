"""Which samples each shard of a seed holds, and where its rows lie, as the data set grew."""

import functools
from bisect import bisect_right
from dataclasses import dataclass

from logitcache.format.identity import PartSpec


@dataclass(frozen=True)
class ShardLayout:
    """How the samples of a seed are cut into shards.

    Each part by which the data set grew begins a new shard, so that no shard is ever written again. Rows of the
    arrays are counted by shard, not by sample: rows that a short shard before the last leaves free stay free.
    """

    parts: tuple[PartSpec, ...]  # oldest first; one where the data set never grew
    shard_samples: int
    canaries: int

    @functools.cached_property
    def _begins(self) -> tuple[list[int], list[int]]:
        """Return the first shard and the first sample of each part, and of a next one."""
        shards, samples = [0], [0]
        for part in self.parts:
            shards.append(shards[-1] - (samples[-1] - part.n) // self.shard_samples)
            samples.append(part.n)
        return shards, samples

    @property
    def shards(self) -> int:
        """Number of shards of one seed."""
        return self._begins[0][-1]

    @property
    def rows(self) -> int:
        """Number of rows of the arrays by sample: n, and the rows that short shards before the last leave free."""
        last = self.shards - 1
        return last * self.shard_samples + len(self.samples_of(last))

    def samples_of(self, shard: int) -> range:
        """Return the samples of one shard; those of all shards, in order, are all samples."""
        shards, samples = self._begins
        part = min(bisect_right(shards, shard), len(samples) - 1)
        start = samples[part - 1] + (shard - shards[part - 1]) * self.shard_samples
        return range(start, min(start + self.shard_samples, samples[part]))

    def rows_of(self, shard: int) -> slice:
        """Return the rows at which one shard lies in the arrays by sample."""
        first = shard * self.shard_samples
        return slice(first, first + len(self.samples_of(shard)))

    def shard_of(self, sample: int) -> int:
        """Return the shard that holds a sample."""
        shards, samples = self._begins
        part = bisect_right(samples, sample) - 1
        return shards[part] + (sample - samples[part]) // self.shard_samples

    def fingerprint_of(self, shard: int) -> str:
        """Return the fingerprint of the data set as it was when its last growth brought this shard."""
        return self.parts[bisect_right(self._begins[0], shard) - 1].fingerprint

    def canary_samples(self, shard: int) -> list[int]:
        """Return the samples of one shard whose views are kept as a digest: evenly spaced, first included."""
        samples = self.samples_of(shard)
        return [samples[(c * len(samples)) // self.canaries] for c in range(self.canaries)]
