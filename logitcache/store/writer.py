"""Writing a cache: shards made durable and then committed, one owner per seed."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore

from logitcache.errors import FormatError, MismatchError, NotFoundError, OptionError
from logitcache.format.schema import ArraySpec, CacheSpec
from logitcache.store.address import place_of
from logitcache.store.codecs import codecs, knowing_codecs, packed
from logitcache.store.disk import reading
from logitcache.store.place import INDEX, Place
from logitcache.store.reader import CacheReader, Keys, read_keys, read_root, seeds_begun
from logitcache.store.shards import (
    COMMIT,
    MOST_SHARD_BYTES,
    MOST_SHARDS,
    Arrays,
    checked_shard,
    commit_entry,
    commit_file,
    metadata_files,
    most_bytes,
    packed_shard,
    require_shard,
    root_attributes,
    seed_arrays,
    seed_shards,
    shard_file,
    shard_files,
)


class CacheWriter:
    """Writes one cache; several processes may, each on seeds of its own."""

    def __init__(self, place: Place, spec: CacheSpec) -> None:
        self.place, self.spec = place, spec
        self.path = place.path

    @classmethod
    def open(cls, path: str | Path, spec: CacheSpec, keys: Keys | None = None, *, grow: bool = False) -> Self:
        """Create the cache, or open it to go on with it, at a local path or an fsspec URL.

        Args:
            path: where it is, or is to be.
            spec: what it is.
            keys: (n,) uint64 sample keys; a cache created without any cannot grow.
            grow: let a cache that is what `spec` was before its data set grew become what it is now.

        Raises:
            MismatchError: there is a cache of another teacher, data set, recipe, k … at `path`.
            FormatError: there is something else, or a damaged cache, at `path`.
            OptionError: the shards would be too many; or nothing can be written at such a URL.
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
        place = _writable(path)
        with place.storing():
            place.create({} if keys is None else _key_files(spec, keys), _root(spec))
        if grow and keys is not None:
            _grow(place, spec, keys)
        found = read_root(place)
        if fields := spec.differences(found):
            raise MismatchError(
                f"{place} is another cache than the one asked for",
                fields,
                "give the same options, or leave them out, to go on with it; or another --out to begin a new one",
            )
        return cls(place, found)

    @staticmethod
    def there(path: str | Path) -> CacheReader | None:
        """Read the cache that `open` would go on with; None if there is none yet.

        Raises:
            FormatError: it is damaged.
            OptionError: nothing can be written at such a URL.
            StorageError: the disk or the host said no.
        """
        _writable(path)
        try:
            return CacheReader(path)
        except NotFoundError:
            return None

    @contextmanager
    def seed(self, seed: int, metadata: Mapping[str, bytes] | None = None) -> Iterator["SeedWriter"]:
        """Own one seed: on a local disk nobody else writes it while the context is open.

        Args:
            seed: which.
            metadata: of its arrays, from a copy of this cache; by default they are made as this library makes them.

        Raises:
            BusyError: another process owns it.
        """
        place = self.place.at(f"seed-{seed}")
        with place.owned(f"seed {seed} of {self.path}"):
            yield SeedWriter(place, self.spec, seed, metadata)

    def guest(self, seed: int) -> "SeedWriter":
        """Write shards of a seed that another process owns, and that has asked for it: only `settle` is for guests.

        Raises:
            NotFoundError: nobody has begun the seed.
        """
        place = self.place.at(f"seed-{seed}")
        if not place.filled([COMMIT]):
            raise NotFoundError(f"{place} has not been begun; its owner does that before guests write shards")
        return SeedWriter(place, self.spec, seed)

    def mend(self, seed: int) -> list[str]:
        """Write the metadata files of one seed anew where they are not what the spec says; returns which.

        Nothing that a shard holds is touched; `verify --repair` begins with it.

        Raises:
            BusyError: another process owns the seed.
            StorageError: the disk or the host said no.
        """
        place, made = self.place.at(f"seed-{seed}"), _metadata(self.spec)
        with place.owned(f"seed {seed} of {self.path}"), place.storing():
            found = place.fetch(made)
            other = [
                name for name in metadata_files(self.spec) if _json(found.get(name)) != _json(made[name])
            ]
            for name in other:
                place.put({name: made[name]})
        return other

    def mend_keys(self, keys: Keys) -> list[str]:
        """Write the files of the sample keys anew where they are not these; returns which.

        Raises:
            OptionError: there are more or fewer keys than samples.
            StorageError: the disk or the host said no.
        """
        made = _key_files(self.spec, keys)
        with self.place.storing(), self.place.growing():
            found = self.place.fetch(made)
            other = [name for name, file in made.items() if found.get(name) != file]
            self.place.put({name: made[name] for name in other})
        return other

    def index(self) -> None:
        """Say in seeds.json which seeds there are, for those who will read the cache from a host that does not list.

        Raises:
            StorageError: the disk or the host said no.
        """
        with self.place.storing():
            self.place.put({INDEX: json.dumps({"seeds": seeds_begun(self.place)}).encode()})


