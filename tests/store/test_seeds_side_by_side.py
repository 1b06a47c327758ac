"""Two processes, two seeds, one new cache: that of one process."""

from pathlib import Path
from typing import Any

from dumping import arrays_of, assert_same, dump_digits
from small_caches import FORK

from logitcache.store import CacheReader


def _dump_seed(out: Path, seed: int, barrier: Any) -> None:
    barrier.wait(60)
    dump_digits(out, 150, seeds=(seed,))


def test_two_processes_dump_two_seeds_of_one_new_cache_at_once(tmp_path: Path) -> None:
    out, barrier = tmp_path / "c.zarr", FORK.Barrier(2)
    processes = [FORK.Process(target=_dump_seed, args=(out, seed, barrier)) for seed in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    dump_digits(tmp_path / "whole.zarr", 150)
    assert CacheReader(out).complete() == [0, 1]
    assert_same(out, tmp_path / "whole.zarr")
    assert arrays_of(out)
