"""The cache on disk: create, write shards, commit, resume, read. The only module that speaks Zarr.

A shard is the unit of everything: it has its commit entry, the digest of what it holds, or it does not exist.
`CacheWriter` writes data, makes it durable, and commits last; `CacheReader` checks the digest of all it reads.
"""

import errno
import hashlib
import os
import re
import shutil
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import Crc32cCodec, ZstdCodec

from logitcache.errors import (
    BusyError,
    FormatError,
    IncompleteError,
    LogitCacheError,
    MismatchError,
    NotFoundError,
    OptionError,
    StorageError,
)
from logitcache.schema import ArraySpec, CacheSpec

Arrays = Mapping[str, npt.NDArray[Any]]
ATTRIBUTE = "logitcache"
MOST_SHARDS = 1 << 16  # of one seed: a file each, so more are a mistake or an attack


# Writing --------------------------------------------------------------------------------------------------


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
        with _storing(path):
            if _vacant(path):
                path.mkdir(parents=True, exist_ok=True)
                with FileLock(path / ".lock"):
                    if _vacant(path):  # still: nobody else was quicker
                        _create_root(path, spec)
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
            with _storing(folder):
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
        with _storing(folder):
            _clear_leftovers(folder)
            if not _begun(folder):
                self._create()
            with _reading(folder):
                group = zarr.open_group(zarr.storage.LocalStore(folder), mode="r+")
                self._arrays = {a.name: _array(group, a, folder) for a in self._all()}

    def committed(self) -> npt.NDArray[np.bool_]:
        """Say which shards are committed, (shards,) bool."""
        with _reading(self.folder / "commit"):
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
        _require_shard(self.spec, shard)
        if self.committed()[shard]:
            raise OptionError(f"shard {shard} of seed {self.seed} is committed: it is never written again")
        stored = {a.name: _stored(arrays[a.name], a, self.spec, shard) for a in self.spec.arrays()}
        with _storing(self.folder):
            files = [_shard_file(self.folder, a, shard) for a in self._all()]
            for file in files:
                file.unlink(missing_ok=True)
            for a in self.spec.arrays():
                self._arrays[a.name][self.spec.place(a, shard)] = stored[a.name]
            _make_durable(files[:-1])
            self._arrays["commit"][shard] = shard_digest(self.spec, self.seed, shard, stored)
            _make_durable(files[-1:])

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
            _make_durable([self.folder / "zarr.json", self.folder / a.name / "zarr.json"])


# Reading --------------------------------------------------------------------------------------------------


