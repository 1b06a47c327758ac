"""Which (sample, seed) pairs each batch of an epoch holds: functions of keys, so that an epoch may begin anywhere."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from logitcache.errors import OptionError
from logitcache.views.keys import permutation
from logitcache.views.loader import Pair

SeedOrder = Literal["mod", "random"]
_SUBSET, _SEEDS = -1, -2  # what is drawn from an order key besides epochs, which count from 0


def seeds_of(
    epoch: int, seeds: Sequence[int], views_per_image: int = 1, how: SeedOrder = "mod", order: int = 0
) -> tuple[int, ...]:
    """Return the seeds of an epoch, one for each view of an image.

    Args:
        epoch: from 0.
        seeds: all there are, S of them.
        views_per_image: how many an epoch takes, at most S.
        how: "mod" takes them in turn; "random" shuffles each round of S by the order key, so that every seed is taken
            once before one comes again (an epoch that spans two rounds may take one twice).
        order: key of the shuffling.
    """

    def nth(number: int) -> int:
        turn, place = divmod(number, len(seeds))
        return seeds[permutation(len(seeds), order, _SEEDS, turn)[place] if how == "random" else place]

    return tuple(nth(epoch * views_per_image + view) for view in range(views_per_image))


def require_views(seeds: Sequence[int], views_per_image: int, how: str) -> None:
    """Insist that `seeds_of` can take so many seeds of these, in such an order.

    Raises:
        OptionError: it cannot.
    """
    if how not in ("mod", "random"):
        raise OptionError(f"seed order must be mod or random, found {how!r}")
    if not 1 <= views_per_image <= len(seeds):
        raise OptionError(
            f"views per image must be 1 to {len(seeds)}, the number of seeds, found {views_per_image}; dump or name "
            "more seeds, or take fewer views"
        )


def require_rank(rank: int, world_size: int) -> None:
    """Insist that there is such a rank among so many.

    Raises:
        OptionError: there is none.
    """
    if not 0 <= rank < world_size:
        raise OptionError(f"rank must be 0 to {world_size - 1} of {world_size}, found {rank}")


def subset(
    n: int, fraction: float = 1.0, samples: Sequence[int] | None = None, order: int = 0
) -> npt.NDArray[np.int64]:
    """Return the samples to train on, (m,) int64, rising: of a list or all n, a fraction that the order key draws.

    Raises:
        OptionError: the fraction is not above 0 and at most 1, leaves nothing, or the list names others or one twice.
    """
    if not 0 < fraction <= 1:
        raise OptionError(f"fraction must be above 0 and at most 1, found {fraction}")
    if odd := [sample for sample in (() if samples is None else samples) if not 0 <= sample < n][:1]:
        raise OptionError(f"there are samples 0 to {n - 1}, the list names {odd[0]}")
    chosen = np.arange(n) if samples is None else np.unique(np.asarray(samples, dtype=np.int64))
    if samples is not None and len(chosen) < len(samples):
        raise OptionError(
            f"a list of samples names each once, found {len(samples)} of which {len(chosen)} differ"
        )
    if fraction < 1:
        drawn = permutation(len(chosen), order, _SUBSET)[: round(fraction * len(chosen))]
        chosen = chosen[np.sort(drawn)]
    if not len(chosen):
        raise OptionError(
            f"no sample is left to train on: fraction {fraction} of {n if samples is None else len(samples)}"
        )
    return chosen


class PairSampler:
    """Batches of (sample, seed) pairs for one epoch: a keyed shuffle, dealt to ranks.

    The order is a pure function of (key, epoch). Every rank gets the same number of batches: what does not
    fill a global batch is left out, as it is in most training, unless there is only one rank: then the last
    batch is smaller, or larger by one where it would hold a single pair. The first `start` batches are left out.
    With several seeds each sample stands under all of them, side by side in one batch: its image is decoded once.

    Raises:
        OptionError: pairs of one sample do not fit evenly into a batch.
    """

    def __init__(
        self, samples: npt.NDArray[np.int64], seeds: Sequence[int], batch_size: int, *, order: int, epoch: int,
        rank: int = 0, world_size: int = 1, start: int = 0,
    ) -> None:  # fmt: skip
        if batch_size % len(seeds):
            raise OptionError(
                f"a batch of {batch_size} pairs cannot hold {len(seeds)} views of each image; "
                "choose a batch size that these divide"
            )
        size = batch_size // len(seeds)
        shuffled = samples[permutation(len(samples), order, epoch)]
        if world_size > 1:
            shuffled = shuffled[: len(shuffled) - len(shuffled) % (size * world_size)]
        firsts = range(rank * size, len(shuffled), size * world_size)
        batches = [shuffled[first : first + size] for first in firsts]
        if len(batches) > 1 and len(batches[-1]) * len(seeds) == 1 < size:  # batch norm needs two
            last = batches.pop()
            batches[-1] = np.concatenate([batches[-1], last])
        self._batches, self._seeds = batches[start:], tuple(seeds)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Pair]]:
        for batch in self._batches:
            yield [(sample, seed) for sample in batch.tolist() for seed in self._seeds]


class Switch:
    """A batch sampler that can be exchanged between epochs while DataLoader workers live on."""

    current: PairSampler | Sequence[list[Pair]]

    def __iter__(self) -> Iterator[list[Pair]]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)
