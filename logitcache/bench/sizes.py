"""How many bytes a view takes on disk, measured on files, and how near to the teacher what they keep is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.bench.baselines import FilePerSample, Lookup
from logitcache.bench.divergence import kl_divergence, log_probs_of, merge_tail, spread_log_probs
from logitcache.bench.fixtures import CacheContents
from logitcache.bench.table import scientific
from logitcache.format.identity import PROFILES
from logitcache.format.schema import RowLayout
from logitcache.format.spec import Spec
from logitcache.store import CacheReader
from logitcache.store.place import CLASS_STATISTICS
from logitcache.teacher.completion import Completion
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import pack_rows

TEMPERATURES = (1.0, 2.0, 4.0)
WANTED_BYTES = {("default", 8): 28.0}  # by profile and k
WANTED_ROUNDING = {"default": 1e-6, "compact": 1e-4, "archive": 1e-6}
FKD_CROPS, FKD_K = 500, 5  # as its generator makes them by default
FILES_READ = 64  # of all logits of a view each, to compare them with the teacher's
BLOCK_UNIT = 512  # bytes; what `st_blocks` counts in

LogProbs = Callable[[float], Tensor]  # of a temperature: (rows, C)


@dataclass(frozen=True)
class RecordSize(Spec):
    """One kind of record: bytes per view on disk, and how far from the teacher what they keep is.

    Attributes:
        record: which kind.
        order: of the samples.
        k: logits or probabilities kept.
        views: how many were written to measure it.
        bytes_per_view: of the files, but for the class statistics of a cache, which are there once.
        blocks_per_view: of the blocks that the file system spends on them.
        rounding: mean KL at T = 1 over the listed classes and all others as one, in nats: what rounding costs.
        kl: mean KL(p ‖ p̂) in nats over all classes at T = 1, 2, 4; a cache's tail completed, another's even.
        wanted_bytes, wanted_rounding: what they should be at most; None where there is no such aim.
    """

    record: str
    order: str
    k: int
    views: int
    bytes_per_view: float
    blocks_per_view: float
    rounding: float
    kl: tuple[float, ...]
    wanted_bytes: float | None = None
    wanted_rounding: float | None = None

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        bytes_wanted = f" ≤ {self.wanted_bytes:g}" if self.wanted_bytes else ""
        rounding_wanted = f" ≤ {scientific(self.wanted_rounding, 0)}" if self.wanted_rounding else ""
        return {
            "record": self.record,
            "order": self.order,
            "k": f"{self.k}",
            "B/view": f"{self.bytes_per_view:,.1f}{bytes_wanted}",
            "in blocks": f"{self.blocks_per_view:,.1f}",
            "rounding": f"{scientific(self.rounding)}{rounding_wanted}",
            **{f"T={t:g}": f"{kl:.3f}" for t, kl in zip(TEMPERATURES, self.kl, strict=True)},
        }


def measure_caches(
    work: Path, contents: CacheContents, order: str, profiles: Sequence[str] = tuple(WANTED_ROUNDING)
) -> Iterator[RecordSize]:
    """Write a cache of each profile that is installed to `work`, and measure it.

    Args:
        work: where to write; the cache is `cache_path` of it.
        contents: of the caches; with all logits kept there is nothing to compare.
        order: of the samples, for the table.
        profiles: by name.
    """
    if contents.statistics is None:
        return
    completion = Completion.of(contents.statistics)
    for profile in profiles:
        if PROFILES[profile].installed:
            path = cache_path(work, profile, order, contents.spec.k)
            contents.write(path, profile)
            logits = _read_rows(CacheReader(path), contents.rows, completion).logits
            found = _compare(contents, contents.spec.k, partial(log_probs_of, logits))
            wanted = WANTED_BYTES.get((profile, contents.spec.k)), WANTED_ROUNDING[profile]
            yield RecordSize(
                profile, order, contents.spec.k, contents.n, *_per_view(path, contents.n), *found, *wanted
            )


def measure_lookups(contents: CacheContents, lookups: Iterable[Lookup]) -> Iterator[RecordSize]:
    """Measure the records of look-ups that hold the same in the order of a folder."""
    k = contents.spec.k
    if k < contents.spec.dataset.num_classes:
        p = torch.from_numpy(contents.records["p"][contents.rows])
        found = _compare(contents, k, partial(_spread, contents, p))
        for lookup in lookups:
            yield RecordSize(
                lookup.record, "folder", k, lookup.n, *_per_view(lookup.folder, lookup.n), *found
            )


def measure_others(work: Path, contents: CacheContents) -> Iterator[RecordSize]:
    """Write FKD's files, and all logits of each view in a file of its own, and measure them."""
    logits, classes = contents.logits, contents.spec.dataset.num_classes
    few = logits.softmax(1).topk(min(FKD_K, classes - 1), 1).values
    views = _write_fkd_files(work / "fkd", contents)
    found = _compare(contents, few.shape[1], partial(_spread, contents, few))
    yield RecordSize("FKD's", "folder", few.shape[1], views, *_per_view(work / "fkd", views), *found)
    array = logits.numpy()
    records = array.view([("logits", array.dtype, (classes,))])[:, 0]
    with closing(FilePerSample(work / "logits", records)) as files:
        read = torch.from_numpy(files.take(np.arange(min(FILES_READ, files.n)))["logits"])
        found = _compare(contents, contents.spec.k, partial(log_probs_of, read))
        yield RecordSize("file each", "folder", classes, files.n, *_per_view(files.folder, files.n), *found)


