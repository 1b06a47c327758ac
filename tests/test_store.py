"""The store: a shard is there, whole and equal to what was written, or it is not; whatever happens on the way."""

import contextlib
import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitcache.coding import code_gaps, rounded
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
from logitcache.schema import PROFILES, AdapterSpec, CacheSpec, DatasetSpec, RecipeSpec, StepSpec, TeacherSpec
from logitcache.store import CacheReader, CacheWriter, seed_list

SPAWN = multiprocessing.get_context("spawn")


def spec_of(
    n=11, k=2, classes=5, profile="default", shard=4, weights="ab", fingerprint="cd", size=8
) -> CacheSpec:
    return CacheSpec.new(
        TeacherSpec("net", "random", weights, "float32", AdapterSpec(1, 8, (0.5,), (0.5,))),
        DatasetSpec("digits", "train", n, classes, fingerprint),
        RecipeSpec("digits", 1, (StepSpec("RandomCrop", {"size": size, "padding": 1}),), "identity"),
        k=k,
        profile=profile,
        versions={"torch": "2"},
        shard_samples=shard,
    )


SMALL = spec_of(n=7, classes=3, profile="exact")  # two shards, four arrays


def arrays_of(spec: CacheSpec, seed: int, shard: int) -> dict[str, np.ndarray]:
    """What a teacher might have said: a function of its place, in dtypes as `dump` gives them."""
    rng = np.random.default_rng([seed, shard])
    rows, k = len(spec.shard_range(shard)), spec.k
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
        stored[name] = rounded(stored[name], spec.profile.scalar_bits)
    return {**stored, "gap": code_gaps(arrays["gap"], spec.profile)}


def fill(path: Path, spec: CacheSpec, seeds=(1,), shards=None) -> Path:
    """Write the shards that are missing."""
    writer = CacheWriter.open(path, spec)
    for seed in seeds:
        with writer.seed(seed) as own:
            committed = own.committed()
            for shard in range(spec.shards) if shards is None else shards:
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
        for shard in range(reader.spec.shards):
            assert_holds(reader, seed, shard)
    except LogitCacheError as error:
        return one_line(error)
    return None


def one_line(error: LogitCacheError) -> LogitCacheError:
    assert "\n" not in str(error)
    return error


def commits(path: Path, seed: int = 1) -> list[int]:
    reader = CacheReader(path)
    return reader.commits(seed).tolist() if seed in reader.seeds() else [0] * reader.spec.shards


@pytest.fixture
def fast(monkeypatch):
    """Skip the waits for the disk where power cuts are not the matter."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two complete seeds of SMALL; copy before you damage."""
    return fill(tmp_path_factory.mktemp("written") / "c.zarr", SMALL, seeds=(1, 2))


@pytest.fixture
def cache(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "c.zarr"))


# Round trip -----------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 40),
    classes=st.sampled_from([2, 3, 17, 65_536, 65_537]),
    k=st.integers(1, 6),
    profile=st.sampled_from(sorted(PROFILES)),
    shard=st.integers(6, 17),
    seed=st.integers(0, 1 << 60),
)
def test_what_is_written_is_read_back(n, classes, k, profile, shard, seed, tmp_path_factory, fast):
    classes = min(classes, 17) if profile == "exact" else classes
    spec = spec_of(n=n, k=k, classes=classes, profile=profile, shard=shard)
    path = fill(tmp_path_factory.mktemp("law") / "c.zarr", spec, seeds=(seed,))
    reader = CacheReader(path)
    assert reader.spec == spec
    assert reader.complete() == [seed]
    for shard in range(spec.shards):
        assert_holds(reader, seed, shard)
    crcs = {
        sample: int(crc)
        for shard in range(spec.shards)
        for sample, crc in zip(
            spec.canary_samples(shard), arrays_of(spec, seed, shard)["canary"][0], strict=True
        )
    }
    assert reader.canaries(seed) == crcs


