"""MixUp and CutMix: functions of (sample, seed), whatever stands beside them in a batch."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dumping import a_teacher, arrays_of, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed import BOTH, CROP, a_recipe
from small import few_digits
from training import a_run, assert_same_weights, rows_of

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import FormatError, OptionError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.losses.ce import ce
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.train.loop import train
from logitcache.train.validation import Validation, choose_held_out
from logitcache.views.datasets import ArrayImages
from logitcache.views.keyed_views import KeyedViews, check_batch
from logitcache.views.loader import view_loader
from logitcache.views.maker import ViewMaker
from logitcache.views.mixing import MixedLabels, Mixer, draw_partner
from logitcache.views.recipes import recipe_named

MIXUP = StepSpec("MixUp", {"alpha": 1.0})
CUTMIX = StepSpec("CutMix", {"alpha": 1.0})


@given(n=st.integers(1, 400), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=40)
def test_partners_are_a_permutation(n: int, seed: int) -> None:
    assert sorted(draw_partner(i, seed, n) for i in range(n)) == list(range(n))


def test_partners_differ_from_seed_to_seed_and_have_no_order() -> None:
    found = [[draw_partner(i, seed, 1000) for i in range(1000)] for seed in range(3)]
    for mine, other in ((0, 1), (1, 2)):
        assert sum(a == b for a, b in zip(found[mine], found[other], strict=True)) < 20
    steps = {(b - a) % 1000 for a, b in zip(found[0], found[0][1:], strict=False)}
    assert len(steps) > 500


@pytest.mark.parametrize("mixes", [(MIXUP,), (CUTMIX,), BOTH])
def test_a_mixed_view_is_the_same_whatever_surrounds_it(mixes: tuple[StepSpec, ...]) -> None:
    views = KeyedViews(few_digits(60), a_recipe(*mixes))
    pairs = [(i, s) for i in range(60) for s in (0, 7)]
    alone = {pair: views[pair] for pair in pairs}
    for order in range(3):
        random.Random(order).shuffle(pairs)
        batches = [pairs[start : start + 11] for start in range(0, len(pairs), 11)]
        for workers in (0, 1) if order == 2 else (0,):
            for pair_list, batch in zip(batches, view_loader(views, batches, workers=workers), strict=True):
                check_batch(batch)
                for row, pair in enumerate(pair_list):
                    one = alone[pair]
                    assert torch.equal(batch.views[row], one.views[0])
                    assert batch.partners is not None
                    assert batch.partners[row] == one.partners[0]
                    assert batch.shares[row] == one.shares[0]


def test_mixup_is_the_weighted_mean_of_both_views_as_they_are_under_the_seed() -> None:
    images, maker = few_digits(80), ViewMaker(a_recipe())
    views = KeyedViews(images, a_recipe(MIXUP))
    for sample in range(80):
        batch = views[sample, 3]
        other = draw_partner(sample, 3, 80)
        assert batch.partners.tolist() == [other]
        share = float(batch.shares)
        own, theirs = (maker(images.image(i), i, 3).double() for i in (sample, other))
        expected = share * own + (1 - share) * theirs
        assert (batch.views[0].double() - expected).abs().max() <= 0.5


def test_cutmix_shares_are_the_pixels_that_are_there() -> None:
    pixels = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 3, 9, 14)
    images = ArrayImages("flat", "train", pixels, few_digits(50).labels, 10, "identity")
    views = KeyedViews(images, RecipeSpec("cut", 1, (CUTMIX,)))
    batch = views.__getitems__([(i, 1) for i in range(50)])
    for row in range(50):
        own = batch.views[row] == row
        if batch.partners[row] != row:
            assert float(own.double().mean()) == pytest.approx(float(batch.shares[row]), abs=1e-6)
        assert set(batch.views[row].unique().tolist()) <= {row, int(batch.partners[row])}
        box = ~own[0]
        rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
        if len(rows):  # one box
            assert bool(box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
    assert len({round(float(s), 2) for s in batch.shares}) > 20


def test_how_often_and_how_much_is_what_the_recipe_says() -> None:
    mixer = Mixer.from_recipe(a_recipe(*BOTH))
    drawn = [mixer.draw(i, s, 1000) for i in range(1000) for s in range(4)]
    kinds = [mix.kind if mix else None for mix in drawn]
    for kind, share in (("MixUp", 0.4), ("CutMix", 0.4), (None, 0.2)):
        assert kinds.count(kind) / len(kinds) == pytest.approx(share, abs=0.03)
    ratios = torch.tensor([mix.ratio for mix in drawn if mix and mix.kind == "MixUp"])
    assert float(ratios.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(ratios.var()) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # of Beta(α, α)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_labels_is_that_of_the_mixed_target(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(6, 5, generator=generator)
    own, other = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 1, 0, 4, 2, 3])
    share = torch.tensor([0.2, 1.0, 0.5, 0.7, 0.0, 0.9])
    target = share[:, None] * F.one_hot(own, 5) + (1 - share[:, None]) * F.one_hot(other, 5)
    expected = F.cross_entropy(s, target, label_smoothing=smoothing)
    mixed = MixedLabels(own, other, share)
    torch.testing.assert_close(ce(s, mixed, label_smoothing=smoothing), expected)
    unmixed = MixedLabels(own, other, torch.ones(6))
    torch.testing.assert_close(ce(s, unmixed), F.cross_entropy(s, own))


def test_an_unlabelled_part_of_a_mixed_view_does_not_count() -> None:
    s = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    nothing = torch.full((3,), -1)
    none = ce(s, MixedLabels(nothing, nothing, torch.tensor([0.5, 1.0, 0.0])))
    none.backward()
    assert float(none.detach()) == 0
    assert float(s.grad.abs().max()) == 0
    half = MixedLabels(torch.tensor([2, 2, 2]), nothing, torch.tensor([0.5, 0.25, 0.0]))
    weights = torch.tensor([0.5, 0.25, 0.0]) / 0.75
    rows = F.cross_entropy(s, torch.tensor([2, 2, 2]), reduction="none")
    torch.testing.assert_close(ce(s, half), (weights * rows).sum())


def test_losses_of_one_label_take_that_of_the_larger_share() -> None:
    mixed = MixedLabels(torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([0.6, 0.4]))
    assert mixed.dominant.tolist() == [1, 4]


@pytest.mark.parametrize("loss", ["cmkd", "dkd"])
def test_training_on_mixed_views_from_a_cache_is_training_with_the_teacher(tmp_path: Path, loss: str) -> None:
    config = DumpConfig(seeds=(0, 1), top_k=10, profile="exact", workers=0, precision="float32")
    dump(tmp_path / "c.zarr", few_digits(), a_recipe(*BOTH), a_teacher(), config)
    cached = Stream.from_cache(tmp_path / "c.zarr", few_digits(), batch_size=32, workers=0)
    live = Stream(cached.views, LiveTeacher(ViewModel(a_teacher()), 300, 10, 10), cached.config)
    train([a_run(tmp_path / "cached", loss)], cached)
    train([a_run(tmp_path / "live", loss)], live)
    for mine, theirs in zip(rows_of(tmp_path / "cached"), rows_of(tmp_path / "live"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert_same_weights(tmp_path / "cached", tmp_path / "live", rtol=1e-3, atol=1e-4)


def test_neither_workers_nor_passes_change_a_dump_of_mixed_views(tmp_path: Path) -> None:
    def made(name: str, *mixes: StepSpec, **options: Any) -> Path:
        config = DumpConfig(seeds=(0, 1), top_k=4, precision="float32", **options)
        dump(tmp_path / name, few_digits(), a_recipe(*mixes), a_teacher(), config)
        return tmp_path / name

    plain = made("a", *BOTH, workers=0)
    assert_same(plain, made("b", *BOTH, workers=2, seeds_per_pass=2, batch_size=50))
    unmixed, mixed = arrays_of(made("unmixed", workers=0)), arrays_of(plain)
    assert any(not (unmixed[key] == value).all() for key, value in mixed.items() if key[2] == "ids")


def test_views_that_held_out_images_are_mixed_into_are_not_trained_on(tmp_path: Path) -> None:
    config = DumpConfig(seeds=(0,), top_k=4, precision="float32", workers=0)
    dump(tmp_path / "c.zarr", few_digits(), a_recipe(MIXUP), a_teacher(), config)
    stream = Stream.from_cache(CacheReader(tmp_path / "c.zarr"), few_digits(), batch_size=32, workers=0)
    validation = Validation(stream)
    held = set(choose_held_out(few_digits()).tolist())
    clean = {i for i in range(300) if i not in held and draw_partner(i, 0, 300) not in held}
    assert 300 - 2 * len(held) <= len(clean) < 300 - len(held)
    for batch in stream.epoch(0):
        kept = validation.drop_held_out(batch)
        assert set(kept.samples.tolist()) == clean & set(batch.samples.tolist())
        rows = torch.isin(batch.samples, kept.samples)
        assert torch.equal(kept.views, batch.views[rows])
        assert all(map(torch.equal, kept.target, (part[rows] for part in batch.target)))


@pytest.mark.parametrize(
    ("mixes", "said"),
    [
        ((StepSpec("MixUp", {"alpha": 0.0}),), "alpha"),
        ((StepSpec("CutMix", {"probability": 1.5}),), "probability"),
        ((StepSpec("MixUp", {"num_classes": 10}),), "num_classes"),
        ((StepSpec("MixUp", {"alpha": "1"}),), "alpha"),
        ((MIXUP, CUTMIX), "must not exceed 1 in sum"),
    ],
)
def test_what_cannot_be_mixed_is_refused(mixes: tuple[StepSpec, ...], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        KeyedViews(few_digits(), a_recipe(*mixes))


def test_mixing_comes_last() -> None:
    with pytest.raises(FormatError, match="last steps, found RandomCrop"):
        RecipeSpec("odd", 1, (MIXUP, CROP))


def test_views_of_different_sizes_are_not_mixed() -> None:
    class Uneven(ArrayImages):
        def image(self, sample: int) -> torch.Tensor:
            return self.images[sample][:, : 4 + sample % 3]

    digits = few_digits(30)
    uneven = Uneven("uneven", "train", digits.images, digits.labels, 10, "identity")
    views = KeyedViews(uneven, RecipeSpec("m", 1, (MIXUP,)))
    errors = [views[sample, 0].error for sample in range(30)]
    assert any("must have one size" in error for error in errors)


@pytest.mark.parametrize("name", ["imagenet-mixup@16", "imagenet-strong@16"])
def test_named_recipes_mix(name: str) -> None:
    pictures = torch.randint(0, 256, (12, 3, 20, 24), generator=torch.Generator().manual_seed(0))
    images = ArrayImages("noise", "train", pictures.to(torch.uint8), few_digits(12).labels, 10, "imagenet")
    batch = check_batch(KeyedViews(images, recipe_named(name)).__getitems__([(i, 0) for i in range(12)]))
    assert batch.views.shape == (12, 3, 16, 16)
    assert len(batch.shares.unique()) > 6
