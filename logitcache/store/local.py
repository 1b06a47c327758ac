"""A cache on a local disk: temporary files, flushed and renamed; locks that end with their process."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from logitcache.errors import BusyError
from logitcache.files import is_stray
from logitcache.locks import SOFT, HeldError, claim, lock
from logitcache.paths import find_near_paths, suggest
from logitcache.store.disk import (
    make_durable,
    make_folder,
    make_names_durable,
    require_file,
    size_of,
    storing,
)
from logitcache.store.place import CLASS_STATISTICS, KEYS, MOST_METADATA, Place

SHARD_LOCK = ".lock-"  # and the shard's number, in commit/
LOCK_TIMEOUT = 600.0  # seconds
UNKNOWN_TIMEOUT = 60.0  # seconds, for a holder of which nobody can say whether it lives

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

    def map(self, work: Callable[[_A], _B], items: Iterable[_A]) -> list[_B]:
        """Call `work` on one item after the other: a disk answers at once."""
        return [work(item) for item in items]

    def names(self) -> list[str]:
        """List the names in this folder but for strays; none if it is not there."""
        return [name for name in os.listdir(self.path) if not is_stray(name)] if self.path.exists() else []

    def vacant(self) -> bool:
        """Return whether this folder holds at most what is left of a cache that was never finished."""
        if not self.path.exists():
            return True
        unfinished = {".new", KEYS, CLASS_STATISTICS}
        return self.path.is_dir() and {n for n in self.names() if not n.startswith(".lock")} <= unfinished

    def files(self) -> set[str]:
        """List every file below this folder but for strays."""
        found = (
            (Path(parent) / name).relative_to(self.path)
            for parent, _, names in os.walk(self.path)
            for name in names
        )
        return {file.as_posix() for file in found if not any(map(is_stray, file.parts))}

    def nonempty(self, files: Iterable[str]) -> set[str]:
        """Return those of these files that exist and are not empty."""
        paths = ((name, self.path / name) for name in files)
        return {name for name, file in paths if file.is_file() and file.stat().st_size > 0}

    def fetch(self, files: Iterable[str], most: int = MOST_METADATA) -> dict[str, bytes]:
        """Read those of these files that exist, each of at most so many bytes."""
        found = {}
        for name in files:
            file = self.path / name
            require_file(file, most)
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                found[name] = file.read_bytes()
        return found

    def size(self, *, recurse: bool = True) -> int:
        """Sum the bytes of the files in this folder."""
        return size_of(self.path, recurse=recurse)

    def modified(self, files: Iterable[str]) -> list[float]:
        """Return when those of these files that exist were last written, in seconds."""
        paths = [self.path / name for name in files]
        return [path.stat().st_mtime for path in paths if path.is_file()]

    def put(self, files: Mapping[str, bytes], *, new: bool = False) -> None:
        """Write temporary files, flush them, rename them, and flush the folders."""
        temporary = {}
        for name, data in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary[file] = file.with_name(f"{file.name}.partial")
            temporary[file].write_bytes(data)
        make_durable(temporary.values())  # or a rename might reach the disk before the data: an empty file
        for file, partial in temporary.items():
            partial.replace(file)
        make_names_durable(temporary)

    def delete(self, files: Iterable[str]) -> None:
        """Delete those of these files that exist, durably."""
        found = [file for name in files if (file := self.path / name).exists()]
        for file in found:
            file.unlink(missing_ok=True)
        make_names_durable(found)

    def delete_folder(self, name: str) -> None:
        """Delete the folder `name` in this one, if it is there."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def create(self, files: Mapping[str, bytes], root: bytes, stale: Iterable[str] = ()) -> None:
        """Write files, then the root's zarr.json, unless this folder holds a cache or anything else."""
        if not self.vacant():
            return
        make_folder(self.path)
        with _waiting(self.path / ".lock", f"{self.path} is being begun"):
            if self.vacant():  # no other process was faster
                self.delete(stale)
                self.put(files)
                folder = self.path / ".new"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                (folder / "zarr.json").write_bytes(root)
                make_durable([folder / "zarr.json"])
                (folder / "zarr.json").replace(self.path / "zarr.json")
                folder.rmdir()
                make_names_durable([self.path / "zarr.json"])
            (self.path / ".lock").unlink(missing_ok=True)  # the root exists: no process takes this lock again

    def lock_root(self) -> AbstractContextManager[None]:
        """Lock the root of the cache; wait for another holder. A cache without sample keys has no place for that."""
        keys = self.path / KEYS  # a folder where Zarr lists no files
        return _waiting(keys / ".lock", f"{self.path} is being changed") if keys.is_dir() else nullcontext()

    @contextmanager
    def lock_seed(self, name: str) -> Iterator[None]:
        """Lock this seed, called `name` in messages; delete what a crash left.

        Raises:
            BusyError: another process holds the lock.
        """
        commit, keys = self.path / "commit", self.path.parent / KEYS
        locks = keys if keys.is_dir() else commit  # without sample keys a lock for each seed
        with ExitStack() as stack:
            with self.storing():
                commit.mkdir(parents=True, exist_ok=True)
                try:
                    with _waiting(locks / ".lock", f"{self.path.parent} is being changed"):
                        stack.enter_context(claim(commit, locks))
                except HeldError as error:
                    advice = error.how or "wait, or choose other seeds with --seeds"
                    raise BusyError(f"{name} is being written by {error.who}; {advice}") from error
                self._delete_leftovers()
            yield

    def lock_shard(self, shard: int) -> AbstractContextManager[None]:
        """Lock this shard of the seed; wait for another holder.

        Raises:
            BusyError: another process has held the lock for ten minutes.
        """
        file = self.path / "commit" / f"{SHARD_LOCK}{shard}"
        return _waiting(file, f"shard {shard} of {self.path} is being written")

    def storing(self) -> AbstractContextManager[None]:
        """Raise whatever goes wrong while writing as `StorageError`."""
        return storing(self.path)

    def _delete_leftovers(self) -> None:
        """Delete what a crash left: temporary files, commits that a power cut left empty, locks without flock."""
        for file in [*self.path.rglob("*.partial"), *(self.path / "commit").glob(f"{SHARD_LOCK}*{SOFT}*")]:
            file.unlink(missing_ok=True)
        for file in [self.path / "commit" / "zarr.json", *(self.path / "commit" / "c").glob("*")]:
            if file.is_file() and file.stat().st_size == 0:
                file.unlink()


@contextmanager
def _waiting(file: Path, what: str) -> Iterator[None]:
    """Hold a lock that is held for moments only; wait for another holder.

    Raises:
        BusyError: another process has held it for ten minutes; or for one, if it may have ended.
    """
    with ExitStack() as stack:
        with storing(file.parent):
            try:
                stack.enter_context(lock(file, LOCK_TIMEOUT, UNKNOWN_TIMEOUT))
            except HeldError as error:
                long = f", for more than {LOCK_TIMEOUT / 60:.0f} minutes; end that process and start again to go on"
                raise BusyError(f"{what} by {error.who}{f'; {error.how}' if error.how else long}") from error
        yield


def is_cache(path: Path) -> bool:
    """Say whether a local path looks like a whole cache."""
    return (path / "zarr.json").is_file() and not (path.parent / "zarr.json").is_file()


def suggest_caches(place: Place) -> str:
    """Say which caches may be meant by a local path at which nothing is; "" where none is near."""
    return suggest(find_near_paths(place.path, is_cache)) if isinstance(place, LocalPlace) else ""
