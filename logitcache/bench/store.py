"""What a cache costs on disk, what it keeps of the teacher, and how fast it is written, decoded and looked up.

Everything is measured on files that the library writes, of one set of logits.
"""

import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from logitcache.bench.baselines import Lookup, SeekAndRead, installed_lookups
from logitcache.bench.fixtures import CacheContents
from logitcache.bench.memory import MemoryPeak, measure_peaks
from logitcache.bench.sizes import (
    RecordSize,
    cache_path,
    disk_usage,
    measure_caches,
    measure_lookups,
    measure_others,
)
from logitcache.bench.speeds import Speed, time_lookups, time_opening, time_whole_seeds
from logitcache.bench.synthetic import open_logits
from logitcache.format.schema import SHARD_SAMPLES
from logitcache.format.spec import Spec
from logitcache.store.place import CLASS_STATISTICS

VIEWS = 2 * SHARD_SAMPLES
FEWER_VIEWS = SHARD_SAMPLES // 2  # shuffled, and of twice k
K, BATCH = 8, 1024


@dataclass(frozen=True)
class StoreReport(Spec):
    """What was measured, and on what: `views` of a teacher that `about` names, k logits of each.

    `statistics_bytes` are those of the class statistics, which a cache has once.
    """

    about: str
    views: int
    k: int
    statistics_bytes: int
    top1_probability: float
    tail_mass: float
    sizes: tuple[RecordSize, ...]
    speeds: tuple[Speed, ...]
    peaks: tuple[MemoryPeak, ...]


def measure(
    *,
    n: int = VIEWS,
    k: int = K,
    batch: int = BATCH,
    rounds: int = 8,
    logits: Path | None = None,
    folder: Path | None = None,
) -> StoreReport:
    """Write, decode and look up `n` views in every profile and alternative.

    Args:
        n: views, made up in the order of an image folder; as many again, at most half a shard, are shuffled, and as
            many have twice k logits.
        k: logits kept.
        batch: random samples of one look-up.
        rounds: how often look-ups are timed; whole seeds are written and decoded half as often (3 at least).
        logits: an .npz of a real teacher's logits, instead of made-up ones.
        folder: where to write, on the disk to be measured; the system's temporary folder by default.

    Raises:
        OptionError: `n` or `k` is out of range.
        NotFoundError, DataError: `logits` is no such file.
        StorageError: the disk said no.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name, ExitStack() as stack:
        work = Path(name)
        contents = CacheContents.of(open_logits(n, "folder", logits), k)
        lookups: dict[str, Lookup] = {
            kind.name: stack.enter_context(closing(kind(work / "others" / kind.name, contents.records)))
            for kind in installed_lookups()
        }
        sizes = [*measure_caches(work, contents, "folder")]
        cache = cache_path(work, "default", "folder", k)
        if not cache.exists():  # all logits are kept
            contents.write(cache, "default")
        sizes += measure_lookups(contents, lookups.values())
        sizes += measure_others(work, contents)
        fewer = min(n, FEWER_VIEWS)
        sizes += measure_caches(work, CacheContents.of(open_logits(fewer, "shuffled", logits), k), "shuffled")
        if 2 * k < contents.spec.dataset.num_classes:
            twice = CacheContents.of(open_logits(fewer, "folder", logits), 2 * k)
            sizes += measure_caches(work, twice, "folder", ["default"])
            with closing(SeekAndRead(work / "others" / "twice", twice.records)) as tinyvit:
                sizes += measure_lookups(twice, [tinyvit])
        speeds = [
            *time_whole_seeds(work, contents, cache, max(3, rounds // 2)),
            *time_lookups(work, cache, lookups, batch, rounds),
            time_opening(work, rounds),
        ]
        return StoreReport(
            contents.about,
            contents.n,
            k,
            disk_usage(cache / CLASS_STATISTICS)[0],
            contents.top1_probability,
            contents.tail_mass,
            tuple(sizes),
            tuple(speeds),
            tuple(measure_peaks(work)),
        )