def test_gaps_below_zero_do_not_wrap_around(tmp_path):
    spec = spec_of(n=4, k=2, profile="compact")
    with CacheWriter.open(tmp_path / "c.zarr", spec).seed(0) as own:
        own.write(0, {**arrays_of(spec, 0, 0), "gap": np.full((4, 2), -1.0)})
    assert not CacheReader(tmp_path / "c.zarr").read(0, 0)["gap"].any()


@pytest.mark.parametrize("classes", [5, 70_000])
@pytest.mark.parametrize("wrong", [-1, "C", 1 << 16, 1 << 20])
def test_class_ids_out_of_range_are_not_written(wrong, classes, tmp_path, fast):
    spec = spec_of(n=4, classes=classes)
    wrong = classes if wrong == "C" else wrong
    arrays = arrays_of(spec, 0, 0)
    arrays["ids"][2, 1] = wrong
    with CacheWriter.open(tmp_path / "c.zarr", spec).seed(0) as own:
        if 0 <= wrong < classes:
            own.write(0, arrays)
        else:
            with pytest.raises(OptionError, match=f"0 to {classes - 1}.*{wrong}"):
                own.write(0, arrays)
        assert own.committed().tolist() == [0 <= wrong < classes]


def test_arrays_of_another_shape_are_not_written(tmp_path, fast):
    with CacheWriter.open(tmp_path / "c.zarr", SMALL).seed(0) as own:
        with pytest.raises(OptionError, match=r"'top'.*\(3,\).*\(4,\)"):
            own.write(
                1, arrays_of(SMALL, 0, 0) | {"ids": arrays_of(SMALL, 0, 1)["ids"], "gap": np.ones((3, 3))}
            )
        assert not own.committed().any()


# Shards ---------------------------------------------------------------------------------------------------


def test_any_zarr_reader_lists_the_whole_cache_without_a_warning(cache):
    import zarr

    members = dict(zarr.open_group(cache, mode="r").members(max_depth=None))
    assert {"seed-1", "seed-1/ids", "seed-1/commit"} <= set(members)


def test_a_committed_shard_is_never_written_again(cache):
    before = {file: file.read_bytes() for file in cache.rglob("c/**/*") if file.is_file()}
    with (
        CacheWriter.open(cache, SMALL).seed(1) as own,
        pytest.raises(OptionError, match="never written again"),
    ):
        own.write(0, arrays_of(SMALL, 1, 1))
    assert before
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize("shard", [-1, 2, 1 << 40])
def test_a_shard_that_the_cache_has_not_is_refused(cache, shard):
    with CacheWriter.open(cache, SMALL).seed(3) as own, pytest.raises(OptionError, match="expected 0 to 1"):
        own.write(shard, arrays_of(SMALL, 1, 0))
    with pytest.raises(OptionError, match="expected 0 to 1"):
        CacheReader(cache).read(1, shard)


def test_shards_that_are_not_committed_are_not_read(tmp_path):
    reader = CacheReader(fill(tmp_path / "c.zarr", SMALL, shards=[1]))
    assert_holds(reader, 1, 1)
    with pytest.raises(IncompleteError, match=r"shard 0 of seed 1 .* not committed"):
        reader.read(1, 0)
    with pytest.raises(IncompleteError, match="no seed 9; it has seed 1"):
        reader.read(9, 0)
    with pytest.raises(IncompleteError, match="lacks seed 1; complete: no seed"):
        reader.require([1])
    fill(tmp_path / "c.zarr", SMALL, seeds=(0, 1))
    with pytest.raises(IncompleteError, match=r"lacks seeds 2-3; complete: seeds 0-1;"):
        reader.require([0, 3, 2])
    reader.require([1, 0])


