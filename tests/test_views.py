"""Views: a pure function of (image, sample, seed), whatever else happens in the process."""

import dataclasses
import itertools
import json
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from logitcache.errors import (
    DataError,
    FormatError,
    LogitCacheError,
    NotFoundError,
    OptionError,
    UnknownNameError,
)
from logitcache.schema import RecipeSpec, StepSpec
from logitcache.views import ViewMaker, digest, key, library_versions, permutation, recipe_named

RANDOM_RECIPES = ["digits", "cifar", "imagenet@16", "imagenet-ra@16", "imagenet-strong@16"]
# A named recipe with the side of its views.
SIZES = {"digits": 8, "cifar": 32, "imagenet@24": 24, "imagenet-ra@24": 24, "center@24": 24, "center": 224}

OWN_CODE = """
import random

import numpy as np
import torch


def draw_torch(image):
    return image + torch.randint(0, 1 << 6, image.shape, dtype=torch.uint8)


def draw_random(image):
    noise = [random.randrange(64) for _ in range(image.numel())]
    return image + torch.tensor(noise, dtype=torch.uint8).reshape(image.shape)


def draw_numpy(image):
    return image + torch.from_numpy(np.random.randint(0, 64, image.shape).astype(np.uint8))


def in_place(image, by):
    return image.add_(by)


def as_float(image):
    return image / 255


def as_list(image):
    return image.tolist()


def broken(image):
    raise ValueError("a bug of mine")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module of the user's own."""
    (tmp_path / "views_of_mine.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "views_of_mine", raising=False)
    return "views_of_mine"


def picture(channels: int = 3, height: int = 37, width: int = 45, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)


def steps(*transforms: str, **args: Any) -> RecipeSpec:
    return RecipeSpec("mine", 1, tuple(StepSpec(t, args) for t in transforms))


def global_states() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return (
        torch.default_generator.get_state().tolist(),
        random.getstate(),
        (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
    )


def disturb(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.rand(seed % 7)


# A view is keyed by (sample, seed) and nothing else -------------------------------------------------------


@pytest.mark.parametrize("name", RANDOM_RECIPES)
@settings(max_examples=15, deadline=None)
@given(
    keys=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 2**63)), min_size=1, max_size=5),
    noise=st.integers(0, 2**31),
    shuffle=st.randoms(use_true_random=False),
)
def test_a_view_is_the_same_in_any_order_and_whatever_was_drawn_before(name, keys, noise, shuffle):
    image, maker = picture(), ViewMaker(recipe_named(name))
    first = {pair: maker(image, *pair) for pair in keys}
    shuffle.shuffle(keys)
    for pair in keys:
        disturb(noise)
        assert torch.equal(maker(image, *pair), first[pair])
        assert torch.equal(ViewMaker(recipe_named(name))(image, *pair), first[pair])


DISTILLATION_STEPS = {
    "TrivialAugmentWide": {},
    "AutoAugment": {},
    "AugMix": {},
    "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "RandomErasing": {"p": 0.9},
    "RandomGrayscale": {"p": 0.5},
    "RandomPerspective": {"p": 0.9},
    "GaussianBlur": {"kernel_size": 3},
    "RandomSolarize": {"threshold": 100},
}


@pytest.mark.parametrize("transform", DISTILLATION_STEPS)
def test_a_view_is_its_own_under_any_transform_that_torchvision_draws_for(transform: str) -> None:
    recipe = RecipeSpec("r", 1, (StepSpec(transform, DISTILLATION_STEPS[transform]),))
    image, pairs = picture(), [(sample, seed) for sample in range(6) for seed in (0, 5)]
    maker = ViewMaker(recipe)
    first = {pair: maker(image, *pair) for pair in pairs}
    assert len({view.numpy().tobytes() for view in first.values()}) > 1
    for pair in reversed(pairs):
        disturb(pair[0])
        assert torch.equal(ViewMaker(recipe)(image, *pair), first[pair])


@pytest.mark.parametrize("name", [*RANDOM_RECIPES, "center@16", "identity"])
def test_many_gives_what_single_calls_give(name: str):
    image, maker = picture(), ViewMaker(recipe_named(name))
    seeds = (3, 0, 3, 2**40, 7)
    for view, seed in zip(maker.many(image, 11, seeds), seeds, strict=True):
        assert torch.equal(view, maker(image, 11, seed))


