"""Writers side by side, of one cache: each seed has one, and a cache is begun once; of another cache, none."""

import os
from pathlib import Path

import pytest
from small_caches import FORK, SMALL, arrays_of, assert_typed, fill, spec_of

from logitcache.errors import BusyError, MismatchError, OptionError
from logitcache.format.schema import CacheSpec
from logitcache.store import CacheReader, CacheWriter

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
    here, there = FORK.Pipe()
    child = FORK.Process(target=hold, args=(path, 4, there))
    child.start()
    assert here.recv() == "holding"
    busy = rf"seed 4 of .* is being written by process {child.pid} on .*; wait, or choose other seeds with --seeds"
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
    barrier, pipes = FORK.Barrier(2), [FORK.Pipe(duplex=False) for _ in range(2)]
    children = [
        FORK.Process(target=begin, args=(tmp_path / "c.zarr", seed, specs[seed], barrier, pipes[seed][1]))
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
        ({"weights": "ef"}, {"teacher.weights_sha256": ("ab", "ef")}),
        ({"n": 12, "fingerprint": "00"}, {"dataset.n": (11, 12), "dataset.fingerprint": ("cd", "00")}),
        ({"classes": 6, "k": 3}, {"dataset.num_classes": (5, 6), "k": (2, 3)}),
        (
            {"profile": "compact"},
            {"profile.name": ("default", "compact"), "profile.gap_dtype": ("float16", "uint8")},
        ),
        ({"shard": 8}, {"shard_samples": (4, 8)}),
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
