"""A slice of the soak, and what it has found: each finding is a law of its own here."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak import files, hostile
from soak.campaign import KINDS, Tally, inject
from soak.disk import replay
from soak.processes import OUT, recorded
from soak.subject import SEEDS, Truth, dump_digits, images

from logitcache.errors import DriftError, FormatError
from logitcache.store import CacheReader, CacheWriter, local
from logitcache.store.codecs import blosc_size, zstd_size
from logitcache.stream.stream import Stream
from logitcache.teacher.spool import open_spool


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    folder = tmp_path_factory.mktemp("truth")
    dump_digits(folder / "c.zarr")
    return Truth(folder / "c.zarr", folder / "spool")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that a fault left open
@pytest.mark.parametrize("kind", KINDS)
def test_no_fault_gives_a_wrong_number_loses_a_shard_or_hangs(
    kind: str, truth: Truth, tmp_path: Path
) -> None:
    tally = Tally(seed=1)
    for number in range(2 if kind in ("flip", "edit", "swap", "spool") else 1):
        inject(kind, number, tally, truth, tmp_path / str(number))
    assert tally.clean, tally.first
    assert list(tally.injected) == [kind]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False), damage=st.sampled_from(files.DAMAGES))
def test_whatever_is_done_to_files_numbers_are_right_or_refused(rng, damage, truth, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    cache = truth.copy(folder)
    damage(rng, cache)
    truth.require_all(cache, folder / "spool")
    shutil.rmtree(folder)


CRAFTED = [
    "a root and arrays that agree on 34 GB", "chunk: 3 GB", "commit: 3 GB", "canary: 3 GB unsaid",
    "chunk: Blosc past its end", "root text: deep", "seed-0/ids/c/0/0: a pipe", "zarr.json: /dev/zero",
    "seed-0/ids/c/0/0: a terabyte of nothing", "a root and class statistics that agree on 34 GB", "statistics: 3 GB",
]  # fmt: skip


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_cache_is_refused_soon_and_in_little_memory(
    case: str, truth: Truth, tmp_path: Path
) -> None:
    assert files.crafted(case, truth, tmp_path)


def test_the_soak_sees_a_store_that_does_not_flush(truth: Truth, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(local, "make_durable", lambda files: None)
    monkeypatch.setattr(local, "make_names_durable", lambda files: None)
    tally = Tally(seed=0)
    inject("power", 0, tally, truth, tmp_path / "fault")
    assert not tally.clean


def test_the_soak_sees_a_reader_that_does_not_check(truth: Truth, tmp_path: Path, monkeypatch) -> None:
    cache = truth.copy(tmp_path)
    commits = CacheReader(cache).commits(0)
    monkeypatch.setattr("logitcache.store.shards.shard_digest", lambda spec, seed, shard, _: commits[shard])
    os.replace(cache / "seed-1/ids/c/0/0", cache / "seed-0/ids/c/0/0")
    with pytest.raises(AssertionError, match="seed 0"):
        truth.require_all(cache, tmp_path / "spool")


# Findings -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory):
    return recorded(tmp_path_factory.mktemp("recorded"), random.Random(0))


def test_what_was_said_to_be_committed_is_there_when_nothing_else_was_flushed(log, truth, tmp_path) -> None:
    """New folders above a new cache were not flushed, and with them went all that was in them."""
    promises = [number for number, done in enumerate(log, 1) if done.kind == "promise"]
    assert len(promises) >= 6
    for number in promises:
        after = tmp_path / str(number)
        after.mkdir()
        disk = replay(log, number)
        disk.fail(random.Random(0), after, kept=0.0)
        truth.require_survived(after / OUT, disk.promised)


def test_commits_and_metadata_are_flushed_before_they_are_named(log) -> None:
    """Zarr names a file, then flushes it: a commit torn by a power cut was an error for ever."""
    flushed: set[str] = set()
    named = 0
    for done in log:
        if done.kind in ("write", "truncate", "create"):
            flushed.discard(done.path)
        elif done.kind == "sync":
            flushed.add(done.path)
        elif done.kind == "rename" and ("/commit/" in done.other or done.other.endswith("zarr.json")):
            named += 1
            assert done.path in flushed, done
    assert named >= 6


def test_canaries_of_a_shard_that_is_not_committed_may_be_torn(truth: Truth, tmp_path: Path) -> None:
    """A dump read the canaries of all shards, and did not go on where a power cut had torn one."""
    cache = truth.copy(tmp_path)
    (cache / "seed-0/commit/c/1").unlink()
    (cache / "seed-0/canary/c/1/0").write_bytes(bytes(20))
    dump_digits(cache)
    truth.require_whole(cache)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher.name", "other"), ("teacher.adapter.mean", [0.75]), ("dataset.split", "test"),
        ("dataset.name", "elsewhere"), ("recipe.evaluation", "center"), ("versions.torch", "0"),
    ],
)  # fmt: skip
def test_a_root_that_has_changed_is_refused(field: str, value: object, truth: Truth, tmp_path: Path) -> None:
    """No shard's digest covers these, and a flipped byte in them was taken for what the dump had written."""
    cache = truth.copy(tmp_path)
    root = json.loads((cache / "zarr.json").read_bytes())
    about = root["attributes"]["logitcache"]
    *parents, name = field.split(".")
    for parent in parents:
        about = about[parent]
    about[name] = value
    (cache / "zarr.json").write_text(json.dumps(root))
    for attempt in (lambda: CacheReader(cache), lambda: CacheWriter.open(cache, truth.spec)):
        with pytest.raises(FormatError, match=r"zarr\.json from a copy"):
            attempt()
    hostile.sign(root)
    (cache / "zarr.json").write_text(json.dumps(root))
    CacheReader(cache)


