"""Batches of views in the order asked for: from worker processes, or in this one by whole batches.

Views of images in memory are made by whole batches where their recipe allows it (`vectorized`); all others one by
one, in the workers of a DataLoader. If a worker dies, or nothing comes from any, the error says so in one line.
"""

import atexit
import multiprocessing
import os
import signal
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from logitcache.errors import LogitCacheError, OptionError, StoppedError
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews, Pair, ViewBatch, check_batch
from logitcache.views.main_module import is_imported_by_worker, needs_main, spare_main_module
from logitcache.views.shared_memory import share_as_fits, why_no_workers
from logitcache.views.vectorized import VectorizedViews

PAIRS_AHEAD = 8192
"""Pairs to draw for at once: seeding costs 400 vector operations, however long they are."""

LOOK_SECONDS = 1.0
"""How often to look for dead workers and a wish to stop, while no batch comes."""

STALL_SECONDS = 300.0
"""How long workers may do nothing at all while a batch is waited for."""

_BELOW_MAIN = 'put what starts it below `if __name__ == "__main__":`, or take 0 workers'
_MEMORY = (
    "mostly memory was short: use fewer --workers or smaller batches (with --workers 0 any other reason shows), "
    "and start again to go on"
)


def view_loader(
    views: KeyedViews,
    batches: Iterable[list[Pair]],
    *,
    workers: int = -1,
    device: torch.device | str = "cpu",
    start_method: str | None = None,
) -> "VectorizedLoader | DataLoader[ViewBatch]":
    """Load batches of pairs, in order; what a batch holds does not depend on who makes it.

    Args:
        views: what to load from.
        batches: lists of (sample, seed), one per batch; iterated anew for each pass over the loader.
        workers: processes that make views. 0 makes them in this one and −1 as fits, both by whole batches where that
            can be; 1 or more makes them one by one, there.
        device: where the batches will go. Views made by whole batches may be there already, others are in
            page-locked memory for a GPU; labels, samples, seeds are on the CPU.
        start_method: "fork", "spawn" or "forkserver"; None takes the platform's.

    Raises:
        OptionError: `workers` is below −1.
    """
    device = torch.device(device)
    if workers in (-1, 0) and not views.mixer.steps:
        engine = VectorizedViews.build(views.images, views.maker, device)
        if engine is not None:
            return VectorizedLoader(views, engine, batches)
    workers = choose_workers(workers, views.images, device)
    options: dict[str, Any] = {}
    if workers:
        options = {
            "persistent_workers": True,
            "prefetch_factor": 4,
            "worker_init_fn": _begin_worker,
            "multiprocessing_context": start_method,
        }
    loader: DataLoader[ViewBatch] = DataLoader(
        views,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=device.type == "cuda",
        **options,
    )
    _loaders.add(loader)
    return loader


@dataclass(frozen=True, eq=False)
class VectorizedLoader:
    """Batches of pairs made by `VectorizedViews`, which draws for `PAIRS_AHEAD` pairs at once, or a few more."""

    views: KeyedViews
    engine: VectorizedViews
    batches: Iterable[list[Pair]]

    def __iter__(self) -> Iterator[ViewBatch]:
        ahead: list[list[Pair]] = []
        pairs = 0
        for batch in self.batches:
            ahead.append(batch)
            pairs += len(batch)
            if pairs >= PAIRS_AHEAD:
                yield from self._make(ahead)
                ahead, pairs = [], 0
        yield from self._make(ahead)

    def _make(self, batches: list[list[Pair]]) -> Iterator[ViewBatch]:
        samples, seeds, labels = self.views.to_tensors(chain.from_iterable(batches))
        drawn = self.engine.draw(samples.numpy(), seeds.numpy())
        start = 0
        for batch in batches:
            rows = slice(start, start + len(batch))
            start = rows.stop
            pixels = self.engine.make(samples[rows].numpy(), drawn[rows])
            valid = torch.ones(len(batch), dtype=torch.bool)
            yield ViewBatch(pixels, labels[rows], samples[rows], seeds[rows], valid)


class _Wait:
    """Waiting for a batch of workers: is it still wanted, and do they do anything?"""

    def __init__(self, workers: list[Any]) -> None:
        self.workers = workers
        self.seconds, self.done = 0.0, 0.0

    def look(self, should_stop: Callable[[], bool]) -> None:
        """Look around, once every `LOOK_SECONDS`.

        Raises:
            StoppedError: `should_stop` says so.
            LogitCacheError: the workers have done nothing for `STALL_SECONDS`.
        """
        if should_stop():
            _end(self.workers)
            raise StoppedError("stopped while waiting for views, as asked")
        if not self.seconds:
            self.done = _measure_work(self.workers) or 0.0
        self.seconds += LOOK_SECONDS
        if self.seconds < STALL_SECONDS:
            return
        self.seconds, done = 0.0, _measure_work(self.workers)
        if done is not None and done - self.done < 1.0:
            _end(self.workers)
            raise LogitCacheError(
                f"the workers that make views have done nothing for {STALL_SECONDS / 60:g} minutes: the images' "
                "disk may not answer, or code of your own may wait; --workers 0 shows where (in a container try "
                "--shm-size=1g too). Start again to go on"
            )


def _measure_work(processes: Iterable[Any]) -> float | None:
    """Sum seconds of CPU time of processes and their children, and megabytes read; None where nothing tells."""
    work, known = 0.0, False
    for process in processes:
        folder = Path(f"/proc/{process.pid}")
        with suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            work += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            known = True
            work += int((folder / "io").read_text(encoding="utf-8").split()[1]) / 1e6
    return work if known else None


