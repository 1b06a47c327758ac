"""A cache as a plain torch data set: an int is a sample under the epoch's seed, whoever draws it and wherever."""

import copy
import gc
import pickle
import re
import resource
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dumping import dump_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from small import few_digits
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
    random_split,
)

from logitcache import CachedViews, Stream, ViewSampler
from logitcache.errors import OptionError
from logitcache.store import CacheReader
from logitcache.stream.shared_epoch import SharedEpoch

N, SEEDS = 48, (0, 1, 3)
FORKED = {"num_workers": 2, "multiprocessing_context": "fork"}
SPAWNED = {"num_workers": 1, "multiprocessing_context": "spawn"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    out = tmp_path_factory.mktemp("plain") / "c.zarr"
    dump_digits(out, n=N, seeds=SEEDS)
    return CacheReader(out)


@pytest.fixture(scope="module")
def truth(cache: CacheReader) -> dict[tuple[int, int], tuple[Tensor, int, Tensor]]:
    """(view, label, logits) of each (sample, seed), as a stream gives it."""
    stream, found = Stream.from_cache(cache, few_digits(N), batch_size=16, workers=0), {}
    for epoch in range(len(SEEDS)):
        for batch in stream.epoch(epoch):
            assert batch.teacher is not None
            keys = zip(batch.samples.tolist(), batch.seeds.tolist(), strict=True)
            rows = zip(batch.views, batch.labels.tolist(), batch.teacher.logits, strict=True)
            found.update(zip(keys, rows, strict=True))
    assert len(found) == N * len(SEEDS)
    return found


@pytest.fixture
def data(cache: CacheReader) -> CachedViews:
    return CachedViews(few_digits(N), cache)


def samples_of(batches: Any, data: CachedViews, truth: Any, seed: int) -> list[int]:
    """Return the samples of batches, each of which is what the stream gives under that seed."""
    by_view = {truth[i, seed][0].numpy().tobytes(): i for i in range(N)}
    drawn = []
    for views, labels, rows in batches:
        drawn += [by_view[view.numpy().tobytes()] for view in views]
        expected = [truth[sample, seed] for sample in drawn[-len(views) :]]
        assert labels.tolist() == [label for _, label, _ in expected]
        torch.testing.assert_close(data.decode(rows).logits, torch.stack([row for _, _, row in expected]))
    return drawn


@settings(max_examples=30, deadline=None)
@given(epoch=st.integers(0, 9), sample=st.integers(0, N - 1))
def test_a_sample_alone_is_the_pair_of_the_epochs_seed(
    cache: CacheReader, truth: Any, epoch: int, sample: int
) -> None:
    data = CachedViews(few_digits(N), cache)
    data.set_epoch(epoch)
    sampler = ViewSampler(data)
    sampler.set_epoch(epoch)
    (seed,) = {seed for _, seed in sampler}
    view, label, row = data[sample]
    assert torch.equal(view, data[sample, seed][0])
    assert torch.equal(row, data[sample, seed][2])
    assert torch.equal(view, truth[sample, seed][0])
    assert label == truth[sample, seed][1]
    for index in (np.int64(sample), torch.tensor(sample)):
        assert torch.equal(data[index][0], view)


@pytest.mark.parametrize("workers", [{}, FORKED, SPAWNED], ids=["none", "fork", "spawn"])
@pytest.mark.parametrize("persistent", [False, True], ids=["anew", "persistent"])
def test_shuffled_epochs_take_the_seeds_in_turn(
    workers: dict[str, Any], persistent: bool, data: CachedViews, truth: Any
) -> None:
    if workers:
        workers = {**workers, "persistent_workers": persistent}
    loader = DataLoader(data, batch_size=16, shuffle=True, **workers)
    orders = []
    for epoch in range(4):
        data.set_epoch(epoch)
        orders.append(samples_of(loader, data, truth, SEEDS[epoch % 3]))
        assert sorted(orders[-1]) == list(range(N))
    assert len(set(map(tuple, orders))) == 4
    del loader


def test_every_sampler_of_torch_walks_it(data: CachedViews, truth: Any) -> None:
    data.set_epoch(2)
    seed = SEEDS[2]
    weights = torch.arange(N, dtype=torch.float64)
    samplers: list[tuple[Any, int]] = [
        (WeightedRandomSampler(weights, 40), 40),
        (RandomSampler(data, replacement=True, num_samples=70), 70),
        (RandomSampler(data, num_samples=20), 20),
    ]
    for sampler, count in samplers:
        drawn = samples_of(DataLoader(data, batch_size=9, sampler=sampler), data, truth, seed)
        assert len(drawn) == count
    assert 0 not in samples_of(DataLoader(data, 9, sampler=samplers[0][0]), data, truth, seed)
    batched = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 7, drop_last=True))
    assert len(set(samples_of(batched, data, truth, seed))) == N // 7 * 7
    ranks = [DistributedSampler(data, num_replicas=4, rank=rank) for rank in range(4)]
    parts = [samples_of(DataLoader(data, 8, sampler=rank), data, truth, seed) for rank in ranks]
    assert Counter(chain(*parts)) == Counter(range(N))


