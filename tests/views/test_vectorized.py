"""Batched views: pixel for pixel what the engine of single views makes, or not used at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import few_digits
from torch import Tensor
from torchvision.transforms import v2

import logitcache.views.loader
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import DataError, OptionError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.losses import Objective
from logitcache.models.build import build_model
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.train.config import TrainConfig
from logitcache.train.evaluation import Evaluation
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.views.datasets import ArrayImages
from logitcache.views.keyed_views import KeyedViews, Pair
from logitcache.views.keys import key, pair_keys
from logitcache.views.loader import VectorizedLoader, iterate_batches, view_loader
from logitcache.views.maker import ViewMaker, digest
from logitcache.views.mt19937 import MAX_WORDS, ViewGenerators, is_exact_range
from logitcache.views.recipes import recipe_named
from logitcache.views.vectorized import VectorizedViews

Seeds = st.integers(0, 2**63 - 1)


def in_memory(channels: int = 3, height: int = 12, width: int = 10, n: int = 40) -> ArrayImages:
    generator = torch.Generator().manual_seed(channels * height + width)
    pixels = torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)
    return ArrayImages("mine", "train", pixels, np.arange(n) % 3, 3, "cifar")


def recipe(*steps: tuple[str, dict[str, Any]]) -> RecipeSpec:
    return RecipeSpec("mine", 1, tuple(StepSpec(name, args) for name, args in steps), "identity")


def engine(images: ArrayImages, made_by: RecipeSpec) -> VectorizedViews:
    found = VectorizedViews.build(images, ViewMaker(made_by))
    assert found is not None
    return found


def made_at_once(images: ArrayImages, made_by: RecipeSpec, pairs: list[Pair]) -> Tensor:
    samples, seeds = np.array(pairs, dtype=np.int64).T.copy()
    batched = engine(images, made_by)
    return batched.make(samples, batched.draw(samples, seeds))


def made_alone(images: ArrayImages, made_by: RecipeSpec, pairs: list[Pair]) -> Tensor:
    maker = ViewMaker(made_by)
    return torch.stack([maker(images.image(sample), sample, seed) for sample, seed in pairs])


# The generator --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(Seeds, st.integers(0, 2**62)), min_size=1, max_size=5))
def test_keys_of_many_pairs_are_the_keys_of_each(pairs: list[tuple[int, int]]):
    seeds, samples = np.array(pairs, dtype=np.int64).T.copy()
    assert pair_keys(seeds, samples).tolist() == [key(seed, sample) for seed, sample in pairs]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), st.integers(1, 1000), st.data())
def test_each_generator_draws_what_torchs_would(keyed: list[int], bound: int, data: st.DataObject):
    wide = st.tuples(*[st.floats(-10, 10, width=32)] * 2).filter(lambda bounds: is_exact_range(*bounds))
    low, high = sorted(
        data.draw(wide | st.just((1.0, 1 + 2**-21)))
    )  # of the narrow one an eighth rounds to its end
    generators = [torch.Generator().manual_seed(k) for k in keyed]
    draws = ViewGenerators(np.array(keyed, dtype=np.uint64), MAX_WORDS)
    for _ in range(MAX_WORDS // 2):
        rows = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(keyed), max_size=len(keyed))))
        drawn = draws.randint(bound, rows), draws.uniform(low, high, rows)
        for i, number, real in zip(rows.tolist(), *(d.tolist() for d in drawn), strict=True):
            assert number == torch.randint(0, bound, (), generator=generators[i]).item()
            assert real == torch.empty(1).uniform_(low, high, generator=generators[i]).item()


def test_more_words_than_the_initial_state_gives_are_refused():
    with pytest.raises(OptionError, match=f"at most {MAX_WORDS} words, found {MAX_WORDS + 1}"):
        ViewGenerators(np.zeros(1, np.uint64), MAX_WORDS + 1)


# The same views -------------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> tuple[ArrayImages, RecipeSpec]:
    """Images of some size, and steps that fit them, in any order."""
    height, width = size = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    images = in_memory(draw(st.sampled_from([1, 3])), height, width)
    blank = draw(st.sampled_from([0, 0, 255, 17]))
    steps: list[tuple[str, dict[str, Any]]] = []
    for kind in draw(st.lists(st.sampled_from(["crop", "centre", "across", "down", "erase"]), max_size=5)):
        if kind == "crop":
            pads = draw(st.sampled_from([1, 2, 4]))
            padding = draw(st.one_of(st.none(), st.lists(st.integers(0, 4), min_size=pads, max_size=pads)))
            left, top, right, bottom = (padding or [0]) * (4 // len(padding or [0]))
            size = (
                draw(st.integers(1, size[0] + top + bottom)),
                draw(st.integers(1, size[1] + left + right)),
            )
            steps.append(("RandomCrop", {"size": list(size), "padding": padding, "fill": blank}))
        elif kind == "centre":
            size = draw(st.integers(1, size[0])), draw(st.integers(1, size[1]))
            steps.append(("CenterCrop", {"size": list(size)}))
        elif kind == "erase":
            scale, ratio = (
                sorted(draw(st.tuples(*[st.floats(0, 1).filter(lambda x: is_exact_range(x, x))] * 2))),
                draw(st.sampled_from([[0.3, 3.3], [1.0, 1.0], [0.01, 100.0]])),
            )
            args = {"p": draw(st.floats(0, 1)), "scale": scale, "ratio": ratio, "value": blank}
            steps.append(("RandomErasing", args))
        else:
            name = {"across": "RandomHorizontalFlip", "down": "RandomVerticalFlip"}[kind]
            steps.append((name, {"p": draw(st.floats(0, 1))}))
    return images, recipe(*steps)


@settings(max_examples=120, deadline=None)
@given(cases(), st.lists(st.tuples(st.integers(0, 39), Seeds), min_size=1, max_size=12))
def test_views_made_at_once_are_those_made_alone(case: tuple[ArrayImages, RecipeSpec], pairs: list[Pair]):
    images, made_by = case
    found = made_at_once(images, made_by, pairs)
    assert found.dtype == torch.uint8
    assert torch.equal(found, made_alone(images, made_by, pairs))


@pytest.mark.parametrize("name", ["cifar", "digits", "cutout"])
def test_thousands_of_views_of_real_recipes_are_those_made_alone(name: str):
    images = few_digits() if name == "digits" else in_memory(3, 32, 32)
    made_by = recipe_named("cifar" if name == "cutout" else name)
    if name == "cutout":
        made_by = RecipeSpec("cutout", 1, (*made_by.steps, StepSpec("RandomErasing")), "identity")
    pairs = [(i, seed) for seed in range(-(-2000 // len(images))) for i in range(len(images))]
    found, expected = made_at_once(images, made_by, pairs), made_alone(images, made_by, pairs)
    assert torch.equal(found, expected)
    assert [digest(view) for view in found[:50]] == [digest(view) for view in expected[:50]]


def test_a_side_that_rounds_either_way_is_asked_of_torch(monkeypatch: pytest.MonkeyPatch):
    """Where the last bits of float32's exp decide, it is torch's own exp of that one number that does."""
    from logitcache.views.vectorized import _choose_sides

    log_ratio = np.linspace(-1, 1, 2001, dtype=np.float32)
    exact = np.exp(log_ratio.astype(np.float64))
    on_the_edge = (np.rint(10 * np.sqrt(exact)) + 0.5) ** 2 / exact  # the height's root is half a pixel
    exp = torch.exp
    for ulps in (-1, 0, 1):
        monkeypatch.setattr(torch, "exp", lambda x, ulps=ulps: exp(x) * (1 + ulps * 2**-23))
        one_by_one = [torch.exp(torch.tensor([x])).item() for x in log_ratio]
        h, w = _choose_sides(on_the_edge, log_ratio)
        assert h.tolist() == [
            round(float(np.sqrt(a * r))) for a, r in zip(on_the_edge, one_by_one, strict=True)
        ]
        assert w.tolist() == [
            round(float(np.sqrt(a / r))) for a, r in zip(on_the_edge, one_by_one, strict=True)
        ]


# Batches --------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 3)), min_size=1, max_size=9), max_size=12),
    st.integers(1, 40),
)
def test_what_a_batch_holds_does_not_depend_on_how_far_is_drawn_ahead(batches: list[list[Pair]], ahead: int):
    images, made_by = in_memory(), recipe(("RandomCrop", {"size": 8, "padding": 2}), ("RandomErasing", {}))
    views = KeyedViews(images, made_by)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logitcache.views.loader, "PAIRS_AHEAD", ahead)
        loader = view_loader(views, batches)
        assert isinstance(loader, VectorizedLoader)
        for _ in range(2):
            found = list(iterate_batches(loader))
            assert len(found) == len(batches)
            for got, pairs in zip(found, batches, strict=True):
                for mine, alone in zip(got, views.__getitems__(pairs), strict=True):
                    assert torch.equal(mine, alone) if isinstance(alone, Tensor) else mine == alone


def test_a_sample_that_is_not_there_is_refused():
    loader = view_loader(KeyedViews(in_memory(), recipe_named("identity")), [[(0, 0)], [(40, 0)]])
    with pytest.raises(OptionError, match=r"samples 0 to 39, asked for 40"):
        list(iterate_batches(loader))


def test_views_are_not_the_images_own_memory():
    images = in_memory()
    before = images.images.clone()
    for batch in view_loader(KeyedViews(images, recipe_named("identity")), [[(i, 0) for i in range(40)]]):
        batch.views.zero_()
    assert torch.equal(images.images, before)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(view_loader(KeyedViews(few_digits(), recipe_named("digits")), [[(i, 0) for i in range(300)]]))
    assert torch.equal(torch.get_rng_state(), before)


# Where it steps aside -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        [("RandomRotation", {"degrees": 10})],
        [("RandomHorizontalFlip", {}), ("ColorJitter", {"brightness": 0.5})],
        [("RandomCrop", {"size": 8, "padding": 2, "padding_mode": "reflect"})],
        [("RandomCrop", {"size": 16, "pad_if_needed": True})],
        [("RandomCrop", {"size": 8, "padding": 2, "fill": [1, 2, 3]})],
        [("RandomCrop", {"size": 8, "padding": 2, "fill": 7}), ("RandomErasing", {"p": 1.0})],
        [("RandomErasing", {"value": "random"})],
        [("RandomErasing", {"value": [1, 2, 3]})],
        [("RandomErasing", {"value": 0.5})],
        [("CenterCrop", {"size": 20})],
        [("RandomErasing", {})] * 10,
        [("RandomHorizontalFlip", {}), ("MixUp", {})],
    ],
)  # fmt: skip
def test_a_recipe_it_cannot_make_is_made_one_by_one(steps: list[tuple[str, dict[str, Any]]]):
    images, made_by = in_memory(), recipe(*steps)
    pairs = [(i, seed) for i in range(5) for seed in range(2)]
    loader = view_loader(KeyedViews(images, made_by), [pairs])
    assert not isinstance(loader, VectorizedLoader)
    (batch,) = iterate_batches(loader)
    assert torch.equal(batch.views, KeyedViews(images, made_by).__getitems__(pairs).views)


def test_a_crop_that_does_not_fit_is_the_error_it_always_was():
    loader = view_loader(KeyedViews(in_memory(), recipe(("RandomCrop", {"size": 20}))), [[(3, 0)]])
    with pytest.raises(DataError, match=r"sample 3 of mine: transform RandomCrop"):
        list(iterate_batches(loader))


def test_images_that_are_not_what_lies_in_memory_are_made_one_by_one():
    class Negative(ArrayImages):
        def image(self, sample: int) -> Tensor:
            return 255 - super().image(sample)

    plain = in_memory()
    images = Negative("mine", "train", plain.images, plain.labels, 3, "cifar")
    (batch,) = iterate_batches(view_loader(KeyedViews(images, recipe_named("identity")), [[(7, 0)]]))
    assert torch.equal(batch.views[0], 255 - plain.images[7])


def test_workers_that_were_asked_for_are_given():
    views = KeyedViews(few_digits(), recipe_named("digits"))
    assert isinstance(view_loader(views, [], workers=0), VectorizedLoader)
    assert not isinstance(view_loader(views, [], workers=1), VectorizedLoader)


def _left_first(params: Callable[..., Any]) -> Callable[..., Any]:
    """A RandomCrop that draws its columns before its rows."""

    def drawn(self: Any, inputs: Any) -> dict[str, Any]:
        found = params(self, inputs)
        return {**found, "top": found["left"], "left": found["top"]}

    return drawn


def test_an_engine_that_draws_otherwise_than_torchvision_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(v2.RandomCrop, "make_params", _left_first(v2.RandomCrop.make_params))
    images, made_by = few_digits(), recipe_named("digits")
    pairs = [(i, 1) for i in range(20)]
    with pytest.warns(UserWarning, match="one by one"):
        loader = view_loader(KeyedViews(images, made_by), [pairs])
    assert not isinstance(loader, VectorizedLoader)
    (batch,) = iterate_batches(loader)
    assert torch.equal(batch.views, made_alone(images, made_by, pairs))


# Whichever engine -----------------------------------------------------------------------------------------


def _digits_net(seed: int = 0) -> Any:
    return build_model("digits_tiny", num_classes=10, view_size=8, weights="random", seed=seed)


def test_a_dump_and_a_training_are_the_same_with_either_engine(tmp_path: Path):
    images, made_by = few_digits(120), recipe_named("digits")
    found = {}
    for name, workers in (("batched", -1), ("one by one", 1)):
        out = tmp_path / name
        config = DumpConfig(
            seeds=(0, 1), top_k=4, workers=workers, seeds_per_pass=2, batch_size=32, device="cpu"
        )
        dump(out / "c.zarr", images, made_by, _digits_net(1), config)
        reader = CacheReader(out / "c.zarr")
        arrays = [reader.read(seed, j) for seed in (0, 1) for j in range(reader.spec.layout.shards)]
        stream = Stream.from_cache(reader, images, batch_size=32, workers=workers, device="cpu")
        assert isinstance(stream._loader, VectorizedLoader) == (workers == -1)
        scored = Evaluation(few_digits(60, "test"), recipe_named(made_by.evaluation), workers=workers)
        run = Run(out / "run", _digits_net(), Objective.parse("cmkd"), TrainConfig(epochs=3))
        train([run], stream, scored)
        rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
        curve = [{k: v for k, v in row.items() if k not in ("seconds", "views_per_second")} for row in rows]
        found[name] = arrays, [reader.canaries(seed) for seed in (0, 1)], curve
    (arrays, canaries, curve), (others, other_canaries, other_curve) = found.values()
    assert len(curve) == 3
    assert curve == other_curve
    assert canaries == other_canaries
    assert any(crc for by_sample in canaries for crc in by_sample.values())
    for mine, theirs in zip(arrays, others, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)
