"""What torch's CPU generator draws, for the generators of thousands of views at once, with NumPy."""

import functools

import numpy as np
import numpy.typing as npt
import torch

from logitcache.errors import OptionError

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

# Until the state is first twisted as a whole, output j needs words j, j + 1 and j + 397 of the initial state alone.
MAX_WORDS = 624 - 397


def draw_words(seeds: Words, count: int) -> Words:
    """Draw the first words of many Mersenne Twisters (MT19937, Matsumoto and Nishimura, 1998).

    Args:
        seeds: (n,) uint32, one per generator.
        count: words of each, at most `MAX_WORDS`.

    Returns:
        (count, n) uint32.

    Raises:
        OptionError: more words than that.
    """
    if count > MAX_WORDS:
        raise OptionError(f"count must be at most {MAX_WORDS} words, found {count}")
    state = np.empty((count + 1, len(seeds)), np.uint32)
    ahead = np.empty((count, len(seeds)), np.uint32)
    word = seeds.astype(np.uint32)
    shifted = np.empty_like(word)
    for j in range(397 + count):
        if j:
            np.right_shift(word, 30, out=shifted)
            np.bitwise_xor(word, shifted, out=word)
            np.multiply(word, np.uint32(1812433253), out=word)
            np.add(word, np.uint32(j), out=word)
        if j <= count:
            state[j] = word
        if j >= 397:
            ahead[j - 397] = word
    y = (state[:-1] & np.uint32(0x80000000)) | (state[1:] & np.uint32(0x7FFFFFFF))
    y = ahead ^ (y >> np.uint32(1)) ^ ((y & np.uint32(1)) * np.uint32(0x9908B0DF))
    y ^= y >> np.uint32(11)
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    y ^= y >> np.uint32(18)
    drawn: Words = y
    return drawn


class ViewGenerators:
    """The generators of n views, each at its own position in its stream of words.

    Args:
        keys: (n,) uint64; torch's generator takes the low 32 bits of a seed.
        limit: words that any of them gives in all, at most `MAX_WORDS`.
    """

    def __init__(self, keys: npt.NDArray[np.uint64], limit: int) -> None:
        self._words = draw_words(keys.astype(np.uint32), limit)
        self._at = np.zeros(len(keys), np.int64)

    def __len__(self) -> int:
        return len(self._at)

    def _take(self, rows: Ints) -> Words:
        words = self._words[self._at[rows], rows]
        self._at[rows] += 1
        return words

    def randint(self, bound: int | Ints, rows: Ints) -> Ints:
        """(len(rows),) int64 as ``torch.randint(0, bound, ())`` gives."""
        return self._take(rows).astype(np.int64) % bound

    def uniform(self, low: float, high: float, rows: Ints) -> npt.NDArray[np.float32]:
        """(len(rows),) float32 as ``torch.empty(1).uniform_(low, high)`` gives, for `is_exact_range` bounds."""
        first, last = np.float32(low), np.float32(high)
        unit = (self._take(rows) & np.uint32((1 << 24) - 1)) * 2.0**-24
        drawn = (unit * np.float64(last - first) + np.float64(first)).astype(np.float32)
        return np.where(drawn == last, first, drawn) if _torch_excludes_high() else drawn


def is_exact_range(low: float, high: float) -> bool:
    """Whether float64 holds every number of [low, high) before rounding, so that it is rounded once, as by torch."""
    return all(x == 0 or 2.0**-20 <= abs(x) <= 16 for x in (low, high))


@functools.cache
def _torch_excludes_high() -> bool:
    """Whether torch gives `low` where rounding would give `high`; not all of its versions do."""
    high = 1 + 2.0**-23  # half of what is drawn from [1, high) rounds to high
    drawn = torch.empty(64).uniform_(1, high, generator=torch.Generator().manual_seed(0))
    return not bool((drawn == high).any())
