"""The schema: specs survive JSON, hostile JSON ends in one kind of error, and the format's facts hold."""

import copy
import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from logitcache.errors import FormatError, OptionError, UnknownNameError
from logitcache.schema import (
    FORMAT_VERSION,
    PROFILES,
    SHARD_BYTES,
    SHARD_SAMPLES,
    SMALLEST_SHARD,
    AdapterSpec,
    CacheSpec,
    DatasetSpec,
    Profile,
    RecipeSpec,
    RowLayout,
    Spec,
    StepSpec,
    TeacherSpec,
    fitting_shard,
    itemsize,
    profile_named,
)

often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# What valid specs look like -------------------------------------------------------------------------------

names = st.text(max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | finite | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def adapters(draw: st.DrawFn) -> AdapterSpec:
    channels = draw(st.sampled_from([1, 3]))
    mean = draw(st.tuples(*[finite] * channels))
    std = draw(st.tuples(*[st.floats(1e-6, 1e6)] * channels))
    size = draw(st.integers(1, 65_536))
    return AdapterSpec(channels, size, mean, std, draw(st.sampled_from(["bilinear", "bicubic"])))


teachers = st.builds(
    TeacherSpec, names, names, names, st.sampled_from(["float32", "bfloat16", "float16"]), adapters()
)
recipes = st.builds(
    RecipeSpec,
    names,
    st.integers(),
    st.lists(st.builds(StepSpec, names, st.dictionaries(names, json_values, max_size=3)), max_size=3).map(
        tuple
    ),
    names,
)


@st.composite
def caches(draw: st.DrawFn, most_samples: int = 1 << 40) -> CacheSpec:
    n = draw(st.integers(1, 5000) | st.integers(1, most_samples))
    dataset = DatasetSpec(draw(names), draw(names), n, draw(st.integers(2, 1 << 31)), draw(names))
    return CacheSpec.new(
        draw(teachers),
        dataset,
        draw(recipes),
        k=draw(st.integers(1, dataset.num_classes)),
        profile=draw(st.sampled_from(sorted(PROFILES))),
        versions=draw(st.dictionaries(names, names, max_size=3)),
        shard_samples=draw(st.none() | st.integers(1, 1 << 24)),
    )


def small_cache(n: int = 1000, classes: int = 10, k: int = 4, **options: Any) -> CacheSpec:
    teacher = TeacherSpec("net", "random", "ab", "float32", AdapterSpec(1, 8, (0.5,), (0.25,)))
    recipe = RecipeSpec("digits", 1, (StepSpec("RandomCrop", {"size": 8, "padding": 1}),))
    dataset = DatasetSpec("digits", "train", n, classes, "cd")
    return CacheSpec.new(teacher, dataset, recipe, k=k, versions={"torch": "1"}, **options)


# Round trips ----------------------------------------------------------------------------------------------


def through_json(spec: Spec) -> Any:
    return json.loads(json.dumps(spec.to_dict(), allow_nan=False))


@often
@given(adapters() | teachers | recipes | caches() | st.sampled_from(list(PROFILES.values())))
def test_every_spec_is_equal_after_a_round_trip_through_json(spec: Spec):
    assert type(spec).from_dict(through_json(spec)) == spec


@often
@given(caches())
def test_a_row_layout_is_equal_after_a_round_trip_through_json(spec: CacheSpec):
    layout = RowLayout.of(spec)
    assert RowLayout.from_dict(through_json(layout)) == layout


@often
@given(recipes)
def test_a_recipe_keeps_its_digest_through_json_whatever_its_name(recipe: RecipeSpec):
    read = RecipeSpec.from_dict(through_json(recipe))
    assert read.sha256 == recipe.sha256
    assert dataclasses.replace(recipe, name="another", version=9, evaluation="x").sha256 == recipe.sha256
    longer = dataclasses.replace(recipe, steps=(*recipe.steps, StepSpec("RandomHorizontalFlip")))
    assert longer.sha256 != recipe.sha256


def test_the_order_of_arguments_does_not_change_a_recipe_but_the_order_of_steps_does():
    def recipe(*steps: StepSpec) -> str:
        return RecipeSpec("r", 1, steps).sha256

    assert recipe(StepSpec("A", {"x": 1, "y": 2})) == recipe(StepSpec("A", {"y": 2, "x": 1}))
    assert recipe(StepSpec("A"), StepSpec("B")) != recipe(StepSpec("B"), StepSpec("A"))


# Hostile JSON ---------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths of all values inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in items for p in places(v, (*path, k)))]


def put(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    data = copy.deepcopy(data)
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return data


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


nasty = st.one_of(
    json_values,
    st.sampled_from([math.nan, math.inf, -math.inf, True, False, 1.0, 0, -1, 1 << 63, 10**400, -(10**400)]),
    st.sampled_from(["", "1", "\ud800", "x" * 10_000, [], {}, [[]], {"k": None}, nested(100), nested(900)]),
)


@settings(often, max_examples=400)
@given(st.data())
def test_any_value_in_any_place_is_a_valid_spec_or_a_format_error(data: st.DataObject):
    good = through_json(small_cache(profile=data.draw(st.sampled_from(sorted(PROFILES)))))
    hostile = put(good, data.draw(st.sampled_from(places(good))), data.draw(nasty))
    try:
        spec = CacheSpec.from_dict(hostile)
    except FormatError as error:
        assert len(str(error)) < 25_000  # noqa: PT017
    else:
        assert CacheSpec.from_dict(through_json(spec)) == spec


in_arguments = ("recipe", "steps", 0, "args")
typed_places = [p for p in places(through_json(small_cache())) if p[:4] != in_arguments]
wrongs = {"bool": True, "nan": math.nan, "infinity": math.inf, "huge": 10**400, "deep": nested(900)}


@pytest.mark.parametrize("path", typed_places, ids=lambda p: ".".join(map(str, p)) or "root")
@pytest.mark.parametrize("kind", wrongs)
def test_a_bool_a_nan_or_something_huge_is_refused_in_every_typed_place(path: tuple[Any, ...], kind: str):
    if (path, kind) == (("recipe", "version"), "huge"):
        return  # a recipe may count its versions as it likes
    with pytest.raises(FormatError):
        CacheSpec.from_dict(put(through_json(small_cache()), path, wrongs[kind]))


@pytest.mark.parametrize("wrong", [math.nan, -math.inf, nested(900), {"a": [math.nan]}, {1: 2}, 1j])
def test_arguments_of_a_step_must_be_json(wrong: Any):
    with pytest.raises(FormatError, match=r"StepSpec\.args\.padding"):
        StepSpec.from_dict({"transform": "Pad", "args": {"padding": wrong}})


def field_of(path: tuple[Any, ...]) -> bool:
    return bool(path) and isinstance(path[-1], str) and path[0] != "versions" and path != in_arguments


@pytest.mark.parametrize(
    "path", [p for p in typed_places if field_of(p)], ids=lambda p: ".".join(map(str, p))
)
def test_a_missing_field_is_named_unless_it_has_a_default(path: tuple[Any, ...]):
    data = through_json(small_cache())
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    if path[-1] in ("format_version", "gap_step", "interpolation", "evaluation"):
        assert CacheSpec.from_dict(data).k == 4
    else:
        with pytest.raises(FormatError, match=f"field '{path[-1]}' is missing"):
            CacheSpec.from_dict(data)


@pytest.mark.parametrize(
    "path", [(), ("teacher",), ("teacher", "adapter"), ("recipe", "steps", 0), ("profile",)]
)
def test_an_unknown_field_is_named_with_where_it_stands(path: tuple[Any, ...]):
    with pytest.raises(FormatError, match=r"Spec.*: unknown field 'colour'; expected "):
        CacheSpec.from_dict(put(through_json(small_cache()), (*path, "colour"), 1))


@often
@given(st.integers(FORMAT_VERSION + 1, 1 << 70), st.dictionaries(names, json_values, max_size=3))
def test_a_newer_format_is_refused_before_anything_else_and_says_upgrade(version: int, rest: dict[str, Any]):
    with pytest.raises(FormatError, match=rf"format version {version}, .* up to {FORMAT_VERSION}; upgrade"):
        CacheSpec.from_dict({**rest, "format_version": version})


@often
@given(st.integers(max_value=FORMAT_VERSION - 1) | st.sampled_from([1.0, "1", None, True]))
def test_no_other_format_version_passes(version: Any):
    with pytest.raises(FormatError, match="format_version"):
        CacheSpec.from_dict({**through_json(small_cache()), "format_version": version})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("k",), 0),
        (("k",), 11),
        (("canaries",), 0),
        (("canaries",), 1025),
        (("chunk_samples",), 0),
        (("chunk_samples",), 3),
        (("shard_samples",), (1 << 24) + 256),
        (("recipe_sha256",), "0" * 64),
        (("recipe", "steps", 0, "args", "size"), 9),
        (("dataset", "n"), 0),
        (("dataset", "num_classes"), 1),
        (("teacher", "precision"), "float64"),
        (("teacher", "adapter", "channels"), 2),
        (("teacher", "adapter", "size"), 0),
        (("teacher", "adapter", "std"), [0.0]),
        (("teacher", "adapter", "mean"), [0.5, 0.5]),
        (("profile", "gap_dtype"), "uint8"),
        (("profile", "gap_step"), 0.5),
        (("profile", "gap_coding"), "deltas"),
        (("profile", "codec"), "zlib"),
        (("profile", "scalar_bits"), 0),
        (("profile", "scalar_bits"), 24),
        (("profile",), PROFILES["compact"].to_dict() | {"gap_step": 0}),
        (("profile",), PROFILES["compact"].to_dict() | {"gap_step": -1.0}),
        (("profile",), PROFILES["compact"].to_dict() | {"codec": "pcodec"}),
        (("profile",), PROFILES["exact"].to_dict()),
        (("profile",), PROFILES["exact"].to_dict() | {"name": "mine", "gap_coding": "differences"}),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(path: tuple[Any, ...], value: Any):
    with pytest.raises(FormatError):
        CacheSpec.from_dict(put(through_json(small_cache()), path, value))


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
    tail = [] if k == classes else ["tail_lse", "tail_mean", "tail_var"]
    assert list(arrays) == ["ids", "gap", "top", *tail, "canary", "commit"]
    assert arrays["ids"].dtype == ("uint16" if classes <= 65_536 else "uint32")
    assert np.iinfo(arrays["ids"].dtype).max >= classes - 1
    assert arrays["gap"].dtype == spec.profile.stored_gap
    assert {arrays[name].dtype for name in ("top", *tail)} == {"float32"}
    assert arrays["ids"].shape == arrays["gap"].shape == (n, k)
    assert {arrays[name].shape for name in ("top", *tail)} == {(n,)}
    assert arrays["canary"].shape == (spec.shards, spec.canaries)
    assert arrays["commit"].shape == (spec.shards,)
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
    assume(spec.shards <= 5000)
    ranges = [spec.shard_range(shard) for shard in range(spec.shards)]
    assert [i for r in ranges for i in r] == list(range(spec.dataset.n))
    assert all(len(r) == spec.shard_samples for r in ranges[:-1])
    for array in spec.arrays():
        cut = [spec.place(array, shard) for shard in range(spec.shards)]
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
    ranges = [spec.shard_range(shard) for shard in range(spec.shards)]
    assert [i for r in ranges for i in r] == list(range(spec.dataset.n))
    assert all(1 <= len(r) <= spec.shard_samples for r in ranges)
    assert [spec.shard_of(i) for i in range(spec.dataset.n)] == [j for j, r in enumerate(ranges) for _ in r]
    for array in (*spec.arrays(), spec.key_array()):
        places = [spec.place(array, shard) for shard in range(spec.shards)]
        rows = [row for place in places for row in range(place.start, place.stop)]
        assert rows == sorted(set(rows))
        assert rows[-1] + 1 == array.shape[0]
        if array.dimensions[0] == "sample":
            assert [len(range(p.start, p.stop)) for p in places] == [len(r) for r in ranges]
            assert [place.start for place in places] == [j * spec.shard_samples for j in range(spec.shards)]


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
        for shard in range(then.shards):
            assert then.shard_range(shard) == spec.shard_range(shard)
            assert then.canary_samples(shard) == spec.canary_samples(shard)
            assert then.fingerprint(shard) == spec.fingerprint(shard)
            for mine, theirs in zip(spec.arrays(), then.arrays(), strict=True):
                assert spec.place(mine, shard) == then.place(theirs, shard)
    for count, then in enumerate(spec.history()):
        new = range(before[count - 1].shards if count else 0, then.shards)
        assert {spec.fingerprint(shard) for shard in new} == {then.dataset.fingerprint}


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
    shard = data.draw(st.integers(0, spec.shards - 1))
    samples = spec.shard_range(shard)
    canaries = spec.canary_samples(shard)
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
    shard = fitting_shard(n, sample_bytes=80)
    assert SMALLEST_SHARD <= shard <= SHARD_SAMPLES
    assert shard & (shard - 1) == 0
    shards = -(-n // shard)
    if SMALLEST_SHARD < shard < SHARD_SAMPLES:
        assert 4 <= shards <= 16
    assert (n > SHARD_SAMPLES * 16) <= (shard == SHARD_SAMPLES)
    assert fitting_shard(n + 1, sample_bytes=80) >= shard


@often
@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_a_fitting_shard_is_the_largest_that_keeps_to_its_bytes(n: int, sample_bytes: int):
    shard, unbounded = fitting_shard(n, sample_bytes), fitting_shard(n, 1)
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
