"""The epoch of a data set, in memory that its process shares with DataLoader workers, however these are started.

It lies in a mapped file of a few bytes: a forked worker inherits the map, a spawned one opens the file by its name.
So workers that live on from epoch to epoch follow it, and no shared memory is needed, which containers may lack.
Where no file can be had, forked workers follow all the same.
"""

import mmap
import os
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_EPOCH, _FIRST, _SETTLED = range(3)  # places of the numbers; the second counts from 1
_BYTES = 24


class SharedEpoch:
    """An epoch that one process sets and all read, and whether samples come again in it."""

    def __init__(self) -> None:
        self._file: Path | None = None
        try:
            self._file = _make_file()
            self._numbers = _map(self._file)
        except OSError:
            self._numbers = np.frombuffer(mmap.mmap(-1, _BYTES), np.int64)
        self._own_file()

    def _own_file(self) -> None:
        if self._file:
            weakref.finalize(self, _delete, self._file, os.getpid())

    def __reduce__(self) -> tuple[Any, ...]:
        if self._file and not self._file.exists():  # that of a copied object, which is no more
            with suppress(OSError):
                file, numbers = _make_file(), self._numbers.tolist()
                self._file, self._numbers = file, _map(file)
                self._numbers[:] = numbers
                self._own_file()
        return _open, (self._file, self._numbers.tolist())

    @property
    def epoch(self) -> int:
        """The epoch, from 0."""
        return int(self._numbers[_EPOCH])

    def set(self, epoch: int) -> None:
        """Set it; from now on samples may come again, as whoever sets epochs knows them."""
        self._numbers[_EPOCH], self._numbers[_SETTLED] = epoch, 1

    def comes_again(self, samples: list[int]) -> bool:
        """Say, once, that the first sample ever drawn is drawn again, though nobody has set an epoch."""
        if self._numbers[_SETTLED]:
            return False
        if not self._numbers[_FIRST]:
            self._numbers[_FIRST] = samples[0] + 1
            samples = samples[1:]
        again = int(self._numbers[_FIRST]) - 1 in samples
        self._numbers[_SETTLED] = int(again)
        return again


def _make_file() -> Path:
    descriptor, name = tempfile.mkstemp(prefix="logitcache-", suffix=".epoch")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(_BYTES))
    except OSError:  # a full disk
        _delete(Path(name), os.getpid())
        raise
    return Path(name)


def _map(file: Path) -> npt.NDArray[np.int64]:
    return np.memmap(file, np.int64, "r+", shape=(3,))


def _open(file: Path | None, numbers: list[int]) -> SharedEpoch:
    """Open that of another process; where its file is gone, as it was when the process was started."""
    opened = SharedEpoch.__new__(SharedEpoch)
    opened._file = file
    opened._numbers = np.array(numbers, np.int64)
    if file is not None:
        with suppress(OSError):
            opened._numbers = _map(file)
    return opened


def _delete(file: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not a forked worker
        with suppress(OSError):
            file.unlink()
