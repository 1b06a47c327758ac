"""A shard is there, whole and equal to what was written, or it is not; and the cache tells which."""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_caches import SMALL, arrays_of, assert_holds, fill, spec_of

from logitcache.errors import IncompleteError, OptionError
from logitcache.format.identity import PROFILES
from logitcache.store import CacheReader, CacheWriter, seed_list

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
    for shard in range(spec.layout.shards):
        assert_holds(reader, seed, shard)
    crcs = {
        sample: int(crc)
        for shard in range(spec.layout.shards)
        for sample, crc in zip(
            spec.layout.canary_samples(shard), arrays_of(spec, seed, shard)["canary"][0], strict=True
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


def test_any_zarr_reader_lists_the_whole_cache_and_warns_of_no_file_but_the_list_of_seeds(cache):
    import zarr

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        members = dict(zarr.open_group(cache, mode="r").members(max_depth=None))
    assert [one for one in said if "Object at seeds.json" not in str(one.message)] == []
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
    files = [f for f in cache.rglob("*") if f.is_file() and not f.name.startswith(".")]
    size = sum(f.stat().st_size for f in files)
    assert info["bytes_on_disk"] == size
    seeds = sum(
        f.stat().st_size for f in files if f.relative_to(cache).parts[0] in ("seed-1", "seed-2", "seed-10")
    )
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
