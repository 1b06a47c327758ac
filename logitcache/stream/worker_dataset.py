"""What a DataLoader worker needs of a cache: views to make, and rows of mapped files to look up.

Nothing here imports Zarr, so that workers start quickly and fork is safe.
"""

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from logitcache.errors import DataError, IncompleteError, OptionError
from logitcache.format.schema import RowLayout
from logitcache.stream.sampler import choose_seeds
from logitcache.stream.shared_epoch import SharedEpoch
from logitcache.teacher.spool_file import is_intact, map_rows
from logitcache.views.keyed_views import KeyedViews, Pair
from logitcache.views.main_module import spare_main_module
from logitcache.views.ordered_images import NO_VIEW
from logitcache.views.shared_memory import share_as_fits

Item = tuple[Any, int, Tensor]


class PackedViews(Dataset[Item]):
    """Views of images by (sample, seed), each with its label and the teacher's answer as a row of bytes.

    ``data[sample, seed]`` is (view, label, row): the view (C, h, w) uint8, or what `transform` makes of it; the label
    an int, −1 where there is none; the row (row_bytes,) uint8. The default collation makes batches of these.
    ``data[sample]`` is that sample under the seed of the epoch at hand, so that any sampler of torch walks it.

    Args:
        views: views of the images.
        layout: of a row.
        files: file of each decoded seed, by seed; it must be there when a pair of its seed is asked for.
        transform: called with each view, in the worker.
        shared_epoch: the epoch at hand; None: one of its own, at 0.
    """

    def __init__(
        self,
        views: KeyedViews,
        layout: RowLayout,
        files: Mapping[int, Path],
        transform: Callable[[Tensor], Any] | None = None,
        shared_epoch: SharedEpoch | None = None,
    ) -> None:
        self.views, self.layout, self.files, self.transform = views, layout, dict(files), transform
        self.shared_epoch = shared_epoch or SharedEpoch(len(views))
        self._mapped: dict[int, npt.NDArray[np.uint8]] = {}
        share_as_fits()  # your DataLoader's workers are as ours
        spare_main_module()

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: Pair | int) -> Item:
        if isinstance(index, tuple | list):
            return self._make([_read_pair(index)])[0]
        sample = _read_sample(index)
        if not 0 <= sample < len(self):  # so that ``for item in data`` ends
            raise IndexError(f"{self.views.images.name} has samples 0 to {len(self) - 1}, asked for {sample}")
        return self._make([(sample, self.seed_of_epoch())])[0]

    def __getitems__(self, indices: Sequence[Pair | int]) -> list[Item]:
        """Make a whole batch, as a DataLoader asks for it.

        Raises:
            DataError: an image does not decode.
            IncompleteError: a seed is not one of these, or not decoded; or a sample has no teacher.
            OptionError: a sample is not one of the images, or an index is neither a sample nor a (sample, seed) pair.
        """
        seed = self.seed_of_epoch()
        pairs, samples = [], []
        for index in indices:
            if isinstance(index, tuple | list):
                pairs.append(_read_pair(index))
            else:
                samples.append(_read_sample(index))
                pairs.append((samples[-1], seed))
        items = self._make(pairs)
        if samples and len(self.files) > 1 and self.shared_epoch.comes_again(samples):
            warnings.warn(
                f"samples are drawn again under seed {seed}, the same views, of {len(self.files)} seeds that there "
                "are; call data.set_epoch(epoch) before each epoch, or give the DataLoader "
                "sampler=ViewSampler(data)",
                stacklevel=2,
            )
        return items

    def seed_of_epoch(self) -> int:
        """Return the seed under which a sample alone stands: that which a `ViewSampler` takes in the same epoch."""
        return choose_seeds(self.shared_epoch.epoch, tuple(self.files))[0]

    def _make(self, pairs: Sequence[Pair]) -> list[Item]:
        samples, seeds, _ = self.views.to_tensors(pairs)
        rows = self._rows(samples.numpy(), seeds.numpy())
        batch = self.views.__getitems__(pairs)
        if batch.error:
            raise DataError(f"{batch.error.removesuffix('; mend or remove it')}{_advise(batch.error)}")
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
                f"{self.views.images.describe(int(samples[~valid][0]))} has no teacher: it did not decode when the "
                "cache was made; a ViewSampler leaves it out, and so does a Subset of data.usable(seed).nonzero()[0]"
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


def _advise(error: str) -> str:
    """Say what to do about an image that no view is made of, although it has a teacher."""
    if "does not decode (" in error:
        return (
            ", and did when the cache was made: put the file back as it was, or leave its sample out by a Subset of "
            "the others"
        )
    if error.endswith(NO_VIEW):
        return "; a ViewSampler leaves it out, and so does a Subset of data.usable(seed).nonzero()[0]"
    return ""


def _read_pair(index: Sequence[Any]) -> Pair:
    if len(index) != 2:
        raise _describe_bad_index(index)
    return _read_sample(index[0]), _read_sample(index[1])


def _read_sample(index: Any) -> int:
    """Read a whole number: Python's, NumPy's or torch's."""
    try:
        return operator.index(index)
    except TypeError:
        raise _describe_bad_index(index) from None


def _describe_bad_index(index: Any) -> OptionError:
    return OptionError(
        "views are indexed by sample, such as data[3], or by (sample, seed), such as data[3, 0]; found "
        f"{index!r}"
    )
