"""Which (sample, seed) pairs each batch of an epoch holds.

All of it is a function of keys and the epoch's number, so that an epoch may begin anywhere: `choose_samples` and
`choose_seeds` say what is drawn from, `PairSampler` the batches of one epoch, and `SwitchableSampler` hands a loader
whose workers live on one epoch after the other.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from logitcache.distributed import ALONE, World
from logitcache.errors import OptionError
from logitcache.views.keyed_views import Pair
from logitcache.views.keys import permutation

SeedOrder = Literal["mod", "random"]
_SUBSET, _SEEDS = -1, -2  # keys of what is drawn by `order` besides the epochs, which count from 0


def choose_seeds(
    epoch: int, seeds: Sequence[int], views_per_image: int = 1, seed_order: SeedOrder = "mod", order: int = 0
) -> tuple[int, ...]:
    """Return the seeds of an epoch, one for each view of an image.

    Args:
        epoch: from 0.
        seeds: all there are, S of them.
        views_per_image: how many an epoch takes, at most S.
        seed_order: "mod" takes them in turn; "random" shuffles each round of S by `order`, so that every seed is
            taken once before one comes again (an epoch that spans two rounds may take one twice).
        order: key of the shuffling.
    """

    def nth(number: int) -> int:
        turn, place = divmod(number, len(seeds))
        if seed_order == "random":
            place = int(permutation(len(seeds), order, _SEEDS, turn)[place])
        return seeds[place]

    return tuple(nth(epoch * views_per_image + view) for view in range(views_per_image))


def require_seeds(seeds: Sequence[int], views_per_image: int, seed_order: str) -> None:
    """Insist that `choose_seeds` can take so many of these seeds, in such an order.

    Raises:
        OptionError: it cannot.
    """
    if seed_order not in ("mod", "random"):
        raise OptionError(f"seed order must be mod or random, found {seed_order!r}")
    if not 1 <= views_per_image <= len(seeds):
        raise OptionError(
            f"views per image must be 1 to {len(seeds)}, the number of seeds, found {views_per_image}; dump or name "
            "more seeds, or take fewer views"
        )


def choose_samples(
    n: int, fraction: float = 1.0, samples: Sequence[int] | None = None, order: int = 0
) -> npt.NDArray[np.int64]:
    """Return the samples to train on, (m,) int64, rising.

    Args:
        n: number of samples there are.
        fraction: of those to train on, above 0 and at most 1.
        samples: the ones to draw from; None: all n.
        order: key by which the fraction is drawn.

    Raises:
        OptionError: the fraction is outside that range, or leaves nothing; or the list names a sample that is not
            there, or one twice.
    """
    if not 0 < fraction <= 1:
        raise OptionError(f"fraction must be above 0 and at most 1, found {fraction}")
    if outside := [sample for sample in (() if samples is None else samples) if not 0 <= sample < n][:1]:
        raise OptionError(f"there are samples 0 to {n - 1}, the list names {outside[0]}")
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
    """Batch sampler of one epoch: the (sample, seed) pairs of a keyed shuffle, dealt to ranks.

    The order is a pure function of (`order`, `epoch`). Every rank gets the same number of batches: what does not
    fill a global batch is dropped, as it is in most training, unless there is only one rank: then the last batch is
    smaller, or larger by one where it would hold a single pair. With several seeds each sample stands under all of
    them, side by side in one batch: its image is decoded once.

    Args:
        samples: (m,) int64, the samples of the epoch.
        seeds: its seeds, as `choose_seeds` returns them.
        batch_size: pairs per batch and rank; the number of seeds divides it.
        order: key of the shuffle.
        epoch: from 0.
        world: this rank among the others.
        start: batches to leave out at the beginning.

    Raises:
        OptionError: pairs of one sample do not fit evenly into a batch.
    """

    def __init__(
        self, samples: npt.NDArray[np.int64], seeds: Sequence[int], batch_size: int, *, order: int, epoch: int,
        world: World = ALONE, start: int = 0,
    ) -> None:  # fmt: skip
        if batch_size % len(seeds):
            raise OptionError(
                f"a batch of {batch_size} pairs cannot hold {len(seeds)} views of each image; "
                "choose a batch size that these divide"
            )
        size = batch_size // len(seeds)
        shuffled = samples[permutation(len(samples), order, epoch)]
        if world.size > 1:
            shuffled = shuffled[: len(shuffled) - len(shuffled) % (size * world.size)]
        firsts = range(world.rank * size, len(shuffled), size * world.size)
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


class SwitchableSampler:
    """Batch sampler of a DataLoader whose workers live on: `current` is set to another one between epochs."""

    current: PairSampler | Sequence[list[Pair]]

    def __iter__(self) -> Iterator[list[Pair]]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)
