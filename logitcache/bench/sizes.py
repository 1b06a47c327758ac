"""How many bytes a view takes on disk, measured on files, and how near to the teacher what they keep is."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.bench.baselines import FilePerSample, Lookup
from logitcache.bench.divergence import kl_divergence, sparse_log_probs, spread_log_probs, true_log_probs
from logitcache.bench.fixtures import CacheContents
from logitcache.bench.table import scientific
from logitcache.format.identity import PROFILES
from logitcache.format.schema import RowLayout
from logitcache.format.spec import Spec
from logitcache.store import CacheReader
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import pack_rows

TEMPERATURES = (1.0, 2.0, 4.0)
WANTED_BYTES = {"default": 48.0, "compact": 33.0, "archive": 38.0}
WANTED_KL = {"default": 1e-6, "compact": 1e-4, "archive": 1e-6}
FKD_CROPS, FKD_K = 500, 5  # as its generator makes them by default
FILES_READ = 64  # of all logits of a view each, to compare them with the teacher's
BLOCK_UNIT = 512  # bytes; what `st_blocks` counts in

LogProbs = Callable[[float], Tensor]  # of a temperature


@dataclass(frozen=True)
class RecordSize(Spec):
    """One kind of record: bytes per view on disk, and mean KL of the teacher from what it keeps, at T = 1, 2, 4.

    Attributes:
        record: which kind.
        order: of the samples.
        views: how many were written to measure it.
        bytes_per_view: of the files.
        blocks_per_view: of the blocks that the file system spends on them.
        kl: over the listed classes and all others as one, in nats.
        cut: the part of it that is due to k < C, not to rounding.
        wanted_bytes, wanted_kl: what they should be at most; None where there is no such aim.
    """

    record: str
    order: str
    views: int
    bytes_per_view: float
    blocks_per_view: float
    kl: tuple[float, ...]
    cut: tuple[float, ...]
    wanted_bytes: float | None = None
    wanted_kl: float | None = None

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        first, *others = map(scientific, self.kl)
        bytes_wanted = f" ≤ {self.wanted_bytes:g}" if self.wanted_bytes else ""
        kl_wanted = f" ≤ {scientific(self.wanted_kl, 0)}" if self.wanted_kl else ""
        return {
            "record": self.record,
            "order": self.order,
            "B/view": f"{self.bytes_per_view:,.1f}{bytes_wanted}",
            "in blocks": f"{self.blocks_per_view:,.1f}",
            "KL at T=1": f"{first}{kl_wanted}",
            **dict(zip((f"T={t:g}" for t in TEMPERATURES[1:]), others, strict=True)),
        }


def measure_sizes(
    work: Path, contents: CacheContents, order: str, lookups: Mapping[str, Lookup]
) -> Iterator[RecordSize]:
    """Write a cache of each profile to `work`, and measure them and the records of other look-ups.

    Args:
        work: where to write.
        contents: of the caches.
        order: of the samples, for the table.
        lookups: alternatives that hold the same already, by name; with any of them, alternatives that hold something
            else are written and measured too.
    """
    if contents.spec.tail_size == 0:  # all logits are kept: every record tells the same
        return
    ids = SparseTeacher.from_logits(contents.logits, contents.spec.k).ids
    truth = [true_log_probs(contents.logits, ids, t) for t in TEMPERATURES]
    unrounded = SparseTeacher.from_logits(contents.logits.double(), contents.spec.k)

    def mean_kl(log_probs: LogProbs) -> tuple[float, ...]:
        pairs = ((p, log_probs(t)) for p, t in zip(truth, TEMPERATURES, strict=True))
        return tuple(max(0.0, float(kl_divergence(p[: len(q)], q).mean())) for p, q in pairs)

    def size(
        record: str, folder: Path, views: int, kl: tuple[float, ...], cut: tuple[float, ...]
    ) -> RecordSize:
        bytes_per_view, blocks_per_view = (total / views for total in disk_usage(folder))
        wanted = WANTED_BYTES.get(record), WANTED_KL.get(record)
        return RecordSize(record, order, views, bytes_per_view, blocks_per_view, kl, cut, *wanted)

    cut = mean_kl(partial(sparse_log_probs, unrounded))
    for profile in WANTED_BYTES:
        if PROFILES[profile].installed:
            path = work / f"{profile}-{order}.zarr"
            contents.write(path, profile)
            stored = _read_rows(CacheReader(path), contents.rows)
            yield size(profile, path, contents.n, mean_kl(partial(sparse_log_probs, stored)), cut)
    if not lookups:
        return

    def spread_kl(p: Tensor) -> tuple[float, ...]:
        return mean_kl(partial(spread_log_probs, p, contents.spec.k, contents.spec.dataset.num_classes))

    p = unrounded.listed_at(1.0).probs
    stored_kl = spread_kl(torch.from_numpy(contents.records["p"][contents.rows]))
    for lookup in lookups.values():
        yield size(lookup.record, lookup.folder, lookup.n, stored_kl, spread_kl(p))
    few = p[:, :FKD_K]
    views = _write_fkd_files(work / "fkd", contents)
    yield size(f"FKD's, k = {FKD_K}", work / "fkd", views, spread_kl(few.float()), spread_kl(few))
    logits = contents.logits.numpy()
    records = logits.view([("logits", logits.dtype, (logits.shape[1],))])[:, 0]
    with closing(FilePerSample(work / "logits", records)) as files:
        read = torch.from_numpy(files.take(np.arange(min(FILES_READ, files.n)))["logits"])
        full_kl = mean_kl(partial(true_log_probs, read, ids[: len(read)]))
        yield size("file each, all", files.folder, files.n, full_kl, full_kl)


def disk_usage(folder: Path) -> tuple[int, int]:
    """Return the bytes of all files of a folder, and of the blocks that they take."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum(file.st_size for file in stats), sum(file.st_blocks * BLOCK_UNIT for file in stats)


def _read_rows(reader: CacheReader, rows: npt.NDArray[np.int64]) -> SparseTeacher:
    """Read some samples of a cache of one seed."""
    spec, layout = reader.spec, RowLayout.of(reader.spec)
    packed = []
    for shard in range(spec.layout.shards):
        samples = spec.layout.samples_of(shard)
        inside = rows[(rows >= samples.start) & (rows < samples.stop)]
        packed.append(pack_rows(spec, layout, reader.read(0, shard))[inside - samples.start])
    return SparseTeacher.unpack(torch.from_numpy(np.concatenate(packed)), layout)


def _write_fkd_files(folder: Path, contents: CacheContents) -> int:
    """Write files as FKD's generator does, one per image: of all its crops place, flip and k probabilities.

    Ids are float32 too, as they are stacked with the probabilities. Returns the number of views.
    """
    folder.mkdir()
    records = contents.records[: 16 * FKD_CROPS]
    for number, start in enumerate(range(0, len(records), FKD_CROPS)):
        crops = records[start : start + FKD_CROPS]
        listed = np.stack([crops["ids"][:, :FKD_K], crops["p"][:, :FKD_K]], 1).astype(np.float32)
        places, flipped = np.zeros((len(crops), 4), np.float32), np.zeros(len(crops), np.bool_)
        torch.save([places, flipped, torch.from_numpy(listed)], folder / f"{number}.tar")
    return len(records)
