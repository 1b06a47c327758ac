"""A cache on a local disk: files renamed into place and flushed, locks that die with their process."""

import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from logitcache.errors import BusyError
from logitcache.store.disk import (
    make_durable,
    make_folder,
    make_names_durable,
    require_file,
    size_of,
    storing,
)
from logitcache.store.place import KEYS, MOST_METADATA, Place

SHARD_LOCK = ".lock-"  # and the shard's number, in commit/
LONGEST_TURN = 600.0  # seconds

_A = TypeVar("_A")
_B = TypeVar("_B")


class LocalPlace(Place):
    """A folder of a cache on a local disk."""

    writable = True
    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path

    def at(self, name: str) -> "LocalPlace":
        """Return the folder `name` in this one."""
        return LocalPlace(self.path / name)

    def each(self, work: Callable[[_A], _B], items: Iterable[_A]) -> list[_B]:
        """Do something for each item in turn: a disk does not keep one waiting."""
        return [work(item) for item in items]

    def names(self) -> list[str]:
        """List the names in this folder, none if it is not there."""
        return os.listdir(self.path) if self.path.exists() else []

    def files(self) -> set[str]:
        """List every file below this folder."""
        found = (Path(parent) / name for parent, _, names in os.walk(self.path) for name in names)
        return {file.relative_to(self.path).as_posix() for file in found}

    def filled(self, files: Iterable[str]) -> set[str]:
        """Return which of these files are there and not empty."""
        there = ((name, self.path / name) for name in files)
        return {name for name, file in there if file.is_file() and file.stat().st_size > 0}

    def fetch(self, files: Iterable[str], most: int = MOST_METADATA) -> dict[str, bytes]:
        """Read those of these files that are there, each of at most so many bytes."""
        found = {}
        for name in files:
            file = self.path / name
            require_file(file, most)
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                found[name] = file.read_bytes()
        return found

    def size(self, *, recurse: bool = True) -> int:
        """Sum the bytes of the files here."""
        return size_of(self.path, recurse=recurse)

    def put(self, files: Mapping[str, bytes], *, new: bool = False) -> None:
        """Write each file under another name, flush it, then rename it into its place, and flush the folders."""
        asides = {}
        for name, data in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            asides[file] = file.with_name(f"{file.name}.partial")
            asides[file].write_bytes(data)
        make_durable(
            asides.values()
        )  # a rename that reaches the disk before its data would show an empty file
        for file, aside in asides.items():
            aside.replace(file)
        make_names_durable(asides)

    def delete(self, files: Iterable[str]) -> None:
        """Delete those of these files that are there, durably."""
        gone = [file for name in files if (file := self.path / name).exists()]
        for file in gone:
            file.unlink(missing_ok=True)
        make_names_durable(gone)

    def delete_folder(self, name: str) -> None:
        """Delete the folder `name` in this one, if it is there."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def create(self, files: Mapping[str, bytes], root: bytes) -> None:
        """Make the root file aside, then move it into its place, so that it is whole or not there."""
        if not self._vacant():
            return
        make_folder(self.path)
        with FileLock(self.path / ".lock"):
            if self._vacant():  # still: nobody else was quicker
                self.put(files)
                aside = self.path / ".new"
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                (aside / "zarr.json").write_bytes(root)
                make_durable([aside / "zarr.json"])
                (aside / "zarr.json").replace(self.path / "zarr.json")
                aside.rmdir()
                make_names_durable([self.path / "zarr.json"])
            (self.path / ".lock").unlink(missing_ok=True)  # the root is there: nobody locks it again

    @contextmanager
    def growing(self) -> Iterator[None]:
        """Hold a lock that lies where Zarr lists no files."""
        with FileLock(self.path / KEYS / ".lock"):
            yield

    @contextmanager
    def owned(self, whose: str) -> Iterator[None]:
        """Hold the seed's lock; clear what a crash left.

        Raises:
            BusyError: another process holds it.
        """
        owner = self.path / "commit" / ".owner"
        with ExitStack() as held:
            with self.storing():
                owner.parent.mkdir(parents=True, exist_ok=True)
                try:
                    lock = FileLock(owner.with_name(".lock"), timeout=0, thread_local=False)
                    held.enter_context(lock.acquire())
                except Timeout as error:
                    who = owner.read_text() if owner.exists() else "another process"
                    raise BusyError(
                        f"{whose} is being written by {who}; wait, or dump other seeds"
                    ) from error
                held.callback(_forget, owner)
                owner.unlink(missing_ok=True)  # not written through, were it a link
                owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
                self._clear_leftovers()
            yield

    @contextmanager
    def turn(self, shard: int) -> Iterator[None]:
        """Hold the shard's lock.

        Raises:
            BusyError: another process has held it for ten minutes.
        """
        file = self.path / "commit" / f"{SHARD_LOCK}{shard}"
        with ExitStack() as held:
            with self.storing():
                try:
                    held.enter_context(FileLock(file, timeout=LONGEST_TURN))
                except Timeout as error:
                    raise BusyError(
                        f"shard {shard} of {self.path} has been locked for {LONGEST_TURN / 60:.0f} minutes by a "
                        "process that writes it; end that process and start again to go on"
                    ) from error
            yield

    def storing(self) -> AbstractContextManager[None]:
        """Turn what the disk says into `StorageError`."""
        return storing(self.path)

    def _vacant(self) -> bool:
        """Is there nothing but, perhaps, what a crash or another process left on the way to a cache?"""
        return not self.path.exists() or set(os.listdir(self.path)) <= {".lock", ".new", KEYS}

    def _clear_leftovers(self) -> None:
        """Delete what a crash left: files that were being written, and empty ones after a power cut."""
        for file in self.path.rglob("*.partial"):
            file.unlink(missing_ok=True)
        for file in [self.path / "commit" / "zarr.json", *(self.path / "commit" / "c").glob("*")]:
            if file.is_file() and file.stat().st_size == 0:
                file.unlink()


def _forget(owner: Path) -> None:
    with suppress(OSError):  # it is for messages only
        owner.unlink()
