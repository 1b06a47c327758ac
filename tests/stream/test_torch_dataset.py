"""A cache in anyone's loop: the pairs, views and answers of a Stream, through a plain DataLoader."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dumping import RECIPE, a_teacher, dump_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from small import few_digits
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader, Subset, TensorDataset

from logitcache import CachedTeacher, CachedViews, SparseTeacher, Stream, ViewSampler
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import DataError, ImageError, IncompleteError, MismatchError, OptionError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.store import CacheReader
from logitcache.views.datasets import ArrayImages
from logitcache.views.own_images import wrap_images

N = 96


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    out = tmp_path_factory.mktemp("cached") / "c.zarr"
    dump_digits(out, n=N, seeds=(0, 1, 2))
    return CacheReader(out)


@pytest.fixture
def data(cache: CacheReader) -> CachedViews:
    return CachedViews(few_digits(N), cache)


def assert_same_answers(mine: SparseTeacher, other: SparseTeacher) -> None:
    assert mine.is_whole  # by the cache's class statistics
    for name in ("ids", "gap", "top", "tail_lse", "tail_mean", "tail_var", "logits"):
        torch.testing.assert_close(getattr(mine, name), getattr(other, name), rtol=0, atol=0)


def assert_is_the_stream(
    data: CachedViews, cache: CacheReader, walk: dict[str, Any] | None = None, **options: Any
) -> None:
    walk = {"order": 5, **(walk or {})}
    stream = Stream.from_cache(cache, few_digits(N), batch_size=16, workers=0, **walk)
    sampler = ViewSampler(data, **walk)
    loader = DataLoader(data, batch_size=16, sampler=sampler, **options)
    for epoch in range(4):
        for (views, labels, rows), expected in zip(loader, stream.epoch(epoch), strict=True):
            assert torch.equal(views, expected.views)
            assert torch.equal(labels, expected.labels)
            assert expected.teacher is not None
            assert_same_answers(data.decode(rows), expected.teacher)


def test_a_plain_loader_gives_the_batches_of_a_stream(data: CachedViews, cache: CacheReader) -> None:
    assert_is_the_stream(data, cache)


@pytest.mark.parametrize(
    "walk",
    [
        {"seed_order": "random"},
        {"views_per_image": 2},
        {"fraction": 0.5},
        {"samples": tuple(range(0, 96, 3))},
    ],
)
def test_a_sampler_walks_as_a_stream_does(
    data: CachedViews, cache: CacheReader, walk: dict[str, Any]
) -> None:
    assert_is_the_stream(data, cache, walk)


@pytest.mark.parametrize("persistent", [False, True])
def test_forked_workers_give_the_same(data: CachedViews, cache: CacheReader, persistent: bool) -> None:
    options = {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": persistent}
    assert_is_the_stream(data, cache, **options)


def test_a_spawned_worker_gives_the_same(data: CachedViews, cache: CacheReader) -> None:
    options = {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True}
    assert_is_the_stream(data, cache, **options)


def test_what_a_spawned_worker_gets_knows_nothing_of_zarr(data: CachedViews, tmp_path: Path) -> None:
    data.prepare([1])
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(data))
    code = (
        "import pickle, sys\nwith open('data.pickle', 'rb') as file:\n    data = pickle.load(file)\n"
        "print(data[3, 1][2].sum().item(), [m for m in ('zarr', 'dask') if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split(maxsplit=1) == [str(data[3, 1][2].sum().item()), "[]\n"]


def test_the_views_pass_through_a_transform(cache: CacheReader) -> None:
    plain, halved = (
        CachedViews(few_digits(N), cache, transform=t) for t in (None, lambda view: view.float() / 2)
    )
    torch.testing.assert_close(halved[5, 1][0], plain[5, 1][0].float() / 2)
    assert halved[5, 1][1] == few_digits(N).labels[5]


def test_a_torch_data_set_stands_for_images(tmp_path: Path) -> None:
    images = few_digits(40)
    pairs = TensorDataset(images.images, torch.from_numpy(images.labels))
    dump(tmp_path / "c.zarr", wrap_images(pairs, "own"), RECIPE, a_teacher(), DumpConfig((0,), 4, workers=0))
    found = CachedViews(pairs, tmp_path / "c.zarr")
    assert torch.equal(found[7, 0][0], CachedViews(wrap_images(pairs, "other"), tmp_path / "c.zarr")[7, 0][0])
    with pytest.raises(DataError, match="found int"):
        CachedViews(5, tmp_path / "c.zarr")


# Which pairs ------------------------------------------------------------------------------------------------


def test_each_pass_is_the_next_epoch_and_set_epoch_says_another(data: CachedViews) -> None:
    sampler = ViewSampler(data)
    passes = [list(sampler) for _ in range(4)]
    assert [{seed for _, seed in pairs} for pairs in passes] == [{0}, {1}, {2}, {0}]
    assert all(sorted(sample for sample, _ in pairs) == list(range(N)) for pairs in passes)
    assert passes[0] != passes[3]
    sampler.set_epoch(1)
    assert list(sampler) == passes[1]
    assert list(sampler) == passes[2]
    assert len(sampler) == N


@settings(max_examples=25, deadline=None)
@given(world=st.integers(1, 7), epoch=st.integers(0, 9), order=st.integers(0, 1 << 40))
def test_ranks_share_the_pairs_of_an_epoch(cache: CacheReader, world: int, epoch: int, order: int) -> None:
    data = CachedViews(few_digits(N), cache)
    parts = []
    for rank in range(world):
        sampler = ViewSampler(data, order=order, rank=rank, world_size=world)
        sampler.set_epoch(epoch)
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1]) == N // world
    together = [pair for part in parts for pair in part]
    assert len(set(together)) == len(together)
    alone = ViewSampler(data, order=order)
    alone.set_epoch(epoch)
    dealt = [part[i] for i in range(N // world) for part in parts]
    assert dealt == list(alone)[: len(dealt)]


def test_ranks_are_those_of_torch_distributed(data: CachedViews) -> None:
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
    try:
        sampler = ViewSampler(data)
    finally:
        torch.distributed.destroy_process_group()
    assert list(sampler) == list(ViewSampler(data, rank=2, world_size=4))
    assert len(sampler) == N // 4


def test_options_that_cannot_be_honoured(data: CachedViews, cache: CacheReader, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="rank must be 0 to 1 of 2, found 2"):
        ViewSampler(data, rank=2, world_size=2)
    with pytest.raises(OptionError, match="views per image must be 1 to 3, the number of seeds, found 4"):
        ViewSampler(data, views_per_image=4)
    with pytest.raises(OptionError, match="seed order must be mod or random, found 'shuffled'"):
        ViewSampler(data, seed_order="shuffled")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="fraction must be above 0"):
        ViewSampler(data, fraction=0.0)
    with pytest.raises(IncompleteError, match="lacks seed 7"):
        CachedViews(few_digits(N), cache, seeds=(7,))
    with pytest.raises(MismatchError, match=r"dataset\.n"):
        CachedViews(few_digits(N - 1), cache)
    with pytest.raises(IncompleteError, match=r"seed 2 is not one of \[0, 1\]"):
        _ = CachedViews(few_digits(N), cache, seeds=(0, 1))[0, 2]
    mixing = RecipeSpec("mixed", 1, (*RECIPE.steps, StepSpec("MixUp", {"alpha": 0.2, "probability": 1.0})))
    dump_digits(tmp_path / "mixed.zarr", n=32, recipe=mixing, seeds=(0,))
    with pytest.raises(OptionError, match="train on a Stream"):
        CachedViews(few_digits(32), tmp_path / "mixed.zarr")


@pytest.mark.parametrize(
    "damaged", [lambda whole: whole[:-9], lambda whole: whole[:9] + b"\0\1" + whole[11:]]
)
def test_a_worker_maps_no_damaged_rows(damaged: Any, cache: CacheReader, tmp_path: Path) -> None:
    data = CachedViews(few_digits(N), cache, spool_folder=tmp_path)
    data.prepare([0])
    data.files[0].write_bytes(damaged(data.files[0].read_bytes()))
    here = pickle.loads(pickle.dumps(data))
    with pytest.raises(IncompleteError, match=r"call prepare\(\[0\]\)"):
        _ = here[0, 0]
    data = CachedViews(few_digits(N), cache, spool_folder=tmp_path)
    data.prepare([0])  # decodes it anew
    assert pickle.loads(pickle.dumps(data))[0, 0][1] == data[0, 0][1]


def test_a_spool_that_cannot_hold_two_seeds_is_refused_before_workers_need_them(cache: CacheReader) -> None:
    with pytest.raises(OptionError, match="two decoded seeds"):
        CachedViews(few_digits(cache.spec.dataset.n), cache, spool_limit=1000)
    one = CachedViews(few_digits(cache.spec.dataset.n), cache, seeds=[0], spool_limit=1000)
    assert one.seeds == (0,)


def test_workers_do_not_decode(cache: CacheReader, tmp_path: Path) -> None:
    data = CachedViews(few_digits(N), cache, spool_folder=tmp_path / "fresh")
    loader = DataLoader(
        data, batch_size=2, sampler=[(0, 1), (1, 1)], num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(IncompleteError, match=r"call prepare\(\[1\]\) before the loader"):
        next(iter(loader))
    data.prepare([1])
    assert len(next(iter(loader))) == 3


def test_a_spool_folder_may_be_named_by_text(cache: CacheReader, tmp_path: Path) -> None:
    data = CachedViews(few_digits(N), cache, spool_folder=str(tmp_path / "views"))
    data.prepare([0])
    assert data.files[0].parent == tmp_path / "views"
    stream = Stream.from_cache(
        cache, few_digits(N), spool_folder=str(tmp_path / "stream"), workers=0, device="cpu", seeds=(0,)
    )
    assert len(next(iter(stream.epoch(0))).views)
    CachedTeacher(cache, str(tmp_path / "teacher")).take([0], 0)
    for name in ("views", "stream", "teacher"):
        assert len(list((tmp_path / name).glob("*.spool"))) == 1


# Answers ----------------------------------------------------------------------------------------------------


class OneBad(ArrayImages):
    """Digits of which one does not decode."""

    def image(self, sample: int) -> torch.Tensor:
        if sample == 3:
            raise ImageError("sample 3 does not decode")
        return super().image(sample)


def test_a_sample_without_a_teacher_is_left_out_and_refused(tmp_path: Path) -> None:
    few = few_digits(40)
    bad = OneBad("digits", "train", few.images, few.labels, 10, "digits")
    config = DumpConfig((0,), 4, workers=0, on_bad_image="skip")
    dump(tmp_path / "c.zarr", bad, RECIPE, a_teacher(), config)
    data = CachedViews(few, tmp_path / "c.zarr")  # it decodes by now
    assert sorted(sample for sample, _ in ViewSampler(data)) == [i for i in range(40) if i != 3]
    still_bad = CachedViews(bad, tmp_path / "c.zarr")
    for views in (data, still_bad):
        with pytest.raises(
            IncompleteError, match=r"sample 3 of digits has no teacher.*Subset of data\.usable"
        ):
            _ = views[3, 0]
    usable = Subset(still_bad, still_bad.usable(0).nonzero()[0])
    assert [len(labels) for _, labels, _ in DataLoader(usable, 39)] == [39]


class NoMore(ArrayImages):
    """Digits of which one does not decode any more."""

    gone = False

    def image(self, sample: int) -> torch.Tensor:
        if self.gone and sample == 3:
            raise ImageError("digits/3.png does not decode (it is empty); mend or remove it")
        return super().image(sample)


def test_an_image_that_decodes_no_more_is_told_with_what_can_be_done(tmp_path: Path) -> None:
    few = few_digits(40)
    images = NoMore("digits", "train", few.images, few.labels, 10, "digits")
    dump(tmp_path / "c.zarr", images, RECIPE, a_teacher(), DumpConfig((0,), 4, workers=0))
    data = CachedViews(images, tmp_path / "c.zarr")
    images.gone = True
    said = (
        r"digits/3\.png does not decode \(it is empty\), and did when the cache was made: put the file back"
    )
    with pytest.raises(DataError, match=said) as refused:
        list(DataLoader(data, 8))
    assert "mend or remove it" not in str(refused.value)
    others = Subset(data, [i for i in range(40) if i != 3])
    assert sum(len(labels) for _, labels, _ in DataLoader(others, 8)) == 39


def test_take_answers_for_samples_under_one_seed_or_each_its_own(cache: CacheReader) -> None:
    teacher = CachedTeacher(cache.path)
    one = teacher.take([4, 90, 4], 2)
    assert_same_answers(one, teacher.take(torch.tensor([4, 90, 4]), torch.tensor([2, 2, 2])))
    several = teacher.take([4, 90], torch.tensor([2, 0]))
    assert_same_answers(several[:1], one[:1])
    assert_same_answers(several[1:], teacher.take(np.array([90]), 0))
    with pytest.raises(OptionError, match="has samples 0 to 95, asked for 96"):
        teacher.take([96], 0)


def test_what_is_printed_tells_cache_shapes_and_seeds_in_a_line(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", n=12, seeds=(0, 1, 3))
    stream = Stream.from_cache(tmp_path / "c.zarr", few_digits(12), batch_size=4, workers=0)
    data = CachedViews(few_digits(12), tmp_path / "c.zarr")
    (batch, *_) = stream.epoch(2)
    assert batch.teacher
    for thing in (stream, data):
        told = repr(thing)
        assert f"{tmp_path}/c.zarr, k={stream.teacher.reader.spec.k} of 10 classes" in told
        assert "seeds 0-1, 3" in told
        assert "12 images by" in told
    assert f"4 rows, k={batch.teacher.k} of 10 classes" in repr(batch)
    assert "views (4, 1, 8, 8) uint8, seed 3" in repr(batch)
    assert repr(batch.teacher.at(2.0)) == "SoftTargets(4 rows, 10 classes, cpu)"
    assert "temperature=2" in repr(batch.teacher.listed_at(2.0))
    assert all("\n" not in repr(one) for one in (stream, data, batch))
