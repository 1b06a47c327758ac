"""Whatever ends a write, nothing that was committed is lost, and the write can be repeated."""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from small_caches import (
    FORK,
    SMALL,
    Faults,
    Killed,
    arrays_of,
    assert_holds,
    assert_typed,
    commits,
    fill,
    one_line,
    spec_of,
)

from logitcache.errors import NotFoundError, StorageError
from logitcache.store import CacheReader, CacheWriter

# Crashes --------------------------------------------------------------------------------------------------


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
    assert all("No space left" in said and " free); make room" in said for said in refusals)
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
        told, tell = FORK.Pipe(duplex=False)
        child = FORK.Process(target=write_for_ever, args=(path, tell))
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
    with pytest.raises(StorageError, match=r"No space left on device \(0 B free\); make room") as refused:
        fill(path, SMALL)
    assert "\n" not in str(refused.value)
    assert [bool(c) for c in commits(path)] == [True, False]
    assert_holds(CacheReader(path), 1, 0)
    ballast.unlink()
    fill(path, SMALL)
    assert commits(path) == commits(fill(tmp_path / "roomy.zarr", SMALL))


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refusals = {
        tmp_path / "file": (NotFoundError, "where something else is"),
        tmp_path / "file" / "c.zarr": (StorageError, "Not a directory"),
    }
    for path, (kind, reason) in refusals.items():
        with pytest.raises(kind, match=reason):
            CacheWriter.open(path, SMALL)
        with pytest.raises(NotFoundError):
            CacheReader(path)
