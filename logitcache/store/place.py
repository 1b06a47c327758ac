"""`Place`: what the store asks of wherever a cache lies; `local` is a disk, `remote` whatever fsspec reaches.

A place is one folder of a cache, the root or a seed's, and names its files relative to itself ("ids/c/0/0"). They
are read and written whole, so all that a disk or a network can do wrong happens here, before anything is decoded.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self, TypeVar

INDEX = "seeds.json"  # which seeds there are, for hosts that do not list
KEYS = "sample_key"  # the array that names the samples, beside the root's zarr.json
MOST_METADATA = 1 << 24  # bytes of a zarr.json

_A = TypeVar("_A")
_B = TypeVar("_B")


class Place(ABC):
    """One folder of a cache.

    Attributes:
        path: the local path, or the URL without user and password.
        writable: whether anything can be written there at all.
    """

    path: Path | str
    writable: bool

    def __str__(self) -> str:
        return str(self.path)

    @abstractmethod
    def at(self, name: str) -> Self:
        """Return the folder `name` in this one."""

    @abstractmethod
    def each(self, work: Callable[[_A], _B], items: Iterable[_A]) -> list[_B]:
        """Do something for each item, several at a time where that saves time."""

    @abstractmethod
    def names(self) -> list[str]:
        """List the names in this folder, none if it is not there."""

    @abstractmethod
    def files(self) -> set[str] | None:
        """List every file below this folder; None where a host does not list."""

    @abstractmethod
    def filled(self, files: Iterable[str]) -> set[str]:
        """Return which of these files are there and not empty."""

    @abstractmethod
    def fetch(self, files: Iterable[str], most: int = MOST_METADATA) -> dict[str, bytes]:
        """Read those of these files that are there, each of at most so many bytes."""

    @abstractmethod
    def size(self, *, recurse: bool = True) -> int | None:
        """Sum the bytes of the files here; None where that cannot be known."""

    @abstractmethod
    def put(self, files: Mapping[str, bytes], *, new: bool = False) -> None:
        """Write files, each whole or not at all, durably; `new`: none of them is there already."""

    @abstractmethod
    def delete(self, files: Iterable[str]) -> None:
        """Delete those of these files that are there."""

    @abstractmethod
    def delete_folder(self, name: str) -> None:
        """Delete the folder `name` in this one, if it is there."""

    @abstractmethod
    def create(self, files: Mapping[str, bytes], root: bytes) -> None:
        """Make this the root of a cache, unless it is one, or holds something else: files, then its zarr.json."""

    @abstractmethod
    def growing(self) -> AbstractContextManager[None]:
        """Own the root of a cache while it grows, where the place knows locks; waits for who grows it."""

    @abstractmethod
    def owned(self, whose: str) -> AbstractContextManager[None]:
        """Own this seed, called `whose` in messages, where the place knows locks; clear what a crash left."""

    @abstractmethod
    def turn(self, shard: int) -> AbstractContextManager[None]:
        """Be the only one to write this shard of the seed, where the place knows locks; waits for who does."""

    @abstractmethod
    def storing(self) -> AbstractContextManager[None]:
        """Turn whatever goes wrong while writing into `StorageError`."""
