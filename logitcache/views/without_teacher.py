"""Samples that no teacher's row of a cache says anything of: whatever became of their images, no row is lost."""

import numpy as np
import numpy.typing as npt

from logitcache.errors import FormatError
from logitcache.store.reader import CacheReader
from logitcache.views.mixing import Mixer


def find_without_teacher(reader: CacheReader, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Find those of some samples that have no teacher under any seed, as their images did not decode.

    A view that such an image is mixed into must have none either. Of a sample whose shards are not committed, or are
    damaged, nothing is known, and it is not among them.

    Args:
        reader: the cache.
        samples: (m,) int64, rising.

    Returns:
        Some of them, in order.
    """
    mixer, layout = Mixer.from_recipe(reader.spec.recipe), reader.spec.layout
    populations = [then.dataset.n for then in reader.spec.history()]
    left, seen = samples.tolist(), set[int]()
    try:
        for seed in reader.seeds():
            if not left:
                break
            committed = np.flatnonzero(reader.commits(seed)).tolist()
            rows = {i: [i, *mixer.find_mixed([i], seed, populations)] for i in left}
            shards = {layout.shard_of(row) for taken in rows.values() for row in taken} & {*committed}
            answered = {
                row
                for shard in shards
                for row in {*layout.samples_of(shard)}.difference(reader.without_teacher(seed, shard))
            }
            left = [i for i in left if answered.isdisjoint(rows[i])]
            seen.update(i for i in left if layout.shard_of(i) in shards)
    except FormatError:
        return samples[:0]
    return np.array([i for i in left if i in seen], dtype=np.int64)