def test_data_is_on_the_disk_before_its_commit_is_written(tmp_path, monkeypatch):
    """Record what is flushed and renamed, in order: a power cut may lose anything after the last flush."""
    happened: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor):
        happened.append(("flush", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source, target, **options):
        happened.append(("name", str(target)))
        replace(source, target, **options)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell a descriptor's file")
    with CacheWriter.open(tmp_path / "c.zarr", SMALL).seed(1) as own:
        monkeypatch.setattr(os, "fsync", flushed)
        monkeypatch.setattr(os, "replace", renamed)
        own.write(0, arrays_of(SMALL, 1, 0))
    seed = tmp_path / "c.zarr" / "seed-1"
    commit = happened.index(("name", str(seed / "commit" / "c" / "0")))
    data = [seed / name / "c" / "0" for name in ("ids", "gap", "top", "canary")]
    files = [f / "0" if f.is_dir() else f for f in data]
    for file in files:
        named = happened.index(("name", str(file)))
        assert ("flush", f"{file}.partial") in happened[:named]
        for path in file.parents[:3]:
            assert ("flush", str(path)) in happened[named:commit]
    assert ("flush", str(seed / "commit" / "c" / "0.partial")) in happened[:commit]
    for path in (seed / "commit" / "c", seed / "commit"):
        assert ("flush", str(path)) in happened[commit:]


# Crashes --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("failure", ["disk full", "killed"])
@pytest.mark.parametrize("begin", [False, True], ids=["going on", "beginning"])
def test_a_write_that_fails_at_any_file_operation_commits_nothing_and_can_be_repeated(
    begin, failure, tmp_path, monkeypatch, fast
):
    spec = spec_of(n=7, classes=2, profile="exact")
    first, whole = tmp_path / "first.zarr", fill(tmp_path / "whole.zarr", spec)
    fill(first, spec, shards=[0])
    allowed, finished, refusals = int(failure == "killed"), False, []
    while not finished:
        path = tmp_path / f"{allowed}.zarr"
        if not begin:
            shutil.copytree(first, path)
        error = Killed() if failure == "killed" else OSError(errno.ENOSPC, "No space left on device")
        with monkeypatch.context() as patch:
            faults = Faults(patch, allowed, error)
            try:
                fill(path, spec, shards=[0, 1])
            except Killed:
                pass
            except StorageError as error:
                refusals.append(str(one_line(error)))
        finished = faults.left >= 0

        seen = commits(path) if (path / "zarr.json").exists() else [0, 0]
        assert begin or seen[0]
        for shard in np.flatnonzero(seen):  # committed: then it is right
            assert_holds(CacheReader(path), 1, int(shard))
        fill(path, spec)
        assert commits(path) == commits(whole)
        assert assert_typed(path) is None
        assert not [f for f in path.rglob("*") if f.suffix == ".partial" or f.name in (".new", ".owner")]
        shutil.rmtree(path)
        allowed += 5 if begin else 2  # every second or fifth, and others for the other kind of failure
    assert allowed > 20
    assert all("No space left" in said and "MB free); make room" in said for said in refusals)
    assert bool(refusals) == (failure == "disk full")


def write_for_ever(path: Path, told) -> None:
    """Write shards of seed after seed, and tell of each."""
    for seed in range(1000):
        writer = CacheWriter.open(path, SMALL)
        with writer.seed(seed) as own:
            for shard in np.flatnonzero(~own.committed()):
                own.write(int(shard), arrays_of(SMALL, seed, int(shard)))
                told.send((seed, int(shard)))


def test_a_writer_killed_at_any_moment_leaves_committed_shards_whole_and_its_lock_free(tmp_path):
    path, rng, kept = tmp_path / "c.zarr", random.Random(0), set()
    for _ in range(4):
        told, tell = SPAWN.Pipe(duplex=False)
        child = SPAWN.Process(target=write_for_ever, args=(path, tell))
        child.start()
        kept.add(told.recv())
        time.sleep(rng.uniform(0, 0.4))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        tell.close()
        with contextlib.suppress(EOFError):
            while told.poll():
                kept.add(told.recv())
        reader = CacheReader(path)
        there = {(seed, int(j)) for seed in reader.seeds() for j in np.flatnonzero(reader.commits(seed))}
        assert kept <= there  # what it told of is there; at most one more, written and not yet told of
        assert len(there - kept) <= 1
        for seed, shard in there:
            assert_holds(reader, seed, shard)
        kept = there
    seeds = CacheReader(path).seeds()
    fill(path, SMALL, seeds=seeds)
    assert CacheReader(path).complete() == seeds


@pytest.mark.parametrize("file", ["seed-1/commit/zarr.json", "seed-1/commit/c/1"])
def test_a_file_left_empty_by_a_power_cut_is_written_again(file, cache):
    whole = commits(cache)
    (cache / file).write_bytes(b"")
    if file.endswith("zarr.json"):
        assert CacheReader(cache).seeds() == [2]
    fill(cache, SMALL)
    assert commits(cache) == whole
    assert assert_typed(cache) is None


@pytest.mark.parametrize("name", ["ids", "top"])
def test_garbage_without_a_commit_is_written_over(name, tmp_path):
    path = fill(
        tmp_path / "c.zarr", SMALL, shards=[0]
    )  # shard 1 is shorter: Zarr would read it to fill it up
    file = path / "seed-1" / name / "c" / ("1/0" if name == "ids" else "1")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\xff" * 100)
    assert assert_typed(fill(path, SMALL)) is None


def test_a_directory_that_was_to_become_a_cache_becomes_one(tmp_path):
    (tmp_path / "c.zarr" / ".new").mkdir(parents=True)
    (tmp_path / "c.zarr" / ".lock").touch()
    with pytest.raises(NotFoundError):
        CacheReader(tmp_path / "c.zarr")
    assert assert_typed(fill(tmp_path / "c.zarr", SMALL)) is None


# A full disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if (
        os.name != "posix"
        or not shutil.which("mount")
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("cannot mount a small file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_said_in_one_line_and_after_room_is_made_it_goes_on(small_disk, tmp_path):
    path = small_disk / "c.zarr"
    fill(path, SMALL, shards=[0])
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    with pytest.raises(StorageError, match=r"No space left on device \(0\.0 MB free\); make room") as refused:
        fill(path, SMALL)
    assert "\n" not in str(refused.value)
    assert [bool(c) for c in commits(path)] == [True, False]
    assert_holds(CacheReader(path), 1, 0)
    ballast.unlink()
    fill(path, SMALL)
    assert commits(path) == commits(fill(tmp_path / "roomy.zarr", SMALL))


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "c.zarr"):
        with pytest.raises(StorageError, match="Not a directory"):
            CacheWriter.open(path, SMALL)
        with pytest.raises(NotFoundError):
            CacheReader(path)


# Writers side by side -------------------------------------------------------------------------------------


def hold(path: Path, seed: int, told) -> None:
    with CacheWriter.open(path, SMALL).seed(seed) as own:
        own.write(0, arrays_of(SMALL, seed, 0))
        told.send("holding")
        told.recv()
        own.write(1, arrays_of(SMALL, seed, 1))
        told.send("done")


def test_two_processes_write_two_seeds_but_not_one(tmp_path):
    path = tmp_path / "c.zarr"
    here, there = SPAWN.Pipe()
    child = SPAWN.Process(target=hold, args=(path, 4, there))
    child.start()
    assert here.recv() == "holding"
    busy = rf"seed 4 of .* is being written by process {child.pid} on .*; wait, or dump other seeds"
    with pytest.raises(BusyError, match=busy):
        fill(path, SMALL, seeds=(4,))
    fill(path, SMALL, seeds=(5,))  # while the other is open
    here.send("go on")
    assert here.recv() == "done"
    child.join()
    fill(path, SMALL, seeds=(4,))  # nothing is missing, and the lock is free
    assert CacheReader(path).complete() == [4, 5]
    for seed in (4, 5):
        assert assert_typed(path, seed) is None


def test_one_process_cannot_own_a_seed_twice(tmp_path):
    writer = CacheWriter.open(tmp_path / "c.zarr", SMALL)
    with writer.seed(0), pytest.raises(BusyError, match=f"process {os.getpid()} on"), writer.seed(0):
        pass
    with writer.seed(0):
        pass


def begin(path: Path, seed: int, spec: CacheSpec, barrier, told) -> None:
    barrier.wait()
    try:
        fill(path, spec, seeds=(seed,))
        told.send("written")
    except MismatchError:
        told.send("refused")
    except Exception as error:
        told.send(repr(error))


@pytest.mark.parametrize("other", [False, True], ids=["one spec", "another spec"])
def test_processes_that_begin_a_cache_at_once_agree_on_it(other, tmp_path):
    specs = [SMALL, spec_of(n=7, classes=3, profile="exact", weights="ef") if other else SMALL]
    barrier, pipes = SPAWN.Barrier(2), [SPAWN.Pipe(duplex=False) for _ in range(2)]
    children = [
        SPAWN.Process(target=begin, args=(tmp_path / "c.zarr", seed, specs[seed], barrier, pipes[seed][1]))
        for seed in range(2)
    ]
    for child in children:
        child.start()
    said = sorted(told.recv() for told, _ in pipes)
    for child in children:
        child.join()
    assert said == (["refused", "written"] if other else ["written", "written"])
    assert len(CacheReader(tmp_path / "c.zarr").complete()) == 2 - other


# Another cache --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"weights": "ef"}, {"teacher.weights_sha256": ("ef", "ab")}),
        ({"n": 12, "fingerprint": "00"}, {"dataset.n": (12, 11), "dataset.fingerprint": ("00", "cd")}),
        ({"classes": 6, "k": 3}, {"dataset.num_classes": (6, 5), "k": (3, 2)}),
        (
            {"profile": "compact"},
            {"profile.name": ("compact", "default"), "profile.gap_dtype": ("uint8", "float16")},
        ),
        ({"shard": 8}, {"shard_samples": (8, 4)}),
        ({"size": 7}, {"recipe_sha256": ...}),
    ],
    ids=str,
)
def test_another_spec_is_refused_and_each_field_named(options, fields, tmp_path, fast):
    path = tmp_path / "c.zarr"
    CacheWriter.open(path, spec_of())
    before = (path / "zarr.json").read_bytes()
    with pytest.raises(MismatchError) as refused:
        CacheWriter.open(path, spec_of(**options))
    found = {f.field: (f.expected, f.found) for f in refused.value.fields}
    assert fields.keys() <= found.keys()
    for field, values in fields.items():
        assert values is ... or found[field] == values
        assert field in str(refused.value)
    assert (path / "zarr.json").read_bytes() == before


