"""The facts of the format: what makes two caches the same, which rows a shard has, what a new cache is given."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from specs import caches, names, often, put, small_cache, through_json

from logitcache.errors import FormatError, OptionError, UnknownNameError
from logitcache.format.identity import PROFILES, Profile, StepSpec, profile_named
from logitcache.format.schema import (
    SHARD_BYTES,
    SHARD_SAMPLES,
    SMALLEST_SHARD,
    CacheSpec,
    RowLayout,
    fit_shard_size,
    itemsize,
)

# What makes two caches the same ---------------------------------------------------------------------------


@often
@given(caches(), names, names, st.dictionaries(names, names, max_size=3))
def test_places_names_and_versions_do_not_make_another_cache(spec: CacheSpec, a: str, b: str, versions: Any):
    elsewhere = dataclasses.replace(
        spec,
        teacher=dataclasses.replace(spec.teacher, weights=a),
        dataset=dataclasses.replace(spec.dataset, name=b),
        recipe=dataclasses.replace(spec.recipe, name=a, version=spec.recipe.version + 1),
        versions=versions,
    )
    assert spec.differences(elsewhere) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("teacher", "name"), "other"),
        (("teacher", "weights_sha256"), "ff"),
        (("teacher", "precision"), "bfloat16"),
        (("teacher", "adapter", "size"), 9),
        (("teacher", "adapter", "mean"), [0.4]),
        (("teacher", "adapter", "std"), [0.4]),
        (("teacher", "adapter", "interpolation"), "bicubic"),
        (("dataset", "split"), "test"),
        (("dataset", "n"), 999),
        (("dataset", "num_classes"), 11),
        (("dataset", "fingerprint"), "ff"),
        (("k",), 5),
        (("profile", "gap_dtype"), "float32"),
        (("profile", "gap_coding"), "differences"),
        (("profile", "scalar_bits"), 9),
        (("profile", "codec"), "pcodec"),
        (("shard_samples",), 512),
        (("canaries",), 9),
    ],
    ids=str,
)
def test_each_field_of_the_identity_is_named_with_both_values(path: tuple[Any, ...], value: Any):
    mine = small_cache()
    data = put(through_json(mine), path, value)
    theirs = CacheSpec.from_dict(data)
    before: Any = through_json(mine)
    for step in path:
        before = before[step]
    assert mine.differences(theirs) == [(".".join(path), before, value)]
    assert theirs.differences(mine) == [(".".join(path), value, before)]


def test_another_step_shows_as_the_recipe_digest_alone():
    mine = small_cache()
    recipe = dataclasses.replace(mine.recipe, steps=(StepSpec("RandomCrop", {"size": 8, "padding": 2}),))
    theirs = dataclasses.replace(mine, recipe=recipe, recipe_sha256=recipe.sha256)
    assert [d.field for d in mine.differences(theirs)] == ["recipe_sha256"]


# Facts of the format --------------------------------------------------------------------------------------


@often
@given(caches())
def test_arrays_have_the_shapes_dtypes_and_chunks_of_the_format(spec: CacheSpec):
    n, k, classes = spec.dataset.n, spec.k, spec.dataset.num_classes
    arrays = {a.name: a for a in (*spec.arrays(), spec.commit_array())}
    tail = [] if k == classes else ["tail_lse", "tail_mean", "tail_var"][: 2 if spec.calibrated else 3]
    assert list(arrays) == ["ids", "gap", "top", *tail, "canary", "commit"]
    assert arrays["ids"].dtype == ("uint16" if classes <= 65_536 else "uint32")
    assert np.iinfo(arrays["ids"].dtype).max >= classes - 1
    assert arrays["gap"].dtype == spec.profile.stored_gap
    assert {arrays[name].dtype for name in ("top", *tail)} == {"float32"}
    assert arrays["ids"].shape == arrays["gap"].shape == (n, k)
    assert {arrays[name].shape for name in ("top", *tail)} == {(n,)}
    assert arrays["canary"].shape == (spec.layout.shards, spec.canaries)
    assert arrays["commit"].shape == (spec.layout.shards,)
    for array in arrays.values():
        assert len(array.shape) == len(array.chunks) == len(array.dimensions)
        if array.dimensions[0] == "sample":
            assert array.shards is not None
            assert array.shards[0] == spec.shard_samples
            assert [s % c for s, c in zip(array.shards, array.chunks, strict=True)] == [0] * len(array.shape)
        else:  # one chunk per shard, so that writing one never touches another's
            assert array.chunks[0] == 1
            assert array.shards is None


@often
@given(caches())
def test_exact_keeps_every_class_in_float32_and_has_no_tail(spec: CacheSpec):
    exact = CacheSpec.new(
        spec.teacher, spec.dataset, spec.recipe, k=spec.k, profile="exact", versions=spec.versions
    )
    assert exact.k == spec.dataset.num_classes
    assert exact.tail_size == 0
    assert [a.name for a in exact.arrays()] == ["ids", "gap", "top", "canary"]
    assert exact.arrays()[1].dtype == "float32"


@often
@given(caches(most_samples=20_000))
def test_shards_partition_the_samples_in_order(spec: CacheSpec):
    assume(spec.layout.shards <= 5000)
    ranges = [spec.layout.samples_of(shard) for shard in range(spec.layout.shards)]
    assert [i for r in ranges for i in r] == list(range(spec.dataset.n))
    assert all(len(r) == spec.shard_samples for r in ranges[:-1])
    for array in spec.arrays():
        cut = [spec.slice_of(array, shard) for shard in range(spec.layout.shards)]
        stops = [0, *(part.stop for part in cut)]
        assert [part.start for part in cut] == stops[:-1]
        assert stops[-1] == array.shape[0]


@st.composite
def grown_caches(draw: st.DrawFn) -> CacheSpec:
    spec = small_cache(n=draw(st.integers(1, 50)), shard_samples=draw(st.integers(1, 20)))
    for number, more in enumerate(draw(st.lists(st.integers(1, 50), max_size=5))):
        dataset = dataclasses.replace(spec.dataset, n=spec.dataset.n + more, fingerprint=f"after {number}")
        spec = spec.grown(dataset)
    return spec


@often
@given(grown_caches())
def test_shards_of_data_that_grew_partition_the_samples_and_have_rows_of_their_own(spec: CacheSpec):
    ranges = [spec.layout.samples_of(shard) for shard in range(spec.layout.shards)]
    assert [i for r in ranges for i in r] == list(range(spec.dataset.n))
    assert all(1 <= len(r) <= spec.shard_samples for r in ranges)
    assert [spec.layout.shard_of(i) for i in range(spec.dataset.n)] == [
        j for j, r in enumerate(ranges) for _ in r
    ]
    for array in (*spec.arrays(), spec.key_array()):
        places = [spec.slice_of(array, shard) for shard in range(spec.layout.shards)]
        rows = [row for place in places for row in range(place.start, place.stop)]
        assert rows == sorted(set(rows))
        assert rows[-1] + 1 == array.shape[0]
        if array.dimensions[0] == "sample":
            assert [len(range(p.start, p.stop)) for p in places] == [len(r) for r in ranges]
            assert [place.start for place in places] == [
                j * spec.shard_samples for j in range(spec.layout.shards)
            ]


@often
@given(grown_caches())
def test_growth_moves_no_shard_and_is_remembered(spec: CacheSpec):
    assert CacheSpec.from_dict(through_json(spec)) == spec
    assert ("parts" in spec.to_dict()) == (len(spec.history()) > 1)
    assert spec.grown(spec.dataset) == spec
    *before, now = spec.history()
    assert now == spec
    for then in before:
        assert spec.differences(then) != []
        for shard in range(then.layout.shards):
            assert then.layout.samples_of(shard) == spec.layout.samples_of(shard)
            assert then.layout.canary_samples(shard) == spec.layout.canary_samples(shard)
            assert then.layout.fingerprint_of(shard) == spec.layout.fingerprint_of(shard)
            for mine, theirs in zip(spec.arrays(), then.arrays(), strict=True):
                assert spec.slice_of(mine, shard) == then.slice_of(theirs, shard)
    for count, then in enumerate(spec.history()):
        new = range(before[count - 1].layout.shards if count else 0, then.layout.shards)
        assert {spec.layout.fingerprint_of(shard) for shard in new} == {then.dataset.fingerprint}


@pytest.mark.parametrize(
    "parts",
    [
        [{"n": 1000, "fingerprint": "cd"}],
        [{"n": 1000, "fingerprint": "x"}, {"n": 1000, "fingerprint": "cd"}],
        [{"n": 0, "fingerprint": "x"}, {"n": 1000, "fingerprint": "cd"}],
        [{"n": 7, "fingerprint": "x"}, {"n": 999, "fingerprint": "cd"}],
        [{"n": 7, "fingerprint": "x"}, {"n": 1000, "fingerprint": "x"}],
        [{"n": 9, "fingerprint": "x"}, {"n": 7, "fingerprint": "x"}, {"n": 1000, "fingerprint": "cd"}],
        [*({"n": i + 1, "fingerprint": "x"} for i in range(300)), {"n": 1000, "fingerprint": "cd"}],
    ],
    ids=lambda parts: str(parts)[:40],
)
def test_parts_that_do_not_grow_to_the_data_set_are_refused(parts: Any):
    with pytest.raises(FormatError, match="parts must grow"):
        CacheSpec.from_dict({**through_json(small_cache()), "parts": parts})


@often
@given(caches(), st.data())
def test_canaries_lie_inside_their_shard_first_included_and_spread(spec: CacheSpec, data: st.DataObject):
    shard = data.draw(st.integers(0, spec.layout.shards - 1))
    samples = spec.layout.samples_of(shard)
    canaries = spec.layout.canary_samples(shard)
    assert len(canaries) == spec.canaries
    assert canaries == sorted(canaries)
    assert canaries[0] == samples[0]
    assert set(canaries) <= set(samples) if len(samples) < 10**5 else all(c in samples for c in canaries)
    if len(samples) >= spec.canaries:
        gaps = [b - a for a, b in zip(canaries, [*canaries[1:], samples.stop], strict=True)]
        assert min(gaps) >= 1
        assert max(gaps) - min(gaps) <= 1


@often
@given(st.integers(1, 1 << 40))
def test_a_fitting_shard_is_a_power_of_two_within_bounds_that_cuts_data_in_about_eight(n: int):
    shard = fit_shard_size(n, sample_bytes=80)
    assert SMALLEST_SHARD <= shard <= SHARD_SAMPLES
    assert shard & (shard - 1) == 0
    shards = -(-n // shard)
    if SMALLEST_SHARD < shard < SHARD_SAMPLES:
        assert 4 <= shards <= 16
    assert (n > SHARD_SAMPLES * 16) <= (shard == SHARD_SAMPLES)
    assert fit_shard_size(n + 1, sample_bytes=80) >= shard


@often
@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_a_fitting_shard_is_the_largest_that_keeps_to_its_bytes(n: int, sample_bytes: int):
    shard, unbounded = fit_shard_size(n, sample_bytes), fit_shard_size(n, 1)
    assert shard & (shard - 1) == 0
    assert shard * sample_bytes <= SHARD_BYTES or shard == 1
    assert shard == unbounded or 2 * shard * sample_bytes > SHARD_BYTES


@pytest.mark.parametrize(
    ("classes", "k", "profile", "shard", "chunk"),
    [
        (1000, 16, "default", 131_072, 65_536),
        (1000, 1000, "exact", 32_768, 32_768),
        (21_841, 16, "exact", 2048, 2048),
        (21_841, 64, "default", 131_072, 65_536),
        (1 << 27, 1 << 27, "default", 1, 1),
    ],
)
def test_a_new_cache_of_many_logits_has_smaller_shards(classes, k, profile, shard, chunk):
    spec = small_cache(n=10_000_000, classes=classes, k=k, profile=profile)
    assert (spec.shard_samples, spec.chunk_samples) == (shard, chunk)
    bytes_of_id = 2 if classes <= 65_536 else 4
    bytes_of_gap = 4 if profile == "exact" else 2
    assert spec.sample_bytes == spec.k * (bytes_of_id + bytes_of_gap) + 4 + 12 * (spec.k < classes)


@often
@given(caches())
def test_fields_of_a_row_do_not_overlap_and_rows_are_whole_words(spec: CacheSpec):
    layout = RowLayout.of(spec)
    arrays = {a.name: a for a in spec.arrays() if a.name != "canary"}
    assert {name for name, *_ in layout.fields} == set(arrays)
    end = 0
    for name, dtype, count, offset in layout.fields:
        assert 0 <= offset - end < itemsize(dtype)  # no overlap
        assert offset % itemsize(dtype) == 0
        assert dtype == arrays[name].dtype
        assert count == math.prod(arrays[name].shape[1:])
        assert itemsize(dtype) == np.dtype(dtype).itemsize
        end = offset + count * itemsize(dtype)
    assert 0 <= layout.row_bytes - end < 4
    assert layout.row_bytes % 4 == 0
    assert (layout.num_classes, layout.gap_step) == (spec.dataset.num_classes, spec.profile.gap_step)


# New caches -----------------------------------------------------------------------------------------------


@often
@given(st.integers(2, 100), st.integers(1, 10**6))
def test_k_is_capped_at_the_class_count(classes: int, k: int):
    assert small_cache(classes=classes, k=k).k == min(k, classes)


@often
@given(caches())
def test_chunks_are_those_of_the_format_wherever_they_fit(spec: CacheSpec):
    assert spec.shard_samples % spec.chunk_samples == 0
    assert spec.chunk_samples in (65_536, spec.shard_samples)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": -1}, {"shard_samples": 0}, {"shard_samples": 1 << 25}])
def test_options_out_of_range_say_what_was_found(options: dict[str, int]):
    with pytest.raises(OptionError, match=f"found {next(iter(options.values()))}"):
        small_cache(**options)


def test_an_unknown_profile_suggests_the_near_one():
    with pytest.raises(UnknownNameError, match="unknown profile 'compct'; did you mean compact"):
        profile_named("compct")
    with pytest.raises(UnknownNameError):
        small_cache(profile="compct")


def test_profiles_are_listed_under_their_own_names():
    assert {name: profile_named(name).name for name in PROFILES} == {name: name for name in PROFILES}
    assert Profile("mine", "uint8", "values", 9, "blosc", 0.1).stored_gap == "uint8"
