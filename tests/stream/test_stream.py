"""The stream: each epoch every usable sample once under that epoch's seed, with the teacher's own answer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcache.distributed import World
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import ImageError, IncompleteError, MismatchError, OptionError, StorageError
from logitcache.models.build import Model, build_model
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader, CacheWriter
from logitcache.stream.batch import StreamConfig
from logitcache.stream.sampler import PairSampler
from logitcache.stream.stream import Stream
from logitcache.stream.stream_inputs import FRESH_EPOCHS, StreamInputs
from logitcache.teacher.cached import CachedTeacher
from logitcache.teacher.live import LiveTeacher
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.datasets import ArrayImages, load_digits
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.recipes import recipe_named

N, BAD = 50, (3, 30)
RECIPE = recipe_named("digits")


class SomeBad(ArrayImages):
    """Digits of which two do not decode."""

    def image(self, sample):
        if sample in BAD:
            raise ImageError(f"sample {sample} does not decode")
        return super().image(sample)


def images_of(kind: type[ArrayImages] = ArrayImages) -> ArrayImages:
    all_of_them = load_digits("train")
    return kind("few", "train", all_of_them.images[:N], all_of_them.labels[:N], 10, "digits")


@pytest.fixture(scope="module")
def teacher() -> Model:
    return build_model("digits_tiny", num_classes=10, view_size=8, weights="random", seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stream")


def dumped(path, teacher, *, images=None, seeds=(0, 1, 2), **options) -> CacheReader:
    config = DumpConfig(seeds=seeds, device="cpu", workers=0, batch_size=16, shard_samples=20, **options)
    dump(path, images or images_of(), RECIPE, teacher, config)
    return CacheReader(path)


@pytest.fixture(scope="module")
def exact(teacher, folder) -> CacheReader:
    return dumped(folder / "exact.zarr", teacher, profile="exact")


@pytest.fixture(scope="module")
def with_bad(teacher, folder) -> CacheReader:
    return dumped(folder / "bad.zarr", teacher, images=images_of(SomeBad), top_k=4, on_bad_image="skip")


@pytest.fixture
def stream(exact, folder):
    def make(reader=exact, kind=ArrayImages, **options) -> Stream:
        options = {"batch_size": 8, "device": "cpu", "workers": 0, **options}
        return Stream.from_cache(reader, images_of(kind), spool_folder=folder / "spool", **options)

    return make


# Pairs ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(0, 60),
    batch=st.integers(1, 9),
    world=st.integers(1, 4),
    order=st.integers(0, 1 << 40),
    epoch=st.integers(0, 1000),
)
def test_ranks_take_disjoint_parts_in_equally_many_batches(n, batch, world, order, epoch):
    samples = np.arange(n) * 3 + 1
    ranks = [
        PairSampler(samples, (7,), batch, order=order, epoch=epoch, world=World(rank, world))
        for rank in range(world)
    ]
    batches = [list(rank) for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(part) for part in batches]
    drawn = [pair for part in batches for made in part for pair in made]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) <= {(int(sample), 7) for sample in samples}
    if world == 1:
        assert len(drawn) == n
    else:
        assert {len(made) for part in batches for made in part} <= {batch}
        assert {len(part) for part in batches} == {n // (batch * world)}


def test_the_order_depends_on_key_and_epoch_alone():
    def order(key, epoch):
        sampler = PairSampler(np.arange(100), (0,), 10, order=key, epoch=epoch)
        return [pair for batch in sampler for pair in batch]

    torch.manual_seed(0)
    first = order(1, 5)
    np.random.default_rng().random()
    torch.manual_seed(1)
    assert order(1, 5) == first
    assert order(1, 6) != first
    assert order(2, 5) != first


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_draw_what_one_rank_with_their_batches_draws(world):
    parts = [
        list(PairSampler(np.arange(48), (0,), 4, order=0, epoch=3, world=World(r, world)))
        for r in range(world)
    ]
    together = [[pair for part in step for pair in part] for step in zip(*parts, strict=True)]
    assert together == list(PairSampler(np.arange(48), (0,), 4 * world, order=0, epoch=3))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 7, 12, 23])
def test_ranks_leave_out_less_than_one_global_batch_and_nobody_for_good(n, world):
    drawn = set()
    for epoch in range(40):
        ranks = [
            PairSampler(np.arange(n), (0,), 2, order=0, epoch=epoch, world=World(r, world))
            for r in range(world)
        ]
        now = [sample for rank in ranks for batch in rank for sample, _ in batch]
        assert len(now) == n if world == 1 else n - len(now) < 2 * world
        drawn |= set(now)
    assert drawn == (set(range(n)) if world == 1 or n >= 2 * world else set())


# Epochs ---------------------------------------------------------------------------------------------------


def test_epoch_e_uses_seed_e_mod_s_and_each_sample_once(stream):
    made = stream(seeds=(2, 0, 1))
    labels = images_of().labels
    for epoch in (0, 1, 2, 3, 7):
        batches = list(made.epoch(epoch))
        assert len(batches) == made.steps(epoch) == 7
        assert {int(s) for batch in batches for s in batch.seeds} == {(2, 0, 1)[epoch % 3]}
        assert sorted(int(s) for batch in batches for s in batch.samples) == list(range(N))
        for batch in batches:
            np.testing.assert_array_equal(batch.labels.numpy(), labels[batch.samples.numpy()])


def test_steps_are_counted_once_for_all_epochs_of_the_same_seeds(stream, monkeypatch):
    made, looked_at = stream(), []
    usable = made.teacher.usable
    monkeypatch.setattr(made.teacher, "usable", lambda seed: looked_at.append(seed) or usable(seed))
    counted = [made.steps(epoch) for epoch in (0, 0, 1, 2, 3, 4)]
    assert looked_at == [0, 1, 2]
    assert counted == [len(list(made.epoch(epoch))) for epoch in (0, 0, 1, 2, 3, 4)]


def test_without_seeds_all_complete_ones_are_used(stream):
    assert stream().config.seeds == (0, 1, 2)


def test_any_epoch_is_the_same_whenever_it_is_asked_for(stream):
    first = stream(order=5)
    through = [[batch.samples.tolist() for batch in first.epoch(epoch)] for epoch in range(4)]
    again = stream(order=5)
    assert [batch.samples.tolist() for batch in again.epoch(3)] == through[3]
    assert [batch.samples.tolist() for batch in again.epoch(0)] == through[0]
    assert through[0] != through[3]
    assert [batch.samples.tolist() for batch in stream(order=6).epoch(0)] != through[0]


def test_views_are_the_keyed_views(stream):
    views = KeyedViews(images_of(), RECIPE)
    for batch in stream().epoch(1):
        expected = [views[sample, 1].views[0] for sample in batch.samples.tolist()]
        assert torch.equal(batch.views, torch.stack(expected))


# Answers --------------------------------------------------------------------------------------------------


def assert_same(found: SparseTeacher, expected: SparseTeacher) -> None:
    for name in ("ids", "gap", "top", "tail_lse", "tail_mean", "tail_var"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.equal(a, b), name


def dumped_logits(teacher: Model, seed: int) -> torch.Tensor:
    """(N, 10), in the batches in which `dump` ran them: 16 and 4 of each shard of 20, and the last 10."""
    views = KeyedViews(images_of(), RECIPE)
    model = ViewModel(teacher).eval()
    cuts = [(0, 16), (16, 20), (20, 36), (36, 40), (40, 50)]
    with torch.inference_mode():
        return torch.cat([model(views.__getitems__([(i, seed) for i in range(*cut)]).views) for cut in cuts])


def test_answers_of_an_exact_cache_are_the_dumped_logits_bit_for_bit(stream, teacher):
    for epoch in range(3):
        expected = SparseTeacher.from_logits(dumped_logits(teacher, epoch), 10)
        for batch in stream().epoch(epoch):
            assert_same(batch.teacher, expected[batch.samples])


def test_answers_of_a_default_cache_are_the_dumped_logits_in_the_precision_of_float16(
    teacher, stream, folder
):
    reader = dumped(folder / "top4.zarr", teacher, top_k=4, seeds=(0,))
    expected = SparseTeacher.from_logits(dumped_logits(teacher, 0), 4)
    for batch in stream(reader).epoch(0):
        wanted = expected[batch.samples]
        assert torch.equal(batch.teacher.gap, wanted.gap.half().float())
        assert torch.equal(batch.teacher.ids, wanted.ids)
        assert batch.teacher.tail_var is None
        for name in ("top", "tail_lse", "tail_mean"):
            assert torch.equal(getattr(batch.teacher, name), getattr(wanted, name).half().float()), name


def test_the_live_teacher_answers_as_the_exact_cache(stream, teacher):
    live = LiveTeacher(ViewModel(teacher), N, 10, 10)
    assert live.usable(0).all()
    for batch in stream().epoch(0):
        found = live.answer(batch.views, batch.samples, batch.seeds)
        assert torch.equal(found.ids, batch.teacher.ids)
        torch.testing.assert_close(found.logits, batch.teacher.logits, rtol=1e-5, atol=1e-5)


def test_take_looks_up_any_samples_in_any_order(exact, teacher, folder):
    cached = CachedTeacher(exact, folder / "spool")
    samples = torch.tensor([49, 0, 7, 7, 20])
    expected = SparseTeacher.from_logits(dumped_logits(teacher, 2), 10)
    assert_same(cached.take(samples, 2), expected[samples])
    seeds = torch.tensor([2, 0, 2, 1, 1])
    mixed = cached.answer(torch.empty(0), samples, seeds)
    for row, (sample, seed) in enumerate(zip(samples, seeds.tolist(), strict=True)):
        assert_same(mixed[row : row + 1], cached.take(sample[None], seed))


@pytest.mark.parametrize("sample", [-1, N, 1 << 40])
def test_samples_that_are_not_there_are_refused_not_counted_from_the_end(sample, exact, folder):
    cached = CachedTeacher(exact, folder / "spool")
    for samples in (torch.tensor([sample]), torch.tensor([3, sample, 4])):
        with pytest.raises(OptionError, match=f"has samples 0 to {N - 1}, asked for {sample}"):
            cached.take(samples, 0)
        with pytest.raises(OptionError, match=f"asked for {sample}"):
            cached.answer(torch.empty(0), samples, torch.zeros_like(samples))


def test_a_spool_that_could_not_be_made_is_tried_again(exact, tmp_path):
    blocked = tmp_path / "spool"
    blocked.touch()  # no folder can be made here
    cached = CachedTeacher(exact, blocked)
    cached.prepare([0, 1])
    for _ in range(2):
        with pytest.raises(StorageError, match="make room there"):
            cached.take(torch.tensor([1]), 0)
    blocked.unlink()
    assert len(cached.take(torch.tensor([1]), 0)) == 1
    cached.prepare([1, 2])  # 1 had failed in the background
    assert len(cached.take(torch.tensor([1]), 1)) == 1


@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, 2)), min_size=1, max_size=40))
def test_answers_for_mixed_seeds_are_those_for_each_pair(pairs, exact, folder):
    cached = CachedTeacher(exact, folder / "spool")
    samples, seeds = torch.tensor(pairs).unbind(1)
    mixed = cached.answer(torch.empty(0), samples, seeds)
    for row, (sample, seed) in enumerate(pairs):
        assert_same(mixed[row : row + 1], cached.take(torch.tensor([sample]), seed))


# Invalid samples ------------------------------------------------------------------------------------------


def test_samples_without_a_teacher_are_never_drawn(with_bad, stream):
    made = stream(with_bad, kind=SomeBad)
    for epoch in range(4):
        drawn = sorted(int(s) for batch in made.epoch(epoch) for s in batch.samples)
        assert drawn == [i for i in range(N) if i not in BAD]
        assert all(not batch.teacher.top.isnan().any() for batch in made.epoch(epoch))


def test_taking_a_sample_without_a_teacher_is_an_error(with_bad, folder):
    cached = CachedTeacher(with_bad, folder / "spool")
    assert np.flatnonzero(~cached.usable(1)).tolist() == list(BAD)
    assert len(cached.take(torch.tensor([2, 4]), 1)) == 2
    with pytest.raises(IncompleteError, match="sample 30 has no teacher"):
        cached.take(torch.tensor([2, 30, 4]), 1)


# What is refused ------------------------------------------------------------------------------------------


def test_seeds_that_are_not_complete_are_refused_and_the_complete_ones_listed(teacher, stream, folder):
    reader = dumped(folder / "part.zarr", teacher, seeds=(0, 1))
    with CacheWriter.open(reader.path, reader.spec).seed(5) as own:
        own.write(0, {**reader.read(0, 0), "gap": reader.read(0, 0)["gap"].astype(np.float32)})
    for missing, said in (((5,), "seed 5"), ((0, 9), "seed 9"), ((5, 9), "seeds 5, 9")):
        with pytest.raises(IncompleteError, match=f"lacks {said}; complete: seeds 0-1"):
            stream(reader, seeds=missing)
    with pytest.warns(UserWarning, match="seed 5 left out, as shards are missing"):
        assert stream(reader).config.seeds == (0, 1)


def test_a_cache_without_a_complete_seed_is_refused(exact, stream, folder):
    CacheWriter.open(folder / "none.zarr", exact.spec)
    with pytest.raises(IncompleteError, match=r"no complete seed \(begun: no seed\)"):
        stream(CacheReader(folder / "none.zarr"))


def test_other_images_are_refused(exact, folder):
    all_of_them = load_digits("train")
    other = ArrayImages(
        "o", "train", all_of_them.images[1 : N + 1], all_of_them.labels[1 : N + 1], 10, "digits"
    )
    with pytest.raises(MismatchError, match=r"dataset\.fingerprint"):
        Stream.from_cache(exact, other, spool_folder=folder / "spool")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank must be 0 to 1"),
        ({"rank": -1, "world_size": 2}, "rank must be 0 to 1"),
        ({"workers": -2}, "workers"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options, says, stream):
    with pytest.raises(OptionError, match=says):
        stream(**options)


def test_an_epoch_without_a_batch_is_refused(stream):
    with pytest.raises(OptionError, match="not one batch: 50 samples for batches of 26 on 2 ranks"):
        stream(batch_size=26, world_size=2).steps(0)
    assert stream(batch_size=25, world_size=2).steps(0) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_left_for_another_is_refused_not_mixed_with_it(workers):
    made = Stream.plain(images_of(), RECIPE, seeds=(0, 1), batch_size=8, device="cpu", workers=workers)
    whole = [batch.samples.tolist() for batch in made.epoch(1)]
    left = made.epoch(0)
    next(left)
    assert [batch.samples.tolist() for batch in made.epoch(1)] == whole  # nothing of the other is left
    with pytest.raises(OptionError, match="epoch 0 was left for another"):
        next(left)
    ended = made.epoch(0)
    for _ in range(made.steps(0)):
        next(ended)
    next(made.epoch(1))
    assert list(ended) == []  # it had given all it had


def test_a_stream_needs_a_seed():
    with pytest.raises(OptionError, match="at least one augmentation seed"):
        Stream(KeyedViews(images_of(), RECIPE), None, StreamConfig(device="cpu", workers=0))


def test_a_plain_stream_has_labels_and_no_teacher():
    made = Stream.plain(images_of(), RECIPE, seeds=(4,), batch_size=20, device="cpu", workers=0)
    batches = list(made.epoch(0))
    assert [batch.teacher for batch in batches] == [None] * 3
    assert sorted(int(s) for batch in batches for s in batch.samples) == list(range(N))
    assert made.num_classes == 10
    assert made.about()["teacher"] is None


@pytest.mark.parametrize("views", [1, 3])
def test_epochs_without_end_ask_for_no_seeds_without_end(views: int) -> None:
    config = StreamConfig(batch_size=63, views_per_image=views, device="cpu", workers=0)
    few, many = (StreamInputs(config).open(epochs, World(), print).config.seeds for epochs in (5, 10**12))
    assert few == tuple(range(5 * views))
    assert len(many) == FRESH_EPOCHS * views
