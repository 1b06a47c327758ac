"""The teacher from a cache: its answers looked up in decoded seeds."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.errors import IncompleteError, OptionError
from logitcache.format.schema import RowLayout
from logitcache.store.reader import CacheReader
from logitcache.store.statistics import statistics_digest
from logitcache.teacher.completion import Completion
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import DEFAULT_SPOOL_LIMIT, PackedRows, open_spool


class CachedTeacher:
    """The teacher from a cache: decoded seeds, mapped; the next one is decoded in the background.

    Args:
        cache: the cache, or its local path or fsspec URL.
        spool_folder: see `spool.open_spool`.
        spool_limit: likewise.
    """

    def __init__(
        self,
        cache: str | Path | CacheReader,
        spool_folder: str | Path | None = None,
        spool_limit: int = DEFAULT_SPOOL_LIMIT,
    ) -> None:
        self.reader = reader = CacheReader.of(cache)
        self.spool_folder, self.spool_limit = spool_folder, spool_limit
        self.layout = RowLayout.of(reader.spec)
        self.num_classes = reader.spec.dataset.num_classes
        statistics = reader.statistics()
        self._digest = None if statistics is None else statistics_digest(reader.spec, statistics)
        self._completion = None if statistics is None else Completion.of(statistics)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._spools: dict[int, Future[PackedRows]] = {}

    def __repr__(self) -> str:
        return f"CachedTeacher({self.reader!r})"

    def about(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Identify the cache: its teacher, and what it holds of each seed."""
        held = {str(seed): self.reader.identity(seed) for seed in seeds}
        completed = {} if self._digest is None else {"class_statistics": self._digest}
        return {**self.reader.spec.teacher.to_dict(), "k": self.reader.spec.k, "cached": held, **completed}

    def prepare(self, seeds: Sequence[int]) -> None:
        """Keep these seeds mapped, let go of others; those not decoded yet follow in the background.

        What failed (a full disk, say) is tried again.
        """
        self._spools = {s: f for s, f in self._spools.items() if s in seeds and not _failed(f)}
        for seed in seeds:
            if seed not in self._spools:
                self._spools[seed] = self._thread.submit(
                    open_spool, self.reader, seed, self.spool_folder, self.spool_limit
                )

    def usable(self, seed: int) -> npt.NDArray[np.bool_]:
        """(n,) bool: the samples whose image decoded when the cache was made."""
        rows = self._rows(seed)[:, self.layout.top]
        return ~np.isnan(np.ascontiguousarray(rows).view(np.float32)[:, 0])

    def take(self, samples: Tensor | Sequence[int], seed: int | Tensor) -> SparseTeacher:
        """Look up B samples under one seed, or each under its own; the numbers are on the CPU.

        Args:
            samples: (B,) int64.
            seed: one, or (B,) int64.

        Raises:
            IncompleteError: one of the samples has no teacher: its image did not decode; or the seed is not there.
            OptionError: one of the samples is not one of the cache's.
        """
        samples = torch.as_tensor(samples, dtype=torch.int64)
        seeds = torch.as_tensor(seed, dtype=torch.int64).expand(samples.shape)
        teacher = self.decode(self._take(samples, seeds))
        _refuse_invalid(teacher, samples)
        return teacher

    def answer(self, views: Tensor, samples: Tensor, seeds: Tensor) -> SparseTeacher:
        """Look up B (sample, seed) pairs and decode them on the views' device."""
        rows = self._take(samples, seeds)
        if views.is_cuda:
            rows = rows.pin_memory()
        return self.decode(rows.to(views.device, non_blocking=True))

    def decode(self, rows: Tensor) -> SparseTeacher:
        """Return the answers that rows, (B, row_bytes) uint8, stand for; on the device that they are on."""
        if self._completion is not None:
            self._completion = self._completion.to(rows.device)
        return SparseTeacher.unpack(rows, self.layout, self._completion)

    def _take(self, samples: Tensor, seeds: Tensor) -> Tensor:
        rows = torch.empty((len(samples), self.layout.row_bytes), dtype=torch.uint8)
        for seed in set(seeds.tolist()):
            here = seeds == seed
            rows[here] = self._take_rows(samples[here], seed)
        return rows

    def _take_rows(self, samples: Tensor, seed: int) -> Tensor:
        n = self.reader.spec.dataset.n
        if (odd := samples[(samples < 0) | (samples >= n)]).numel():  # NumPy would count from the end
            raise OptionError(f"{self.reader.path} has samples 0 to {n - 1}, asked for {int(odd[0])}")
        return torch.from_numpy(
            np.take(self._rows(seed), samples.numpy(), axis=0, mode="clip")
        )  # none is outside

    def _rows(self, seed: int) -> PackedRows:
        if seed not in self._spools or _failed(self._spools[seed]):
            self.prepare([*self._spools, seed])
        return self._spools[seed].result()


def _failed(spool: Future[PackedRows]) -> bool:
    return spool.done() and spool.exception() is not None


def _refuse_invalid(teacher: SparseTeacher, samples: Tensor) -> None:
    if (bad := teacher.top.isnan()).any():
        raise IncompleteError(
            f"sample {int(samples[bad][0])} has no teacher: its image did not decode when the cache was made"
        )
