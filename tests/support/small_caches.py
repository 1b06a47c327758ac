"""Small caches that nobody's teacher made, what must be read from them, and faults of the disk."""

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
from statistics_numbers import numbers_of

from logitcache.errors import FormatError, LogitCacheError, StorageError
from logitcache.format.class_statistics import ClassStatistics
from logitcache.format.identity import AdapterSpec, DatasetSpec, RecipeSpec, StepSpec, TeacherSpec
from logitcache.format.quantize import code_gaps, decode_gaps, round_mantissa
from logitcache.format.schema import CacheSpec
from logitcache.store import CacheReader, CacheWriter

FORK = multiprocessing.get_context("fork")


def spec_of(
    n=11,
    k=2,
    classes=5,
    profile="default",
    shard=4,
    weights="ab",
    fingerprint="cd",
    size=8,
    calibrated=False,
) -> CacheSpec:
    return CacheSpec.new(
        TeacherSpec("net", "random", weights, "float32", AdapterSpec(1, 8, (0.5,), (0.5,))),
        DatasetSpec("digits", "train", n, classes, fingerprint),
        RecipeSpec("digits", 1, (StepSpec("RandomCrop", {"size": size, "padding": 1}),), "identity"),
        k=k,
        profile=profile,
        versions={"torch": "2"},
        shard_samples=shard,
        calibrated=calibrated,
    )


SMALL = spec_of(n=7, classes=3, profile="exact")  # two shards, four arrays


def arrays_of(spec: CacheSpec, seed: int, shard: int) -> dict[str, np.ndarray]:
    """What a teacher might have said: a function of its place, in dtypes as `dump` gives them."""
    rng = np.random.default_rng([seed, shard])
    rows, k = len(spec.layout.samples_of(shard)), spec.k
    arrays = {
        "ids": rng.integers(0, spec.dataset.num_classes, (rows, k), np.int32),
        "gap": np.sort(rng.exponential(3.0, (rows, k)).astype(np.float32), axis=1),
        "canary": rng.integers(1, 1 << 32, (1, spec.canaries), np.uint32),
    }
    for name in ("top", "tail_lse", "tail_mean", "tail_var"):
        arrays[name] = rng.normal(0, 9, rows).astype(np.float32)
    arrays["top"][rng.random(rows) < 0.1] = np.nan
    return arrays