class SeedWriter:
    """Writes the shards of one seed; made by `CacheWriter.seed`, which holds its lock, or for a guest of the owner.

    A shard has a lock of its own from the look whether it is committed until it is: whoever comes second finds it
    done, even a process of which everybody thought that it had died.
    """

    def __init__(
        self, place: Place, spec: CacheSpec, seed: int, metadata: Mapping[str, bytes] | None = None
    ) -> None:
        self.place, self.spec, self.seed = place, spec, seed
        with place.storing():
            if not place.filled([COMMIT]):
                self._create(metadata or _metadata(spec))
        with reading(place):
            seed_shards(place.fetch(metadata_files(spec)), spec, place)
        with place.storing():
            self._lengthen()

    def committed(self) -> npt.NDArray[np.bool_]:
        """Say which shards are committed, (shards,) bool."""
        return np.not_equal(self.commits(), 0)

    def commits(self) -> npt.NDArray[np.uint64]:
        """Return the commit digests, (shards,) uint64; 0 where a shard is not there."""
        return self._commits(range(self.spec.layout.shards))

    def write(self, shard: int, arrays: Arrays) -> int:
        """Write one shard, make it durable, commit it; what an earlier crash left of it is deleted first.

        Args:
            shard: its index; not committed yet.
            arrays: by name of `CacheSpec.arrays`, rows of this shard only; `gap` as float.

        Returns:
            The commit digest.

        Raises:
            OptionError: the shard is committed, or not one of the cache's, or its arrays do not fit.
            BusyError: somebody else writes this shard, and does not come to an end.
            StorageError: the disk or the host said no. Nothing is committed then.
        """
        with self._turn(shard):
            self._refuse_committed(shard)
            return self._write(shard, arrays)

    def settle(self, shard: int, arrays: Arrays) -> int:
        """Write one shard as `write` does, unless it is committed by now; returns its commit digest."""
        with self._turn(shard):
            return self._commit(shard) or self._write(shard, arrays)

    def _write(self, shard: int, arrays: Arrays) -> int:
        commit, files = packed_shard(arrays, self.spec, self.seed, shard)
        *data, last = shard_files(self.spec, shard)
        with self.place.storing():
            self._put(data, files)
            self.place.put({last: commit_file(self.spec, commit)}, new=True)
        return commit

    def adopt(self, shard: int, commit: int, files: Mapping[str, bytes]) -> None:
        """Write one shard from the files of a copy of this cache, read them back, and only then commit it.

        Args:
            shard: its index; not committed yet.
            commit: the digest that it was committed with.
            files: its files by `shard_files`, as far as they are there.

        Raises:
            OptionError: the shard is committed, or not one of the cache's.
            FormatError: what was read back is not what `commit` is the digest of. Nothing is committed then.
            StorageError: the disk or the host said no. Nothing is committed then.
        """
        *data, last = shard_files(self.spec, shard)
        with self._turn(shard):
            self._refuse_committed(shard)
            with self.place.storing():
                self._put(data, {name: files[name] for name in data if name in files})
            with reading(self.place):
                there = self.place.fetch(data, most_bytes(self.spec))
            checked_shard(there, commit, self.spec, self.seed, shard, self.place)
            with self.place.storing():
                self.place.put({last: files[last]}, new=True)

    def withdraw(self, shard: int) -> None:
        """Take a damaged shard back, so that it can be written again: its commit first, durably, then its files.

        Nothing else takes back what was committed, and only `verify --repair` calls this.

        Raises:
            OptionError: it is not one of the cache's shards.
            StorageError: the disk or the host said no.
        """
        require_shard(self.spec, shard)
        *data, commit = shard_files(self.spec, shard)
        with self.place.storing():
            self.place.delete([commit])
            self.place.delete(data)

    def _turn(self, shard: int) -> AbstractContextManager[None]:
        require_shard(self.spec, shard)
        return self.place.turn(shard)

    def _put(self, names: list[str], files: Mapping[str, bytes]) -> None:
        """Write files of these names, over what an earlier crash left; delete what it left of the others."""
        self.place.delete([name for name in names if name not in files])
        self.place.put(files)

    def _commits(self, shards: Sequence[int]) -> npt.NDArray[np.uint64]:
        array = self.spec.commit_array()
        with reading(f"{self.place}/commit"):
            files = self.place.fetch(shard_file(array, shard) for shard in shards)
            return np.array([commit_entry(files, self.spec, shard) for shard in shards], np.uint64)

    def _commit(self, shard: int) -> int:
        return int(self._commits([shard])[0])

    def _refuse_committed(self, shard: int) -> None:
        if self._commit(shard):
            raise OptionError(f"shard {shard} of seed {self.seed} is committed: it is never written again")

    def _create(self, metadata: Mapping[str, bytes]) -> None:
        """Make the arrays, durably, and `commit` last: what is there without it is void."""
        self.place.delete_folder("commit/c")
        *first, last = metadata_files(self.spec)
        if missing := [name for name in (*first, last) if not metadata.get(name)]:
            raise FormatError(f"{self.place}: no metadata of {missing[0]} to begin the seed with")
        self.place.put({name: metadata[name] for name in first})
        self.place.put({last: metadata[last]})

    def _lengthen(self) -> None:
        """Give arrays of before the data set grew their new shape, `commit` last; what they hold stays as it is."""
        if not self.spec.parts:
            return
        for a in seed_arrays(self.spec):
            file = f"{a.name}/zarr.json"
            about = json.loads(self.place.fetch([file])[file])
            if about["shape"] != list(a.shape):
                self.place.put({file: json.dumps({**about, "shape": a.shape}).encode()})


