"""What a cache costs on disk, what it keeps of the teacher, and how fast it is written, decoded and looked up.

Everything is measured on files that the library writes, of one set of answers.
"""

import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from logitcache.bench.baselines import Lookup, alternatives
from logitcache.bench.fixtures import Made
from logitcache.bench.memory import Peak, peaks
from logitcache.bench.sizes import Size, sizes
from logitcache.bench.speeds import Speed, lookups, opening, whole_seeds
from logitcache.bench.synthetic import answers
from logitcache.format.schema import SHARD_SAMPLES
from logitcache.format.spec import Spec

VIEWS = 2 * SHARD_SAMPLES
SHUFFLED = SHARD_SAMPLES // 2
BATCH = 1024


@dataclass(frozen=True)
class StoreReport(Spec):
    """What was measured, and on what: `views` answers of `about`, k of them kept."""

    about: str
    views: int
    k: int
    top1_probability: float
    tail_mass: float
    sizes: tuple[Size, ...]
    speeds: tuple[Speed, ...]
    peaks: tuple[Peak, ...]


def measure(
    *,
    n: int = VIEWS,
    k: int = 16,
    batch: int = BATCH,
    rounds: int = 8,
    logits: Path | None = None,
    folder: Path | None = None,
) -> StoreReport:
    """Write, decode and look up `n` views in every profile and alternative.

    Args:
        n: views, made up in the order of an image folder; as many again, at most half a shard, are shuffled.
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
    with tempfile.TemporaryDirectory(dir=folder) as name, ExitStack() as held:
        work = Path(name)
        made = Made.of(answers(n, "folder", logits), k)
        others: dict[str, Lookup] = {
            kind.name: held.enter_context(closing(kind(work / "others" / kind.name, made.records)))
            for kind in alternatives()
        }
        bytes_kept = [*sizes(work, made, "folder", others)]
        shuffled = Made.of(answers(min(n, SHUFFLED), "shuffled", logits), k)
        bytes_kept += sizes(work, shuffled, "shuffled", {})
        cache = work / "default-folder.zarr"
        if not cache.exists():
            made.write(cache, "default")
        speeds = [
            *whole_seeds(work, made, cache, max(3, rounds // 2)),
            *lookups(work, cache, others, batch, rounds),
            opening(work, rounds),
        ]
        return StoreReport(
            made.about,
            made.n,
            k,
            made.top1_probability,
            made.tail_mass,
            tuple(bytes_kept),
            tuple(speeds),
            tuple(peaks(work)),
        )