def test_canaries_that_are_gone_prove_nothing_and_are_missed(truth: Truth, tmp_path: Path) -> None:
    """A file that is not there stands for zeros, and a canary of 0 for an image that did not decode."""
    cache = truth.copy(tmp_path)
    (cache / "seed-0/canary/c/1/0").unlink()
    with pytest.raises(FormatError, match="seed 0, shard 1"):
        CacheReader(cache).canaries(0)


def test_canaries_of_another_seed_are_damage_and_no_drift(truth: Truth, tmp_path: Path) -> None:
    cache = truth.copy(tmp_path)
    shutil.copyfile(cache / "seed-1/canary/c/1/0", cache / "seed-0/canary/c/1/0")
    with pytest.raises(FormatError, match="seed 0, shard 1") as refused:
        Stream.from_cache(cache, images(), workers=0, device="cpu", seeds=SEEDS)
    assert not isinstance(refused.value, DriftError)


def test_a_link_in_place_of_the_owners_note_is_not_written_through(truth: Truth, tmp_path: Path) -> None:
    cache, precious = truth.copy(tmp_path), tmp_path / "precious"
    precious.write_text("mine")
    for name in ("commit/.owner", "ids/c/0/0.partial"):
        (cache / "seed-0" / name).symlink_to(precious)
    with CacheWriter.open(cache, truth.spec).seed(0):
        pass
    assert precious.read_text() == "mine"
    assert not (cache / "seed-0/ids/c/0/0.partial").is_symlink()


@pytest.mark.parametrize("position", [0, 100, -5, -1])
def test_a_spool_with_a_flipped_bit_is_built_again(position: int, truth: Truth, tmp_path: Path) -> None:
    """A file of the right size was taken for what had been written."""
    reader = CacheReader(truth.path)
    open_spool(reader, 0, tmp_path)
    (file,) = tmp_path.glob("*.spool")
    whole = bytearray(file.read_bytes())
    whole[position] ^= 16
    file.write_bytes(whole)
    truth.require_rows(reader, tmp_path, 0)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 1000, 65_791, 65_792, 1 << 20, (1 << 32) + 7])
def test_what_frames_say_of_their_size_is_read_as_their_decoders_do(size: int) -> None:
    from numcodecs import Blosc, Zstd

    if size < 1 << 30:
        data = np.random.default_rng(0).integers(0, 3, size, np.uint8)
        assert zstd_size(Zstd(level=3).encode(data)[:18]) == size
        packed = Blosc("zstd").encode(data)
        assert blosc_size(packed[:18], len(packed)) == size
        assert blosc_size(packed[:18], len(packed) + 1) is None
    assert zstd_size(hostile.bomb(size, really=1)[:18]) == size
    assert zstd_size(hostile.bomb(size, told=False, really=1)[:18]) is None