def _writable(path: str | Path) -> Place:
    place = place_of(path)
    if not place.writable:
        raise OptionError(f"{place}: https is for reading; write to a local path, s3:// or gs://")
    return place


def _grow(place: Place, spec: CacheSpec, keys: Keys) -> None:
    """Make the cache at `place` what `spec` says, if it is what `spec` was: new keys first, the root last."""
    if read_keys(place, read_root(place)) is None:
        return  # `open` says how they differ
    with place.storing(), place.growing():
        found = read_root(place)
        held = read_keys(place, found)
        if held is None or all(then.differences(found) for then in spec.history()[:-1]):
            return
        if not np.array_equal(held, keys[: len(held)]):
            raise OptionError(f"{place}: the first {len(held)} sample keys given are not those of the cache")
        files = _key_files(spec, keys)
        array = spec.key_array()
        about = f"{array.name}/zarr.json"
        new = [shard_file(array, shard) for shard in range(found.layout.shards, spec.layout.shards)]
        place.delete(new)  # of a growth that was given up
        place.put({name: files[name] for name in new if name in files})
        place.put({about: files[about]})
        dataset = dataclasses.replace(found.dataset, n=spec.dataset.n, fingerprint=spec.dataset.fingerprint)
        grown = dataclasses.replace(found, dataset=dataset, parts=spec.parts)
        root = json.loads(place.fetch(["zarr.json"])["zarr.json"])
        root["attributes"] |= root_attributes(grown)
        place.put({"zarr.json": json.dumps(root).encode()})


def _key_files(spec: CacheSpec, keys: Keys) -> dict[str, bytes]:
    """Return the files of the array of sample keys."""
    if keys.shape != (spec.dataset.n,):
        raise OptionError(f"expected {spec.dataset.n} sample keys, found {keys.shape}")
    array = spec.key_array()
    files = {f"{array.name}/zarr.json": _made([array])[f"{array.name}/zarr.json"]}
    for shard in range(spec.layout.shards):
        samples = spec.layout.samples_of(shard)
        if (file := packed(keys[samples.start : samples.stop], array)) is not None:
            files[shard_file(array, shard)] = file
    return files


def _root(spec: CacheSpec) -> bytes:
    """Return the root's metadata file."""
    files: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(files), attributes=root_attributes(spec))
    return files["zarr.json"].to_bytes()


def _metadata(spec: CacheSpec) -> dict[str, bytes]:
    """Return the metadata files of a seed."""
    with knowing_codecs(spec):
        return _made(seed_arrays(spec))


def _made(arrays: Iterable[ArraySpec]) -> dict[str, bytes]:
    """Return the metadata files of a group of arrays, as Zarr makes them."""
    files: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(files))
    for array in arrays:
        group.create_array(
            array.name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=array.chunks,
            shards=array.shards,
            dimension_names=array.dimensions,
            fill_value=0,
            **codecs(array),
        )
    return {name: data.to_bytes() for name, data in files.items()}


def _json(text: bytes | None) -> object:
    try:
        return json.loads(text or b"")
    except (ValueError, RecursionError):  # damaged
        return None
