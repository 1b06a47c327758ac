"""A copy is the cache, wherever from and to, however often it was interrupted; damage at either end is found."""

import shutil
import signal
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from small_caches import assert_same_cache, make, spec_of, stored_arrays

from logitcache.errors import FormatError, IncompleteError, MismatchError, OptionError
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.copy import copy_cache

SPEC = spec_of(n=7)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> CacheReader:
    return make(tmp_path_factory.mktemp("source") / "c.zarr", SPEC, seeds=(0, 2))


def test_there_and_back_again_is_the_cache(root, source, tmp_path):
    there = copy_cache(source.path, f"{root}/c.zarr")
    assert (there.shards_copied, there.shards_there) == (4, 0)
    assert_same_cache(CacheReader(f"{root}/c.zarr"), source)
    copy_cache(f"{root}/c.zarr", f"{root}/d.zarr", workers=2)
    copy_cache(f"{root}/d.zarr", tmp_path / "back.zarr", workers=1)
    assert_same_cache(CacheReader(tmp_path / "back.zarr"), source)
    for file in (f for f in source.path.rglob("*") if f.is_file() and not f.name.startswith(".")):
        assert (tmp_path / "back.zarr" / file.relative_to(source.path)).read_bytes() == file.read_bytes()


def test_some_seeds_then_the_others(root, source):
    copy_cache(source.path, f"{root}/c.zarr", seeds=[2])
    assert CacheReader(f"{root}/c.zarr").seeds() == [2]
    report = copy_cache(source.path, f"{root}/c.zarr")
    assert (report.shards_copied, report.shards_there) == (2, 2)
    assert_same_cache(CacheReader(f"{root}/c.zarr"), source)


def test_a_seed_that_is_not_complete_is_copied_as_far_as_it_is(tmp_path):
    with CacheWriter.open(tmp_path / "c.zarr", SPEC).seed(4) as own:
        own.write(1, stored_arrays(SPEC, 3) | {"gap": np.ones((3, 2), np.float32)})
    report = copy_cache(tmp_path / "c.zarr", tmp_path / "d.zarr")
    assert report.shards_copied == 1
    reader = CacheReader(tmp_path / "d.zarr")
    assert (reader.commits(4) != 0).tolist() == [False, True]


def test_shards_of_zeros_that_have_no_file_are_copied(tmp_path):
    spec = spec_of(k=1)
    source = make(tmp_path / "c.zarr", spec)
    with CacheWriter.open(source.path, spec).seed(1) as own:
        zeros = {name: np.zeros_like(a) for name, a in stored_arrays(spec, 4).items()}
        own.write(0, zeros)
    copy_cache(source.path, tmp_path / "d.zarr")
    assert not CacheReader(tmp_path / "d.zarr").read(1, 0)["top"].any()


def test_another_cache_is_refused_and_what_differs_is_named(source, tmp_path):
    make(tmp_path / "other.zarr", spec_of(n=12))
    with pytest.raises(MismatchError, match=r"another cache than .*dataset\.n"):
        copy_cache(source.path, tmp_path / "other.zarr")
    with CacheWriter.open(tmp_path / "hardware.zarr", SPEC).seed(0) as own:
        own.write(0, stored_arrays(SPEC, 4, 99) | {"gap": np.ones((4, 2), np.float32)})
    with pytest.raises(MismatchError, match=r"holds other numbers.*digest of shard 0"):
        copy_cache(source.path, tmp_path / "hardware.zarr")


def test_what_cannot_be_asked_for(source, tmp_path):
    with pytest.raises(IncompleteError, match="lacks seed 9; it has seeds 0, 2"):
        copy_cache(source.path, tmp_path / "d.zarr", seeds=[0, 9])
    with pytest.raises(OptionError, match="workers"):
        copy_cache(source.path, tmp_path / "d.zarr", workers=0)
    assert not (tmp_path / "d.zarr").exists()


@pytest.mark.parametrize("name", ["ids/c/0/0", "top/c/1", "canary/c/1/0", "commit/c/1"])
def test_bytes_flipped_at_the_far_end_are_found_when_the_copy_runs_again(name, source, tmp_path):
    out = f"memory://{tmp_path.name}/c.zarr"
    copy_cache(source.path, out)
    filesystem, folder = fsspec.url_to_fs(out)
    file = f"{folder}/seed-2/{name}"
    data = bytearray(filesystem.cat_file(file))
    data[len(data) // 2] ^= 16
    filesystem.pipe_file(file, bytes(data))
    with pytest.raises((FormatError, MismatchError), match=r"seed.2"):
        copy_cache(source.path, out)


@pytest.mark.parametrize("name", ["ids/c/0/0", "top/c/1", "canary/c/1/0", "commit/c/1"])
def test_a_damaged_source_is_named_and_its_shard_not_committed(name, source, tmp_path):
    shutil.copytree(source.path, tmp_path / "c.zarr")
    file = tmp_path / "c.zarr" / "seed-2" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(bytes(data))
    with pytest.raises(FormatError, match=r"c\.zarr.*seed.2"):
        copy_cache(tmp_path / "c.zarr", tmp_path / "d.zarr", seeds=[2])
    reader = CacheReader(tmp_path / "d.zarr")
    shard = int(name.split("/")[2])
    assert reader.seeds() == [] or not reader.commits(2)[shard]


KILLED = """
import os, signal, sys
from logitcache.store.copy import copy_cache
def on_progress(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
copy_cache(sys.argv[1], sys.argv[2], seeds=[0, 2], workers=2, on_progress=on_progress)
"""


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_copy_killed_midway_goes_on_to_the_same_cache(kind, s3, source, tmp_path):
    out = f"s3://bucket/{tmp_path.name}/d.zarr" if kind == "s3" else str(tmp_path / "d.zarr")
    for after in (1, 3):
        killed = subprocess.run([sys.executable, "-c", KILLED, source.path, out, str(after)], check=False)
        assert killed.returncode == -signal.SIGKILL
        found = CacheReader(out)
        for seed in found.seeds():
            for shard in np.flatnonzero(found.commits(seed)):
                found.read(seed, int(shard))
    assert copy_cache(source.path, out).shards_there >= 3
    assert_same_cache(CacheReader(out), source)
