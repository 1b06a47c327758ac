"""A cache in anyone's training loop: `CachedViews`, a plain torch data set, and `ViewSampler`, which walks it.

data = CachedViews(None, "c.zarr")
sampler = ViewSampler(data)
loader = DataLoader(data, batch_size=256, sampler=sampler, num_workers=8)
for epoch in range(100):
    sampler.set_epoch(epoch)
    for views, labels, rows in loader:
        loss, _ = objective(student(views), data.decode(rows), labels)

With samplers of your own, or `shuffle=True`, it is `data.set_epoch(epoch)` that says which seed an epoch takes.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Sampler, get_worker_info

from logitcache.distributed import World
from logitcache.errors import OptionError
from logitcache.store import CacheReader, seed_list
from logitcache.stream.sampler import SeedOrder, choose_samples, choose_seeds, require_seeds
from logitcache.stream.worker_dataset import PackedViews
from logitcache.teacher.cached import CachedTeacher
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import DEFAULT_SPOOL_LIMIT, spool_path
from logitcache.views.alignment import OnMissing
from logitcache.views.keyed_views import Pair
from logitcache.views.keys import permutation
from logitcache.views.replay import open_proved_views


class CachedViews(PackedViews):
    """The views of a cache by (sample, seed), with labels and the teacher's answers, for any DataLoader.

    In its process `decode` makes the teacher's answers of the rows of a batch, on whatever device these are by then.
    ``data[3, 0]`` is (view, label, row) of sample 3 under seed 0, ``data[3]`` the same under the seed of the epoch
    that `set_epoch` set: so ``DataLoader(data, shuffle=True)`` works, and `Subset`, and torch's samplers.

    Args:
        images: what the cache was made of: `Images`, text such as "imagefolder:PATH" (see `open_images`), or a
            map-style data set of (image, label); None opens what the cache names. Images that came later are left
            out.
        cache: the cache, or its local path or fsspec URL.
        seeds: augmentation seeds; all complete ones by default.
        transform: called with each view, (C, h, w) uint8, in the worker.
        allow_drift: go on although views differ from those that the teacher saw; `drift` then says which.
        missing: whether an image that is not there is an error, or its sample left out (see `align_images`).
        spool_folder: see `spool.open_spool`.
        spool_limit: likewise.

    Raises:
        MismatchError: the images are others than the cache's.
        DriftError: views made here differ from those that the teacher saw.
        IncompleteError: seeds asked for are not complete, or none is.
        OptionError: the recipe mixes images, whose two labels only a `Stream` gives; or two decoded seeds are more
            than `spool_limit`.
    """

    def __init__(
        self,
        images: Any,
        cache: str | Path | CacheReader,
        *,
        seeds: Sequence[int] = (),
        transform: Callable[[Tensor], Any] | None = None,
        allow_drift: bool = False,
        missing: OnMissing = "error",
        spool_folder: str | Path | None = None,
        spool_limit: int = DEFAULT_SPOOL_LIMIT,
    ) -> None:
        reader = CacheReader.of(cache)
        if reader.spec.recipe.mix_steps:
            raise OptionError(
                f"the views of {reader.path} are mixed of two images; train on a Stream, which gives both labels"
            )
        views, self.seeds, self.drift = open_proved_views(
            reader, images, seeds, allow_drift=allow_drift, missing=missing
        )
        self.teacher = CachedTeacher(reader, spool_folder, spool_limit)
        spool = self.teacher.layout.row_bytes * reader.spec.dataset.n
        if len(self.seeds) > 1 and spool_limit < 2 * spool:  # the next is decoded while workers map this one
            raise OptionError(
                f"two decoded seeds take {2 * spool:,} bytes, spool_limit allows {spool_limit:,}"
            )
        files = {seed: spool_path(reader, seed, spool_folder) for seed in self.seeds}
        super().__init__(views, self.teacher.layout, files, transform)
        self.prepare([self.seed_of_epoch()])  # workers find it, whoever walks the data

    def __repr__(self) -> str:
        seeds = f"{seed_list(list(self.seeds))}, epoch {self.shared_epoch.epoch}"
        return f"CachedViews({self.views!r}, {seeds}, teacher {self.teacher!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle for a spawned worker: no cache, only files to map."""
        return PackedViews, (self.views, self.layout, self.files, self.transform, self.shared_epoch)

    def set_epoch(self, epoch: SupportsIndex) -> None:
        """Have samples stand under the seed of that epoch, from 0: seeds are taken in turn, as by `ViewSampler`.

        Call it before an epoch is iterated, as that of `torch.utils.data.DistributedSampler`; workers that live on
        follow. The seed is decoded before this returns, the next one in the background.

        Raises:
            OptionError: it is no epoch.
        """
        epoch = _require_epoch(epoch)
        self.shared_epoch.set(epoch)
        self.prepare([self.seed_of_epoch()], then=choose_seeds(epoch + 1, self.seeds))

    @property
    def num_classes(self) -> int:
        """Number of classes C that a student needs."""
        return self.teacher.num_classes

    def decode(self, rows: Tensor) -> SparseTeacher:
        """Return the teacher's answers that rows, (B, row_bytes) uint8, stand for; on the device that they are on."""
        return self.teacher.decode(rows)

    def prepare(self, seeds: Sequence[int], then: Sequence[int] = ()) -> None:
        """Decode seeds, so that workers find them: these before it returns, those of `then` in the background."""
        self.teacher.prepare([*seeds, *then])
        for seed in seeds:
            self.teacher.usable(seed)

    def usable(self, seed: int) -> npt.NDArray[np.bool_]:
        """(n,) bool: the samples whose image decoded when the cache was made, and is there."""
        return self.teacher.usable(seed) & self.views.makeable(seed)

    def _map(self, seed: int) -> npt.NDArray[np.uint8]:
        if get_worker_info() is None and seed in self.files:
            self.prepare([seed])
        return super()._map(seed)