def as_stored(spec: CacheSpec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    stored = {a.name: arrays[a.name].astype(a.dtype) for a in spec.arrays() if a.name != "gap"}
    for name in {"top", "tail_lse", "tail_mean", "tail_var"} & set(stored):
        stored[name] = round_mantissa(stored[name], spec.profile.scalar_bits)
    return {**stored, "gap": code_gaps(arrays["gap"], spec.profile)}


def statistics_of(spec: CacheSpec, number=0, factors=2) -> ClassStatistics:
    """Class statistics for this spec, one of several."""
    rng, classes = np.random.default_rng(number), spec.dataset.num_classes
    return ClassStatistics(
        rng.normal(0, 3, classes).astype(np.float32),
        rng.normal(0, 1, (classes, min(factors, classes))).astype(np.float32),
        noise=0.1 + number,
        views=1000 + number,
    )


def first_statistics(spec: CacheSpec) -> ClassStatistics | None:
    """What a new cache begins with."""
    return statistics_of(spec) if spec.calibrated else None


def assert_equal_statistics(found: ClassStatistics | None, expected: ClassStatistics | None) -> None:
    assert numbers_of(found) == numbers_of(expected)


def fill(path: Path, spec: CacheSpec, seeds=(1,), shards=None) -> Path:
    """Write the shards that are missing."""
    writer = CacheWriter.open(path, spec, statistics=first_statistics(spec))
    for seed in seeds:
        with writer.seed(seed) as own:
            committed = own.committed()
            for shard in range(spec.layout.shards) if shards is None else shards:
                if not committed[shard]:
                    own.write(shard, arrays_of(spec, seed, shard))
    return path


def assert_holds(reader: CacheReader, seed: int, shard: int) -> None:
    found = reader.read(seed, shard)
    expected = as_stored(reader.spec, arrays_of(reader.spec, seed, shard))
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def assert_typed(path: Path, seed: int = 1) -> LogitCacheError | None:
    """Reading gives right numbers or an error of ours, in one line; return the error."""
    try:
        reader = CacheReader(path)
        for shard in range(reader.spec.layout.shards):
            assert_holds(reader, seed, shard)
    except LogitCacheError as error:
        return one_line(error)
    return None


def one_line(error: LogitCacheError) -> LogitCacheError:
    assert "\n" not in str(error)
    return error


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything a cache is; locks are not."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }


def commits(path: Path, seed: int = 1) -> list[int]:
    reader = CacheReader(path)
    return reader.commits(seed).tolist() if seed in reader.seeds() else [0] * reader.spec.layout.shards


class Killed(BaseException):
    """What follows the point at which the process was killed."""


class Faults:
    """Let so many file operations of this process happen; then each fails (once), or none happens any more."""

    def __init__(self, monkeypatch, allowed: int, error: BaseException) -> None:
        self.left, self.error = allowed, error
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        for module, name in ((os, "replace"), (os, "rename"), (os, "unlink"), (os, "mkdir"), (os, "fsync")):
            monkeypatch.setattr(module, name, self._guarded(getattr(module, name)))
        really_open = io.open

        def guarded_open(file, mode="r", *args, **options):
            if set(mode) & set("wax+"):
                self._step()
            return really_open(file, mode, *args, **options)

        monkeypatch.setattr(io, "open", guarded_open)

    def _guarded(self, operation):
        def guarded(*args, **options):
            self._step()
            return operation(*args, **options)

        return guarded

    def _step(self) -> None:
        self.left -= 1
        if self.left == -1 or (self.left < -1 and isinstance(self.error, Killed)):
            raise self.error


def attributes(cache: Path) -> dict:
    return json.loads((cache / "zarr.json").read_text())["attributes"]["logitcache"]


def set_attributes(cache: Path, about: object) -> None:
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()
    attributes = {"logitcache": about, "logitcache_digest": digest}
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (cache / "zarr.json").write_text(json.dumps(root))


def stored_arrays(spec: CacheSpec, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of so many samples in stored dtypes, over the whole range of each."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for a in spec.arrays():
        shape = (rows, *a.shape[1:]) if a.dimensions[0] == "sample" else (1, *a.shape[1:])
        if a.name == "ids":
            arrays[a.name] = rng.integers(0, spec.dataset.num_classes, shape).astype(a.dtype)
            arrays[a.name].flat[0] = spec.dataset.num_classes - 1
        elif a.name == "gap" and spec.profile.gap_coding == "differences":
            arrays[a.name] = rng.integers(0, 255, shape, a.dtype, endpoint=True)
        elif a.dtype.startswith("uint"):
            arrays[a.name] = rng.integers(0, np.iinfo(a.dtype).max, shape, a.dtype, endpoint=True)
        else:
            arrays[a.name] = rng.normal(0, 9, shape).astype(a.dtype)
    return arrays


def make(path: Path, spec: CacheSpec, seeds=(0,)) -> CacheReader:
    writer = CacheWriter.open(path, spec, statistics=first_statistics(spec))
    for seed in seeds:
        with writer.seed(seed) as own:
            for shard in range(spec.layout.shards):
                arrays = stored_arrays(spec, len(spec.layout.samples_of(shard)), 100 * seed + shard)
                gap = np.abs(decode_gaps(arrays["gap"], spec.profile))
                own.write(shard, arrays | {"gap": gap})
    return CacheReader(path)


def of_all_shards(reader: CacheReader, seed: int) -> dict[str, np.ndarray]:
    shards = [reader.read(seed, shard) for shard in range(reader.spec.layout.shards)]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def assert_same_cache(reader: CacheReader, other: CacheReader) -> None:
    assert reader.seeds() == other.seeds()
    assert_equal_statistics(reader.statistics(), other.statistics())
    for seed in reader.seeds():
        expected = of_all_shards(other, seed)
        for name, array in of_all_shards(reader, seed).items():
            np.testing.assert_array_equal(array, expected[name])
        assert reader.identity(seed) == other.identity(seed)
        assert reader.canaries(seed) == other.canaries(seed)


def calibrate(path: Path | str, statistics: ClassStatistics) -> None:
    """Give a cache class statistics."""
    CacheWriter.open(path, CacheReader(path).spec).write_statistics(statistics)


def zeroed(statistics: ClassStatistics) -> ClassStatistics:
    """The same with a mean of zeros, which has no file: one that is left over would be taken for it."""
    return dataclasses.replace(statistics, mean=np.zeros_like(statistics.mean))


def read_or_refuse(path: Path, *allowed: ClassStatistics | None) -> str | None:
    """Reading them gives one of these, or an error of ours in one line that says what to do; return it."""
    try:
        found = CacheReader(path).statistics()
    except (FormatError, StorageError) as error:
        said = str(one_line(error))
        assert said.endswith("or make them anew with `logitcache calibrate`")
        assert str(path) in said
        return said
    assert numbers_of(found) in map(numbers_of, allowed), (
        "other numbers than were written, and nobody said so"
    )
    return None
