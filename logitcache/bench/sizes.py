"""What a view costs on disk, measured on files, and what is kept of the teacher for that."""

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
from logitcache.bench.divergence import divergence, sparse_log_probs, spread_log_probs, true_log_probs
from logitcache.bench.fixtures import Made
from logitcache.format.identity import PROFILES
from logitcache.format.schema import RowLayout
from logitcache.format.spec import Spec
from logitcache.store import CacheReader
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import pack

TEMPERATURES = (1.0, 2.0, 4.0)
WANTED_BYTES = {"default": 48.0, "compact": 33.0, "archive": 38.0}
WANTED_KL = {"default": 1e-6, "compact": 1e-4, "archive": 1e-6}
FKD_CROPS, FKD_K = 500, 5  # as its generator makes them by default
READ = 64  # files of all logits that are read again
BLOCK_UNIT = 512  # bytes; what `st_blocks` counts in

Told = Callable[[float], Tensor]  # of a temperature


@dataclass(frozen=True)
class Size(Spec):
    """One kind of record: bytes per view on disk, and mean KL of the teacher from what it tells, at T = 1, 2, 4.

    Attributes:
        record: whose.
        order: of the samples.
        views: how many were written to measure it.
        bytes_per_view: of the files.
        blocks_per_view: of the blocks that the file system spends on them.
        kl: over the listed classes and all others as one, in nats.
        cut: the part of it that is due to k < C, not to rounding.
        wanted_bytes, wanted_kl: what it should be at most; None where it is only told.
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
        first, *others = map(_brief, self.kl)
        bytes_wanted = f" ≤ {self.wanted_bytes:g}" if self.wanted_bytes else ""
        kl_wanted = f" ≤ {_brief(self.wanted_kl, 0)}" if self.wanted_kl else ""
        return {
            "record": self.record,
            "order": self.order,
            "B/view": f"{self.bytes_per_view:,.1f}{bytes_wanted}",
            "in blocks": f"{self.blocks_per_view:,.1f}",
            "KL at T=1": f"{first}{kl_wanted}",
            **dict(zip((f"T={t:g}" for t in TEMPERATURES[1:]), others, strict=True)),
        }


def _brief(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}e}".replace("e-0", "e-") if value else "0"


def sizes(work: Path, made: Made, order: str, others: Mapping[str, Lookup]) -> Iterator[Size]:
    """Write a cache of each profile to `work`, and measure them and the records that others hold already.

    Args:
        work: where to write.
        made: the answers.
        order: of the samples, for the table.
        others: alternatives that hold the same answers, by name; with any of them, those that hold something
            else are written and measured too.
    """
    if made.spec.tail_size == 0:  # all logits are kept: there is nothing to tell apart
        return
    ids = SparseTeacher.from_logits(made.logits, made.spec.k).ids
    truth = [true_log_probs(made.logits, ids, t) for t in TEMPERATURES]
    unrounded = SparseTeacher.from_logits(made.logits.double(), made.spec.k)

    def kl(told: Told) -> tuple[float, ...]:
        pairs = ((p, told(t)) for p, t in zip(truth, TEMPERATURES, strict=True))
        return tuple(max(0.0, float(divergence(p[: len(q)], q).mean())) for p, q in pairs)

    def size(record: str, folder: Path, views: int, told: tuple[float, ...], cut: tuple[float, ...]) -> Size:
        size, blocks = (total / views for total in on_disk(folder))
        wanted = WANTED_BYTES.get(record), WANTED_KL.get(record)
        return Size(record, order, views, size, blocks, told, cut, *wanted)

    cut = kl(partial(sparse_log_probs, unrounded))
    for profile in WANTED_BYTES:
        if PROFILES[profile].installed:
            path = work / f"{profile}-{order}.zarr"
            made.write(path, profile)
            stored = _stored(CacheReader(path), made.rows)
            yield size(profile, path, made.n, kl(partial(sparse_log_probs, stored)), cut)
    if not others:
        return

    def spread(p: Tensor) -> tuple[float, ...]:
        return kl(partial(spread_log_probs, p, made.spec.k, made.spec.dataset.num_classes))

    p = unrounded.at(1.0).probs
    stored_p = spread(torch.from_numpy(made.records["p"][made.rows]))
    for lookup in others.values():
        yield size(lookup.record, lookup.folder, lookup.n, stored_p, spread(p))
    few = p[:, :FKD_K]
    views = _fkd(work / "fkd", made)
    yield size(f"FKD's, k = {FKD_K}", work / "fkd", views, spread(few.float()), spread(few))
    logits = made.logits.numpy()
    records = logits.view([("logits", logits.dtype, (logits.shape[1],))])[:, 0]
    with closing(FilePerSample(work / "logits", records)) as files:
        again = torch.from_numpy(files.take(np.arange(min(READ, files.n)))["logits"])
        everything = kl(partial(true_log_probs, again, ids[: len(again)]))
        yield size("file each, all", files.folder, files.n, everything, everything)


def on_disk(folder: Path) -> tuple[int, int]:
    """Return the bytes of all files of a folder, and of the blocks that they take."""
    found = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum(one.st_size for one in found), sum(one.st_blocks * BLOCK_UNIT for one in found)


def _stored(reader: CacheReader, rows: npt.NDArray[np.int64]) -> SparseTeacher:
    """Read some samples of a cache of one seed as it tells them."""
    spec, layout = reader.spec, RowLayout.of(reader.spec)
    packed = []
    for shard in range(spec.layout.shards):
        samples = spec.layout.samples_of(shard)
        inside = rows[(rows >= samples.start) & (rows < samples.stop)]
        packed.append(pack(spec, layout, reader.read(0, shard))[inside - samples.start])
    return SparseTeacher.unpack(torch.from_numpy(np.concatenate(packed)), layout)


def _fkd(folder: Path, made: Made) -> int:
    """Write files as FKD's generator does: of an image all crops, where they were, whether flipped, k probabilities.

    Ids are float32 too, as they are stacked with the probabilities. Returns the number of views.
    """
    folder.mkdir()
    some = made.records[: 16 * FKD_CROPS]
    for number, start in enumerate(range(0, len(some), FKD_CROPS)):
        crops = some[start : start + FKD_CROPS]
        listed = np.stack([crops["ids"][:, :FKD_K], crops["p"][:, :FKD_K]], 1).astype(np.float32)
        where, flipped = np.zeros((len(crops), 4), np.float32), np.zeros(len(crops), np.bool_)
        torch.save([where, flipped, torch.from_numpy(listed)], folder / f"{number}.tar")
    return len(some)
