"""Specs survive JSON, and hostile JSON ends in one kind of error that names the place."""

import dataclasses
import json
import math
from enum import Enum
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from specs import (
    adapters,
    caches,
    json_values,
    names,
    often,
    places,
    put,
    recipes,
    small_cache,
    teachers,
    through_json,
)

from logitcache.errors import FormatError
from logitcache.format.identity import PROFILES, RecipeSpec, StepSpec
from logitcache.format.schema import FORMAT_VERSION, CacheSpec, RowLayout
from logitcache.format.spec import Spec, jsonable

# Round trips ----------------------------------------------------------------------------------------------


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
    profile = data.draw(st.sampled_from(sorted(PROFILES)))
    calibrated = profile != "exact" and data.draw(st.booleans())
    good = through_json(small_cache(profile=profile, calibrated=calibrated))
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
@given(st.integers(max_value=FORMAT_VERSION) | st.sampled_from([1.0, "1", None, True]), st.booleans())
def test_no_other_format_version_passes(version: Any, calibrated: bool):
    spec = small_cache(calibrated=calibrated)
    assume(type(version) is not int or version != spec.format_version)
    with pytest.raises(FormatError, match="format_version"):
        CacheSpec.from_dict({**through_json(spec), "format_version": version})


def test_a_calibrated_cache_is_of_version_2_keeps_no_variance_and_leaves_some_class_out():
    spec = small_cache(calibrated=True)
    assert (spec.format_version, through_json(spec)["calibrated"]) == (2, True)
    assert [a.name for a in spec.arrays()] == ["ids", "gap", "top", "tail_lse", "tail_mean", "canary"]
    assert "calibrated" not in through_json(small_cache())
    assert [tuple(d) for d in small_cache().differences(spec) if d.field == "calibrated"] == [
        ("calibrated", None, True)
    ]
    for wrong in ({"k": 10}, {"calibrated": False}, {"format_version": 1}, {"calibrated": 1}):
        with pytest.raises(FormatError):
            CacheSpec.from_dict({**through_json(spec), **wrong})


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


@pytest.mark.parametrize("value", [np.int64(8), np.float32(0.5), [Enum("Mode", "near").near], {8: 1}, {1, 2}])
def test_what_json_cannot_write_is_refused_in_a_recipe(value: object) -> None:
    with pytest.raises(FormatError, match="arguments of Resize: expected a JSON value, found"):
        StepSpec("Resize", {"size": value})


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, -math.inf], {"deep": math.nan}])
def test_what_json_lacks_is_refused_in_a_recipe_and_null_in_a_report(value: object) -> None:
    with pytest.raises(
        FormatError, match=r"arguments of RandomErasing: expected a JSON value, found (nan|-?inf)"
    ):
        StepSpec("RandomErasing", {"value": value})
    assert json.dumps(jsonable({"a": (value, 1.5)}), allow_nan=False).count("null") == 1