class CacheReader:
    """Reads one cache and trusts nothing in it: shapes, digests and class ids are checked.

    Raises:
        NotFoundError: there is no cache at `path`.
        FormatError: what is there is damaged, or newer than this library.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local(path)
        if not (self.path / "zarr.json").is_file():
            raise NotFoundError(f"no cache at {self.path}; `logitcache dump --out {self.path}` makes one")
        with _reading(self.path):
            attributes = zarr.open_group(zarr.storage.LocalStore(self.path), mode="r").attrs.asdict()
        if ATTRIBUTE not in attributes:
            raise FormatError(
                f"{self.path} is a Zarr group, but no logitcache: it lacks attrs[{ATTRIBUTE!r}]"
            )
        try:
            self.spec = CacheSpec.from_dict(attributes[ATTRIBUTE])
        except FormatError as error:
            raise FormatError(f"{self.path}: {error}") from error
        if self.spec.shards > MOST_SHARDS:
            raise FormatError(
                f"{self.path}: expected at most {MOST_SHARDS} shards of a seed, found {self.spec.shards}"
            )
        self._opened: dict[int, dict[str, Any]] = {}

    def seeds(self) -> list[int]:
        """List the seeds that have been begun, in rising order."""
        with _reading(self.path):
            names = os.listdir(self.path)
        return sorted(int(n[5:]) for n in names if _SEED.fullmatch(n) and _begun(self.path / n))

    def commits(self, seed: int) -> npt.NDArray[np.uint64]:
        """Return the commit digests of one seed, (shards,) uint64; 0 where a shard is not there."""
        with _reading(self.path / f"seed-{seed}"):
            return np.asarray(self._arrays(seed)["commit"][:], dtype=np.uint64)

    def complete(self) -> list[int]:
        """List the seeds whose every shard is committed."""
        return [seed for seed in self.seeds() if self.commits(seed).all()]

    def require(self, seeds: list[int]) -> None:
        """Insist that these seeds are complete.

        Raises:
            IncompleteError: they are not; the message says which are.
        """
        complete = self.complete()
        if missing := [s for s in seeds if s not in complete]:
            raise IncompleteError(
                f"{self.path} lacks {seed_list(missing)}; complete: {seed_list(complete)}; "
                "go on with `logitcache dump`, or choose complete ones with --seeds"
            )

    def read(self, seed: int, shard: int) -> dict[str, npt.NDArray[Any]]:
        """Decode one committed shard: arrays by name, rows of this shard only, in stored dtypes.

        Raises:
            OptionError: the cache has no such shard.
            IncompleteError: the shard is not committed.
            FormatError: its bytes are not what was committed.
        """
        _require_shard(self.spec, shard)
        commit = int(self.commits(seed)[shard])
        if not commit:
            raise IncompleteError(f"shard {shard} of seed {seed} of {self.path} is not committed")
        found = {}
        with _reading(f"{self.path}, seed {seed}, shard {shard}"):
            for a in self.spec.arrays():
                found[a.name] = np.ascontiguousarray(self._arrays(seed)[a.name][self.spec.place(a, shard)])
        if shard_digest(self.spec, seed, shard, found) != commit:
            raise FormatError(
                f"{self.path}, seed {seed}, shard {shard}: the data is not what was committed; "
                f"delete {self.path / f'seed-{seed}'} and dump that seed again"
            )
        if found["ids"].max() >= self.spec.dataset.num_classes:
            raise FormatError(
                f"{self.path}, seed {seed}, shard {shard}: class {found['ids'].max()} "
                f"of {self.spec.dataset.num_classes}"
            )
        return found

    def canaries(self, seed: int) -> dict[int, int]:
        """Return the view digests of one seed's committed shards: CRC-32 by sample."""
        committed = self.commits(seed)
        with _reading(self.path / f"seed-{seed}"):
            digests = np.asarray(self._arrays(seed)["canary"][:])
        return {
            sample: int(crc)
            for shard in np.flatnonzero(committed)
            for sample, crc in zip(self.spec.canary_samples(int(shard)), digests[shard], strict=True)
        }

    def info(self) -> dict[str, Any]:
        """Describe the cache in JSON values: what it holds, how far it is, how large."""
        shards = self.spec.shards
        seeds, views, size = [], 0, 0
        for seed in self.seeds():
            done = np.flatnonzero(self.commits(seed))
            views += sum(len(self.spec.shard_range(int(shard))) for shard in done)
            size += _size(self.path / f"seed-{seed}")
            seeds.append(
                {"seed": seed, "complete": len(done) == shards, "shards_done": len(done), "shards": shards}
            )
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
            "seeds": seeds,
            "bytes_on_disk": size + _size(self.path, recurse=False),
            "bytes_per_sample_view": round(size / views, 2) if views else None,
            "versions": spec["versions"],
        }

    def identity(self, seed: int) -> str:
        """Name what a seed holds, wherever the cache lies: 16 hex digits over spec and commits."""
        text = f"{sorted(self.spec.to_dict().items())}/{seed}/"
        return hashlib.blake2b(text.encode() + self.commits(seed).tobytes(), digest_size=8).hexdigest()

    def _arrays(self, seed: int) -> dict[str, Any]:
        if seed not in self._opened:
            folder = self.path / f"seed-{seed}"
            if not _begun(folder):
                raise IncompleteError(f"{self.path} has no seed {seed}; it has {seed_list(self.seeds())}")
            group = zarr.open_group(zarr.storage.LocalStore(folder), mode="r")
            specs = (*self.spec.arrays(), self.spec.commit_array())
            self._opened[seed] = {a.name: _array(group, a, folder) for a in specs}
        return self._opened[seed]


def seed_list(seeds: list[int]) -> str:
    """Write seeds for people: "seeds 0-3, 7", "seed 5" or "no seed"."""
    if not seeds:
        return "no seed"
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"seed{'s' if len(seeds) > 1 else ''} {text}"


def shard_digest(spec: CacheSpec, seed: int, shard: int, stored: Arrays) -> int:
    """Digest one shard: BLAKE2b-64 over whose it is, then each array's name and little-endian bytes; never 0.

    Whose: teacher, data, recipe, how to decode it, and its place. A shard of another cache, seed or place is not
    taken for this one, whatever it holds.
    """
    t, d, p = spec.teacher, spec.dataset, spec.profile
    whose = (t.weights_sha256, t.precision, d.fingerprint, spec.recipe_sha256, d.num_classes, spec.k)
    digest = hashlib.blake2b("/".join(map(str, (*whose, seed, shard))).encode(), digest_size=8)
    digest.update(struct.pack("<d", p.gap_step or 0.0))
    for a in spec.arrays():
        digest.update(a.name.encode())
        digest.update(np.ascontiguousarray(stored[a.name], dtype=np.dtype(a.dtype).newbyteorder("<")).data)
    return int.from_bytes(digest.digest(), "little") or 1


# Inside ---------------------------------------------------------------------------------------------------


def local(path: str | Path) -> Path:
    """Return a local path.

    Raises:
        OptionError: it is a URL.
    """
    if "://" in str(path):
        raise OptionError(
            f"caches are read and written at local paths, found the URL {path}; copy it here first"
        )
    return Path(path)


