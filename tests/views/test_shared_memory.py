"""Batches of workers where shared memory is short, or not to be had."""

import errno
import multiprocessing
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from dumping import RECIPE, a_teacher
from small import few_digits

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import LogitCacheError, StoppedError
from logitcache.views import loader as loading
from logitcache.views import shared_memory
from logitcache.views.datasets import ArrayImages, load_digits
from logitcache.views.keyed_views import KeyedViews, Pair
from logitcache.views.loader import iterate_batches, view_loader
from logitcache.views.recipes import recipe_named
from logitcache.views.shared_memory import has_room, share_as_fits, why_no_workers

PAIRS: list[list[Pair]] = [[(i, seed) for i in range(12)] for seed in range(3)]


def views() -> KeyedViews:
    return KeyedViews(few_digits(12), recipe_named("digits"))


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk of shared memory without room; forked workers see it too."""
    full = shutil._ntuple_diskusage(64 << 20, 60 << 20, 4 << 20)
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: full)


def test_a_quarter_of_shared_memory_is_left_to_others(monkeypatch: pytest.MonkeyPatch):
    whole = shutil._ntuple_diskusage(1000, 500, 500)
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: whole)
    assert has_room(250)
    assert not has_room(251)


def test_shared_memory_that_cannot_be_seen_has_no_room_on_linux(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shared_memory, "FOLDER", "/no/such/folder")
    for system, room in (("linux", False), ("darwin", True), ("win32", True)):
        monkeypatch.setattr(sys, "platform", system)
        assert has_room(1) == room


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4).transpose(0, 2),
        torch.tensor(3.5),
        torch.empty(0, 3),
        torch.tensor([True, False]),
        torch.randn(5, dtype=torch.bfloat16),
        torch.arange(7)[2:5],
        torch.ones(2, requires_grad=True),
    ],
    ids=lambda t: f"{t.dtype}{tuple(t.shape)}",
)
def test_a_tensor_that_is_sent_without_room_is_the_same(no_room: None, tensor: torch.Tensor):
    share_as_fits()
    got = pickle.loads(ForkingPickler.dumps(tensor))
    assert (got.dtype, got.shape, got.layout) == (tensor.dtype, tensor.shape, tensor.layout)
    assert torch.equal(got, tensor)
    if not tensor.requires_grad:
        assert not got.is_shared()
        assert not tensor.is_shared()
        got.reshape(-1).fill_(1)  # it can be written to


@pytest.mark.parametrize("room", [True, False])
def test_workers_give_the_same_with_room_and_without(
    room: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    if not room:
        request.getfixturevalue("no_room")
    expected = list(view_loader(views(), PAIRS, workers=0))
    batches = list(iterate_batches(view_loader(views(), PAIRS, workers=2, start_method="fork")))
    for mine, other in zip(batches, expected, strict=True):
        assert torch.equal(mine.views, other.views)
        assert torch.equal(mine.samples, other.samples)
        assert mine.views.is_shared() == room


@pytest.mark.skipif("sys.platform != 'linux'", reason="shared memory is a file there")
def test_what_shared_memory_refuses_comes_another_way():
    expected = [batch.views for batch in view_loader(views(), PAIRS, workers=0)]
    workers = view_loader(views(), PAIRS, workers=2, start_method="fork")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # less than the pixels, more than labels take
    try:
        got = list(iterate_batches(workers))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert all(map(torch.equal, [batch.views for batch in got], expected))
    assert [batch.views.is_shared() for batch in got] == [False] * len(PAIRS)
    assert all(batch.labels.is_shared() for batch in got)


class Lockless(type(multiprocessing.get_context("fork"))):  # type: ignore[misc]
    def Lock(self) -> Any:
        raise OSError(30, "Read-only file system")


def test_where_no_semaphore_can_be_had_views_are_made_here(monkeypatch: pytest.MonkeyPatch):
    assert why_no_workers(multiprocessing.get_context("fork"), 2) == ""
    assert why_no_workers(Lockless(), 2) == "Read-only file system"
    monkeypatch.setattr(loading.multiprocessing, "get_context", lambda *_: Lockless())
    expected = [batch.views for batch in view_loader(views(), PAIRS, workers=0)]
    loader = view_loader(views(), PAIRS, workers=2)
    for _ in range(2):
        with pytest.warns(UserWarning, match="Read-only file system.*made in the program itself"):
            found = [batch.views for batch in iterate_batches(loader)]
        assert all(map(torch.equal, found, expected))


class Waiting(ArrayImages):
    """Digits of which the sixth never comes; or whose worker leaves without a word."""

    leave = False

    def image(self, sample: int) -> torch.Tensor:
        if sample == 5 and torch.utils.data.get_worker_info():
            if self.leave:
                os._exit(0)
            threading.Event().wait()
        return super().image(sample)


def waiting(leave: bool = False) -> KeyedViews:
    few = few_digits(12)
    images = Waiting("few", "train", few.images, few.labels, 10, "digits")
    images.leave = leave
    return KeyedViews(images, recipe_named("digits"))


def test_workers_that_do_nothing_are_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "STALL_SECONDS", 2.0)
    others = {child.pid for child in multiprocessing.active_children()}
    loader = view_loader(waiting(), [[(0, 0)], [(5, 0)]], workers=2)
    batches = iterate_batches(loader)
    assert next(batches).samples.tolist() == [0]
    workers = {child.pid for child in multiprocessing.active_children()} - others
    assert len(workers) == 2
    with pytest.raises(
        LogitCacheError, match=r"done nothing for .* minutes: .*--workers 0.*--shm-size"
    ) as said:
        next(batches)
    assert "\n" not in str(said.value)
    assert not workers & {child.pid for child in multiprocessing.active_children()}


def test_a_wish_to_stop_is_heard_while_no_batch_comes():
    wish = threading.Event()
    batches = iterate_batches(view_loader(waiting(), [[(0, 0)], [(5, 0)]], workers=1), wish.is_set)
    next(batches)
    wish.set()
    began = time.monotonic()
    with pytest.raises(StoppedError):
        next(batches)
    assert time.monotonic() - began < 4


def test_a_worker_that_leaves_without_a_word_is_noticed_at_once():
    began = time.monotonic()
    with pytest.raises(LogitCacheError, match="a worker that makes views died"):
        list(iterate_batches(view_loader(waiting(leave=True), [[(5, 0)]], workers=1)))
    assert time.monotonic() - began < 4


# A container ------------------------------------------------------------------------------------------------

SCRIPT = """
from pathlib import Path
from torch.utils.data import DataLoader
from logitcache import CachedViews, Stream, ViewSampler
data = CachedViews(None, "c.zarr", spool_folder=Path("spool"))
loader = DataLoader(data, batch_size=32, sampler=ViewSampler(data), num_workers=2)
print(sum(len(views) for views, _, _ in loader))
stream = Stream.from_cache("c.zarr", batch_size=32, workers=2)
print(sum(len(batch.views) for batch in stream.epoch(0)))
"""


def in_container(shm: str, *command: str, cwd: Path) -> Any:
    """Run a command where /dev/shm is mounted with these options, as root."""
    mount = f'mount -t tmpfs -o {shm} tmpfs /dev/shm && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", mount, "sh", *command]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120)


def can_mount() -> bool:
    linux = sys.platform == "linux" and shutil.which("unshare")
    return bool(linux) and in_container("size=1m", "true", cwd=Path("/")).returncode == 0


@pytest.mark.skipif("not can_mount()", reason="needs a mount of its own")
def test_batches_come_in_a_container_of_little_shared_memory(tmp_path: Path):
    dump(tmp_path / "c.zarr", load_digits("train"), RECIPE, a_teacher(), DumpConfig(seeds=(0,), device="cpu"))
    done = in_container("size=128k", sys.executable, "-c", SCRIPT, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1437\n1437\n", "")


class Slow(ArrayImages):
    """Digits of which each takes a while in a worker."""

    def image(self, sample: int) -> torch.Tensor:
        if torch.utils.data.get_worker_info():
            time.sleep(0.3)
        return super().image(sample)


def test_an_epoch_that_is_left_keeps_the_next_one_waiting_and_no_more():
    few = few_digits(20)
    images = Slow("few", "train", few.images, few.labels, 10, "digits")
    batches = [[(i, 0) for i in range(start, start + 5)] for start in range(0, 20, 5)]
    loader = view_loader(KeyedViews(images, recipe_named("digits")), batches, workers=1)
    assert next(iterate_batches(loader)).samples.tolist() == [0, 1, 2, 3, 4]
    assert [batch.samples[0].item() for batch in iterate_batches(loader)] == [0, 5, 10, 15]


def test_workers_that_cannot_be_started_are_one_line(monkeypatch: pytest.MonkeyPatch):
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    loader = view_loader(views(), PAIRS, workers=2, start_method="fork")
    said = r"temporarily.*fewer --workers.*ulimit"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        with pytest.raises(LogitCacheError, match=said):
            list(iterate_batches(loader))
    assert len(list(iterate_batches(loader))) == len(PAIRS)
