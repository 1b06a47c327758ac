"""The epoch of a data set, in memory that its process shares with DataLoader workers, however these are started.

It lies in a mapped file, beside a byte for each sample that says whether it was drawn: a forked worker inherits the
map, a spawned one opens the file by its name. So workers that live on from epoch to epoch follow it, all know what
any of them has drawn, and no shared memory is needed, which containers may lack. Where no file can be had, forked
workers follow all the same.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_EPOCH, _SETTLED = range(2)  # places of the numbers
_BYTES = 16  # of the numbers


class SharedEpoch:
    """An epoch that one process sets and all read, and whether samples come again in it.

    Args:
        samples: how many there are.
    """

    def __init__(self, samples: int) -> None:
        self._file: Path | None = None
        try:
            self._file = _make_file(bytes(_BYTES + samples))
            self._map(_map(self._file))
        except OSError:
            self._map(np.frombuffer(mmap.mmap(-1, _BYTES + samples), np.uint8))
        self._own_file()

    def _map(self, memory: npt.NDArray[np.uint8]) -> None:
        self._memory, self._drawn = memory, memory[_BYTES:]
        self._numbers = memory[:_BYTES].view(np.int64)

    def _own_file(self) -> None:
        if self._file:
            weakref.finalize(self, _delete, self._file, os.getpid())

    def __reduce__(self) -> tuple[Any, ...]:
        if self._file and not self._file.exists():  # that of a copied object, which is no more
            with suppress(OSError):
                self._file = _make_file(self._memory.tobytes())
                self._map(_map(self._file))
                self._own_file()
        return _open, (self._file, self._numbers.tolist(), len(self._drawn))

    @property
    def epoch(self) -> int:
        """The epoch, from 0."""
        return int(self._numbers[_EPOCH])

    def set(self, epoch: int) -> None:
        """Set it; from now on samples may come again, as whoever sets epochs knows them."""
        self._numbers[_EPOCH], self._numbers[_SETTLED] = epoch, 1

    def comes_again(self, samples: Sequence[int]) -> bool:
        """Say, once, that one of these samples was drawn before, by whatever worker, and nobody has set an epoch."""
        if self._numbers[_SETTLED]:
            return False
        again = bool(self._drawn[samples].any()) or len(set(samples)) < len(samples)
        self._drawn[samples] = 1
        self._numbers[_SETTLED] |= again
        return again


def _make_file(content: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="logitcache-", suffix=".epoch")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError:  # a full disk
        _delete(Path(name), os.getpid())
        raise
    return Path(name)


def _map(file: Path) -> npt.NDArray[np.uint8]:
    return np.memmap(file, np.uint8, "r+")


def _open(file: Path | None, numbers: list[int], samples: int) -> SharedEpoch:
    """Open that of another process; where its file is gone, as its numbers were when the process was started."""
    opened = SharedEpoch.__new__(SharedEpoch)
    opened._file = file
    opened._map(np.zeros(_BYTES + samples, np.uint8))
    opened._numbers[:] = numbers
    if file is not None:
        with suppress(OSError):
            opened._map(_map(file))
    return opened


def _delete(file: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not a forked worker
        with suppress(OSError):
            file.unlink()
