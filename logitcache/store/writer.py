"""Writing a cache: a shard is flushed to the disk, then committed; one process at a time writes a seed."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from logitcache.errors import FormatError, MismatchError, NotFoundError, OptionError
from logitcache.format.class_statistics import ClassStatistics
from logitcache.format.schema import CacheSpec
from logitcache.store.address import place_of
from logitcache.store.codecs import pack, profile_codecs
from logitcache.store.disk import reading
from logitcache.store.place import INDEX, Place
from logitcache.store.reader import CacheReader, Keys, read_keys, read_root, seeds_named
from logitcache.store.shards import (
    COMMIT,
    MOST_SHARD_BYTES,
    MOST_SHARDS,
    Arrays,
    count_shards,
    group_metadata,
    metadata_files,
    most_bytes,
    pack_commit,
    pack_shard,
    require_shard,
    root_attributes,
    seed_arrays,
    shard_file,
    shard_files,
    unpack_checked,
    unpack_commit,
)
from logitcache.store.statistics import STATISTICS_FILES, pack_statistics


class CacheWriter:
    """Writes one cache; several processes may, each on seeds of its own."""

    def __init__(self, place: Place, spec: CacheSpec) -> None:
        self.place, self.spec = place, spec
        self.path = place.path
        self._listed: set[int] = set()

    @classmethod
    def open(
        cls,
        path: str | Path,
        spec: CacheSpec,
        keys: Keys | None = None,
        statistics: ClassStatistics | Mapping[str, bytes] | None = None,
        *,
        grow: bool = False,
    ) -> Self:
        """Create the cache, or open it to go on with it, at a local path or an fsspec URL.

        Args:
            path: where it is, or is to be.
            spec: what it is.
            keys: (n,) uint64 sample keys; a cache created without any cannot grow.
            statistics: what a new cache begins with if its spec is calibrated, or their files from a copy of it;
                one that is there has its own, whatever is given.
            grow: let a cache that is what `spec` was before its data set grew become what it is now.

        Raises:
            MismatchError: there is a cache of another teacher, data set, recipe, k … at `path`.
            FormatError: there is something else, or a damaged cache, at `path`.
            OptionError: the shards would be too many; the cache is new, and of spec and statistics one is calibrated
                alone; or nothing can be written at such a URL.
            StorageError: the disk or the host said no.
        """
        if spec.layout.shards > MOST_SHARDS:
            raise OptionError(
                f"shards of {spec.shard_samples} samples make {spec.layout.shards} of a seed, "
                f"more than {MOST_SHARDS}; choose a larger shard size"
            )
        if (size := spec.shard_samples * spec.sample_bytes) > MOST_SHARD_BYTES:
            raise OptionError(
                f"shards of {spec.shard_samples} samples take {size} bytes, more than {MOST_SHARD_BYTES}; "
                "choose a smaller shard size, or keep fewer logits"
            )
        place = _writable_place(path)
        with place.storing():
            if place.vacant():
                files = _first_files(spec, keys, statistics)
                place.create(files, _root_metadata(spec), STATISTICS_FILES)
        if grow and keys is not None:
            _grow(place, spec, keys)
        found = read_root(place)
        if fields := found.differences(spec):
            raise MismatchError(
                f"{place} is another cache than the one asked for",
                fields,
                "give the same options, or leave them out, to go on with it; or another --out to begin a new one",
            )
        return cls(place, found)

    @staticmethod
    def find(path: str | Path) -> CacheReader | None:
        """Read the cache that `open` would go on with; None if there is none yet.

        Raises:
            FormatError: it is damaged.
            OptionError: nothing can be written at such a URL.
            StorageError: the disk or the host said no.
        """
        _writable_place(path)
        try:
            return CacheReader(path)
        except NotFoundError:
            return None

    @contextmanager
    def seed(self, seed: int, metadata: Mapping[str, bytes] | None = None) -> Iterator["SeedWriter"]:
        """Lock one seed and yield its writer: on a local disk no other process locks it while the context is open.

        However that ends, seeds.json then names the seed, for readers of a host that does not list its files.

        Args:
            seed: which.
            metadata: files of its arrays, from a copy of this cache; new ones by default.

        Raises:
            BusyError: another process holds the lock.
            StorageError: the disk or the host said no.
        """
        place = self.place.at(f"seed-{seed}")
        with place.lock_seed(f"seed {seed} of {self.path}"):
            try:
                yield SeedWriter(place, self.spec, seed, metadata)
            finally:
                self._list_seeds(seed)

    def unlocked(self, seed: int) -> "SeedWriter":
        """Return a writer of a seed whose lock another process holds, to help it; only with `write_if_missing`.

        Raises:
            NotFoundError: the seed has not been begun.
        """
        place = self.place.at(f"seed-{seed}")
        if not place.nonempty([COMMIT]):
            raise NotFoundError(
                f"{place} has not been begun; the process that holds its lock does that first"
            )
        return SeedWriter(place, self.spec, seed)

    def rewrite_metadata(self, seed: int) -> list[str]:
        """Rewrite the metadata files of one seed that are not what the spec says; return their names.

        What the shards hold is not touched.

        Raises:
            BusyError: another process holds the seed's lock.
            StorageError: the disk or the host said no.
        """
        place, right = self.place.at(f"seed-{seed}"), _seed_metadata(self.spec)
        with place.lock_seed(f"seed {seed} of {self.path}"), place.storing():
            found = place.fetch(right)
            names = metadata_files(self.spec)
            wrong = [name for name in names if _parse_json(found.get(name)) != _parse_json(right[name])]
            for name in wrong:  # one by one: the last of them says that the seed has been begun
                place.put({name: right[name]})
            self._list_seeds(seed)
        return wrong

    def rewrite_keys(self, keys: Keys) -> list[str]:
        """Rewrite the files of the sample keys that are not of these keys; return their names.

        Raises:
            OptionError: there are more or fewer keys than samples.
            StorageError: the disk or the host said no.
        """
        right = _key_files(self.spec, keys)
        with self.place.storing(), self.place.lock_root():
            found = self.place.fetch(right)
            wrong = [name for name, file in right.items() if found.get(name) != file]
            self.place.put({name: right[name] for name in wrong})
        return wrong

    def write_statistics(self, statistics: ClassStatistics | Mapping[str, bytes]) -> None:
        """Give the cache class statistics, or others in place of those that it has.

        Whatever ends that, the cache has the old ones, none or the new ones.

        Args:
            statistics: of this cache's classes; or their files, from a copy of this cache, in the order in which they
                are written.

        Raises:
            OptionError: they are of other classes, or larger than a reader takes.
            StorageError: the disk or the host said no.
        """
        files = _statistics_files(self.spec, statistics)
        *others, commit = STATISTICS_FILES
        with self.place.storing(), self.place.lock_root():
            self.place.delete([commit])
            self.place.delete(others)
            self.place.put({name: files[name] for name in others if name in files})
            self.place.put({commit: files[commit]})

    def remove_statistics(self) -> None:
        """Take the class statistics away, sound or damaged, from a cache that did not begin with any.

        Raises:
            OptionError: it began with them.
            StorageError: the disk or the host said no.
        """
        if self.spec.calibrated:
            raise OptionError("a cache that began with class statistics has to keep some")
        *others, commit = STATISTICS_FILES
        with self.place.storing(), self.place.lock_root():
            self.place.delete([commit])
            self.place.delete(others)

    def _list_seeds(self, seed: int) -> None:
        """Write seeds.json, unless this writer has written it with this seed already."""
        if seed not in self._listed:
            with self.place.storing(), self.place.lock_root():
                self._listed = set(seeds_named(self.place))
                self.place.put({INDEX: json.dumps({"seeds": sorted(self._listed)}).encode()})


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
                self._create(metadata or _seed_metadata(spec))
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


def _writable_place(path: str | Path) -> Place:
    place = place_of(path)
    if not place.writable:
        raise OptionError(f"{place}: https is for reading; write to a local path, s3:// or gs://")
    return place


def _grow(place: Place, spec: CacheSpec, keys: Keys) -> None:
    """Bring the cache at `place` from an earlier state of `spec` to `spec`: new keys first, the root last."""
    if read_keys(place, read_root(place)) is None:
        return  # without keys it cannot grow; `open` says how they differ
    with place.storing(), place.lock_root():
        found = read_root(place)
        old_keys = read_keys(place, found)
        if old_keys is None or all(earlier.differences(found) for earlier in spec.history()[:-1]):
            return
        if not np.array_equal(old_keys, keys[: len(old_keys)]):
            raise OptionError(
                f"{place}: the first {len(old_keys)} sample keys given are not those of the cache"
            )
        files = _key_files(spec, keys)
        array = spec.key_array()
        metadata = f"{array.name}/zarr.json"
        new = [shard_file(array, shard) for shard in range(found.layout.shards, spec.layout.shards)]
        place.delete(new)  # of a growth that was given up
        place.put({name: files[name] for name in new if name in files})
        place.put({metadata: files[metadata]})
        dataset = dataclasses.replace(found.dataset, n=spec.dataset.n, fingerprint=spec.dataset.fingerprint)
        grown = dataclasses.replace(found, dataset=dataset, parts=spec.parts)
        root = json.loads(place.fetch(["zarr.json"])["zarr.json"])
        root["attributes"] |= root_attributes(grown)
        place.put({"zarr.json": json.dumps(root).encode()})


def _first_files(
    spec: CacheSpec, keys: Keys | None, statistics: ClassStatistics | Mapping[str, bytes] | None
) -> dict[str, bytes]:
    """Return the files that are there before the root of a new cache is: sample keys and class statistics."""
    files = {} if keys is None else _key_files(spec, keys)
    if spec.calibrated and statistics is not None:
        return {**files, **_statistics_files(spec, statistics)}
    if spec.calibrated or statistics is not None:
        found = "a calibrated spec and none" if spec.calibrated else "some and a spec that is not calibrated"
        raise OptionError(
            f"a new cache has class statistics if and only if its spec is calibrated, found {found}; "
            "give both or neither: `write_statistics` gives them to a cache that is there"
        )
    return files


def _statistics_files(
    spec: CacheSpec, statistics: ClassStatistics | Mapping[str, bytes]
) -> Mapping[str, bytes]:
    return pack_statistics(spec, statistics) if isinstance(statistics, ClassStatistics) else statistics


def _key_files(spec: CacheSpec, keys: Keys) -> dict[str, bytes]:
    """Return the files of the array of sample keys."""
    if keys.shape != (spec.dataset.n,):
        raise OptionError(f"expected {spec.dataset.n} sample keys, found {keys.shape}")
    array = spec.key_array()
    files = {f"{array.name}/zarr.json": group_metadata([array])[f"{array.name}/zarr.json"]}
    for shard in range(spec.layout.shards):
        samples = spec.layout.samples_of(shard)
        if (file := pack(keys[samples.start : samples.stop], array)) is not None:
            files[shard_file(array, shard)] = file
    return files


def _root_metadata(spec: CacheSpec) -> bytes:
    """Return the root's metadata file."""
    return group_metadata([], root_attributes(spec))["zarr.json"]


def _seed_metadata(spec: CacheSpec) -> dict[str, bytes]:
    """Return the metadata files of a seed."""
    with profile_codecs(spec):
        return group_metadata(seed_arrays(spec))


def _parse_json(text: bytes | None) -> object:
    try:
        return json.loads(text or b"")
    except (ValueError, RecursionError):  # damaged
        return None
