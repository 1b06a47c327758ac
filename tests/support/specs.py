"""What valid specs look like, and places inside their JSON."""

import copy
import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from logitcache.format.identity import (
    MIXES,
    PROFILES,
    AdapterSpec,
    DatasetSpec,
    RecipeSpec,
    StepSpec,
    TeacherSpec,
)
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec

often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

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
transforms = names.filter(lambda name: name not in MIXES)  # which must be a recipe's last steps
recipes = st.builds(
    RecipeSpec,
    names,
    st.integers(),
    st.lists(
        st.builds(StepSpec, transforms, st.dictionaries(names, json_values, max_size=3)), max_size=3
    ).map(tuple),
    names,
    st.none() | st.from_regex(r"#[0-9a-f]{6}", fullmatch=True),
)


@st.composite
def caches(draw: st.DrawFn, most_samples: int = 1 << 40) -> CacheSpec:
    n = draw(st.integers(1, 5000) | st.integers(1, most_samples))
    dataset = DatasetSpec(draw(names), draw(names), n, draw(st.integers(2, 1 << 31)), draw(names))
    k, profile = draw(st.integers(1, dataset.num_classes)), draw(st.sampled_from(sorted(PROFILES)))
    return CacheSpec.new(
        draw(teachers),
        dataset,
        draw(recipes),
        k=k,
        profile=profile,
        calibrated=k < dataset.num_classes and profile != "exact" and draw(st.booleans()),
        versions=draw(st.dictionaries(names, names, max_size=3)),
        shard_samples=draw(st.none() | st.integers(1, 1 << 24)),
    )


def small_cache(n: int = 1000, classes: int = 10, k: int = 4, **options: Any) -> CacheSpec:
    teacher = TeacherSpec("net", "random", "ab", "float32", AdapterSpec(1, 8, (0.5,), (0.25,)))
    recipe = RecipeSpec("digits", 1, (StepSpec("RandomCrop", {"size": 8, "padding": 1}),))
    dataset = DatasetSpec("digits", "train", n, classes, "cd")
    return CacheSpec.new(teacher, dataset, recipe, k=k, versions={"torch": "1"}, **options)


def through_json(spec: Spec) -> Any:
    return json.loads(json.dumps(spec.to_dict(), allow_nan=False))


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
