"""Loading: a torch data set whose index is (sample, seed), so that workers carry no state.

A batch is a list of such pairs. Pairs of one sample that stand side by side decode its image once. Views of images
that lie in memory are made by whole batches in this process where their recipe allows it (`views.vectorized`).
"""

import atexit
import os
import signal
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from logitcache.errors import DataError, ImageError, LogitCacheError, OptionError
from logitcache.format.identity import RecipeSpec
from logitcache.views.datasets import Images
from logitcache.views.maker import ViewMaker
from logitcache.views.mixing import Mixer
from logitcache.views.vectorized import BatchedViews

Pair = tuple[int, int]
OnBadImage = Literal["error", "skip"]

AHEAD = 8192
"""Pairs to draw for at once: seeding costs 400 vector operations, however long they are."""


class ViewBatch(NamedTuple):
    """Views of B (sample, seed) pairs.

    Attributes:
        views: (B, C, h, w) uint8.
        labels: (B,) int64, −1 where there is none.
        samples: (B,) int64.
        seeds: (B,) int64.
        valid: (B,) bool, False where the image does not decode (and `on_bad_image` is "skip").
        error: why the batch could not be made, or "".
        partners: (B,) int64, the sample that a view is mixed with (its own where it is not); None where the
            recipe does not mix.
        shares: (B,) float32, of the view's own image; None likewise.
    """

    views: Tensor
    labels: Tensor
    samples: Tensor
    seeds: Tensor
    valid: Tensor
    error: str = ""
    partners: Tensor | None = None
    shares: Tensor | None = None


