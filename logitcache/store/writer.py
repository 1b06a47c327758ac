"""Writing a cache: a shard is flushed to the disk, then committed; one process at a time writes a seed."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np

from logitcache.errors import MismatchError, NotFoundError, OptionError
from logitcache.format.class_statistics import ClassStatistics
from logitcache.format.schema import CacheSpec
from logitcache.store.address import place_of
from logitcache.store.codecs import pack
from logitcache.store.place import INDEX, Place
from logitcache.store.reader import CacheReader
from logitcache.store.root import Keys, read_keys, read_root, seeds_named
from logitcache.store.seed_writer import SeedWriter, seed_metadata
from logitcache.store.shards import (
    COMMIT,
    MOST_SHARD_BYTES,
    MOST_SHARDS,
    group_metadata,
    metadata_files,
    root_attributes,
    shard_file,
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
        place, right = self.place.at(f"seed-{seed}"), seed_metadata(self.spec)
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


def _parse_json(text: bytes | None) -> object:
    try:
        return json.loads(text or b"")
    except (ValueError, RecursionError):  # damaged
        return None
