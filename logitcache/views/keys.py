"""Keyed randomness: numbers that depend on (seed, sample) and nothing else."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_UINT64 = (1 << 64) - 1


def key(*parts: int) -> int:
    """Mix integers into one of 64 bits, each part avalanching over the ones before it.

    A chain of SplitMix64 finalisers (Steele et al., "Fast splittable pseudorandom number generators", 2014).
    """
    return int(_mix(*parts))


def pair_keys(seeds: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return ``key(seed, sample)`` of each of n pairs; all (n,)."""
    return np.asarray(_mix(seeds.astype(np.uint64), samples.astype(np.uint64)), np.uint64)


def _mix(*parts: Any) -> Any:
    state: Any = 0
    for part in parts:  # Python integers, or arrays of uint64, which wrap by themselves
        state = (state + 0x9E3779B97F4A7C15 + (part & _UINT64)) & _UINT64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _UINT64
        state = state ^ (state >> 31)
    return state


def permutation(n: int, *parts: int) -> npt.NDArray[np.int64]:
    """Return a permutation of range(n), (n,) int64, that depends on `parts` alone (Philox, keyed)."""
    return np.random.Generator(np.random.Philox(key=key(*parts))).permutation(n)


@contextmanager
def preserve_rng(*, all_sources: bool = False) -> Iterator[None]:
    """Restore the state of torch's CPU generator (and of `random` and `numpy.random`) after a block of code."""
    torch_state = torch.default_generator.get_state()
    others = (random.getstate(), np.random.get_state()) if all_sources else None  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        if others is not None:
            random.setstate(others[0])
            np.random.set_state(others[1])  # noqa: NPY002