def test_places_and_versions_do_not_make_another_cache(tmp_path):
    there = spec_of().to_dict()
    there["versions"] = {"torch": "9"}
    there["teacher"]["weights"], there["dataset"]["name"] = "/elsewhere.safetensors", "imagefolder:/elsewhere"
    there["recipe"]["name"] = "by another name"
    CacheWriter.open(tmp_path / "c.zarr", spec_of())
    assert CacheWriter.open(tmp_path / "c.zarr", CacheSpec.from_dict(there)).spec == spec_of()


def test_too_many_shards_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(OptionError, match="choose a larger shard size"):
        CacheWriter.open(tmp_path / "c.zarr", spec_of(n=1 << 20, shard=1))
    assert not (tmp_path / "c.zarr").exists()


def test_urls_that_nothing_answers_to_are_refused():
    for use in (CacheReader, lambda path: CacheWriter.open(path, SMALL)):
        with pytest.raises(OptionError, match=r"gopher://hole/c\.zarr"):
            use("gopher://hole/c.zarr")


# What is no cache, or a damaged one -----------------------------------------------------------------------


def test_what_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match="no cache at"):
        CacheReader(tmp_path / "nothing")


def test_a_directory_of_something_else_is_no_cache_and_stays_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("\\end")
    with pytest.raises(NotFoundError):
        CacheReader(tmp_path)
    with pytest.raises(NotFoundError):
        CacheWriter.open(tmp_path, SMALL)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def attributes(cache: Path) -> dict:
    return json.loads((cache / "zarr.json").read_text())["attributes"]["logitcache"]


