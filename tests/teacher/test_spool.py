"""The spool: rows of a decoded seed are the arrays of the cache, whoever builds it, however often."""

import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_caches import FORK, make, of_all_shards, spec_of, stored_arrays

from logitcache.errors import FormatError, IncompleteError, StorageError
from logitcache.format.identity import PROFILES
from logitcache.format.quantize import decode_gaps
from logitcache.format.schema import CacheSpec, RowLayout
from logitcache.locks import lock
from logitcache.store import CacheReader, CacheWriter
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import default_spool_folder, open_spool, pack_rows, spool_path


def assert_decodes(teacher: SparseTeacher, arrays: dict[str, np.ndarray], spec: CacheSpec) -> None:
    gap = decode_gaps(arrays["gap"], spec.profile)
    assert teacher.num_classes == spec.dataset.num_classes
    np.testing.assert_array_equal(teacher.ids.numpy(), arrays["ids"].astype(np.int64))
    np.testing.assert_array_equal(teacher.gap.numpy(), gap)
    assert teacher.gap.dtype == torch.float32
    for name in ("top", "tail_lse", "tail_mean", "tail_var"):
        found = getattr(teacher, name)
        assert (found is None) == (name not in arrays)
        if found is not None:
            np.testing.assert_array_equal(found.numpy(), arrays[name])


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 9),
    classes=st.sampled_from([2, 3, 10, 255, 65_535, 65_536, 65_537, 1 << 20, 1 << 31]),
    k=st.integers(1, 9),
    profile=st.sampled_from(sorted(PROFILES)),
)
def test_unpacking_what_was_packed_gives_the_arrays(rows, classes, k, profile):
    spec = spec_of(n=rows, k=k, classes=min(classes, 10) if profile == "exact" else classes, profile=profile)
    layout, arrays = RowLayout.of(spec), stored_arrays(spec, rows)
    packed = pack_rows(spec, layout, arrays)
    assert packed.shape == (rows, layout.row_bytes)
    assert_decodes(SparseTeacher.unpack(torch.from_numpy(packed), layout), arrays, spec)


# From a cache ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CacheReader:
    return make(tmp_path_factory.mktemp("cache") / "c.zarr", spec_of(), seeds=(0, 1, 2))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("classes", [5, 70_000])
def test_rows_taken_from_a_spool_are_the_arrays_of_the_cache(profile, classes, tmp_path):
    if profile == "exact" and classes > 5:
        profile, classes = "compact", 65_536
    reader = make(tmp_path / "c.zarr", spec_of(classes=classes, profile=profile), seeds=(3,))
    rows = open_spool(reader, 3, tmp_path / "spool")
    arrays, layout = of_all_shards(reader, 3), RowLayout.of(reader.spec)
    taken = np.array([10, 0, 3, 4, 4, 9])
    found = SparseTeacher.unpack(torch.from_numpy(np.take(rows, taken, axis=0)), layout)
    assert_decodes(found, {name: a[taken] for name, a in arrays.items() if name != "canary"}, reader.spec)


def assert_right(rows: np.ndarray, reader: CacheReader, seed: int) -> None:
    expected = pack_rows(reader.spec, RowLayout.of(reader.spec), of_all_shards(reader, seed))
    np.testing.assert_array_equal(rows, expected)


