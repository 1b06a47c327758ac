"""Audit: a sound cache is found sound, whatever is broken is found by seed and shard, and mended to the same bits."""

import contextlib
import dataclasses
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import few_digits
from small_caches import spec_of
from test_cli import logitcache, succeeds
from test_dump import a_teacher, dump_digits
from test_replay import Pixels

from logitcache.audit.checkup import CheckupConfig, checkup, teacher_of
from logitcache.audit.glance import glance, view_size
from logitcache.audit.repair import repair
from logitcache.audit.rerun import rerun
from logitcache.audit.rules import broken_rules
from logitcache.audit.verify import Problem, verify
from logitcache.derive import derive
from logitcache.dump import DumpConfig, dump
from logitcache.errors import (
    BusyError,
    DriftError,
    IncompleteError,
    LogitCacheError,
    MismatchError,
    OptionError,
    StorageError,
)
from logitcache.models import build, save_weights
from logitcache.schema import CacheSpec
from logitcache.sparse import SparseTeacher
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.shards import as_stored
from logitcache.views import recipe_named

RECIPE = recipe_named("digits")
N = 150  # three shards, the last one shorter
SPEED = DumpConfig(batch_size=24, workers=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of three shards, the last one incomplete."""
    out = tmp_path_factory.mktemp("whole") / "c.zarr"
    dump_digits(out, N, seeds=(0, 1))
    dump(out, few_digits(N), RECIPE, a_teacher(), config_of(seeds=(2,)), only={2: (0, 2)})
    return out


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def cache(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "c.zarr"))


def config_of(**options: object) -> DumpConfig:
    return dataclasses.replace(SPEED, top_k=4, shard_samples=64, **options)  # type: ignore[arg-type]


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything a cache is; locks are not."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }


class Unnoticed(Pixels):
    """Digits one of which changes, and their fingerprint does not."""

    @property
    def fingerprint(self) -> str:
        return few_digits(N).fingerprint


def mend(cache: Path, **options: object):
    found = verify(CacheReader(cache))
    return repair(cache, found, SPEED, lambda: (few_digits(N), a_teacher()), **options)


# The rules ------------------------------------------------------------------------------------------------


def a_shard(spec: CacheSpec, logits: torch.Tensor, invalid: np.ndarray) -> dict[str, np.ndarray]:
    """What `dump` would store in shard 0 of these logits."""
    sparse = SparseTeacher.from_logits(logits, spec.k)
    arrays = {
        a.name: getattr(sparse, a.name).numpy().astype(np.float32)
        for a in spec.arrays()
        if a.name != "canary"
    }
    arrays["ids"] = sparse.ids.numpy()
    arrays["canary"] = np.arange(1, spec.canaries + 1, dtype=np.uint32)[None]
    arrays["canary"][0, invalid[spec.canary_samples(0)]] = 0
    arrays["top"][invalid] = np.nan
    return {a.name: as_stored(arrays[a.name], a, spec, 0) for a in spec.arrays()}


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(2, 70),
    k=st.integers(1, 70),
    profile=st.sampled_from(["default", "compact", "archive", "exact"]),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 8.0, 60.0, 3e4]),
    offset=st.sampled_from([0.0, -7.0, 1e4]),
    seed=st.integers(0, 999),
)
def test_every_answer_of_a_teacher_keeps_the_rules(classes, k, profile, scale, offset, seed) -> None:
    spec = spec_of(n=24, k=min(k, classes), classes=classes, profile=profile, shard=24)
    torch.manual_seed(seed)
    logits = torch.randn(24, classes) * scale + offset
    logits[::3] = logits[::3].round()  # ties
    invalid = np.random.default_rng(seed).random(24) < 0.2
    assert broken_rules(spec, 0, a_shard(spec, logits, invalid)) == []


BREAKS = {
    "ids are classes": lambda a, r: a["ids"].__setitem__((r, 1), 10),
    "ids are distinct": lambda a, r: a["ids"].__setitem__((r, 1), a["ids"][r, 0]),
    "top is finite": lambda a, r: a["top"].__setitem__(r, np.inf),
    "gaps are finite": lambda a, r: a["gap"].__setitem__((r, 2), np.nan),
    "gaps begin with 0": lambda a, r: a["gap"].__setitem__((r, 0), a["gap"][r, 1] / 2),
    "gaps do not fall": lambda a, r: a["gap"].__setitem__((r, 1), a["gap"][r, 2] + 1),
    "tail numbers are finite": lambda a, r: a["tail_lse"].__setitem__(r, np.nan),
    "tail_var is not negative": lambda a, r: a["tail_var"].__setitem__(r, -1e-6),
    "tail_lse is at most log(C − k) − (last gap)": lambda a, r: a["tail_lse"].__setitem__(
        r, np.log(6) - a["gap"][r, -1] + 0.01
    ),
    "tail_lse is at least log(C − k) + tail_mean": lambda a, r: a["tail_lse"].__setitem__(
        r, np.log(6) + a["tail_mean"][r] - 0.01
    ),
    "canaries are 0 where top is NaN, and only there": lambda a, r: a["canary"].__setitem__((0, r // 3), 0),
}


@pytest.mark.parametrize("rule", BREAKS)
def test_each_broken_rule_is_named_with_its_rows(rule: str) -> None:
    spec = spec_of(n=24, k=4, classes=10, shard=24)
    torch.manual_seed(1)
    arrays = a_shard(spec, torch.randn(24, 10) * 3, np.zeros(24, dtype=bool))
    for row in (6, 15):
        BREAKS[rule](arrays, row)
    assert [tuple(b) for b in broken_rules(spec, 0, arrays)] == [(rule, 2, 6)]


def test_a_tail_above_the_support_breaks_rules() -> None:
    spec = spec_of(n=24, k=4, classes=10, shard=24)
    arrays = a_shard(spec, torch.randn(24, 10) * 3, np.zeros(24, dtype=bool))
    arrays["tail_mean"][3] = 0.5
    assert "tail_mean is at most −(last gap)" in [b.rule for b in broken_rules(spec, 0, arrays)]


# Verify ---------------------------------------------------------------------------------------------------


def test_a_sound_cache_is_clean_and_incomplete_seeds_and_strays_are_no_problem(cache: Path) -> None:
    for stray in ("seed-1/ids/c/0/0.abc.partial", "seed-2/top/c/1", "seed-0/notes"):
        (cache / stray).write_bytes(b"left over")
    report = verify(CacheReader(cache), workers=2)
    assert report.clean
    assert report.problems == ()
    assert [(s.seed, s.committed, s.bad, s.strays) for s in report.seeds] == [
        (0, 3, 0, 1),
        (1, 3, 0, 1),
        (2, 2, 0, 1),
    ]
    assert (report.shards, report.views) == (8, 2 * N + 64 + 22)


@pytest.mark.parametrize(("source", "k", "profile"), [("exact", 4, "compact"), ("default", 2, "compact")])
def test_what_is_derived_keeps_the_rules(source: str, k: int, profile: str, tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", N, profile=source)
    derive(tmp_path / "c.zarr", tmp_path / "d.zarr", top_k=k, profile=profile)
    assert verify(CacheReader(tmp_path / "d.zarr")).clean


def test_verify_takes_some_seeds_and_refuses_those_that_are_not_there(whole: Path) -> None:
    told: list[tuple[int, int]] = []
    report = verify(CacheReader(whole), [1], on_progress=lambda *now: told.append(now))
    assert [s.seed for s in report.seeds] == [1]
    assert told[-1] == (3, 3)
    with pytest.raises(IncompleteError, match=r"no seeds 7-8; it has seeds 0-2"):
        verify(CacheReader(whole), [1, 7, 8])
    with pytest.raises(OptionError, match="workers"):
        verify(CacheReader(whole), workers=-2)


def test_rows_that_break_a_rule_are_found_though_every_digest_holds(cache: Path) -> None:
    rewrite(cache, 1, 1, lambda a: a["gap"].__setitem__((slice(5, 9), 1), a["gap"][5:9, 3] + 1))
    (problem,) = verify(CacheReader(cache)).problems
    assert (problem.seed, problem.shard, problem.kind) == (1, 1, "gaps do not fall")
    assert (problem.rows, problem.sample) == (4, 64 + 5)


def rewrite(cache: Path, seed: int, shard: int, change) -> None:
    """Commit other numbers in a shard's place, as a broken writer would have."""
    reader = CacheReader(cache)
    arrays = {name: values.copy() for name, values in reader.read(seed, shard).items()}
    change(arrays)
    with CacheWriter(reader.place, reader.spec).seed(seed) as own:
        own.withdraw(shard)
        own.write(shard, arrays)


def test_memory_does_not_grow_with_shards_or_seeds(tmp_path: Path) -> None:
    peaks = []
    for shards, seeds in ((3, 1), (9, 2)):
        spec = spec_of(n=shards * 8192, k=8, classes=100, shard=8192)
        out = tmp_path / f"{shards}.zarr"
        torch.manual_seed(0)
        arrays = a_shard(spec, torch.randn(8192, 100), np.zeros(8192, dtype=bool))
        for seed in range(seeds):
            with CacheWriter.open(out, spec).seed(seed) as own:
                for shard in range(shards):
                    own.write(shard, arrays)
        verify(CacheReader(out), [0], workers=1)  # what is imported and kept for good
        reader = CacheReader(out)
        tracemalloc.start()
        assert verify(reader, workers=1).clean
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    shard_bytes = 8192 * spec.sample_bytes
    assert peaks[1] < peaks[0] + shard_bytes
    assert max(peaks) < 8 * shard_bytes  # one at a time, with what judging it takes


# Repair ---------------------------------------------------------------------------------------------------


def flip(file: Path, at: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


FAULTS = {
    "a flipped bit": ("seed-0/gap/c/1/0", lambda f: flip(f, 0.4), (0, 1, "damaged")),
    "a flipped bit of an index": ("seed-1/top/c/2", lambda f: flip(f, 1.0), (1, 2, "damaged")),
    "a truncated file": ("seed-0/ids/c/2/0", lambda f: os.truncate(f, 40), (0, 2, "damaged")),
    "an empty file": ("seed-0/tail_var/c/2", lambda f: os.truncate(f, 0), (0, 2, "damaged")),
    "random bytes": ("seed-0/ids/c/2/0", lambda f: f.write_bytes(os.urandom(999)), (0, 2, "damaged")),
    "a deleted file": ("seed-1/tail_lse/c/2", lambda f: f.unlink(), (1, 2, "digest")),
    "another shard's file": (
        "seed-1/top/c/0",
        lambda f: f.write_bytes(f.with_name("1").read_bytes()),
        (1, 0, "digest"),
    ),
    "a damaged canary": ("seed-1/canary/c/1/0", lambda f: flip(f, 0.5), (1, 1, "damaged")),
    "a damaged commit": ("seed-2/commit/c/2", lambda f: flip(f, 0.5), (2, 2, "commit")),
    "an empty commit": ("seed-0/commit/c/0", lambda f: os.truncate(f, 0), (0, 0, "commit")),
    "another shard's commit": (
        "seed-0/commit/c/0",
        lambda f: f.write_bytes(f.with_name("1").read_bytes()),
        (0, 0, "digest"),
    ),
    "metadata that is not JSON": ("seed-1/ids/zarr.json", lambda f: flip(f, 0.0), (1, None, "metadata")),
    "metadata of another shape": (
        "seed-1/ids/zarr.json",
        lambda f: f.write_text(f.read_text().replace(str(N), str(N + 1))),
        (1, None, "metadata"),
    ),
    "metadata lost": ("seed-0/top/zarr.json", lambda f: f.unlink(), (0, None, "metadata")),
    "a group's metadata": ("seed-0/zarr.json", lambda f: f.write_text("[]"), (0, None, "metadata")),
    "a sample key": ("sample_key/c/1", lambda f: flip(f, 0.5), (None, None, "keys")),
    "sample keys cut off": ("sample_key/c/0", lambda f: os.truncate(f, 9), (None, None, "keys")),
    "sample keys' metadata": ("sample_key/zarr.json", lambda f: f.write_text("{"), (None, None, "keys")),
    "commit's metadata lost": ("seed-2/commit/zarr.json", lambda f: f.unlink(), (2, None, "metadata")),
    "commit's metadata empty": (
        "seed-0/commit/zarr.json",
        lambda f: os.truncate(f, 0),
        (0, None, "metadata"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_and_mended_to_the_same_bits(fault: str, whole: Path, cache: Path) -> None:
    name, damage, (seed, shard, kind) = FAULTS[fault]
    damage(cache / name)
    found = verify(CacheReader(cache))
    assert not found.clean
    assert [(p.seed, p.shard, p.kind) for p in found.problems] == [(seed, shard, kind)]
    done = repair(cache, found, SPEED, lambda: (few_digits(N), a_teacher()))
    assert done.after.clean
    assert done.redumped == (() if shard is None else ((seed, shard),))
    assert done.mended == ((name,) if shard is None else ())
    assert files_of(cache) == files_of(whole)  # same libraries, so not only the arrays: every byte


def test_many_faults_at_once_are_mended_and_sound_shards_are_not_written(whole: Path, cache: Path) -> None:
    faults = ["a flipped bit", "a truncated file", "a deleted file", "a damaged commit", "metadata lost"]
    for fault in faults:
        name, damage, _ = FAULTS[fault]
        damage(cache / name)
    before = {f: (cache / f).stat().st_mtime_ns for f in files_of(cache)}
    done = mend(cache)
    assert done.redumped == ((0, 1), (0, 2), (1, 2), (2, 2))
    assert done.identical == 3  # the fourth's commit could not be read
    assert files_of(cache) == files_of(whole)
    written = {f for f in files_of(cache) if before.get(f) != (cache / f).stat().st_mtime_ns}
    bad = {
        f"seed-{s}/{a}/c/{j}" for s, j in done.redumped for a in ("top", "tail_lse", "tail_mean", "commit")
    }
    assert bad <= written
    assert all("/c/" not in f or f.removesuffix("/0") in {*bad} | _wide(done.redumped) for f in written - bad)


def _wide(shards) -> set[str]:
    return {f"seed-{s}/{a}/c/{j}" for s, j in shards for a in ("ids", "gap", "canary", "tail_var")}


def test_metadata_alone_is_mended_without_a_teacher(whole: Path, cache: Path) -> None:
    (cache / "seed-0/gap/zarr.json").write_text("{}")
    reader = CacheReader(cache)

    def nobody():
        raise AssertionError("asked for a teacher")

    done = repair(cache, verify(reader), SPEED, nobody)
    assert done.mended == ("seed-0/gap/zarr.json",)
    assert files_of(cache) == files_of(whole)


def test_a_broken_rule_is_mended_too(whole: Path, cache: Path) -> None:
    rewrite(cache, 0, 2, lambda a: a["ids"].__setitem__((0, 1), a["ids"][0, 0]))
    assert mend(cache).redumped == ((0, 2),)
    assert files_of(cache) == files_of(whole)


@pytest.mark.parametrize("who", ["teacher", "images", "views", "pixels"])
def test_nothing_is_taken_back_before_all_is_proved_the_same(who: str, cache: Path) -> None:
    flip(cache / "seed-0/gap/c/1/0", 0.4)
    flip(cache / "seed-0/canary/c/1/0", 0.4)
    before, images, teacher = files_of(cache), few_digits(N), a_teacher()
    if who == "teacher":
        teacher, refusal = a_teacher(1), (MismatchError, "teacher.weights_sha256")
    if who == "images":
        images, refusal = few_digits(N - 1), (MismatchError, "other images")
    if who == "views":  # canaries that say that the teacher saw others
        rewrite(cache, 1, 0, lambda a: a["canary"].__iadd__(1))
        before, refusal = files_of(cache), (DriftError, "sample 0 of digits under seed 1")
    if who == "pixels":
        images = Unnoticed("digits", "train", images.images, images.labels, 10, "digits")
        images.changed = CacheReader(cache).spec.canary_samples(2)[1]
        refusal = (DriftError, f"sample {images.changed} of digits under seed 0")
    found = verify(CacheReader(cache))
    with pytest.raises(refusal[0], match=refusal[1]):
        repair(cache, found, SPEED, lambda: (images, teacher))
    assert files_of(cache) == before


def test_a_seed_that_is_being_written_is_not_touched(cache: Path) -> None:
    flip(cache / "seed-0/gap/c/1/0", 0.4)
    flip(cache / "seed-1/gap/c/1/0", 0.4)
    before = files_of(cache)
    with (
        CacheWriter.open(cache, CacheReader(cache).spec).seed(1),
        pytest.raises(BusyError, match="seed 1 of"),
    ):
        mend(cache)
    assert files_of(cache) == before
    assert mend(cache).after.clean


def test_what_the_disk_refuses_to_read_is_not_taken_for_damage(cache: Path, monkeypatch) -> None:
    decode = CacheReader.decode

    def refused(self, seed, shard):
        if (seed, shard) == (0, 1):
            raise StorageError("cannot read it: input/output error")
        return decode(self, seed, shard)

    monkeypatch.setattr(CacheReader, "decode", refused)
    (problem,) = verify(CacheReader(cache)).problems
    assert (problem.shard, problem.kind) == (1, "unreadable")
    before = files_of(cache)
    with pytest.raises(StorageError, match="the shard may be sound"):
        mend(cache)
    assert files_of(cache) == before


def test_a_commit_is_withdrawn_durably_before_any_of_its_files(cache: Path, monkeypatch) -> None:
    done: list[str] = []
    unlink, fsync = Path.unlink, os.fsync
    with CacheWriter.open(cache, CacheReader(cache).spec).seed(0) as own:
        monkeypatch.setattr(Path, "unlink", lambda f, **o: (done.append(f.parts[-3]), unlink(f, **o))[1])
        monkeypatch.setattr(
            os, "fsync", lambda d: (done.append(os.readlink(f"/proc/self/fd/{d}")), fsync(d))[1]
        )
        own.withdraw(1)
        monkeypatch.undo()
        assert own.committed().tolist() == [True, False, True]
    assert done[0] == "commit"
    assert done[1].endswith("seed-0/commit/c") or any(d.endswith("commit/c") for d in done[1:4])
    assert not set(done[1:4]) & {"ids", "gap", "top", "canary"}
    assert CacheReader(cache).strays(0) == []


# The teacher again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"profile": "compact"},
        {"profile": "archive"},
        {"profile": "exact"},
        {"precision": "bfloat16"},
        {"top_k": 1},
    ],
    ids=str,
)
def test_the_teacher_still_says_what_every_profile_holds(options: dict[str, object], tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", 100, **options)
    report = rerun(CacheReader(tmp_path / "c.zarr"), few_digits(100), a_teacher(), 60, seed=5, batch_size=7)
    assert report.clean
    assert (report.views, report.off, report.drift) == (60, 0, None)
    assert report.mean_error <= report.max_error < (0.06 if options else 1e-3)


def test_more_than_there_is_asks_for_every_view_once(whole: Path) -> None:
    report = rerun(CacheReader(whole), few_digits(N), a_teacher(), 10_000)
    assert (report.views, report.top1_agreement) == (2 * N + 86, 1.0)
    again = [rerun(CacheReader(whole), few_digits(N), a_teacher(), 9, seed=s).to_dict() for s in (3, 3, 4)]
    assert again[0] == again[1] != again[2]


def test_answers_of_another_teacher_are_found(cache: Path) -> None:
    rewrite(cache, 1, 2, lambda a: a["top"].__setitem__(slice(8, 11), a["top"][8:11] + np.float32([1, 3, 2])))
    report = rerun(CacheReader(cache), few_digits(N), a_teacher(), 10_000)
    assert not report.clean
    assert (report.off, report.worst) == (3, (2 * 64 + 9, 1))
    assert report.max_error == pytest.approx(3, abs=1e-2)


def test_a_class_that_rose_from_the_tail_is_found(cache: Path) -> None:
    def swapped(arrays) -> None:
        absent = next(c for c in range(10) if c not in arrays["ids"][4])
        gap = arrays["gap"][4].astype(np.float32)
        arrays["gap"][4, 1:], arrays["ids"][4, 1:] = (
            [*gap[2:].tolist(), gap[3]],
            [*arrays["ids"][4, 2:], absent],
        )

    rewrite(cache, 0, 0, swapped)
    assert rerun(CacheReader(cache), few_digits(N), a_teacher(), 10_000).off == 1


def test_the_teacher_is_not_asked_with_other_weights_or_images(whole: Path) -> None:
    with pytest.raises(MismatchError, match=r"another teacher.*teacher\.weights_sha256"):
        rerun(CacheReader(whole), few_digits(N), a_teacher(1), 5)
    with pytest.raises(MismatchError, match="other images"):
        rerun(CacheReader(whole), few_digits(N - 1), a_teacher(), 5)


def test_drift_of_the_views_is_told(cache: Path) -> None:
    for seed in (0, 1, 2):
        rewrite(cache, seed, 0, lambda a: a["canary"].__iadd__(1))
    report = rerun(CacheReader(cache), few_digits(N), a_teacher(), 200)
    assert not report.clean
    assert report.off == 0
    assert report.drift is not None
    assert report.drift.differing == 3 * 8 < report.drift.compared
    assert "sample 0 of digits under seed 0" in str(report.drift)


# The teacher by the spec ----------------------------------------------------------------------------------


def test_the_teacher_is_built_again_from_what_the_cache_says(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", a_teacher(5))
    for weights, seed, named in (
        ("random", 3, None),
        (tmp_path / "w.safetensors", 0, tmp_path / "w.safetensors"),
    ):
        out = tmp_path / f"{seed}.zarr"
        made = build("digits_small", num_classes=10, view_size=8, weights=str(weights), seed=seed)
        dump_digits(out, 40, made, seeds=(0,))
        spec = CacheReader(out).spec
        spec = dataclasses.replace(spec, dataset=dataclasses.replace(spec.dataset, name="digits"))
        images, teacher = teacher_of(spec, weights=named and str(named))
        assert teacher.weights_sha256 == made.weights_sha256
        assert images.name == "digits"
    with pytest.raises(OptionError, match=r"came from the file w\.safetensors; name it with --weights"):
        teacher_of(spec)


# At a glance ----------------------------------------------------------------------------------------------


def test_a_glance_tells_the_means_of_the_distribution_that_the_cache_describes(cache: Path) -> None:
    reader = CacheReader(cache)
    found = glance(reader)
    assert found["complete"] == "seeds 0-1"
    assert found["view_size"] == 8
    assert found["other_versions"] == {}
    top1, mass = [], []
    for seed in (0, 1, 2):
        held = reader.read(seed, 0)
        own = np.exp(-held["gap"].astype(np.float64))
        tail = np.exp(held["tail_lse"].astype(np.float64))
        top1 += (own[:, 0] / (own.sum(1) + tail)).tolist()
        mass += (tail / (own.sum(1) + tail)).tolist()
    told = found["confidence"]
    assert told["views"] == 3 * 64
    assert told["mean_top1_probability"] == pytest.approx(np.mean(top1), rel=1e-5)
    assert told["mean_tail_mass"]["1"] == pytest.approx(np.mean(mass), rel=1e-5)
    assert told["mean_tail_mass"]["1"] < told["mean_tail_mass"]["4"] < 0.6


def test_a_glance_at_a_damaged_or_empty_cache_says_so(cache: Path, tmp_path: Path) -> None:
    flip(cache / "seed-0/gap/c/0/0", 0.4)
    assert "seed 0, shard 0: damaged" in glance(CacheReader(cache))["damaged"]
    CacheWriter.open(tmp_path / "empty.zarr", CacheReader(cache).spec)
    found = glance(CacheReader(tmp_path / "empty.zarr"))
    assert (found["confidence"], found["damaged"], found["complete"]) == (None, None, "no seed")


@pytest.mark.parametrize(
    ("recipe", "size"),
    [("digits", 8), ("imagenet@64", 64), ("imagenet", 224), ("cifar", 32), ("identity", None)],
)
def test_the_size_of_views_is_read_off_the_recipe(recipe: str, size: int | None) -> None:
    assert view_size(recipe_named(recipe)) == size


# By command -----------------------------------------------------------------------------------------------


def test_verify_by_command_says_clean_or_not_by_its_exit_code(tmp_path: Path) -> None:
    words = ("dump", "--teacher", "digits_tiny", "--seeds", "0-1", "--top-k", 3, "--shard-samples", 512)
    succeeds(*words, "--out", "c.zarr", cwd=tmp_path)
    assert "clean" in succeeds("verify", "c.zarr", "--replay", 20, cwd=tmp_path)
    before = files_of(tmp_path / "c.zarr")
    flip(tmp_path / "c.zarr/seed-1/ids/c/1/0", 0.4)
    ended = logitcache("verify", "c.zarr", "--json", "--replay", 20, cwd=tmp_path)
    assert ended.exit_code == 1
    told = json.loads(ended.stdout)
    assert (told["clean"], told["repair"], told["replay"]) == (False, None, None)
    assert Problem.from_dict(told["found"]["problems"][0]).shard == 1
    assert "seed 1, shard 1: its data is damaged" in " ".join(
        logitcache("verify", "c.zarr", cwd=tmp_path).stdout.split()
    )
    text = succeeds("verify", "c.zarr", "--repair", cwd=tmp_path)
    assert "1 shards dumped again, 1 of them to the digest they had" in " ".join(text.split())
    assert files_of(tmp_path / "c.zarr") == before
    assert json.loads(succeeds("verify", "c.zarr", "--repair", "--json", cwd=tmp_path))["repair"] is None


def test_a_checkup_refuses_options_that_cannot_be(whole: Path) -> None:
    for wrong in (CheckupConfig(replay=-1), CheckupConfig(batch_size=-1), CheckupConfig(workers=-2)):
        with pytest.raises(OptionError, match="found"):
            checkup(str(whole), wrong)
    with contextlib.suppress(LogitCacheError):
        checkup(str(whole), CheckupConfig(teacher="nobody", replay=1))