@pytest.mark.parametrize("workers", [{}, FORKED], ids=["none", "fork"])
def test_parts_of_it_are_data_sets_too(workers: dict[str, Any], data: CachedViews, truth: Any) -> None:
    part = Subset(data, np.arange(0, N, 5))
    halves = random_split(data, [0.5, 0.5])
    for epoch in (0, 1):
        data.set_epoch(epoch)
        loader = DataLoader(part, 4, **workers)
        assert samples_of(loader, data, truth, SEEDS[epoch]) == list(range(0, N, 5))
        drawn = [samples_of(DataLoader(half, 8, **workers), data, truth, SEEDS[epoch]) for half in halves]
        assert sorted(chain(*drawn)) == list(range(N))


def test_it_is_a_sequence(data: CachedViews, truth: Any) -> None:
    assert len(data) == N
    assert [label for _, label, _ in data] == [truth[i, 0][1] for i in range(N)]
    loader = DataLoader(data, batch_size=None)
    assert [label for _, label, _ in loader] == [truth[i, 0][1] for i in range(N)]
    for outside in (N, -1):
        with pytest.raises(IndexError, match=f"has samples 0 to {N - 1}, asked for {outside}"):
            _ = data[outside]


def test_pairs_and_samples_may_stand_side_by_side(data: CachedViews, truth: Any) -> None:
    data.set_epoch(1)
    (items,) = DataLoader(data, batch_sampler=[[4, (4, 3), (7, 0)]])
    for view, key in zip(items[0], [(4, 1), (4, 3), (7, 0)], strict=True):
        assert torch.equal(view, truth[key][0])


# A pass that shows the same again ---------------------------------------------------------------------------


def warning_of(draw: Callable[[], object]) -> str:
    """Return the warning that ends a pass; its workers end with it, not five seconds each after a collection."""
    told = ""
    try:
        draw()
    except UserWarning as warning:
        told = str(warning)
        warning.__traceback__ = None  # whose frames hold the loader, and the warning
    return told


@pytest.mark.parametrize("workers", [{}, FORKED], ids=["none", "fork"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "subset"])
def test_a_second_pass_under_the_same_seed_warns_once(
    workers: dict[str, Any], whole: bool, data: CachedViews
) -> None:
    loader = DataLoader(data if whole else Subset(data, range(0, N, 2)), 8, shuffle=True, **workers)
    list(loader)
    told = warning_of(lambda: list(loader))
    assert re.search(r"same views, of 3 seeds .*data.set_epoch\(epoch\).*ViewSampler", told, re.DOTALL)
    list(loader)


@pytest.mark.parametrize("workers", [{}, FORKED], ids=["none", "fork"])
def test_passes_that_end_early_warn_once_a_sample_comes_again(
    workers: dict[str, Any], data: CachedViews
) -> None:
    def begin(start: int) -> None:
        order = [(start + at) % N for at in range(N)]
        next(iter(DataLoader(data, 2, sampler=order, **workers)))  # workers draw a few batches ahead

    begin(0)
    begin(24)
    assert "drawn again" in warning_of(lambda: begin(25))  # without the first sample that was ever drawn
    begin(0)