def _end(workers: Iterable[Any]) -> None:
    """End workers, who may hear nothing else."""
    for worker in workers:
        worker.kill()
    for _ in range(2):
        with suppress(RuntimeError):  # torch's, of the first death
            for worker in workers:
                worker.join(timeout=0.2)


def _start_workers(loader: "DataLoader[ViewBatch]") -> Iterator[ViewBatch]:
    """Return a loader's iterator, with its workers started, which raises an error each `LOOK_SECONDS` that it waits.

    Raises:
        LogitCacheError: the system starts no more processes.
    """
    before = multiprocessing.active_children()
    left = getattr(loader, "_iterator", None)
    if left is not None:  # of an epoch that was left, maybe in its middle
        left._timeout = 0  # while it is made ready for the next, torch cannot be asked again
    try:
        batches = iter(loader)
    except OSError as error:
        _end(child for child in multiprocessing.active_children() if child not in before)
        raise LogitCacheError(
            f"workers that make views cannot be started: {error.strerror or error}; use fewer --workers, or allow "
            "more processes (`ulimit -u`), open files (`ulimit -n`) or memory"
        ) from error
    if hasattr(batches, "_timeout"):  # torch's own name: without it, waits are as long as they are
        batches._timeout = LOOK_SECONDS
    return batches


def iterate_batches(
    loader: "VectorizedLoader | DataLoader[ViewBatch]", should_stop: Callable[[], bool] = lambda: False
) -> Iterator[ViewBatch]:
    """Iterate a loader's batches; `should_stop` is asked while none comes from its workers.

    Raises:
        DataError: an image does not decode, or views do not form a batch.
        LogitCacheError: a worker died, or all do nothing.
        StoppedError: `should_stop` said so.
    """
    if isinstance(loader, VectorizedLoader) or not loader.num_workers:
        yield from map(check_batch, loader)
        return
    if is_imported_by_worker():
        raise LogitCacheError(f"this script starts workers while a worker imports it: {_BELOW_MAIN}")
    share_as_fits()
    spare_main_module()
    context = loader.multiprocessing_context or multiprocessing.get_context()
    started = getattr(loader, "_iterator", None) is not None
    if not started and (reason := why_no_workers(context, loader.num_workers)):
        warnings.warn(
            f"no workers can be started here ({reason}), so views are made in the program itself; in a container "
            "--shm-size=1g makes room for them, and --workers 0 asks for none",
            stacklevel=2,
        )
        here = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn)
        yield from map(check_batch, here)
        return
    try:
        batches = _start_workers(loader)
        wait = _Wait(getattr(batches, "_workers", []))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                wait.look(should_stop)
                continue
            wait.seconds = 0.0
            yield check_batch(batch)
    except (ConnectionError, EOFError) as error:  # a worker's pipe breaks before its death is seen
        if "in DataLoader worker process" in str(error):
            raise  # what your own data set raised
        with report_worker_deaths():
            time.sleep(1.0)  # torch's own error comes by a signal: let it come here, not in what runs next
        raise _worker_died(str(error), _advise_on_death(loader)) from error
    except RuntimeError as error:
        if not (message := str(error)).startswith("DataLoader worker (pid"):
            raise
        raise _worker_died(message, _advise_on_death(loader)) from error


def _advise_on_death(loader: "DataLoader[ViewBatch]") -> str:
    """Say what to do about a worker that died."""
    context = loader.multiprocessing_context or multiprocessing.get_context()
    if context.get_start_method() != "fork" and needs_main(loader.dataset):
        return f"it imports your script, which defines what it needs: {_BELOW_MAIN}. Otherwise {_MEMORY}"
    return _MEMORY


@contextmanager
def report_worker_deaths() -> Iterator[None]:
    """Turn torch's error about a dead worker into one line that says what to do; also a decorator.

    Torch raises wherever the main thread is when the signal comes, between two batches as well, so put this around
    the whole loop over batches.
    """
    try:
        yield
    except RuntimeError as error:
        if not (message := str(error)).startswith("DataLoader worker (pid"):
            raise
        raise _worker_died(message) from error


def _worker_died(message: str, advice: str = _MEMORY) -> LogitCacheError:
    reason = " ".join(message.split()).rstrip(".") or "its connection ended"
    return LogitCacheError(f"a worker that makes views died ({reason}); {advice}")


def choose_workers(workers: int, images: Images, device: torch.device) -> int:
    """Return how many workers to use; −1 takes none for images in memory on the CPU, else all cores but one.

    Raises:
        OptionError: `workers` is below −1.
    """
    if workers < -1:
        raise OptionError(f"workers must be -1 (as fits) or more, found {workers}")
    if workers >= 0:
        return workers
    if device.type == "cpu" and images.pixels() is not None:
        return 0
    from dask.system import cpu_count  # by affinity and by a container's share

    return max(1, min(16, cpu_count() - 1))


def _begin_worker(_: int) -> None:
    """Ignore SIGINT and the first SIGTERM: the main process ends its workers, if need be by a second SIGTERM."""
    share_as_fits()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))


_loaders: "weakref.WeakSet[DataLoader[ViewBatch]]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_loaders.clear)  # its workers are the parent's


@atexit.register
def _end_workers() -> None:
    """End the workers of loaders that live as long as the program: they ignore Python's signal to end."""
    for loader in _loaders:
        if (iterator := getattr(loader, "_iterator", None)) is not None:  # torch's, of persistent workers
            iterator._shutdown_workers()


def _as_is(batch: Any) -> Any:
    return batch  # `KeyedViews.__getitems__` has collated it