@pytest.mark.parametrize("name", RANDOM_RECIPES)
def test_global_generators_are_left_exactly_as_they_were(name: str):
    disturb(5)
    before = global_states()
    ViewMaker(recipe_named(name)).many(picture(), 1, (0, 1, 2))
    assert global_states() == before


@pytest.mark.parametrize("function", ["draw_torch", "draw_random", "draw_numpy"])
def test_own_code_is_keyed_whichever_generator_it_draws_from(own: str, function: str):
    image, maker = picture(), ViewMaker(recipe_named(f"{own}:{function}"))
    disturb(1)
    view = maker(image, 4, 9)
    assert not torch.equal(view, image)
    disturb(2)
    before = global_states()
    assert torch.equal(maker(image, 4, 9), view)
    assert global_states() == before
    assert not torch.equal(maker(image, 4, 10), view)
    assert not torch.equal(maker(image, 5, 9), view)
    assert torch.equal(maker.many(image, 4, (1, 9))[1], view)


def test_generators_are_given_back_even_where_own_code_raises(own: str):
    maker = ViewMaker(RecipeSpec("mine", 1, (StepSpec(f"{own}:draw_numpy"), StepSpec(f"{own}:broken"))))
    before = global_states()
    with pytest.raises(ValueError, match="a bug of mine"):  # the user's own error, with its traceback
        maker(picture(), 0, 0)
    assert global_states() == before


def test_the_image_stays_as_it_was_though_a_step_works_in_place(own: str):
    for recipe in (steps(f"{own}:in_place", by=7), steps("RandomErasing", p=1.0, inplace=True)):
        image = picture()
        views = ViewMaker(recipe).many(image, 0, (1, 1))
        assert torch.equal(image, picture())
        assert torch.equal(views[0], views[1])
        assert not torch.equal(views[0], image)


def test_a_view_is_not_a_window_onto_the_image():
    image = picture()
    ViewMaker(recipe_named("identity"))(image, 0, 0).zero_()
    assert torch.equal(image, picture())


@pytest.mark.parametrize("name", RANDOM_RECIPES)
def test_another_seed_or_sample_gives_another_view(name: str):
    image, maker = picture(height=64, width=64), ViewMaker(recipe_named(name))
    for vary in (lambda i: (0, i), lambda i: (i, 0)):
        views = {digest(maker(image, *vary(i))) for i in range(64)}
        assert len(views) > 48  # a crop and a flip may meet again; most do not


@pytest.mark.parametrize("name", ["center", "center@16", "identity"])
def test_evaluation_recipes_draw_nothing(name: str):
    maker = ViewMaker(recipe_named(name))
    assert len({digest(maker(picture(), sample, seed)) for sample in range(3) for seed in range(3)}) == 1


def test_sample_and_seed_do_not_stand_in_for_each_other():
    image, maker = picture(height=64, width=64), ViewMaker(recipe_named("imagenet@16"))
    assert not torch.equal(maker(image, 3, 8), maker(image, 8, 3))


@pytest.mark.parametrize("name", ["imagnet@96", "imagenet96", "imagenet-96"])
def test_a_recipe_misspelt_beside_its_size_is_suggested_with_it(name: str):
    with pytest.raises(UnknownNameError, match="did you mean imagenet@96"):
        recipe_named(name)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(24, 24), (33, 57), (301, 7), (25, 500), (1, 1)])
def test_named_recipes_give_uint8_views_of_their_size(name: str, channels: int, size: tuple[int, int]):
    maker = ViewMaker(recipe_named(name))
    if min(size) < 24 and name in ("digits", "cifar"):
        return  # these are for images of about their own size, and say so: see below
    for seed in range(3 if name != "center" else 1):
        view = maker(picture(channels, *size), 0, seed)
        assert view.shape == (channels, SIZES[name], SIZES[name])
        assert view.dtype == torch.uint8
        assert view.is_contiguous()


def test_identity_gives_the_image():
    image = picture()
    assert torch.equal(ViewMaker(recipe_named("identity"))(image, 3, 4), image)


def test_center_takes_the_middle():
    image = torch.zeros(1, 256, 512, dtype=torch.uint8)
    image[:, :, 144:368] = 255
    assert (ViewMaker(recipe_named("center"))(image, 0, 0) == 255).all()


