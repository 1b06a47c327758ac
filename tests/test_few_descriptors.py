"""Descriptors stay few, however many seeds a cache has."""

import os
import resource
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from small_caches import FORK, fill, spec_of

from logitcache.store import CacheReader, CacheWriter
from logitcache.store.copy import copy_cache
from logitcache.stream.worker_dataset import PackedViews
from logitcache.teacher.cached import CachedTeacher
from logitcache.teacher.spool import open_spool, spool_path

SEEDS = range(80)
SPEC = spec_of(n=3)
MORE = 24  # descriptors than a process has to begin with

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts them in /proc")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        path = tmp_path_factory.mktemp("many") / "c.zarr"
        CacheWriter.open(path, SPEC, np.arange(3, dtype=np.uint64))  # keys, as every dump has them
        return fill(path, SPEC, seeds=tuple(SEEDS))


def with_few_descriptors(work: Callable[..., None], *args: object) -> None:
    """Do it in a process that may open so many more files than it has now."""
    child = FORK.Process(target=_limited, args=(work, *args))
    child.start()
    child.join()
    assert child.exitcode == 0


def _limited(work: Callable[..., None], *args: object) -> None:
    os.fsync = lambda descriptor: None
    now = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (now + MORE, now + MORE))
    work(*args)


def lock_all(path: Path) -> None:
    writer = CacheWriter.open(path, SPEC)
    with ExitStack() as stack:
        for seed in SEEDS:
            stack.enter_context(writer.seed(seed))


def read_and_copy(path: Path, out: Path) -> None:
    reader = CacheReader(path)
    assert reader.complete() == [*SEEDS]
    copy_cache(path, out)
    assert CacheReader(out).complete() == [*SEEDS]


def test_all_seeds_of_a_cache_are_locked_at_once(cache: Path) -> None:
    with_few_descriptors(lock_all, cache)


def test_all_seeds_of_a_cache_are_copied(cache: Path, tmp_path: Path) -> None:
    with_few_descriptors(read_and_copy, cache, tmp_path / "copy.zarr")


def take_all(path: Path, spools: Path) -> None:
    teacher = CachedTeacher(path, spools)
    for seed in SEEDS:
        usable = np.flatnonzero(teacher.usable(seed))[::-1].tolist()
        taken = teacher.take(usable, seed)
        expected = teacher.decode(torch.from_numpy(open_spool(teacher.reader, seed, spools)[usable]))
        assert taken.top.equal(expected.top)
        assert taken.ids.equal(expected.ids)


def test_a_teacher_answers_under_all_seeds(cache: Path, tmp_path: Path) -> None:
    with_few_descriptors(take_all, cache, tmp_path)


def look_up_all(path: Path, spools: Path) -> None:
    teacher = CachedTeacher(path, spools)
    files = {seed: spool_path(teacher.reader, seed, spools) for seed in SEEDS}
    data = PackedViews(range(3), teacher.layout, files)  # type: ignore[arg-type]  # no view is made here
    whole = {seed: np.array(open_spool(teacher.reader, seed, spools)) for seed in SEEDS}
    samples = np.array([np.flatnonzero(teacher.usable(seed))[-1] for seed in SEEDS])
    rows = data._rows(samples, np.array(SEEDS)).numpy()
    assert all((rows[i] == whole[seed][samples[i]]).all() for i, seed in enumerate(SEEDS))


def test_a_worker_looks_up_all_seeds(cache: Path, tmp_path: Path) -> None:
    with_few_descriptors(look_up_all, cache, tmp_path)
