"""Writing the shards of one seed: each is flushed to the disk, then committed."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt

from logitcache.errors import FormatError, OptionError
from logitcache.format.schema import CacheSpec
from logitcache.store.codecs import profile_codecs
from logitcache.store.disk import reading
from logitcache.store.place import Place
from logitcache.store.shards import (
    COMMIT,
    Arrays,
    count_shards,
    group_metadata,
    metadata_files,
    most_bytes,
    pack_commit,
    pack_shard,
    require_shard,
    seed_arrays,
    shard_file,
    shard_files,
    unpack_checked,
    unpack_commit,
)


class SeedWriter:
    """Writes the shards of one seed; `CacheWriter.seed` returns one, or `CacheWriter.unlocked`.

    Each shard has a lock of its own, held from the check whether it is committed until it is. Of two processes that
    write one shard, the second finds it committed, even if the first was taken for dead.
    """

    def __init__(
        self, place: Place, spec: CacheSpec, seed: int, metadata: Mapping[str, bytes] | None = None
    ) -> None:
        self.place, self.spec, self.seed = place, spec, seed
        with place.storing():
            if not place.nonempty([COMMIT]):
                self._create(metadata or seed_metadata(spec))
        with reading(place):
            count_shards(place.fetch(metadata_files(spec)), spec, place)
        with place.storing():
            self._lengthen()

    def committed(self) -> npt.NDArray[np.bool_]:
        """Return which shards are committed, (shards,) bool."""
        return np.not_equal(self.commits(), 0)

    def commits(self) -> npt.NDArray[np.uint64]:
        """Return the commit digests, (shards,) uint64; 0 where a shard is not there."""
        return self._commits(range(self.spec.layout.shards))

    def write(self, shard: int, arrays: Arrays) -> int:
        """Write one shard, flush it, commit it; what an earlier crash left of it is deleted first.

        Args:
            shard: its index; not committed yet.
            arrays: by name of `CacheSpec.arrays`, rows of this shard only; `gap` as float.

        Returns:
            The commit digest.

        Raises:
            OptionError: the shard is committed, or not one of the cache's, or its arrays do not fit.
            BusyError: another process has held the shard's lock for ten minutes.
            StorageError: the disk or the host said no. Nothing is committed then.
        """
        with self._lock_shard(shard):
            self._refuse_committed(shard)
            return self._write(shard, arrays)

    def write_if_missing(self, shard: int, arrays: Arrays) -> int:
        """Write one shard as `write` does, unless it is committed by now; return its commit digest."""
        with self._lock_shard(shard):
            return self._commit(shard) or self._write(shard, arrays)

    def _write(self, shard: int, arrays: Arrays) -> int:
        commit, files = pack_shard(arrays, self.spec, self.seed, shard)
        *data, last = shard_files(self.spec, shard)
        with self.place.storing():
            self._put(data, files)
            self.place.put({last: pack_commit(self.spec, commit)}, new=True)
        return commit

    def write_files(self, shard: int, commit: int, files: Mapping[str, bytes]) -> None:
        """Write one shard from its files in a copy of this cache, read them back, and only then commit it.

        Args:
            shard: its index; not committed yet.
            commit: its commit digest in the copy.
            files: by name, those of `shard_files` that the copy has.

        Raises:
            OptionError: the shard is committed, or not one of the cache's.
            FormatError: what was read back has another digest. Nothing is committed then.
            StorageError: the disk or the host said no. Nothing is committed then.
        """
        *data, last = shard_files(self.spec, shard)
        with self._lock_shard(shard):
            self._refuse_committed(shard)
            with self.place.storing():
                self._put(data, {name: files[name] for name in data if name in files})
            with reading(self.place):
                stored = self.place.fetch(data, most_bytes(self.spec))
            unpack_checked(stored, commit, self.spec, self.seed, shard, self.place)
            with self.place.storing():
                self.place.put({last: files[last]}, new=True)

    def delete(self, shard: int) -> None:
        """Delete a damaged shard, so that it can be written again: its commit first, durably, then its files.

        Nothing else deletes what was committed, and only `verify --repair` calls this.

        Raises:
            OptionError: it is not one of the cache's shards.
            StorageError: the disk or the host said no.
        """
        require_shard(self.spec, shard)
        *data, commit = shard_files(self.spec, shard)
        with self.place.storing():
            self.place.delete([commit])
            self.place.delete(data)

    def _lock_shard(self, shard: int) -> AbstractContextManager[None]:
        require_shard(self.spec, shard)
        return self.place.lock_shard(shard)

    def _put(self, names: list[str], files: Mapping[str, bytes]) -> None:
        """Write these files; of the other names, delete what an earlier crash left."""
        self.place.delete([name for name in names if name not in files])
        self.place.put(files)

    def _commits(self, shards: Sequence[int]) -> npt.NDArray[np.uint64]:
        array = self.spec.commit_array()
        with reading(f"{self.place}/commit"):
            files = self.place.fetch(shard_file(array, shard) for shard in shards)
            return np.array([unpack_commit(files, self.spec, shard) for shard in shards], np.uint64)

    def _commit(self, shard: int) -> int:
        return int(self._commits([shard])[0])

    def _refuse_committed(self, shard: int) -> None:
        if self._commit(shard):
            raise OptionError(f"shard {shard} of seed {self.seed} is committed: it is never written again")

    def _create(self, metadata: Mapping[str, bytes]) -> None:
        """Write the metadata of the arrays, that of `commit` last: without it the seed has not been begun."""
        self.place.delete_folder("commit/c")
        *first, last = metadata_files(self.spec)
        if missing := [name for name in (*first, last) if not metadata.get(name)]:
            raise FormatError(f"{self.place}: no metadata of {missing[0]} to begin the seed with")
        self.place.put({name: metadata[name] for name in first})
        self.place.put({last: metadata[last]})

    def _lengthen(self) -> None:
        """Where the data set has grown, give the arrays their new shape, `commit` last; their data stays."""
        if not self.spec.parts:
            return
        for a in seed_arrays(self.spec):
            file = f"{a.name}/zarr.json"
            metadata = json.loads(self.place.fetch([file])[file])
            if metadata["shape"] != list(a.shape):
                self.place.put({file: json.dumps({**metadata, "shape": a.shape}).encode()})


def seed_metadata(spec: CacheSpec) -> dict[str, bytes]:
    """Return the metadata files of a seed."""
    with profile_codecs(spec):
        return group_metadata(seed_arrays(spec))