def set_attributes(cache: Path, about: object) -> None:
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()
    attributes = {"logitcache": about, "logitcache_digest": digest}
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (cache / "zarr.json").write_text(json.dumps(root))


@pytest.mark.parametrize(
    "root",
    [
        b"", b"{", b"null", b"[]", b"\xff\xfe", b"\0" * 100, b"[" * 100_000,
        b'{"zarr_format": 3, "node_type": "group", "attributes": {}}',
        b'{"zarr_format": 3, "node_type": "group"}',
        b'{"zarr_format": 3, "node_type": "group", "attributes": {"logitcache": 7}}',
        b'{"zarr_format": 4, "node_type": "group", "attributes": {}}',
        b'{"zarr_format": 3, "node_type": "array"}',
    ],
    ids=lambda root: root[:70].decode("latin1"),
)  # fmt: skip
def test_a_root_that_is_no_cache_is_a_format_error(root, cache):
    (cache / "zarr.json").write_bytes(root)
    with pytest.raises(FormatError, match=r"c\.zarr") as refused:
        CacheReader(cache)
    assert "\n" not in str(refused.value)
    with pytest.raises(FormatError):
        CacheWriter.open(cache, SMALL)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("format_version", 2, "version 2.*upgrade logitcache"),
        ("format_version", 0, "format_version must be 1"),
        ("format_version", True, "format_version"),
        ("dataset.n", 1 << 50, "2\\^40"),
        ("dataset.n", 1 << 40, "at most 65536 shards"),
        ("dataset.n", -1, "found -1"),
        ("dataset.n", 7.0, "expected int"),
        ("dataset.num_classes", 10**30, "num_classes"),
        ("k", 4, "k must be 1 to 3"),
        ("shard_samples", 1 << 30, "whole number of chunks"),
        ("shard_samples", 0, "whole number of chunks"),
        ("chunk_samples", 0, "whole number of chunks"),
        ("canaries", 1 << 40, "canaries"),
        ("profile.gap_dtype", "object", "gap_dtype"),
        ("profile.gap_step", -1.0, "gap_step"),
        ("recipe_sha256", "00", "recipe_sha256"),
        ("versions", [], "versions"),
        ("extra", 1, "unknown field 'extra'"),
    ],
)
def test_absurd_attributes_are_a_format_error(field, value, says, cache):
    about = attributes(cache)
    *parents, name = field.split(".")
    inner = about
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    set_attributes(cache, about)
    with pytest.raises(FormatError, match=says) as refused:
        CacheReader(cache)
    assert str(cache) in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1 << 40, 3]},
        {"shape": [7]},
        {"data_type": "float64"},
        {"data_type": "int16"},
        {"data_type": "string", "fill_value": ""},
        {"fill_value": 1},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 3]}}},
        {"codecs": [{"name": "bytes"}]},
        {"codecs": [{"name": "own", "configuration": {}}]},
        {"codecs": []},
        {"node_type": "group"},
    ],
    ids=str,
)
def test_arrays_of_another_form_are_refused_before_they_are_read(change, cache):
    file = cache / "seed-1" / "ids" / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert isinstance(assert_typed(cache), FormatError)
    with pytest.raises(FormatError), CacheWriter.open(cache, SMALL).seed(1):
        pass
    assert assert_typed(cache, seed=2) is None


