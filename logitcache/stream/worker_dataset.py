"""What a DataLoader worker needs of a cache: views to make, and rows of mapped files to look up.

Nothing here imports Zarr, so that workers start quickly and fork is safe.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from logitcache.errors import IncompleteError, OptionError
from logitcache.format.schema import RowLayout
from logitcache.teacher.spool_file import is_intact, map_rows
from logitcache.views.keyed_views import KeyedViews, Pair, check_batch
from logitcache.views.main_module import spare_main_module
from logitcache.views.shared_memory import share_as_fits

Item = tuple[Any, int, Tensor]


class PackedViews(Dataset[Item]):
    """Views of images by (sample, seed), each with its label and the teacher's answer as a row of bytes.

    ``data[sample, seed]`` is (view, label, row): the view (C, h, w) uint8, or what `transform` makes of it; the label
    an int, −1 where there is none; the row (row_bytes,) uint8. The default collation makes batches of these.

    Args:
        views: views of the images.
        layout: of a row.
        files: file of each decoded seed, by seed; it must be there when a pair of its seed is asked for.
        transform: called with each view, in the worker.
    """

    def __init__(
        self,
        views: KeyedViews,
        layout: RowLayout,
        files: Mapping[int, Path],
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self.views, self.layout, self.files, self.transform = views, layout, dict(files), transform
        self._mapped: dict[int, npt.NDArray[np.uint8]] = {}
        share_as_fits()  # your DataLoader's workers are as ours
        spare_main_module()

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, pair: Pair) -> Item:
        return self.__getitems__([pair])[0]

    def __getitems__(self, pairs: Sequence[Pair]) -> list[Item]:
        """Make a whole batch, as a DataLoader asks for it.

        Raises:
            DataError: an image does not decode.
            IncompleteError: a seed is not one of these, or not decoded; or a sample has no teacher.
            OptionError: a sample is not one of the images, or an index is no (sample, seed) pair.
        """
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise OptionError(
                f"views are indexed by (sample, seed), such as data[3, 0], found {pairs[0]!r}; to a DataLoader give "
                "sampler=ViewSampler(data), which shuffles and takes every seed in turn, in place of shuffle=True"
            )
        batch = check_batch(self.views.__getitems__(pairs))
        rows = self._rows(batch.samples.numpy(), batch.seeds.numpy())
        views = batch.views if self.transform is None else [self.transform(view) for view in batch.views]
        return list(zip(views, batch.labels.tolist(), rows, strict=True))

    def _rows(self, samples: npt.NDArray[np.int64], seeds: npt.NDArray[np.int64]) -> Tensor:
        rows = np.empty((len(samples), self.layout.row_bytes), dtype=np.uint8)
        for seed in np.unique(seeds).tolist():
            if seed not in self._mapped:
                self._mapped[seed] = self._map(seed)
            rows[seeds == seed] = self._mapped[seed][samples[seeds == seed]]
        valid = ~np.isnan(np.ascontiguousarray(rows[:, self.layout.top]).view(np.float32)[:, 0])
        if not valid.all():
            raise IncompleteError(
                f"{self.views.images.describe(int(samples[~valid][0]))} has no teacher: "
                "it did not decode when the cache was made"
            )
        return torch.from_numpy(rows)

    def _map(self, seed: int) -> npt.NDArray[np.uint8]:
        if seed not in self.files:
            raise IncompleteError(f"seed {seed} is not one of {sorted(self.files)}")
        file, shape = self.files[seed], (len(self.views), self.layout.row_bytes)
        if not is_intact(file, shape[0] * shape[1]):
            raise IncompleteError(
                f"seed {seed} is not decoded; iterate a ViewSampler, or call prepare([{seed}]) before the loader"
            )
        return map_rows(file, shape)
