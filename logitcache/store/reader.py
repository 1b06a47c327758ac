"""Reading a cache, with every check that a file from a stranger needs."""

import functools
import hashlib
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitcache.errors import FormatError, IncompleteError
from logitcache.format.class_statistics import ClassStatistics
from logitcache.store.address import place_of
from logitcache.store.codecs import unpack
from logitcache.store.disk import HOW_TO_MEND, reading
from logitcache.store.place import CLASS_STATISTICS, KEYS, Place
from logitcache.store.root import Keys, read_keys, read_root, seed_list, seeds_begun, seeds_named
from logitcache.store.shards import (
    COMMIT,
    count_shards,
    metadata_files,
    most_bytes,
    require_shard,
    shard_file,
    shard_files,
    unpack_checked,
    unpack_commit,
    unpack_shard,
)
from logitcache.store.statistics import read_statistics, statistics_digest

Commits = npt.NDArray[np.uint64]


class CacheReader:
    """Reads one cache, at a local path or an fsspec URL.

    Shapes, digests and class ids are checked: whatever the files hold, the numbers are those that were committed, or
    there is an error. Methods may be called from several threads.

    Raises:
        NotFoundError: there is no cache at `path`.
        FormatError: what is there is damaged, or newer than this library.
        OptionError: fsspec knows no such URLs, or a package that it needs is not installed.
        StorageError: the disk or the host said no.
    """

    def __init__(self, path: str | Path) -> None:
        self.place = place_of(path)
        self.path = self.place.path
        self.spec = read_root(self.place)
        self._begun: dict[int, int] = {}  # by seed, how many shards its arrays are long enough for

    def __repr__(self) -> str:
        return f"CacheReader({self.path}, k={self.spec.k} of {self.spec.dataset.num_classes} classes)"

    @classmethod
    def of(cls, cache: "str | Path | CacheReader") -> "CacheReader":
        """Return a reader of the cache at a path or URL; a reader is itself."""
        return cache if isinstance(cache, CacheReader) else cls(cache)

    def seeds(self) -> list[int]:
        """List the seeds that have been begun, in rising order."""
        with reading(self.path):
            return seeds_begun(self.place)

    def opened_seeds(self) -> list[int]:
        """List the seeds that a dump has opened, in rising order; of some no shard may be committed."""
        with reading(self.path):
            return seeds_named(self.place)

    def check_metadata(self, seed: int) -> None:
        """Check that the arrays of one seed have the form that the spec gives them.

        Raises:
            FormatError: they have another, or the seed has lost the metadata of `commit`.
            IncompleteError: the cache has no such seed.
        """
        with reading(f"{self.path}, seed {seed}"):
            if self._lost_metadata(seed):
                raise FormatError(f"{self.path}, seed {seed}: {COMMIT} is lost; {HOW_TO_MEND}")
            self._shards(seed)

    def commits(self, seed: int) -> Commits:
        """Return the commit digests of one seed, (shards,) uint64; 0 for a shard that is not committed."""
        with reading(f"{self.path}, seed {seed}"):
            shards = range(self._shards(seed))
            files = self._at(seed).fetch(shard_file(self.spec.commit_array(), shard) for shard in shards)
            found = [unpack_commit(files, self.spec, shard) for shard in shards]
        return np.array(found + [0] * (self.spec.layout.shards - len(found)), np.uint64)

    def all_commits(self) -> dict[int, Commits]:
        """Return the commit digests of every seed that has been begun, by seed, in rising order."""
        seeds = self.seeds()
        return dict(zip(seeds, self.place.map(self.commits, seeds), strict=True))

    def commit(self, seed: int, shard: int) -> int:
        """Return the commit digest of one shard; 0 if it is not committed.

        Raises:
            OptionError: the cache has no such shard.
        """
        with reading(f"{self.path}, seed {seed}, commit of shard {shard}"):
            files = self._files(seed, shard, [shard_file(self.spec.commit_array(), shard)])
            return unpack_commit(files, self.spec, shard)

    def complete(self) -> list[int]:
        """List the seeds whose every shard is committed, in rising order."""
        return [seed for seed, commits in self.all_commits().items() if commits.all()]

    def require(self, seeds: list[int]) -> None:
        """Check that these seeds are complete.

        Raises:
            IncompleteError: one is not; the message says which are.
        """
        asked = sorted({*self.seeds()} & {*seeds})
        complete = [s for s, c in zip(asked, self.place.map(self.commits, asked), strict=True) if c.all()]
        if missing := [s for s in seeds if s not in complete]:
            raise IncompleteError(
                f"{self.path} lacks {seed_list(missing)}; complete: {seed_list(self.complete())}; "
                "go on with `logitcache dump`, or choose complete ones with --seeds"
            )

    def choose_complete(self, seeds: Iterable[int] = ()) -> list[int]:
        """Return these seeds, which must be complete; or all that are, with a warning that names the others.

        Raises:
            IncompleteError: one is not complete, or none is.
        """
        if chosen := list(dict.fromkeys(seeds)):
            self.require(chosen)
            return chosen
        opened, complete = self.opened_seeds(), self.complete()
        if not complete:
            raise IncompleteError(
                f"{self.path} has no complete seed (begun: {seed_list(opened)}); run the dump again"
            )
        if others := [seed for seed in opened if seed not in complete]:
            warnings.warn(
                f"{self.path}: {seed_list(others)} left out, as shards are missing; `logitcache dump` completes them",
                stacklevel=2,
            )
        return complete

    def read(self, seed: int, shard: int) -> dict[str, npt.NDArray[Any]]:
        """Decode one committed shard: arrays by name, rows of this shard only, in stored dtypes.

        Raises:
            OptionError: the cache has no such shard.
            IncompleteError: the shard is not committed.
            FormatError: its bytes are not what was committed.
        """
        with reading(f"{self.path}, seed {seed}, shard {shard}"):
            files = self._files(seed, shard, shard_files(self.spec, shard))
            commit = unpack_commit(files, self.spec, shard)
        if not commit:
            raise IncompleteError(f"shard {shard} of seed {seed} of {self.path} is not committed")
        return unpack_checked(files, commit, self.spec, seed, shard, self.path)

    def decode(self, seed: int, shard: int) -> dict[str, npt.NDArray[Any]]:
        """Decode one shard as `read` does, but check only the CRCs of its chunks, not its digest.

        Raises:
            OptionError: the cache has no such shard.
            FormatError: a file of it is damaged.
        """
        with reading(f"{self.path}, seed {seed}, shard {shard}"):
            files = self._files(seed, shard, shard_files(self.spec, shard))
            return unpack_shard(files, self.spec, shard)

    def without_teacher(self, seed: int, shard: int) -> list[int]:
        """List the samples of one shard that have no teacher; of its files only that of the top logits is read.

        Raises:
            OptionError: the cache has no such shard.
            FormatError: the file is damaged, as far as the CRCs of its chunks tell.
        """
        array = next(array for array in self.spec.arrays() if array.name == "top")
        samples, name = self.spec.layout.samples_of(shard), shard_file(array, shard)
        with reading(f"{self.path}, seed {seed}, shard {shard}"):
            top = unpack(self._files(seed, shard, [name]).get(name), array, len(samples))
        return (np.flatnonzero(np.isnan(top)) + samples.start).tolist()

    def metadata(self, seed: int) -> dict[str, bytes]:
        """Return the metadata files of one seed, as they are stored, by their names in its folder."""
        with reading(f"{self.path}, seed {seed}"):
            self._shards(seed)  # checks their form
            return self._at(seed).fetch(metadata_files(self.spec))

    def files(self, seed: int, shard: int) -> dict[str, bytes]:
        """Return the files of one committed shard, as they are stored, by their names in the seed's folder.

        Raises:
            OptionError: the cache has no such shard.
            IncompleteError: the shard is not committed.
        """
        names = shard_files(self.spec, shard)
        with reading(f"{self.path}, seed {seed}, shard {shard}"):
            found = self._files(seed, shard, names)
        if names[-1] not in found:
            raise IncompleteError(f"shard {shard} of seed {seed} of {self.path} is not committed")
        return found

    def canaries(self, seed: int, without: Collection[int] = ()) -> dict[int, int]:
        """Return the view digests of one seed's committed shards, CRC-32 by sample.

        They are checked against the commit when their shard is read; here only those of a shard that are all 0.

        Args:
            seed: which.
            without: shards to leave out; no file of theirs is read, as they may be damaged.
        """
        if without:
            committed = [
                j for j in range(self.spec.layout.shards) if j not in without and self.commit(seed, j)
            ]
        else:
            committed = np.flatnonzero(self.commits(seed)).tolist()
        array = self.spec.canary_array()
        with reading(f"{self.path}, seed {seed}"):  # files of other shards may be torn by a power cut
            files = self._at(seed).fetch(shard_file(array, shard) for shard in committed)
            digests = {j: unpack(files.get(shard_file(array, j)), array, 1)[0] for j in committed}
        for shard, crcs in digests.items():
            if not np.any(crcs):  # there are no views, or the file is missing: the digest tells
                self.read(seed, shard)
        return {
            sample: int(crc)
            for shard, crcs in digests.items()
            for sample, crc in zip(self.spec.layout.canary_samples(shard), crcs, strict=True)
        }

    def without_metadata(self) -> list[int]:
        """List the seeds that have commits, but have lost the metadata that says that they were begun."""
        with reading(self.path):
            seeds = seeds_named(self.place)
            lost = self.place.map(self._lost_metadata, seeds)
        return [seed for seed, is_lost in zip(seeds, lost, strict=True) if is_lost]

    def strays(self, seed: int) -> list[str]:
        """List the files of one seed that belong to no committed shard; none where a host does not list."""
        place = self._at(seed)
        with reading(place):
            found = place.files() or set()
        expected = {*metadata_files(self.spec), "commit/.owner"}
        for shard in range(self.spec.layout.shards):
            *data, commit = shard_files(self.spec, shard)
            expected |= {commit, *data} if commit in found else {commit}
        return sorted(name for name in found - expected if not name.startswith("commit/.lock"))

    def times(self) -> tuple[float, float] | None:
        """Return when the cache was begun, and when it last grew, in seconds of the epoch; None where it is unknown.

        Its files tell, so of a copy that does not keep their times both are when it was copied.
        """
        begun = self.place.modified(["zarr.json", *(f"seed-{seed}/zarr.json" for seed in self.seeds())])
        grown = self.place.modified(["zarr.json"])
        return (min(begun), grown[0]) if grown else None

    def keys(self) -> Keys | None:
        """Return the sample keys, (n,) uint64; None in a cache without them."""
        return read_keys(self.place, self.spec)

    def statistics(self) -> ClassStatistics | None:
        """Return the class statistics, read once; None in a cache without them.

        Raises:
            FormatError: they are damaged, or lost from a cache that began with them.
        """
        return self._statistics

    @functools.cached_property
    def _statistics(self) -> ClassStatistics | None:
        return read_statistics(self.place, self.spec)

    def info(self, commits: Mapping[int, Commits] | None = None) -> dict[str, Any]:
        """Describe the cache in JSON values: what it holds, how far it is, how large.

        Args:
            commits: what `all_commits` returned, if it has been called already.
        """
        commits = self.all_commits() if commits is None else commits
        shards = self.spec.layout.shards
        done = {seed: np.flatnonzero(digests).tolist() for seed, digests in commits.items()}
        views = sum(len(self.spec.layout.samples_of(shard)) for those in done.values() for shard in those)
        seeds = [
            {"seed": seed, "complete": len(those) == shards, "shards_done": len(those), "shards": shards}
            for seed, those in done.items()
        ]
        with reading(self.path):
            sizes = self.place.map(lambda seed: self._at(seed).size(), done)
            root = self.place.size(recurse=False)
            beside = [self.place.at(name).size() for name in (KEYS, CLASS_STATISTICS)]
        other = None if root is None else root + sum(filter(None, beside))
        size = None if other is None else sum(filter(None, sizes))
        spec = self.spec.to_dict()
        return {
            "path": str(self.path),
            "format_version": spec["format_version"],
            "teacher": spec["teacher"],
            "dataset": spec["dataset"],
            "recipe": spec["recipe"],
            "n": self.spec.dataset.n,
            "num_classes": self.spec.dataset.num_classes,
            "k": self.spec.k,
            "profile": self.spec.profile.name,
            "class_statistics": self._describe_statistics(),
            "seeds": seeds,
            "bytes_on_disk": None if size is None or other is None else size + other,
            "bytes_per_sample_view": round(size / views, 2) if views and size is not None else None,
            "versions": spec["versions"],
        }

    def identity(self, seed: int) -> str:
        """Return 16 hex digits that identify what a seed holds: a digest of spec and commits, of no path."""
        text = f"{sorted(self.spec.to_dict().items())}/{seed}/"
        return hashlib.blake2b(text.encode() + self.commits(seed).tobytes(), digest_size=8).hexdigest()

    def _describe_statistics(self) -> dict[str, Any] | None:
        if (statistics := self.statistics()) is None:
            return None
        return {
            "views": statistics.views,
            "factors": statistics.factors.shape[1],
            "noise": statistics.noise,
            "digest": statistics_digest(self.spec, statistics),
        }

    def _at(self, seed: int) -> Place:
        return self.place.at(f"seed-{seed}")

    def _lost_metadata(self, seed: int) -> bool:
        """Return whether a seed has commits, but not the metadata that says that it was begun."""
        place = self._at(seed)
        return not place.nonempty([COMMIT]) and bool(place.at("commit/c").names())

    def _files(self, seed: int, shard: int, names: list[str]) -> dict[str, bytes]:
        """Read those of these files of one shard that exist; none if the seed's arrays are still too short for it."""
        require_shard(self.spec, shard)
        return self._at(seed).fetch(names, most_bytes(self.spec)) if shard < self._shards(seed) else {}

    def _shards(self, seed: int) -> int:
        """Check the form of a seed's arrays, once; return how many shards they are long enough for.

        Raises:
            IncompleteError: the cache has no such seed.
            FormatError: they have another form.
        """
        if seed not in self._begun:
            if not (files := self._at(seed).fetch(metadata_files(self.spec))).get(COMMIT):
                raise IncompleteError(f"{self.path} has no seed {seed}; it has {seed_list(self.seeds())}")
            try:
                self._begun[seed] = count_shards(files, self.spec, self._at(seed))
            except FormatError:
                now = read_root(self.place)
                if self.spec not in now.history()[:-1]:
                    raise  # else the cache has grown since it was opened
                self._begun[seed] = count_shards(files, now, self._at(seed))
        return min(self._begun[seed], self.spec.layout.shards)