def test_a_spool_is_read_only_and_built_once(cache, tmp_path):
    rows = open_spool(cache, 0, tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1
    (file,) = tmp_path.glob("*.spool")
    built = file.stat().st_ino
    assert_right(open_spool(cache, 0, tmp_path), cache, 0)
    assert [f.stat().st_ino for f in tmp_path.glob("*.spool")] == [built]
    assert not list(tmp_path.glob("*.part"))


def test_each_seed_has_a_spool_of_its_own(cache, tmp_path):
    for seed in (0, 1, 2):
        assert_right(open_spool(cache, seed, tmp_path), cache, seed)
    assert len(list(tmp_path.glob("*.spool"))) == 3


@pytest.mark.parametrize("left", ["a part", "too short", "too long", "empty"])
def test_what_a_crash_left_is_built_again(left, cache, tmp_path):
    open_spool(cache, 0, tmp_path)
    (file,) = tmp_path.glob("*.spool")
    whole = file.read_bytes()
    if left == "a part":
        file.unlink()
        file.with_suffix(".part").write_bytes(b"\xff" * (len(whole) + 9))
    else:
        file.write_bytes({"too short": whole[:-1], "too long": whole + b"x", "empty": b""}[left])
    assert_right(open_spool(cache, 0, tmp_path), cache, 0)
    assert file.read_bytes() == whole
    assert not list(tmp_path.glob("*.part"))


def test_rows_packed_in_another_way_are_not_taken_for_ones_of_this_layout(cache, tmp_path, monkeypatch):
    open_spool(cache, 0, tmp_path)
    layout = RowLayout.of(cache.spec)
    swapped = dataclasses.replace(layout, fields=(*layout.fields[1:], layout.fields[0]))
    assert swapped.row_bytes == layout.row_bytes
    monkeypatch.setattr(RowLayout, "of", lambda spec: swapped)  # as a later version of ours might
    open_spool(cache, 0, tmp_path)
    assert len(list(tmp_path.glob("*.spool"))) == 2


def test_whatever_changes_what_rows_hold_changes_the_spool(tmp_path):
    base = {"n": 11, "k": 2, "classes": 5}
    caches = [base, base | {"k": 3}, base | {"n": 12}, base | {"classes": 6}, base | {"profile": "compact"}]
    for number, fields in enumerate(caches):
        reader = make(tmp_path / f"{number}.zarr", spec_of(**fields), seeds=(0, 1))
        for seed in (0, 1):
            assert_right(open_spool(reader, seed, tmp_path / "spool"), reader, seed)
    writer = CacheWriter.open(tmp_path / "again.zarr", spec_of(**base))  # one number differs
    with writer.seed(0) as own:
        for shard in range(writer.spec.layout.shards):
            held = CacheReader(tmp_path / "0.zarr").read(0, shard)
            top = held["top"] + (np.arange(len(held["top"])) == 1) * np.float32(shard == 1)
            own.write(shard, {**held, "gap": np.abs(held["gap"].astype(np.float32)), "top": top})
    again = CacheReader(writer.path)
    assert_right(open_spool(again, 0, tmp_path / "spool"), again, 0)
    assert len(list((tmp_path / "spool").glob("*.spool"))) == 2 * len(caches) + 1


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 65_537])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_single_row_unpacks_like_one_of_many(classes, profile):
    spec = spec_of(k=3, classes=min(classes, 9) if profile == "exact" else classes, profile=profile)
    layout = RowLayout.of(spec)
    rows = torch.from_numpy(pack_rows(spec, layout, stored_arrays(spec, 4)))
    many = SparseTeacher.unpack(rows, layout)
    for row in range(4):
        one = SparseTeacher.unpack(rows[row : row + 1], layout)
        for name in ("ids", "gap", "top"):
            assert torch.equal(getattr(one, name), getattr(many, name)[row : row + 1])


def build(path: Path, folder: Path, barrier, told) -> None:
    reader = CacheReader(path)
    barrier.wait()
    rows = open_spool(reader, 1, folder)
    told.send((rows.tobytes(), spool_path(reader, 1, folder).stat().st_ino))


def test_processes_that_open_a_spool_at_once_build_one(cache, tmp_path):
    barrier, pipes = FORK.Barrier(2), [FORK.Pipe(duplex=False) for _ in range(2)]
    children = [FORK.Process(target=build, args=(cache.path, tmp_path, barrier, tell)) for _, tell in pipes]
    for child in children:
        child.start()
    said = [told.recv() for told, _ in pipes]
    for child in children:
        child.join()
    assert len(set(said)) == 1
    assert said[0][0] == open_spool(cache, 1, tmp_path).tobytes()
    assert_right(open_spool(cache, 1, tmp_path), cache, 1)


# Its limit ------------------------------------------------------------------------------------------------


def test_the_spool_longest_unused_goes_first_and_who_has_it_mapped_keeps_it(cache, tmp_path):
    size = cache.spec.dataset.n * RowLayout.of(cache.spec).row_bytes + 4
    rows, files = {}, {}
    for age, seed in enumerate((0, 1)):
        before = set(tmp_path.glob("*.spool"))
        rows[seed] = open_spool(cache, seed, tmp_path)
        (files[seed],) = set(tmp_path.glob("*.spool")) - before
        os.utime(files[seed], (time.time() - 100 + age,) * 2)
    open_spool(cache, 0, tmp_path)  # now 1 is the longest unused
    open_spool(cache, 2, tmp_path, limit=2 * size)
    assert files[0].exists()
    assert not files[1].exists()
    assert len(list(tmp_path.glob("*.spool"))) == 2
    assert_right(rows[1], cache, 1)
    assert_right(
        open_spool(cache, 1, tmp_path, limit=0), cache, 1
    )  # the one asked for stays, whatever the limit
    assert list(tmp_path.glob("*.spool")) == [files[1]]


