"""Writing a cache: shards made durable and then committed, one owner per seed."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import Crc32cCodec, ZstdCodec

from logitcache.errors import BusyError, MismatchError, OptionError
from logitcache.schema import ArraySpec, CacheSpec
from logitcache.store.disk import local, make_durable, reading, storing
from logitcache.store.reader import CacheReader
from logitcache.store.shards import (
    ATTRIBUTE,
    MOST_SHARDS,
    Arrays,
    as_stored,
    begun,
    open_array,
    require_shard,
    shard_digest,
    shard_file,
)


class CacheWriter:
    """Writes one cache; several processes may, each on seeds of its own."""

    def __init__(self, path: Path, spec: CacheSpec) -> None:
        self.path, self.spec = path, spec

    @classmethod
    def open(cls, path: str | Path, spec: CacheSpec) -> Self:
        """Create the cache, or open it to go on with it.

        Raises:
            MismatchError: there is a cache of another teacher, data set, recipe, k … at `path`.
            FormatError: there is something else, or a damaged cache, at `path`.
            OptionError: the shards would be too many.
            StorageError: the disk said no.
        """
        path = local(path)
        if spec.shards > MOST_SHARDS:
            raise OptionError(
                f"shards of {spec.shard_samples} samples make {spec.shards} of a seed, "
                f"more than {MOST_SHARDS}; choose a larger shard size"
            )
        with storing(path):
            if _vacant(path):
                path.mkdir(parents=True, exist_ok=True)
                with FileLock(path / ".lock"):
                    if _vacant(path):  # still: nobody else was quicker
                        _create_root(path, spec)
                    (path / ".lock").unlink(missing_ok=True)  # the root is there: nobody locks it again
        found = CacheReader(path).spec
        if fields := spec.differences(found):
            raise MismatchError(
                f"{path} is another cache than the one asked for",
                fields,
                "give the same options to go on with it, or another --out to begin a new one",
            )
        return cls(path, found)

    @contextmanager
    def seed(self, seed: int) -> Iterator["SeedWriter"]:
        """Own one seed: nobody else writes it while the context is open.

        Raises:
            BusyError: another process owns it.
        """
        folder = self.path / f"seed-{seed}"
        owner = folder / "commit" / ".owner"
        with ExitStack() as held:
            with storing(folder):
                owner.parent.mkdir(parents=True, exist_ok=True)
                try:
                    lock = FileLock(owner.with_name(".lock"), timeout=0, thread_local=False)
                    held.enter_context(lock.acquire())
                except Timeout as error:
                    who = owner.read_text() if owner.exists() else "another process"
                    raise BusyError(
                        f"seed {seed} of {self.path} is being written by {who}; wait, or dump other seeds"
                    ) from error
                held.callback(_forget, owner)
                owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield SeedWriter(folder, self.spec, seed)


class SeedWriter:
    """Writes the shards of one seed; made by `CacheWriter.seed`, which holds the lock."""

    def __init__(self, folder: Path, spec: CacheSpec, seed: int) -> None:
        self.folder, self.spec, self.seed = folder, spec, seed
        with storing(folder):
            _clear_leftovers(folder)
            if not begun(folder):
                self._create()
            with reading(folder):
                group = zarr.open_group(zarr.storage.LocalStore(folder), mode="r+")
                self._arrays = {a.name: open_array(group, a, folder) for a in self._all()}

    def committed(self) -> npt.NDArray[np.bool_]:
        """Say which shards are committed, (shards,) bool."""
        with reading(self.folder / "commit"):
            commits: npt.NDArray[np.uint64] = np.asarray(self._arrays["commit"][:])
        return np.not_equal(commits, 0)

    def write(self, shard: int, arrays: Arrays) -> None:
        """Write one shard, make it durable, commit it; what an earlier crash left of it is deleted first.

        Args:
            shard: its index; not committed yet.
            arrays: by name of `CacheSpec.arrays`, rows of this shard only; `gap` as float.

        Raises:
            OptionError: the shard is committed, or not one of the cache's, or its arrays do not fit.
            StorageError: the disk said no. Nothing is committed then.
        """
        require_shard(self.spec, shard)
        if self.committed()[shard]:
            raise OptionError(f"shard {shard} of seed {self.seed} is committed: it is never written again")
        stored = {a.name: as_stored(arrays[a.name], a, self.spec, shard) for a in self.spec.arrays()}
        with storing(self.folder):
            files = [shard_file(self.folder, a, shard) for a in self._all()]
            for file in files:
                file.unlink(missing_ok=True)
            for a in self.spec.arrays():
                self._arrays[a.name][self.spec.place(a, shard)] = stored[a.name]
            make_durable(files[:-1])
            self._arrays["commit"][shard] = shard_digest(self.spec, self.seed, shard, stored)
            make_durable(files[-1:])

    def _all(self) -> tuple[ArraySpec, ...]:
        return (*self.spec.arrays(), self.spec.commit_array())

    def _create(self) -> None:
        """Make the arrays, durably, and `commit` last: what is there without it is void."""
        shutil.rmtree(self.folder / "commit" / "c", ignore_errors=True)
        group = zarr.open_group(zarr.storage.LocalStore(self.folder), mode="a")
        for a in self._all():
            group.create_array(
                a.name,
                shape=a.shape,
                dtype=a.dtype,
                chunks=a.chunks,
                shards=a.shards,
                dimension_names=a.dimensions,
                compressors=[ZstdCodec(level=3), Crc32cCodec()],
                fill_value=0,
                overwrite=a.name != "commit",  # that one holds the lock
            )
            make_durable([self.folder / "zarr.json", self.folder / a.name / "zarr.json"])


def _vacant(path: Path) -> bool:
    """Is there nothing at `path` but, perhaps, what a crash or another process left on the way to a cache?"""
    return not path.exists() or set(os.listdir(path)) <= {".lock", ".new"}


def _create_root(path: Path, spec: CacheSpec) -> None:
    """Make the root group aside, then move it into its place, so that it is whole or not there."""
    aside = path / ".new"
    shutil.rmtree(aside, ignore_errors=True)
    zarr.create_group(zarr.storage.LocalStore(aside), attributes={ATTRIBUTE: spec.to_dict()})
    make_durable([aside / "zarr.json"])
    (aside / "zarr.json").replace(path / "zarr.json")
    aside.rmdir()
    make_durable([path / "zarr.json"])


def _clear_leftovers(folder: Path) -> None:
    """Delete what a crash left in a seed: files that were being written, and empty ones after a power cut."""
    for file in folder.rglob("*.partial"):
        file.unlink(missing_ok=True)
    for file in [folder / "commit" / "zarr.json", *(folder / "commit" / "c").glob("*")]:
        if file.is_file() and file.stat().st_size == 0:
            file.unlink()


def _forget(owner: Path) -> None:
    with suppress(OSError):  # it is for messages only
        owner.unlink()