def test_any_sample_that_comes_again_counts(cache: CacheReader) -> None:
    shared = SharedEpoch(9)
    other = pickle.loads(pickle.dumps(shared))  # as a spawned worker has it
    assert not shared.comes_again([3, 4])
    assert not other.comes_again([5, 0])
    assert shared.comes_again([8, 0])
    assert not other.comes_again([3, 4])  # said once
    assert SharedEpoch(9).comes_again([1, 1])


def test_what_shows_no_view_twice_is_silent(cache: CacheReader, data: CachedViews) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = CachedViews(few_digits(N), cache, seeds=(1,))
        for _ in range(2):
            list(DataLoader(one, 8, shuffle=True))  # there is no other seed
        for epoch in range(4):
            data.set_epoch(epoch)
            list(DataLoader(data, 8, shuffle=True))
        other = CachedViews(few_digits(N), cache)
        assert torch.equal(other[0][0], other[0][0])  # to look at
        sampler = ViewSampler(other)
        for _ in range(4):
            list(DataLoader(other, 8, sampler=sampler))


def test_a_copy_leads_its_workers_when_the_original_is_no_more(cache: CacheReader, truth: Any) -> None:
    original = CachedViews(few_digits(N), cache)
    original.set_epoch(1)
    shared = copy.deepcopy(original.shared_epoch)
    data = CachedViews(few_digits(N), cache)
    data.shared_epoch = shared
    del original
    gc.collect()
    loader = DataLoader(data, 16, shuffle=True, persistent_workers=True, **SPAWNED)
    for epoch in (1, 2, 0):
        data.set_epoch(epoch)
        samples_of(loader, data, truth, SEEDS[epoch])
    del loader


def test_epochs_may_be_numbers_of_numpy_and_torch(data: CachedViews) -> None:
    sampler = ViewSampler(data)
    for epoch in (np.int64(2), torch.tensor(2)):
        data.set_epoch(epoch)
        sampler.set_epoch(epoch)
        assert data.shared_epoch.epoch == sampler.epoch == 2
        assert type(sampler.epoch) is int


@pytest.mark.parametrize("epoch", [-1, 1.0, "1", None])
def test_what_is_no_epoch_is_refused_by_data_and_sampler(epoch: Any, data: CachedViews) -> None:
    for to in (data, ViewSampler(data)):
        with pytest.raises(OptionError, match="an epoch is a whole number from 0, found"):
            to.set_epoch(epoch)


# What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["3", 1.0, None, (1, 2, 3), (1, "a"), slice(0, 2)])
def test_an_index_that_is_none_says_what_it_may_be(index: Any, data: CachedViews) -> None:
    for use in (lambda: data[index], lambda: data.__getitems__([index])):
        with pytest.raises(
            OptionError, match=r"such as data\[3\], or by \(sample, seed\), such as data\[3, 0\]"
        ):
            use()


@pytest.mark.parametrize("epoch", [-1, 1.5, "1"])
def test_an_epoch_that_is_none(epoch: Any, data: CachedViews) -> None:
    with pytest.raises(OptionError, match="an epoch is a whole number from 0, found"):
        data.set_epoch(epoch)


# The file of the epoch --------------------------------------------------------------------------------------


def test_the_epochs_file_goes_with_its_data_set(
    cache: CacheReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    data = CachedViews(few_digits(N), cache, spool_folder=tmp_path / "spool")
    data.set_epoch(1)
    other = pickle.loads(pickle.dumps(data))
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    data.set_epoch(2)
    assert other.seed_of_epoch() == 3
    written = pickle.dumps(data)
    del data
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert pickle.loads(written).seed_of_epoch() == 3


def test_without_a_place_for_the_file_forked_workers_follow_too(
    cache: CacheReader, truth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    data = CachedViews(few_digits(N), cache)
    loader = DataLoader(data, 16, shuffle=True, persistent_workers=True, **FORKED)
    for epoch in (0, 1, 2):
        data.set_epoch(epoch)
        assert sorted(samples_of(loader, data, truth, SEEDS[epoch])) == list(range(N))
    assert pickle.loads(pickle.dumps(data)).seed_of_epoch() == 3


def test_a_full_disk_keeps_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        shared = SharedEpoch(9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    shared.set(2)
    assert (shared.epoch, list(tmp_path.iterdir())) == (2, [])