def test_a_view_maker_survives_pickle(own: str):
    for recipe in (recipe_named("imagenet-ra@16"), recipe_named(f"{own}:draw_numpy")):
        maker = ViewMaker(recipe)
        again = pickle.loads(pickle.dumps(maker))
        assert again.recipe == recipe
        assert torch.equal(again(picture(), 5, 6), maker(picture(), 5, 6))


# Keys -----------------------------------------------------------------------------------------------------


def test_keys_of_a_grid_do_not_collide_nor_do_their_low_halves_often():
    keys = [key(seed, sample) for seed in range(64) for sample in range(1024)]
    assert len(set(keys)) == len(keys)
    # 65,536 draws out of 2^32 meet about 0.5 times by chance.
    assert len({k & 0xFFFF_FFFF for k in keys}) >= len(keys) - 6


parts = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(parts, st.data())
def test_every_bit_of_every_part_changes_about_half_the_bits_of_the_key(
    parts: list[int], data: st.DataObject
):
    where = data.draw(st.integers(0, len(parts) - 1))
    changed = [
        (key(*parts) ^ key(*parts[:where], parts[where] ^ (1 << bit), *parts[where + 1 :])).bit_count()
        for bit in range(64)
    ]
    assert min(changed) > 8
    assert 27 < sum(changed) / 64 < 37


@settings(max_examples=60, deadline=None)
@given(parts)
def test_a_key_is_64_bits_and_depends_on_order_and_length(parts: list[int]):
    assert 0 <= key(*parts) < 1 << 64
    assert key(*parts) == key(*parts)
    assert key(*parts, 0) != key(*parts)
    if parts != parts[::-1]:
        assert key(*parts) != key(*parts[::-1])


def test_keys_stay_what_they_are():
    # A cache is worth its keys: another mixing would make every cache ever written unusable.
    assert key(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 from 0, as published
    assert [key(0, 0), key(7, 12345)] == [0xA706DD2F4D197E6F, 0x729FCBE5B63CA5A]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), parts)
def test_a_permutation_holds_each_number_once_and_depends_on_its_parts_alone(n: int, parts: list[int]):
    order = permutation(n, *parts)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    disturb(parts[0] % 1000)
    before = global_states()
    assert (permutation(n, *parts) == order).all()
    assert global_states() == before
    if n > 50:
        assert (permutation(n, *parts, 1) != order).any()


# Digests --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.data())
def test_a_digest_differs_when_one_pixel_differs(seed: int, change: int, data: st.DataObject):
    view = picture(3, 5, 7, seed)
    other = view.clone()
    at = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 6)))
    other[at] = (int(other[at]) + change) % 256
    assert digest(other) != digest(view)
    assert digest(view.clone()) == digest(view)


def test_a_digest_differs_when_the_shape_differs():
    pixels = torch.zeros(12, dtype=torch.uint8)
    shapes = [s for s in itertools.product(range(1, 13), repeat=3) if s[0] * s[1] * s[2] == 12]
    assert len({digest(pixels.reshape(shape)) for shape in shapes}) == len(shapes)


def test_a_digest_reads_pixels_and_not_memory():
    view = picture(3, 6, 6)
    turned = view.transpose(1, 2)
    assert not turned.is_contiguous()
    assert digest(turned) == digest(turned.contiguous())
    assert digest(turned) != digest(view)


def test_a_digest_is_never_zero_and_fits_32_bits():
    assert all(0 < digest(picture(1, 2, 2, seed)) < 1 << 32 for seed in range(200))
    # CRC-32 of "(1, 1, 4)" followed by these four bytes is 0.
    import zlib

    start = zlib.crc32(b"(1, 1, 4)")
    low = next(_bytes_that_give_zero(start))
    view = torch.tensor(list(low), dtype=torch.uint8).reshape(1, 1, 4)
    assert zlib.crc32(low, start) == 0
    assert digest(view) == 1


def _bytes_that_give_zero(start: int):
    """Yield the four bytes that take CRC-32 from `start` to 0: CRC is linear over GF(2) in its message."""
    import zlib

    base = zlib.crc32(bytes(4), start)
    effects = [zlib.crc32((1 << bit).to_bytes(4, "little"), start) ^ base for bit in range(32)]
    rows = [(effect, 1 << bit) for bit, effect in enumerate(effects)]
    target, message = base, 0
    for bit in reversed(range(32)):
        pivot = next(i for i, (effect, _) in enumerate(rows) if effect >> bit & 1)
        effect, source = rows.pop(pivot)
        rows = [(e ^ effect, s ^ source) if e >> bit & 1 else (e, s) for e, s in rows]
        if target >> bit & 1:
            target, message = target ^ effect, message ^ source
    yield message.to_bytes(4, "little")


# Recipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SIZES, "identity", "imagenet", "imagenet-ra", "imagenet@8", "center@4096"])
def test_a_named_recipe_survives_json_and_names_an_evaluation_recipe(name: str):
    recipe = recipe_named(name)
    assert recipe.name == name
    read = RecipeSpec.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert read == recipe
    assert read.sha256 == recipe.sha256
    evaluation = recipe_named(recipe.evaluation)
    assert evaluation.evaluation == evaluation.name
    image = picture(height=32, width=32)
    if name not in ("identity", "digits"):
        made = (ViewMaker(r)(image, 0, 0).shape for r in (recipe, evaluation))
        assert len(set(made)) == 1


def toml_of(recipe: RecipeSpec) -> str:
    lines = [f"name = {json.dumps(recipe.name)}", f"version = {recipe.version}"]
    lines.append(f"evaluation = {json.dumps(recipe.evaluation)}")
    for step in recipe.steps:
        lines += ["[[steps]]", f"transform = {json.dumps(step.transform)}"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in step.args.items()]
    return "\n".join(lines)


@pytest.mark.parametrize("name", [*RANDOM_RECIPES, "center@16"])
def test_a_recipe_survives_toml_and_makes_the_same_views(name: str, tmp_path: Path):
    recipe = recipe_named(name)
    path = tmp_path / "mine.toml"
    path.write_text(toml_of(recipe))
    read = recipe_named(str(path))
    assert read == recipe
    assert torch.equal(ViewMaker(read)(picture(), 1, 2), ViewMaker(recipe)(picture(), 1, 2))


def test_a_toml_file_may_leave_name_version_and_evaluation_out(tmp_path: Path):
    path = tmp_path / "flips.toml"
    path.write_text('[[steps]]\ntransform = "RandomHorizontalFlip"\np = 1.0\n')
    recipe = recipe_named(str(path))
    assert (recipe.name, recipe.version, recipe.evaluation) == ("flips", 1, "center")
    assert torch.equal(ViewMaker(recipe)(picture(), 0, 0), picture().flip(2))


def test_a_toml_file_is_utf8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "r.toml"
    path.write_bytes('name = "Würfel"\n'.encode())
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1")
    assert recipe_named(str(path)).name == "Würfel"


def test_own_code_is_a_recipe_of_one_step(own: str):
    recipe = recipe_named(f"{own}:draw_torch")
    assert recipe.steps == (StepSpec(f"{own}:draw_torch"),)


def test_arguments_reach_own_code(own: str):
    view = ViewMaker(steps(f"{own}:in_place", by=3))(torch.zeros(1, 2, 2, dtype=torch.uint8), 0, 0)
    assert (view == 3).all()


def test_interpolation_is_given_by_its_name():
    image = picture()
    sharp, soft = (
        ViewMaker(steps("Resize", size=[20, 20], interpolation=mode))(image, 0, 0)
        for mode in ("nearest", "bicubic")
    )
    assert not torch.equal(sharp, soft)


def test_versions_name_all_that_views_depend_on():
    versions = library_versions()
    assert set(versions) == {"logitcache", "torch", "torchvision", "pillow"}
    assert all(versions.values())


# Refusals -------------------------------------------------------------------------------------------------