def cache_path(work: Path, profile: str, order: str, k: int) -> Path:
    """Return where `measure_caches` writes a cache."""
    return work / f"{profile}-{order}-{k}.zarr"


def _spread(contents: CacheContents, p: Tensor, temperature: float) -> Tensor:
    ids = contents.logits.topk(p.shape[1], 1).indices
    return spread_log_probs(ids, p, contents.spec.dataset.num_classes, temperature)


def _compare(contents: CacheContents, k: int, told: LogProbs) -> tuple[float, tuple[float, ...]]:
    """Return `rounding` and `kl` of a `RecordSize`, of the first rows of `contents`, as many as are told."""
    pairs = []
    for temperature in TEMPERATURES:
        q = told(temperature)
        pairs.append((log_probs_of(contents.logits[: len(q)], temperature), q))
    ids = contents.logits[: len(pairs[0][1])].topk(k, 1).indices
    p, q = (merge_tail(x, ids) for x in pairs[0])
    rounding, *kl = (max(0.0, float(kl_divergence(p, q).mean())) for p, q in ((p, q), *pairs))
    return rounding, tuple(kl)


def _per_view(folder: Path, views: int) -> tuple[float, float]:
    """Return bytes of files and of blocks per view, but for class statistics."""
    whole, once = disk_usage(folder), disk_usage(folder / CLASS_STATISTICS)
    return (whole[0] - once[0]) / views, (whole[1] - once[1]) / views


def disk_usage(folder: Path) -> tuple[int, int]:
    """Return the bytes of all files of a folder, and of the blocks that they take."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum(file.st_size for file in stats), sum(file.st_blocks * BLOCK_UNIT for file in stats)


def _read_rows(reader: CacheReader, rows: npt.NDArray[np.int64], completion: Completion) -> SparseTeacher:
    """Read some samples of a cache of one seed."""
    spec, layout = reader.spec, RowLayout.of(reader.spec)
    packed = []
    for shard in range(spec.layout.shards):
        samples = spec.layout.samples_of(shard)
        inside = rows[(rows >= samples.start) & (rows < samples.stop)]
        packed.append(pack_rows(spec, layout, reader.read(0, shard))[inside - samples.start])
    return SparseTeacher.unpack(torch.from_numpy(np.concatenate(packed)), layout, completion)


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
