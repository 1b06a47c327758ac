"""Views: a pure function of (image, sample, seed), whatever else happens in the process."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import RANDOM_RECIPES, SIZES, disturb, global_states, picture, steps

from logitcache.errors import UnknownNameError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.views.maker import ViewMaker, digest
from logitcache.views.recipes import recipe_named


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
    for view, seed in zip(maker.make_many(image, 11, seeds), seeds, strict=True):
        assert torch.equal(view, maker(image, 11, seed))


@pytest.mark.parametrize("name", RANDOM_RECIPES)
def test_global_generators_are_left_exactly_as_they_were(name: str):
    disturb(5)
    before = global_states()
    ViewMaker(recipe_named(name)).make_many(picture(), 1, (0, 1, 2))
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
    assert torch.equal(maker.make_many(image, 4, (1, 9))[1], view)


def test_generators_are_given_back_even_where_own_code_raises(own: str):
    maker = ViewMaker(RecipeSpec("mine", 1, (StepSpec(f"{own}:draw_numpy"), StepSpec(f"{own}:broken"))))
    before = global_states()
    with pytest.raises(ValueError, match="a bug of mine"):  # the user's own error, with its traceback
        maker(picture(), 0, 0)
    assert global_states() == before


def test_the_image_stays_as_it_was_though_a_step_works_in_place(own: str):
    for recipe in (steps(f"{own}:in_place", by=7), steps("RandomErasing", p=1.0, inplace=True)):
        image = picture()
        views = ViewMaker(recipe).make_many(image, 0, (1, 1))
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