class ViewSampler(Sampler[Pair]):
    """The (sample, seed) pairs of an epoch: a keyed shuffle of the samples, under the epoch's seed, dealt to ranks.

    They are those that a `Stream` takes, in its order. Each pass over the sampler is the next epoch; `set_epoch` sets
    another, like that of `torch.utils.data.DistributedSampler`.

    Args:
        data: the views to walk.
        order: key of the shuffling.
        seed_order: "mod": epoch e takes seed e modulo their number S; "random": S epochs take all S, shuffled.
        views_per_image: seeds that an epoch takes at once, each image's views side by side: an image is decoded once
            where they divide the batch size.
        fraction: of the samples, drawn by `order`.
        samples: which to take; None: all.
        rank: of this process; by default as `torch.distributed` has it, else 0.
        world_size: number of ranks; likewise, else 1. Every rank gets as many pairs; what is over is dropped.

    Raises:
        OptionError: there is no such rank, seed order or samples, or fewer seeds than views of an image.
    """

    def __init__(
        self,
        data: CachedViews,
        *,
        order: int = 0,
        seed_order: SeedOrder = "mod",
        views_per_image: int = 1,
        fraction: float = 1.0,
        samples: Sequence[int] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        group = World.from_process_group()
        self.world = World(
            group.rank if rank is None else rank, group.size if world_size is None else world_size
        )
        require_seeds(data.seeds, views_per_image, seed_order)
        self.data, self.order = data, order
        self.seed_order, self.views_per_image = seed_order, views_per_image
        self.samples = choose_samples(len(data), fraction, samples, order)
        self.epoch = 0

    def set_epoch(self, epoch: SupportsIndex) -> None:
        """Make the next pass that epoch, from 0.

        Raises:
            OptionError: it is no epoch.
        """
        self.epoch = _require_epoch(epoch)

    def __len__(self) -> int:
        return len(self._usable(self.epoch)) // self.world.size * self.views_per_image

    def __iter__(self) -> Iterator[Pair]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        seeds = self._seeds(epoch)
        self.data.prepare(seeds, then=self._seeds(epoch + 1))
        samples = self._usable(epoch)
        shuffled = samples[permutation(len(samples), self.order, epoch)]
        shuffled = shuffled[: len(shuffled) // self.world.size * self.world.size]
        for sample in shuffled[self.world.rank :: self.world.size].tolist():
            for seed in seeds:
                yield sample, seed

    def _seeds(self, epoch: int) -> tuple[int, ...]:
        return choose_seeds(epoch, self.data.seeds, self.views_per_image, self.seed_order, self.order)

    def _usable(self, epoch: int) -> npt.NDArray[np.int64]:
        usable = [self.data.usable(seed)[self.samples] for seed in self._seeds(epoch)]
        return self.samples[np.all(usable, axis=0)]


def _require_epoch(epoch: SupportsIndex) -> int:
    """Return an epoch as an int, from 0; numpy's and torch's whole numbers are such."""
    try:
        number = operator.index(epoch)
    except TypeError:
        number = -1
    if number < 0:
        raise OptionError(f"an epoch is a whole number from 0, found {epoch!r}")
    return number
