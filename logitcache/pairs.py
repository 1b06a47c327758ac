"""Which (sample, seed) pairs each batch of an epoch holds."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from logitcache.loader import Pair
from logitcache.views import permutation


class PairSampler:
    """Batches of (sample, seed) pairs for one epoch: a keyed shuffle, dealt to ranks.

    The order is a pure function of (key, epoch). Every rank gets the same number of batches: what does not
    fill a global batch is left out, as it is in most training, unless there is only one rank: then the last
    batch is smaller, or larger by one where it would hold a single sample. The first `start` batches are left out.
    """

    def __init__(
        self, samples: npt.NDArray[np.int64], seed: int, batch_size: int, *, order: int, epoch: int,
        rank: int = 0, world_size: int = 1, start: int = 0,
    ) -> None:  # fmt: skip
        shuffled = samples[permutation(len(samples), order, epoch)]
        if world_size > 1:
            shuffled = shuffled[: len(shuffled) - len(shuffled) % (batch_size * world_size)]
        firsts = range(rank * batch_size, len(shuffled), batch_size * world_size)
        batches = [shuffled[first : first + batch_size] for first in firsts]
        if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:  # batch norm needs two
            last = batches.pop()
            batches[-1] = np.concatenate([batches[-1], last])
        self._batches, self._seed = batches[start:], seed

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Pair]]:
        for batch in self._batches:
            yield [(sample, self._seed) for sample in batch.tolist()]


class Switch:
    """A batch sampler that can be exchanged between epochs while DataLoader workers live on."""

    current: PairSampler

    def __iter__(self) -> Iterator[list[Pair]]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)
