"""Batches of views in the order asked for: from worker processes, or in this one by whole batches.

Views of images in memory are made by whole batches where their recipe allows it (`vectorized`); all others one by
one, in the workers of a DataLoader. If a worker dies, the error says so in one line.
"""

import atexit
import os
import signal
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.utils.data import DataLoader

from logitcache.errors import LogitCacheError, OptionError
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews, Pair, ViewBatch, check_batch
from logitcache.views.vectorized import VectorizedViews

PAIRS_AHEAD = 8192
"""Pairs to draw for at once: seeding costs 400 vector operations, however long they are."""


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
            "worker_init_fn": _leave_signals_to_main_process,
            "multiprocessing_context": start_method,
        }
    loader = DataLoader(
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


def iterate_batches(loader: "VectorizedLoader | DataLoader[ViewBatch]") -> Iterator[ViewBatch]:
    """Iterate a loader's batches.

    Raises:
        DataError: an image does not decode, or views do not form a batch.
        LogitCacheError: a worker died.
    """
    with report_worker_deaths():
        try:
            yield from map(check_batch, loader)
        except (ConnectionError, EOFError) as error:  # a worker's pipe breaks before its death is seen
            in_worker = isinstance(loader, DataLoader) and loader.num_workers
            if not in_worker or "in DataLoader worker process" in str(error):
                raise  # what your own data set raised
            time.sleep(1.0)  # torch's own error comes by a signal: let it come here, not in what runs next
            raise _worker_died(str(error)) from error


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


def _worker_died(message: str) -> LogitCacheError:
    reason = " ".join(message.split()).rstrip(".") or "its connection ended"
    return LogitCacheError(
        f"a worker that makes views died ({reason}); mostly memory was short: use fewer --workers or smaller "
        "batches (with --workers 0 any other reason shows), and start again to go on"
    )


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
    return max(1, min(16, (os.cpu_count() or 1) - 1))


def _leave_signals_to_main_process(_: int) -> None:
    """Ignore SIGINT and the first SIGTERM: the main process ends its workers, if need be by a second SIGTERM."""
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