@pytest.mark.parametrize("name", ["ids", "gap", "top", "canary", "commit"])
def test_a_missing_array_or_seed_directory_is_an_error_of_ours(name, cache):
    shutil.rmtree(cache / "seed-1" / name)
    assert isinstance(assert_typed(cache), IncompleteError if name == "commit" else FormatError)


@pytest.mark.parametrize("seed", ["seed-07", "seed--1", "seed-²", "seed-", "seed-x", "seed-1.old"])
def test_names_that_are_no_seed_are_ignored(seed, cache):
    shutil.copytree(cache / "seed-1", cache / seed)
    assert CacheReader(cache).seeds() == [1, 2]


def shard_files(cache: Path, seed: int = 1) -> list[Path]:
    return sorted(file for file in (cache / f"seed-{seed}").glob("*/c/**/*") if file.is_file())


def test_a_missing_chunk_file_is_an_error_of_ours(written, tmp_path):
    for number, file in enumerate(shard_files(written)):
        cache = Path(shutil.copytree(written, tmp_path / str(number)))
        (cache / file.relative_to(written)).unlink()
        lost = IncompleteError if "commit" in file.parts else FormatError
        assert isinstance(assert_typed(cache), lost), file
    assert number == 2 * 5 - 1


def test_a_truncated_chunk_file_is_an_error_of_ours(cache):
    for file in shard_files(cache)[::2]:
        whole = file.read_bytes()
        for size in {0, 1, 3, 4, len(whole) // 2, len(whole) - 4, len(whole) - 1}:
            file.write_bytes(whole[:size])
            assert isinstance(assert_typed(cache), FormatError), (file, size)
        file.write_bytes(whole)
    assert assert_typed(cache) is None


def test_a_flipped_byte_anywhere_in_a_shard_is_an_error_of_ours(cache):
    reader = CacheReader(cache)
    for file in shard_files(cache)[::2]:
        whole = file.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            file.write_bytes(damaged)
            with pytest.raises((FormatError, StorageError)) as refused:
                assert_holds(reader, 1, 0)
            assert "\n" not in str(refused.value)
        file.write_bytes(whole)
    assert_holds(reader, 1, 0)


@pytest.mark.parametrize(
    "file", ["zarr.json", "seed-1/zarr.json", "seed-1/gap/zarr.json", "seed-1/commit/zarr.json"]
)
def test_a_flipped_byte_in_metadata_gives_right_numbers_or_an_error_of_ours(file, cache):
    whole, errors = (cache / file).read_bytes(), 0
    positions = range(0, len(whole), max(1, len(whole) // 40))
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 7
        (cache / file).write_bytes(damaged)
        errors += assert_typed(cache) is not None
    assert errors > len(positions) // 3


def test_shards_that_change_places_are_refused(written, tmp_path):
    names = ["ids", "gap", "top", "canary", "commit"]
    for number, moved in enumerate([names, names[:4], *([name] for name in names)]):
        for across in ("shards", "seeds"):
            cache = Path(shutil.copytree(written, tmp_path / f"{number}-{across}"))
            for name in moved:
                a, b = cache / "seed-1" / name / "c" / "0", cache / "seed-1" / name / "c" / "1"
                b = cache / "seed-2" / name / "c" / "0" if across == "seeds" else b
                a.rename(tmp_path / "aside")
                b.rename(a)
                (tmp_path / "aside").rename(b)
            assert isinstance(assert_typed(cache), FormatError), (moved, across)


@pytest.mark.parametrize("what", [{"weights": "ef"}, {"fingerprint": "ef"}, {"size": 7}], ids=str)
def test_a_seed_of_another_teacher_data_set_or_recipe_is_refused(what, cache, tmp_path):
    other = fill(tmp_path / "other.zarr", spec_of(n=7, classes=3, profile="exact", **what))
    shutil.rmtree(cache / "seed-1")
    shutil.copytree(other / "seed-1", cache / "seed-1")
    assert isinstance(assert_typed(cache), FormatError)


def test_another_way_to_decode_the_same_bytes_is_refused(tmp_path):
    path = fill(tmp_path / "c.zarr", spec_of(profile="compact"))
    about = attributes(path)
    about["profile"]["gap_step"] = 0.06
    set_attributes(path, about)
    assert isinstance(assert_typed(path), FormatError)


def test_a_seed_copied_between_copies_of_a_cache_is_good(cache, tmp_path):
    other = fill(tmp_path / "other.zarr", SMALL, seeds=(9,))
    shutil.copytree(other / "seed-9", cache / "seed-9")
    assert CacheReader(cache).complete() == [1, 2, 9]
    assert assert_typed(cache, seed=9) is None


def test_class_ids_out_of_range_are_refused_on_reading(tmp_path, monkeypatch):
    from logitcache import store

    spec = spec_of(n=4, classes=5)
    path = fill(tmp_path / "c.zarr", spec_of(n=4, classes=50), shards=[])
    about = attributes(path)
    about["dataset"]["num_classes"] = 5
    stored = as_stored(spec, arrays_of(spec, 1, 0)) | {"ids": np.full((4, 2), 7, np.uint16)}
    with CacheWriter.open(path, spec_of(n=4, classes=50)).seed(1) as own:
        own.write(0, stored)
    digest = store.shard_digest(spec, 1, 0, stored)  # as a writer would that does not check
    set_attributes(path, about)
    import zarr

    zarr.open_array(path / "seed-1" / "commit", mode="r+")[0] = digest
    with pytest.raises(FormatError, match="class 7 of 5"):
        CacheReader(path).read(1, 0)


def test_a_damaged_seed_leaves_the_others_to_be_read(cache):
    shard_files(cache)[0].write_bytes(b"")
    with pytest.raises(FormatError):
        CacheReader(cache).commits(1) if "commit" in str(shard_files(cache)[0]) else CacheReader(cache).read(
            1, 0
        )
    assert assert_typed(cache, seed=2) is None


# Info -----------------------------------------------------------------------------------------------------


def test_info_has_the_promised_keys_and_its_figures_are_those_of_the_files(cache):
    fill(cache, SMALL, seeds=(10,), shards=[0])
    info = json.loads(json.dumps(CacheReader(cache).info()))
    keys = "format_version teacher dataset n num_classes k seeds bytes_on_disk bytes_per_sample_view"
    assert set(keys.split()) <= set(info)
    assert [info[name] for name in ("format_version", "n", "num_classes", "k")] == [1, 7, 3, 3]
    assert info["seeds"] == [
        {"seed": 1, "complete": True, "shards_done": 2, "shards": 2},
        {"seed": 2, "complete": True, "shards_done": 2, "shards": 2},
        {"seed": 10, "complete": False, "shards_done": 1, "shards": 2},
    ]
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    assert info["bytes_on_disk"] == size
    seeds = sum(f.stat().st_size for s in (1, 2, 10) for f in (cache / f"seed-{s}").rglob("*") if f.is_file())
    assert info["bytes_per_sample_view"] == pytest.approx(seeds / (7 + 7 + 4), abs=0.01)


def test_info_of_a_cache_without_shards(tmp_path):
    CacheWriter.open(tmp_path / "c.zarr", SMALL)
    info = CacheReader(tmp_path / "c.zarr").info()
    assert info["seeds"] == []
    assert info["bytes_per_sample_view"] is None


def test_identity_is_that_of_what_a_seed_holds(cache, tmp_path):
    reader = CacheReader(cache)
    assert reader.identity(1) != reader.identity(2)
    moved = Path(shutil.copytree(cache, tmp_path / "moved.zarr"))
    assert CacheReader(moved).identity(1) == reader.identity(1)
    part = CacheReader(fill(tmp_path / "part.zarr", SMALL, shards=[0]))
    assert part.identity(1) != reader.identity(1)


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([], "no seed"),
        ([5], "seed 5"),
        ([0, 1], "seeds 0-1"),
        ([7, 0, 2, 1, 3], "seeds 0-3, 7"),
        ([4, 2, 9], "seeds 2, 4, 9"),
    ],
)
def test_seed_lists_for_people(seeds, text):
    assert seed_list(seeds) == text