_SEED = re.compile("seed-(0|[1-9][0-9]{0,18})")


def _vacant(path: Path) -> bool:
    """Is there nothing at `path` but, perhaps, what a crash or another process left on the way to a cache?"""
    return not path.exists() or set(os.listdir(path)) <= {".lock", ".new"}


def _create_root(path: Path, spec: CacheSpec) -> None:
    """Make the root group aside, then move it into its place, so that it is whole or not there."""
    aside = path / ".new"
    shutil.rmtree(aside, ignore_errors=True)
    zarr.create_group(zarr.storage.LocalStore(aside), attributes={ATTRIBUTE: spec.to_dict()})
    _make_durable([aside / "zarr.json"])
    (aside / "zarr.json").replace(path / "zarr.json")
    aside.rmdir()
    _make_durable([path / "zarr.json"])


def _begun(folder: Path) -> bool:
    """Has this seed its arrays? `commit` is made last, and a power cut may leave its file empty."""
    file = folder / "commit" / "zarr.json"
    return file.is_file() and file.stat().st_size > 0


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


def _require_shard(spec: CacheSpec, shard: int) -> None:
    if not 0 <= shard < spec.shards:
        raise OptionError(f"no shard {shard}: expected 0 to {spec.shards - 1}")


def _array(group: zarr.Group, expected: ArraySpec, folder: Path) -> Any:
    """Open one array and insist on the form that the spec gives it."""
    array = group.get(expected.name)
    if not isinstance(array, zarr.Array):
        raise FormatError(f"{folder}: array {expected.name!r} is missing")
    found = (array.shape, str(array.dtype), array.chunks, array.shards, float(array.fill_value))
    wanted = (expected.shape, expected.dtype, expected.chunks, expected.shards, 0.0)
    if found != wanted:
        raise FormatError(
            f"{folder}: array {expected.name!r}: "
            f"expected shape, dtype, chunks, shards, fill value {wanted}, found {found}"
        )
    return array


def _stored(values: npt.NDArray[Any], array: ArraySpec, spec: CacheSpec, shard: int) -> npt.NDArray[Any]:
    """Bring one array of a shard to its stored dtype; gaps are rounded, quantised, clipped to its range.

    Raises:
        OptionError: its shape is not the shard's, or it names classes that are not there.
    """
    place = spec.place(array, shard)
    shape = (place.stop - place.start, *array.shape[1:])
    if (found := np.shape(values)) != shape:
        raise OptionError(f"array {array.name!r} of a shard: expected shape {shape}, found {found}")
    if array.name == "gap":
        dtype, step = np.dtype(array.dtype), spec.profile.gap_step
        most = np.iinfo(dtype).max if dtype.kind == "u" else np.finfo(dtype).max
        values = np.clip(values, 0, float(most) * (step or 1.0))
        if step is not None:
            values = np.round(np.asarray(values, dtype=np.float32) / step)
    if array.name == "ids" and not 0 <= np.min(values) <= np.max(values) < spec.dataset.num_classes:
        raise OptionError(
            f"ids of a shard: expected classes 0 to {spec.dataset.num_classes - 1}, "
            f"found {np.min(values)} to {np.max(values)}"
        )
    return np.ascontiguousarray(values, dtype=array.dtype)


def _shard_file(folder: Path, array: ArraySpec, shard: int) -> Path:
    return folder / array.name / "c" / "/".join([str(shard), *("0" for _ in array.shape[1:])])


def _make_durable(files: list[Path]) -> None:
    """Flush files, and the folders that name them, to the disk."""
    present = [f for f in files if f.exists()]  # Zarr writes no file for a shard that is all zeros
    for path in [*present, *{parent for f in present for parent in list(f.parents)[:3]}]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _size(folder: Path, *, recurse: bool = True) -> int:
    """Sum the bytes of the files of a folder that others may be writing in."""
    size = 0
    for parent, folders, files in os.walk(folder):
        if not recurse:
            folders.clear()
        for file in files:
            with suppress(FileNotFoundError):  # renamed meanwhile
                size += (Path(parent) / file).stat().st_size
    return size


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    """Turn what the disk says into `StorageError`."""
    try:
        yield
    except LogitCacheError:
        raise
    except OSError as error:
        free = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            room = shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free
            free = f" ({room / 1e6:.1f} MB free); make room and run the same command again"
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}{free}; committed shards are safe"
        ) from error


@contextmanager
def _reading(where: Path | str) -> Iterator[None]:
    """Turn whatever Zarr makes of damaged files into `FormatError`."""
    try:
        yield
    except LogitCacheError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {where}: {error}") from error
    except Exception as error:  # damaged bytes surface as any exception of any codec
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FormatError(
            f"{where}: damaged ({reason[:200]}); restore it from a copy, or delete it and dump again"
        ) from error