def test_a_spool_that_another_process_is_opening_is_not_trimmed(cache, tmp_path):
    open_spool(cache, 0, tmp_path)
    (file,) = tmp_path.glob("*.spool")
    with lock(file.with_suffix(".lock")):
        open_spool(cache, 1, tmp_path, limit=0)
    assert file.exists()


def use_in_turn(path: Path, folder: Path, barrier, told) -> None:
    """Open seeds one after the other, each mapped while the next is opened, in a folder that holds one only."""
    reader = CacheReader(path)
    whole = {
        seed: pack_rows(reader.spec, RowLayout.of(reader.spec), of_all_shards(reader, seed))
        for seed in (0, 1, 2)
    }
    right, held = 0, None
    barrier.wait()
    for turn in range(12):
        seed = turn % 3
        rows = open_spool(reader, seed, folder, limit=rows_bytes(reader))
        right += bool((rows == whole[seed]).all()) and (
            held is None or bool((held[1] == whole[held[0]]).all())
        )
        held = seed, rows
    told.send(right)


def rows_bytes(reader: CacheReader) -> int:
    return reader.spec.dataset.n * RowLayout.of(reader.spec).row_bytes


def test_processes_that_build_and_evict_at_once_each_have_the_right_rows(cache, tmp_path):
    barrier, pipes = FORK.Barrier(2), [FORK.Pipe(duplex=False) for _ in range(2)]
    children = [
        FORK.Process(target=use_in_turn, args=(cache.path, tmp_path, barrier, tell)) for _, tell in pipes
    ]
    for child in children:
        child.start()
    assert [told.recv() for told, _ in pipes] == [12, 12]
    for child in children:
        child.join()
    open_spool(cache, 0, tmp_path, limit=rows_bytes(cache))
    assert len(list(tmp_path.glob("*.spool"))) == 1
    assert not list(tmp_path.glob("*.part"))


def test_room_is_made_before_a_spool_is_built(cache, tmp_path, monkeypatch):
    open_spool(cache, 0, tmp_path)
    read, beside = CacheReader.read, []

    def reading(self, seed, shard):
        beside.append(len(list(tmp_path.glob("*.spool"))))
        return read(self, seed, shard)

    monkeypatch.setattr(CacheReader, "read", reading)
    open_spool(cache, 1, tmp_path, limit=rows_bytes(cache))
    assert set(beside) == {0}


# What can go wrong ----------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_a_storage_error(cache, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"seed 0.*make room there.*\$LOGITCACHE_SPOOL") as refused:
        open_spool(cache, 0, tmp_path / "file" / "spool")
    assert "\n" not in str(refused.value)


def test_an_incomplete_seed_has_no_spool(tmp_path):
    reader = make(tmp_path / "c.zarr", spec_of(), seeds=(4,))
    with CacheWriter.open(reader.path, reader.spec).seed(5):
        pass
    with pytest.raises(IncompleteError, match="lacks seed 5; complete: seed 4"):
        open_spool(reader, 5, tmp_path / "spool")
    with pytest.raises(IncompleteError, match="lacks seed 6"):
        open_spool(reader, 6, tmp_path / "spool")
    assert not (tmp_path / "spool").exists()


def test_trouble_with_the_cache_is_not_blamed_on_the_spool(tmp_path):
    reader = make(tmp_path / "c.zarr", spec_of())
    file = reader.path / "seed-0" / "ids" / "c" / "1" / "0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match="seed 0, shard 1"):
        open_spool(reader, 0, tmp_path / "spool")
    assert not [f for f in (tmp_path / "spool").iterdir() if f.suffix != ".lock"]  # nor what was begun

    file.unlink()
    file.symlink_to(file)  # a file that cannot be opened, for root as well
    with pytest.raises(StorageError, match=r"cannot read .*seed 0, shard 1"):
        open_spool(reader, 0, tmp_path / "spool")


def test_the_folder_is_the_one_named_or_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LOGITCACHE_SPOOL", str(tmp_path / "here"))
    assert default_spool_folder() == tmp_path / "here"
    monkeypatch.delenv("LOGITCACHE_SPOOL")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_spool_folder() == tmp_path / "logitcache" / "spool"