def refused(kind: type[LogitCacheError], call: Callable[[], Any], *words: str) -> None:
    """The call is refused in one line that holds these words."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    for word in words:
        assert word in message


def test_an_unknown_transform_suggests_near_ones():
    refused(UnknownNameError, lambda: ViewMaker(steps("RandomCropp")), "RandomCrop", "module:function")
    refused(UnknownNameError, lambda: ViewMaker(steps("functional")), "unknown transform 'functional'")
    refused(UnknownNameError, lambda: ViewMaker(steps("InterpolationMode")), "unknown transform")


@pytest.mark.parametrize(
    ("transform", "args"),
    [
        ("RandomCrop", {}),
        ("RandomCrop", {"size": None}),
        ("RandomCrop", {"size": 8, "colour": 1}),
        ("Resize", {"size": 8, "interpolation": "sharpest"}),
        ("Pad", {"padding": [1, 2, 3]}),
        ("ColorJitter", {"brightness": {}}),
        ("ToDtype", {"dtype": "float32"}),
        ("AutoAugment", {"policy": "mine"}),
    ],
    ids=str,
)
def test_arguments_that_a_transform_does_not_take_are_named(transform: str, args: dict[str, Any]):
    recipe = RecipeSpec("mine", 1, (StepSpec(transform, args),))
    refused(OptionError, lambda: ViewMaker(recipe), f"transform {transform} does not take {args}")


@pytest.mark.parametrize(
    ("function", "found"), [("as_float", "(3, 37, 45) float32"), ("as_list", "found list")]
)
def test_a_recipe_that_gives_no_uint8_image_is_told_so(own: str, function: str, found: str):
    maker = ViewMaker(recipe_named(f"{own}:{function}"))
    refused(DataError, lambda: maker(picture(), 0, 0), f"{own}:{function}", found, "ToDtype and Normalize")


@pytest.mark.parametrize(
    ("transform", "args"),
    [
        ("RandomCrop", {"size": 99}),
        ("RandomCrop", {"size": "a"}),
        ("Resize", {"size": 0}),
        ("Normalize", {"mean": [0.5], "std": [0.5]}),
        ("Transform", {}),
    ],
)
def test_a_transform_that_does_not_fit_the_image_is_named_with_both(transform: str, args: dict[str, Any]):
    maker = ViewMaker(RecipeSpec("mine", 1, (StepSpec(transform, args),)))
    refused(DataError, lambda: maker(picture(), 0, 0), f"transform {transform}", "(3, 37, 45) uint8")


def test_an_unknown_recipe_suggests_near_ones():
    refused(UnknownNameError, lambda: recipe_named("imagnet"), "did you mean", "imagenet", ".toml")
    refused(UnknownNameError, lambda: recipe_named("cifar@64"), "unknown recipe 'cifar@64'")
    refused(UnknownNameError, lambda: recipe_named(""), "known: center, cifar, digits")


@pytest.mark.parametrize("size", ["", "0", "-1", "x", "4097", "2.5", "²", "224@224", " 8"])
def test_a_size_that_is_none_is_refused(size: str):
    for base in ("imagenet", "imagenet-ra", "center"):
        refused(OptionError, lambda base=base: recipe_named(f"{base}@{size}"), "pixels after @", repr(size))


def test_a_recipe_file_that_is_not_there_is_named(tmp_path: Path):
    refused(NotFoundError, lambda: recipe_named("none.toml"), "none.toml", "logitcache init")
    (tmp_path / "folder.toml").mkdir()
    refused(NotFoundError, lambda: recipe_named(str(tmp_path / "folder.toml")), "folder.toml")


@pytest.mark.parametrize(
    "text",
    [
        b"steps = [",
        b"\xff\xfe",
        b"steps = 5",
        b'steps = ["RandomCrop"]',
        b'[steps]\ntransform = "RandomCrop"',
        b"[[steps]]\nsize = 8",
        b"[[steps]]\ntransform = 8",
        b'version = "1"',
        b"colour = 1",
        b'[[steps]]\ntransform = "Pad"\npadding = nan',
        b'[[steps]]\ntransform = "Pad"\npadding = 2020-01-01',
    ],
)
def test_a_file_that_is_no_recipe_is_named_with_what_was_expected(text: bytes, tmp_path: Path):
    path = tmp_path / "broken.toml"
    path.write_bytes(text)
    refused(FormatError, lambda: recipe_named(str(path)), str(path), "[[steps]] tables")


def test_own_code_that_is_not_there_is_refused_by_name(own: str):
    refused(NotFoundError, lambda: recipe_named("views_of_nobody:f"), "views_of_nobody")
    refused(UnknownNameError, lambda: recipe_named(f"{own}:draw_touch"), "draw_torch")
    refused(NotFoundError, lambda: ViewMaker(steps("views_of_nobody:f")), "views_of_nobody")


def test_a_recipe_that_differs_in_an_argument_makes_other_views():
    recipe = recipe_named("digits")
    wider = dataclasses.replace(recipe, steps=(StepSpec("RandomCrop", {"size": 8, "padding": 3}),))
    image = picture(1, 8, 8)
    assert wider.sha256 != recipe.sha256
    views = ([digest(ViewMaker(r)(image, 0, seed)) for seed in range(8)] for r in (recipe, wider))
    assert next(views) != next(views)
