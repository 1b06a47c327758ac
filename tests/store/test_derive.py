"""Deriving: what comes out is what a dump with those options would have stored, as far as the source knows."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import fails, succeeds
from dumping import RECIPE, a_teacher, arrays_of, dump_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from small import few_digits

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import BusyError, ImageError, IncompleteError, MismatchError, OptionError
from logitcache.format.identity import PROFILES
from logitcache.format.schema import CacheSpec
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.derive import derive_cache, derive_spec, reduce_shard
from logitcache.stream.stream import Stream
from logitcache.views.datasets import ArrayImages

TAIL = ("tail_lse", "tail_mean", "tail_var")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the waits for the disk: what survives a crash is the store's matter."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory):
    """Caches of the same 100 digits (one of them bad) by (k, profile), each dumped once."""
    folder, made = tmp_path_factory.mktemp("dumped"), {}

    class OneBad(ArrayImages):
        def image(self, sample: int) -> Any:
            if sample == 60:
                raise ImageError("sample 60 does not decode")
            return super().image(sample)

    few = few_digits(100)
    images = OneBad("digits", "train", few.images, few.labels, 10, "digits")

    def get(k: int, profile: str, *, calibration: int | None = None) -> Path:
        name = f"{k}-{profile}-{calibration}.zarr"
        if name not in made:
            made[name] = folder / name
            config = DumpConfig(
                (0, 1),
                k,
                profile,
                50,
                workers=0,
                shard_samples=48,
                on_bad_image="skip",
                calibration=calibration,
            )
            dump(made[name], images, RECIPE, a_teacher(), config)
        return made[name]

    return get


def assert_as_dumped(derived: Path, direct: Path, tail: float) -> None:
    mine, theirs = arrays_of(derived), arrays_of(direct)
    assert mine.keys() == theirs.keys()
    assert CacheReader(derived).spec.differences(CacheReader(direct).spec) == []
    for (seed, shard, name), values in mine.items():
        expected = theirs[seed, shard, name]
        assert values.dtype == expected.dtype
        if name in TAIL:
            np.testing.assert_allclose(values, expected, rtol=tail, atol=tail, err_msg=name)
        else:
            np.testing.assert_array_equal(values, expected, err_msg=name)


@pytest.mark.parametrize("profile", ["default", "compact", "archive"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_from_an_exact_cache_comes_what_a_dump_stores(dumped, k: int, profile: str, tmp_path: Path) -> None:
    report = derive_cache(dumped(10, "exact"), tmp_path / "d.zarr", top_k=k, profile=profile)
    assert (report.k, report.profile, report.views, report.shards_written) == (k, profile, 200, 6)
    one_rounding = 2.0 ** -PROFILES[profile].scalar_bits  # sums of another order may fall on its other side
    assert_as_dumped(tmp_path / "d.zarr", dumped(k, profile, calibration=0), tail=one_rounding)


def test_from_a_default_cache_come_its_own_gaps_and_a_tail_within_float16(dumped, tmp_path: Path) -> None:
    derive_cache(dumped(6, "default"), tmp_path / "d.zarr", top_k=2)
    assert_as_dumped(tmp_path / "d.zarr", dumped(2, "default"), tail=2e-3)


def test_compact_gaps_of_fewer_logits_are_the_same_steps(dumped, tmp_path: Path) -> None:
    derive_cache(dumped(6, "compact"), tmp_path / "d.zarr", top_k=4)
    assert_as_dumped(tmp_path / "d.zarr", dumped(4, "compact"), tail=0.05)


def test_compact_from_default_rounds_twice_by_one_step_at_most(dumped, tmp_path: Path) -> None:
    derive_cache(dumped(6, "default"), tmp_path / "d.zarr", profile="compact")
    mine, theirs = arrays_of(tmp_path / "d.zarr"), arrays_of(dumped(6, "compact"))
    for key, values in mine.items():
        difference = np.abs(values.astype(float) - theirs[key].astype(float))
        if key[2] in ("top", *TAIL):  # rounded twice as well
            difference = difference / np.maximum(np.abs(theirs[key]), 1e-9)
        assert np.nanmax(difference) <= {"gap": 2, "ids": 0, "canary": 0}.get(key[2], 2**-7), key


@pytest.mark.parametrize(("first", "second"), [("default", "archive"), ("archive", "default")])
def test_archive_loses_nothing_of_default(dumped, first: str, second: str, tmp_path: Path) -> None:
    derive_cache(dumped(6, first), tmp_path / "d.zarr", profile=second)
    assert_as_dumped(tmp_path / "d.zarr", dumped(6, second), tail=0)


def test_in_two_steps_it_is_the_same_as_in_one(dumped, tmp_path: Path) -> None:
    derive_cache(dumped(10, "exact"), tmp_path / "6.zarr", top_k=6, profile="default")
    derive_cache(tmp_path / "6.zarr", tmp_path / "2.zarr", top_k=2)
    derive_cache(dumped(10, "exact"), tmp_path / "once.zarr", top_k=2, profile="default")
    assert_as_dumped(tmp_path / "2.zarr", tmp_path / "once.zarr", tail=2e-3)


def spec_like(source: CacheSpec, classes: int, k: int, profile: str) -> CacheSpec:
    data = source.to_dict()
    data["dataset"] |= {"num_classes": classes}
    return CacheSpec.from_dict({**data, "k": k, "profile": PROFILES[profile].to_dict()})


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_derived_tail_is_that_of_the_logits_themselves(dumped, data: st.DataObject) -> None:
    """In float64, from any logits: flat, steep, tied."""
    classes = data.draw(st.integers(2, 30))
    old_k = data.draw(st.integers(2, classes))
    new_k = data.draw(st.integers(1, old_k - 1))
    values = st.floats(-200, 200, width=32)
    logits = np.array(data.draw(st.lists(values, min_size=classes, max_size=classes)), np.float32)
    relative = np.sort(logits)[::-1].astype(np.float64)[None] - float(logits.max())
    base = CacheReader(dumped(6, "default", calibration=0)).spec
    source = spec_like(base, classes, old_k, "exact" if old_k == classes else "default")
    target = spec_like(base, classes, new_k, "default")

    def tail_of(k: int) -> dict[str, np.ndarray]:
        t = relative[:, k:]
        return {"tail_lse": np.log(np.exp(t).sum(1)), "tail_mean": t.mean(1), "tail_var": t.var(1)}

    stored = {"ids": np.arange(old_k)[None], "gap": -relative[:, :old_k], "top": np.zeros(1, np.float32)}
    with np.errstate(divide="ignore"):
        if old_k < classes:
            stored |= tail_of(old_k)
        found, expected = reduce_shard(stored, source, target), tail_of(new_k)
    for name in TAIL:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=1e-4, err_msg=name)


def test_what_was_derived_can_be_trained_from_and_gone_on_with(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", top_k=6)
    derive_cache(tmp_path / "c.zarr", tmp_path / "d.zarr", top_k=4, seeds=[1])
    stream = Stream.from_cache(tmp_path / "d.zarr", few_digits(), batch_size=50, device="cpu", workers=0)
    batch = next(stream.epoch(0))
    assert batch.teacher is not None
    assert batch.teacher.ids.shape == (50, 4)
    assert dump_digits(tmp_path / "d.zarr").views == 300  # the other seed, by the teacher
    assert CacheReader(tmp_path / "d.zarr").complete() == [0, 1]


# Going on, and refusals -----------------------------------------------------------------------------------


class _StopError(Exception):
    pass


@pytest.mark.parametrize("views", [48, 100, 148])
def test_stopped_anywhere_it_goes_on_at_the_first_missing_shard(dumped, views: int, tmp_path: Path) -> None:
    def stop(done: int, _total: int) -> None:
        if done >= views:
            raise _StopError

    with pytest.raises(_StopError):
        derive_cache(dumped(6, "default"), tmp_path / "d.zarr", top_k=2, on_progress=stop)
    reader = CacheReader(tmp_path / "d.zarr")
    before = sum(int((reader.commits(seed) != 0).sum()) for seed in reader.seeds())
    assert 0 < before < 6
    report = derive_cache(dumped(6, "default"), tmp_path / "d.zarr", top_k=2)
    assert (report.shards_there, report.shards_written) == (before, 6 - before)
    derive_cache(dumped(6, "default"), tmp_path / "whole.zarr", top_k=2)
    assert_as_dumped(tmp_path / "d.zarr", tmp_path / "whole.zarr", tail=0)


def test_another_cache_in_its_place_is_refused_with_what_differs(dumped, tmp_path: Path) -> None:
    derive_cache(dumped(6, "default"), tmp_path / "d.zarr", top_k=2)
    with pytest.raises(MismatchError) as refused:
        derive_cache(dumped(6, "default"), tmp_path / "d.zarr", top_k=3)
    assert [tuple(f) for f in refused.value.fields] == [("k", 2, 3)]
    with (
        CacheWriter.open(tmp_path / "d.zarr", CacheReader(tmp_path / "d.zarr").spec).seed(1),
        pytest.raises(BusyError, match="seed 1"),
    ):
        derive_cache(dumped(6, "default"), tmp_path / "d.zarr", top_k=2)


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ((6, "default"), {"top_k": 7}, "the top 7 logits from a cache that keeps the top 6"),
        ((6, "default"), {"top_k": 0}, "at least 1, found 0"),
        ((6, "default"), {"profile": "exact"}, "every class from a cache that keeps the top 6"),
        ((6, "compact"), {"profile": "default"}, r"default \(float16 gaps\) from compact"),
        ((10, "exact"), {"top_k": 4, "profile": "exact"}, "choose a profile too"),
        ((6, "default"), {"top_k": 6}, "nothing to derive"),
        ((6, "default"), {}, "nothing to derive"),
    ],
)
def test_what_the_source_does_not_hold_is_refused(dumped, source, options, says: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=says):
        derive_cache(dumped(*source), tmp_path / "d.zarr", **options)
    assert not (tmp_path / "d.zarr").exists()


def test_seeds_that_are_not_complete_are_refused(dumped, tmp_path: Path) -> None:
    part = Path(shutil.copytree(dumped(6, "default"), tmp_path / "part.zarr"))
    (part / "seed-1" / "commit" / "c" / "2").unlink()
    with pytest.warns(UserWarning, match="seed 1 left out, as shards are missing"):
        assert derive_cache(part, tmp_path / "d.zarr", top_k=2).seeds == (0,)
    with pytest.raises(IncompleteError, match="lacks seed 1; complete: seed 0"):
        derive_cache(part, tmp_path / "e.zarr", top_k=2, seeds=[0, 1])
    (part / "seed-0" / "commit" / "c" / "1").unlink()
    with pytest.raises(IncompleteError, match="no complete seed"):
        derive_cache(part, tmp_path / "e.zarr", top_k=2)


def test_fewer_logits_of_an_exact_cache_are_kept_as_a_dump_keeps_them(dumped) -> None:
    source = CacheReader(dumped(10, "exact")).spec
    assert derive_spec(source, 4) == derive_spec(source, 4, "default")
    assert derive_spec(CacheReader(dumped(6, "compact")).spec, 4).profile.name == "compact"


def test_shards_stay_where_they_are(dumped) -> None:
    source = CacheReader(dumped(6, "default")).spec
    spec = derive_spec(source, 2)
    assert [spec.layout.samples_of(j) for j in range(spec.layout.shards)] == [
        source.layout.samples_of(j) for j in range(source.layout.shards)
    ]
    assert {d.field for d in source.differences(spec)} == {"k"}


def test_by_command(dumped, tmp_path: Path) -> None:
    words = ("derive", dumped(6, "default"), "d.zarr", "--top-k", 3, "--profile", "compact", "--seeds", 1)
    report = json.loads(succeeds(*words, "--json", cwd=tmp_path))
    assert (report["seeds"], report["k"], report["profile"], report["shards_written"]) == (
        [1],
        3,
        "compact",
        3,
    )
    assert "0 written, 3 there already" in succeeds(*words, cwd=tmp_path)
    assert "cannot derive" in fails("derive", "d.zarr", "e.zarr", "--top-k", 9, cwd=tmp_path)
