"""In the store: what was committed keeps its bytes and its place, whatever ends the growth."""

import contextlib
import dataclasses
import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
from growing import GROWN, KEYS, before_growth, grow
from small_caches import SMALL, Faults, Killed, assert_holds, commits, files_of, fill, spec_of

from logitcache.errors import IncompleteError, MismatchError, OptionError, StorageError
from logitcache.store import CacheReader, CacheWriter

pytestmark = pytest.mark.usefixtures("fast")


def test_what_was_committed_keeps_its_bytes_and_its_place(tmp_path: Path) -> None:
    cache = before_growth(tmp_path / "c.zarr")
    old = files_of(cache)
    first = commits(cache)
    grow(cache)
    new = files_of(cache)
    changed = {name for name, data in old.items() if new[name] != data}
    assert {name.rsplit("/", 1)[-1] for name in changed} == {
        "zarr.json",
        "seeds.json",
    }  # shapes, the root, a new seed
    reader = CacheReader(cache)
    assert (reader.spec, reader.complete()) == (GROWN, [1, 2, 3])
    assert commits(cache)[:2] == first
    for seed in (1, 2, 3):
        for shard in range(4):
            assert_holds(reader, seed, shard)
    keys = reader.keys()
    assert keys is not None
    assert keys.tolist() == KEYS.tolist()


def test_between_the_root_and_the_seeds_everything_is_readable(tmp_path: Path) -> None:
    cache = before_growth(tmp_path / "c.zarr")
    opened_before = CacheReader(cache)
    CacheWriter.open(cache, GROWN, KEYS, grow=True)
    reader = CacheReader(cache)
    assert reader.complete() == []
    assert reader.commits(1).astype(bool).tolist() == [True, True, False, False]
    assert sorted(reader.canaries(1)) == sorted(CacheReader(cache).canaries(1)) != []
    assert_holds(reader, 1, 1)
    with pytest.raises(IncompleteError, match="shard 2 of seed 1"):
        reader.read(1, 2)
    fill(cache, GROWN, seeds=(1,))
    assert_holds(opened_before, 1, 0)  # who reads the cache as it was, a long training say, reads on
    assert opened_before.complete() == [1]
    assert opened_before.keys().tolist() == KEYS[:7].tolist()  # type: ignore[union-attr]


def test_growth_that_fails_at_any_file_operation_loses_nothing_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at one operation, the disk full at another, through the growth, the lengthening and one shard."""
    base = before_growth(tmp_path / "base.zarr")
    was = {seed: [commit for commit in commits(base, seed) if commit] for seed in (1, 2)}
    allowed, finished, states = 0, False, set()
    while not finished:
        cache = Path(shutil.copytree(base, tmp_path / f"{allowed}.zarr"))
        error = Killed() if allowed % 2 else OSError(errno.ENOSPC, "No space left on device")
        with monkeypatch.context() as patch:
            faults = Faults(patch, allowed, error)
            with contextlib.suppress(Killed, StorageError):
                CacheWriter.open(cache, GROWN, KEYS, grow=True)
                fill(cache, GROWN, seeds=(1,), shards=[2])
        finished = faults.left >= 0
        reader = CacheReader(cache)
        states.add((reader.spec == GROWN, int((reader.commits(1) != 0).sum())))
        for seed, before in was.items():
            seen = commits(cache, seed)
            assert seen[: len(before)] == before
            for shard in np.flatnonzero(seen):
                assert_holds(reader, seed, int(shard))
        keys = reader.keys()
        assert keys is not None
        assert keys.tolist() == KEYS[: reader.spec.dataset.n].tolist()
        CacheWriter.open(cache, GROWN, KEYS, grow=True)
        fill(cache, GROWN)
        assert CacheReader(cache).complete() == [1]
        for shard in range(4):
            assert_holds(CacheReader(cache), 1, shard)
        assert not list(cache.rglob("*.partial"))
        shutil.rmtree(cache)
        allowed += 5
    assert {(False, 2), (True, 2), (True, 3)} == states
    assert allowed > 30


def test_growth_in_several_steps_at_once(tmp_path: Path) -> None:
    twice = GROWN.grown(dataclasses.replace(GROWN.dataset, n=13, fingerprint="again"))
    cache, keys = before_growth(tmp_path / "c.zarr"), np.arange(100, 113, dtype=np.uint64)
    CacheWriter.open(cache, twice, keys, grow=True)
    fill(cache, twice, seeds=(1,))
    for shard in range(5):
        assert_holds(CacheReader(cache), 1, shard)


def test_a_growth_that_was_given_up_leaves_no_trace_in_another(tmp_path: Path) -> None:
    cache = before_growth(tmp_path / "c.zarr")
    root = (cache / "zarr.json").read_bytes()
    CacheWriter.open(cache, GROWN, KEYS, grow=True)
    (cache / "zarr.json").write_bytes(root)  # as if the machine had gone down just before
    less = SMALL.grown(dataclasses.replace(SMALL.dataset, n=9, fingerprint="less"))
    keys = np.array([*KEYS[:7], 5, 6], dtype=np.uint64)
    CacheWriter.open(cache, less, keys, grow=True)
    found = CacheReader(cache).keys()
    assert found is not None
    assert found.tolist() == keys.tolist()


def test_only_what_the_cache_was_grows(tmp_path: Path) -> None:
    cache = before_growth(tmp_path / "c.zarr")
    root = (cache / "zarr.json").read_bytes()
    other = dataclasses.replace(GROWN.dataset, n=14, fingerprint="from elsewhere")
    elsewhere = spec_of(n=8, classes=3, profile="exact", fingerprint="no").grown(other)
    with pytest.raises(MismatchError, match=r"dataset\.n: expected 7, found 14"):
        CacheWriter.open(cache, elsewhere, np.arange(14, dtype=np.uint64), grow=True)
    with pytest.raises(MismatchError, match=r"dataset\.n: expected 7, found 12"):
        CacheWriter.open(cache, GROWN, KEYS)
    with pytest.raises(OptionError, match="keys"):
        CacheWriter.open(cache, GROWN, KEYS[::-1].copy(), grow=True)
    assert (cache / "zarr.json").read_bytes() == root


def test_a_cache_behind_a_url_grows_too() -> None:
    url = "memory://growth/c.zarr"
    CacheWriter.open(url, SMALL, KEYS[:7])
    fill(url, SMALL)  # type: ignore[arg-type]
    CacheWriter.open(url, GROWN, KEYS, grow=True)
    fill(url, GROWN)  # type: ignore[arg-type]
    reader = CacheReader(url)
    assert reader.complete() == [1]
    for shard in range(4):
        assert_holds(reader, 1, shard)
    assert reader.keys().tolist() == KEYS.tolist()  # type: ignore[union-attr]


def test_a_cache_without_keys_opens_and_does_not_grow(tmp_path: Path) -> None:
    cache = fill(tmp_path / "c.zarr", SMALL)
    assert not (cache / "sample_key").exists()
    assert CacheReader(cache).keys() is None
    assert_holds(CacheReader(cache), 1, 1)
    with pytest.raises(MismatchError):
        CacheWriter.open(cache, GROWN, KEYS, grow=True)
