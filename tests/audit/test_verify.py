"""A sound cache is found sound, and whatever is broken is found, by seed and shard."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from breaking import N, flip, rewrite
from dumping import dump_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from small_caches import first_statistics, spec_of, statistics_of

from logitcache.audit.invariants import check_invariants
from logitcache.audit.verify import verify_cache
from logitcache.errors import IncompleteError, OptionError, StorageError
from logitcache.format.schema import CacheSpec
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.derive import derive_cache
from logitcache.store.local import LocalPlace
from logitcache.store.shards import to_stored
from logitcache.store.statistics import STATISTICS_FILES
from logitcache.teacher.sparse import SparseTeacher

# The invariants -------------------------------------------------------------------------------------------


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
    arrays["canary"][0, invalid[spec.layout.canary_samples(0)]] = 0
    arrays["top"][invalid] = np.nan
    return {a.name: to_stored(arrays[a.name], a, spec, 0) for a in spec.arrays()}


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(2, 70),
    k=st.integers(1, 70),
    profile=st.sampled_from(["default", "compact", "archive", "exact"]),
    calibrated=st.booleans(),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 8.0, 60.0, 3e4]),
    offset=st.sampled_from([0.0, -7.0, 1e4]),
    seed=st.integers(0, 999),
)
def test_every_answer_of_a_teacher_keeps_the_invariants(
    classes, k, profile, calibrated, scale, offset, seed
) -> None:
    calibrated = calibrated and k < classes and profile != "exact"
    spec = spec_of(n=24, k=min(k, classes), classes=classes, profile=profile, shard=24, calibrated=calibrated)
    torch.manual_seed(seed)
    logits = torch.randn(24, classes) * scale + offset
    logits[::3] = logits[::3].round()  # ties
    invalid = np.random.default_rng(seed).random(24) < 0.2
    assert check_invariants(spec, 0, a_shard(spec, logits, invalid)) == []


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


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("rule", BREAKS)
def test_each_broken_rule_is_named_with_its_rows(rule: str, calibrated: bool) -> None:
    if calibrated and "tail_var" in rule:
        return  # it keeps none
    spec = spec_of(n=24, k=4, classes=10, shard=24, calibrated=calibrated)
    torch.manual_seed(1)
    arrays = a_shard(spec, torch.randn(24, 10) * 3, np.zeros(24, dtype=bool))
    for row in (6, 15):
        BREAKS[rule](arrays, row)
    assert [tuple(b) for b in check_invariants(spec, 0, arrays)] == [(rule, 2, 6)]


def test_a_tail_above_the_support_breaks_invariants() -> None:
    spec = spec_of(n=24, k=4, classes=10, shard=24)
    arrays = a_shard(spec, torch.randn(24, 10) * 3, np.zeros(24, dtype=bool))
    arrays["tail_mean"][3] = 0.5
    assert "tail_mean is at most −(last gap)" in [b.invariant for b in check_invariants(spec, 0, arrays)]


# Verify ---------------------------------------------------------------------------------------------------


def test_a_sound_cache_is_clean_and_incomplete_seeds_and_strays_are_no_problem(cache: Path) -> None:
    for stray in ("seed-1/ids/c/0/0.abc.partial", "seed-2/top/c/1", "seed-0/notes"):
        (cache / stray).write_bytes(b"left over")
    report = verify_cache(CacheReader(cache), workers=2)
    assert report.clean
    assert report.problems == ()
    assert [(s.seed, s.committed, s.bad, s.strays) for s in report.seeds] == [
        (0, 3, 0, 1),
        (1, 3, 0, 1),
        (2, 2, 0, 1),
    ]
    assert (report.shards, report.views) == (8, 2 * N + 64 + 22)


@pytest.mark.parametrize(("source", "k", "profile"), [("exact", 4, "compact"), ("default", 2, "compact")])
def test_what_is_derived_keeps_the_invariants(source: str, k: int, profile: str, tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", N, profile=source)
    derive_cache(tmp_path / "c.zarr", tmp_path / "d.zarr", top_k=k, profile=profile)
    assert verify_cache(CacheReader(tmp_path / "d.zarr")).clean


def test_verify_takes_some_seeds_and_refuses_those_that_are_not_there(whole: Path) -> None:
    told: list[tuple[int, int]] = []
    report = verify_cache(CacheReader(whole), [1], on_progress=lambda *now: told.append(now))
    assert [s.seed for s in report.seeds] == [1]
    assert told[-1] == (3, 3)
    with pytest.raises(IncompleteError, match=r"no seeds 7-8; it has seeds 0-2"):
        verify_cache(CacheReader(whole), [1, 7, 8])
    with pytest.raises(OptionError, match="workers"):
        verify_cache(CacheReader(whole), workers=-2)


def test_rows_that_break_a_rule_are_found_though_every_digest_holds(cache: Path) -> None:
    rewrite(cache, 1, 1, lambda a: a["gap"].__setitem__((slice(5, 9), 1), a["gap"][5:9, 3] + 1))
    (problem,) = verify_cache(CacheReader(cache)).problems
    assert (problem.seed, problem.shard, problem.kind) == (1, 1, "gaps do not fall")
    assert (problem.rows, problem.sample) == (4, 64 + 5)


@pytest.mark.parametrize("calibrated", [False, True])
def test_class_statistics_are_checked(calibrated: bool, tmp_path: Path, monkeypatch) -> None:
    spec = spec_of(n=24, k=4, classes=10, shard=24, calibrated=calibrated)
    torch.manual_seed(1)
    writer = CacheWriter.open(tmp_path / "c.zarr", spec, statistics=first_statistics(spec))
    with writer.seed(0) as own:
        own.write(0, a_shard(spec, torch.randn(24, 10) * 3, np.zeros(24, dtype=bool)))
    reader = CacheReader(tmp_path / "c.zarr")
    assert verify_cache(reader).clean
    writer.write_statistics(statistics_of(spec))
    assert verify_cache(reader).clean
    flip(tmp_path / "c.zarr" / STATISTICS_FILES[1], 0.5)
    for path, seeds in (("c.zarr", None), ("c.zarr", [0])):
        report = verify_cache(CacheReader(tmp_path / path), seeds)
        (problem,) = report.problems
        assert (problem.seed, problem.shard, problem.kind) == (None, None, "statistics")
        assert re.fullmatch(
            r"the class statistics are damaged \(.*CRC-32C.*\); restore them .*`logitcache calibrate`",
            str(problem),
        )
        assert [(s.committed, s.bad) for s in report.seeds] == [(1, 0)]
    (tmp_path / "c.zarr" / STATISTICS_FILES[-1]).unlink()
    problems = [str(one) for one in verify_cache(reader).problems]
    assert [one[:31] for one in problems] == ["the class statistics are lost; "] * calibrated
    monkeypatch.setattr(LocalPlace, "fetch", refuse_statistics(LocalPlace.fetch))
    (problem,) = verify_cache(reader).problems
    assert (problem.kind, problem.seed) == ("unreadable", None)


def refuse_statistics(fetch):
    def refused(place, *args):
        if place.path.name == "class_statistics":
            raise StorageError("cannot read it: input/output error")
        return fetch(place, *args)

    return refused


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
        verify_cache(CacheReader(out), [0], workers=1)  # what is imported and kept for good
        reader = CacheReader(out)
        tracemalloc.start()
        assert verify_cache(reader, workers=1).clean
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    shard_bytes = 8192 * spec.sample_bytes
    assert peaks[1] < peaks[0] + shard_bytes
    assert max(peaks) < 8 * shard_bytes  # one at a time, with what judging it takes