class KeyedViews(Dataset[ViewBatch]):
    """Views of images by (sample, seed): ``views[sample, seed]`` is a batch of one."""

    def __init__(self, images: Images, recipe: RecipeSpec, on_bad_image: OnBadImage = "error") -> None:
        self.images, self.maker, self.on_bad_image = images, ViewMaker(recipe), on_bad_image
        self.mixer = Mixer.of(recipe)
        self._any_view: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, pair: Pair) -> ViewBatch:
        return self.__getitems__([pair])

    def __getitems__(self, pairs: Sequence[Pair]) -> ViewBatch:
        """Make a whole batch; this is what a DataLoader worker calls.

        Raises:
            OptionError: a sample is not one of the images.
        """
        batch = self._unmixed(pairs)
        return self._mixed(batch, pairs) if self.mixer.steps and not batch.error else batch

    def _unmixed(self, pairs: Sequence[Pair]) -> ViewBatch:
        samples, seeds, labels = self.columns(pairs)
        try:
            made = self._views(pairs)
            good = [view for view in made if view is not None] or [self.any_view()]
        except DataError as error:  # an exception would reach the main process wrapped in a traceback
            none = torch.zeros(len(pairs), dtype=torch.bool)
            return ViewBatch(torch.empty(0), labels, samples, seeds, none, str(error))
        valid = torch.tensor([view is not None for view in made])
        views = [torch.zeros_like(good[0]) if view is None else view for view in made]
        if odd := next((i for i, view in enumerate(views) if view.shape != good[0].shape), None):
            first = next(i for i, view in enumerate(made) if view is not None)
            problem = (
                f"views of one batch must have one size, found {tuple(good[0].shape)} of "
                f"{self.images.describe(pairs[first][0])} and {tuple(views[odd].shape)} of "
                f"{self.images.describe(pairs[odd][0])}; end the recipe with a crop or resize to a fixed size"
            )
            return ViewBatch(torch.empty(0), labels, samples, seeds, valid, problem)
        return ViewBatch(torch.stack(views), labels, samples, seeds, valid)

    def _mixed(self, batch: ViewBatch, pairs: Sequence[Pair]) -> ViewBatch:
        """Mix what is to be mixed, each with its partner's view under the same seed."""
        partners, shares = batch.samples.clone(), torch.ones(len(pairs))
        mixes = [self.mixer.draw(*pair, self.images.population(pair[0])) for pair in pairs]
        drawn = [(row, mix) for row, mix in enumerate(mixes) if mix]
        if drawn:
            others = self._unmixed([(mix.partner, pairs[row][1]) for row, mix in drawn])
            if others.error:
                return others._replace(labels=batch.labels, samples=batch.samples, seeds=batch.seeds)
            if others.views.shape[1:] != batch.views.shape[1:]:
                problem = (
                    f"views that are mixed must have one size, found {tuple(batch.views.shape[1:])} and "
                    f"{tuple(others.views.shape[1:])}; let a crop or resize to a fixed size come before"
                )
                return batch._replace(error=problem)
            for (row, mix), other, valid in zip(drawn, others.views, others.valid, strict=True):
                batch.views[row], shares[row] = mix.of(batch.views[row], other)
                partners[row] = mix.partner
                batch.valid[row] &= valid
        return batch._replace(partners=partners, shares=shares)

    def columns(self, pairs: Iterable[Pair]) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples, seeds and labels of B pairs; all (B,) int64.

        Raises:
            OptionError: a sample is not one of the images.
        """
        table = np.fromiter(chain.from_iterable(pairs), np.int64).reshape(-1, 2)
        samples, seeds = np.ascontiguousarray(table.T)
        if (odd := samples[(samples < 0) | (samples >= len(self))]).size:
            raise OptionError(f"{self.images.name} has samples 0 to {len(self) - 1}, asked for {odd[0]}")
        labels = self.images.labels[samples]
        return torch.from_numpy(samples), torch.from_numpy(seeds), torch.from_numpy(labels)

    def _views(self, pairs: Sequence[Pair]) -> list[Tensor | None]:
        made: list[Tensor | None] = []
        start = 0
        while start < len(pairs):
            sample = pairs[start][0]
            stop = start + 1
            while stop < len(pairs) and pairs[stop][0] == sample:
                stop += 1
            try:
                image = self.images.image(sample)
                made += self.maker.many(image, sample, tuple(seed for _, seed in pairs[start:stop]))
            except ImageError:
                if self.on_bad_image == "error":
                    raise
                made += [None] * (stop - start)
            except DataError as error:
                raise DataError(f"{self.images.describe(sample)}: {error}") from error
            start = stop
        return made

    def any_view(self) -> Tensor:
        """Make a view, (C, h, w) uint8, of the first image that decodes, for its shape.

        Raises:
            DataError: not one decodes.
        """
        if self._any_view is None:  # kept, as whole batches of bad images may follow each other
            self._any_view = self._first_view()
        return self._any_view

    def _first_view(self) -> Tensor:
        for sample in range(len(self)):
            try:
                return self.maker(self.images.image(sample), sample, 0)
            except ImageError:
                continue
        raise DataError(f"{self.images.name}: not one image decodes")


def view_loader(
    views: KeyedViews,
    batches: Iterable[list[Pair]],
    *,
    workers: int = -1,
    device: torch.device | str = "cpu",
    start_method: str | None = None,
) -> "InMemory | DataLoader[ViewBatch]":
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
        engine = BatchedViews.of(views.images, views.maker, device)
        if engine is not None:
            return InMemory(views, engine, batches)
    workers = choose_workers(workers, views.images, device)
    options: dict[str, Any] = {}
    if workers:
        options = {
            "persistent_workers": True,
            "prefetch_factor": 4,
            "worker_init_fn": _heed_the_main_process,
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
class InMemory:
    """Batches of pairs made by `BatchedViews`, which draws for `AHEAD` pairs at once, or a few more."""

    views: KeyedViews
    engine: BatchedViews
    batches: Iterable[list[Pair]]

    def __iter__(self) -> Iterator[ViewBatch]:
        ahead: list[list[Pair]] = []
        pairs = 0
        for batch in self.batches:
            ahead.append(batch)
            pairs += len(batch)
            if pairs >= AHEAD:
                yield from self._made(ahead)
                ahead, pairs = [], 0
        yield from self._made(ahead)

    def _made(self, batches: list[list[Pair]]) -> Iterator[ViewBatch]:
        samples, seeds, labels = self.views.columns(chain.from_iterable(batches))
        drawn = self.engine.draw(samples.numpy(), seeds.numpy())
        start = 0
        for batch in batches:
            rows = slice(start, start + len(batch))
            start = rows.stop
            made = self.engine.make(samples[rows].numpy(), drawn[rows])
            valid = torch.ones(len(batch), dtype=torch.bool)
            yield ViewBatch(made, labels[rows], samples[rows], seeds[rows], valid)


def loaded(loader: "InMemory | DataLoader[ViewBatch]") -> Iterator[ViewBatch]:
    """Iterate a loader's batches.

    Raises:
        DataError: an image does not decode, or views do not form a batch.
        LogitCacheError: a worker died.
    """
    with deaths_named():
        try:
            yield from map(require, loader)
        except (ConnectionError, EOFError) as error:  # the line to a worker breaks before its death is seen
            in_worker = isinstance(loader, DataLoader) and loader.num_workers
            if not in_worker or "in DataLoader worker process" in str(error):
                raise  # what your own data set raised
            time.sleep(1.0)  # torch's own word comes as a signal: let it end this, not whatever runs next
            raise _death(str(error)) from error


@contextmanager
def deaths_named() -> Iterator[None]:
    """Say in one line of ours that a worker died; also a decorator.

    Torch raises wherever the main thread is when the signal comes, between two batches as well: so this goes around
    a whole loop over batches, not only around their loading.
    """
    try:
        yield
    except RuntimeError as error:
        if not (said := str(error)).startswith("DataLoader worker (pid"):
            raise
        raise _death(said) from error


def _death(said: str) -> LogitCacheError:
    reason = " ".join(said.split()).rstrip(".") or "its connection ended"
    return LogitCacheError(
        f"a worker that makes views died ({reason}); mostly memory was short: use fewer --workers or smaller "
        "batches (with --workers 0 any other reason shows), and start again to go on"
    )


def choose_workers(asked: int, images: Images, device: torch.device) -> int:
    """Return how many workers to use; −1 takes none for images in memory on the CPU, else all cores but one.

    Raises:
        OptionError: `asked` is below −1.
    """
    if asked < -1:
        raise OptionError(f"workers must be -1 (as fits) or more, found {asked}")
    if asked >= 0:
        return asked
    if device.type == "cpu" and images.pixels() is not None:
        return 0
    return max(1, min(16, (os.cpu_count() or 1) - 1))


def require(batch: ViewBatch) -> ViewBatch:
    """Return the batch, or raise what kept it from being made.

    Raises:
        DataError: an image does not decode, or the views do not form a batch.
    """
    if batch.error:
        raise DataError(batch.error)
    return batch


def _heed_the_main_process(_: int) -> None:
    """Let the main process decide what a signal to all processes means; a second SIGTERM may be its own word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))


_loaders: "weakref.WeakSet[DataLoader[ViewBatch]]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_loaders.clear)  # its workers are the parent's


@atexit.register
def _end_workers() -> None:
    """End the workers of loaders that live to the end of the program: they do not heed how Python would end them."""
    for loader in _loaders:
        if (iterator := getattr(loader, "_iterator", None)) is not None:  # torch's, of persistent workers
            iterator._shutdown_workers()


def _as_is(batch: Any) -> Any:
    return batch  # `KeyedViews.__getitems__` has made it whole
