"""`Place`: where a cache lies. `LocalPlace` is a folder on a disk, `RemotePlace` one that fsspec reaches.

A place is one folder of a cache, the root or a seed's, and names its files relative to itself ("ids/c/0/0"). Files
are read and written whole, so whatever a disk or a network does wrong happens here, before anything is decoded.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self, TypeVar

INDEX = "seeds.json"  # which seeds there are, for hosts that do not list
KEYS = "sample_key"  # the array of sample keys, beside the root's zarr.json
CLASS_STATISTICS = "class_statistics"  # the group of class statistics, beside it too
MOST_METADATA = 1 << 24  # bytes of a zarr.json

_A = TypeVar("_A")
_B = TypeVar("_B")


class Place(ABC):
    """One folder of a cache.

    Attributes:
        path: the local path, or the URL without user and password.
        writable: False for the web, which is for reading.
    """

    path: Path | str
    writable: bool

    def __str__(self) -> str:
        return str(self.path)

    @abstractmethod
    def at(self, name: str) -> Self:
        """Return the folder `name` in this one."""

    @abstractmethod
    def map(self, work: Callable[[_A], _B], items: Iterable[_A]) -> list[_B]:
        """Call `work` on each item, several at a time where that saves time; return the results in order."""

    @abstractmethod
    def names(self) -> list[str]:
        """List the names in this folder but for strays (`files.is_stray`); none if it is not there."""

    @abstractmethod
    def vacant(self) -> bool:
        """Return whether this folder holds at most what is left of a cache that was never finished."""

    @abstractmethod
    def files(self) -> set[str] | None:
        """List every file below this folder but for strays; None where a host does not list."""

    @abstractmethod
    def nonempty(self, files: Iterable[str]) -> set[str]:
        """Return those of these files that exist and are not empty."""

    @abstractmethod
    def fetch(self, files: Iterable[str], most: int = MOST_METADATA) -> dict[str, bytes]:
        """Read those of these files that exist.

        Raises:
            FormatError: one has more than `most` bytes, or is no file.
        """

    @abstractmethod
    def size(self, *, recurse: bool = True) -> int | None:
        """Sum the bytes of the files in this folder; None where a host does not tell."""

    def modified(self, files: Iterable[str]) -> list[float]:
        """Return when those of these files that exist were last written, in seconds; none where unknown."""
        return []

    @abstractmethod
    def put(self, files: Mapping[str, bytes], *, new: bool = False) -> None:
        """Write files durably, each whole or not at all; `new` says that none of them exists."""

    @abstractmethod
    def delete(self, files: Iterable[str]) -> None:
        """Delete those of these files that exist."""

    @abstractmethod
    def delete_folder(self, name: str) -> None:
        """Delete the folder `name` in this one, if it is there."""

    @abstractmethod
    def create(self, files: Mapping[str, bytes], root: bytes, stale: Iterable[str] = ()) -> None:
        """Write files, then the root's zarr.json, unless this folder holds a cache or anything else.

        Args:
            files: by name.
            root: the root's zarr.json.
            stale: names of files to delete first, which a cache that was never finished may have left.
        """

    @abstractmethod
    def lock_root(self) -> AbstractContextManager[object]:
        """Lock the root of the cache, where the place has locks; wait for another holder."""

    @abstractmethod
    def lock_seed(self, name: str) -> AbstractContextManager[None]:
        """Lock this seed, called `name` in messages, where the place has locks; delete what a crash left.

        Raises:
            BusyError: another process holds the lock.
        """

    @abstractmethod
    def lock_shard(self, shard: int) -> AbstractContextManager[None]:
        """Lock this shard of the seed, where the place has locks; wait for another holder.

        Raises:
            BusyError: another process has held the lock for ten minutes.
        """

    @abstractmethod
    def storing(self) -> AbstractContextManager[None]:
        """Raise whatever goes wrong while writing as `StorageError`."""
