"""Copying a cache, or some of its seeds, between any two places: stored bytes as they are, commits last.

Started again, it goes on: shards that lie at the far end with the same digest stay. Every shard is read back there
and must have the digest that it was committed with.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logitcache.errors import Difference, FormatError, IncompleteError, MismatchError, OptionError
from logitcache.format.spec import Spec
from logitcache.store import CacheReader, CacheWriter, SeedWriter, seed_list

Progress = Callable[[int, int], None]
Commits = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class CopyReport(Spec):
    """What a copy did: shards and bytes copied now, shards that were there already, seconds."""

    source: str
    path: str
    seeds: tuple[int, ...]
    shards_copied: int
    shards_there: int
    bytes_copied: int
    seconds: float


def copy(
    source: str | Path,
    out: str | Path,
    *,
    seeds: Sequence[int] = (),
    workers: int = 4,
    on_progress: Progress | None = None,
) -> CopyReport:
    """Copy the committed shards of a cache; started again, go on at the first that is missing.

    Args:
        source: local path or fsspec URL.
        out: local path or fsspec URL; a copy of the same cache may be there already, of before it grew too.
        seeds: which to copy, complete or not; by default all that have been begun.
        workers: shards that are copied at once; each is held in memory as it is stored.
        on_progress: called with (shards done, shards to do) after every shard.

    Raises:
        IncompleteError: the source has not begun one of the seeds.
        MismatchError: there is another cache at `out`, or a shard that holds something else.
        BusyError: another process writes one of the seeds at `out`.
        FormatError: a shard is damaged, at the source or at the far end; the message says which.
        StorageError: the disk or a host said no.
    """
    if workers < 1:
        raise OptionError(f"workers must be at least 1, found {workers}")
    began = time.perf_counter()
    reader = CacheReader(source)
    begun = reader.seeds()
    chosen = list(dict.fromkeys(seeds or begun))
    if missing := [seed for seed in chosen if seed not in begun]:
        raise IncompleteError(
            f"{reader.path} lacks {seed_list(missing)}; it has {seed_list(begun)}: choose of those with --seeds"
        )
    writer = _opened(reader, out)
    far = CacheReader(out)
    commits = {seed: reader.commits(seed) for seed in chosen}
    total = sum(int(np.count_nonzero(those)) for those in commits.values())
    done, moved, copied = 0, 0, 0
    with ThreadPoolExecutor(workers, "copy") as threads:
        for seed in chosen:
            with writer.seed(seed, reader.metadata(seed)) as own:
                for size in _copy_seed(reader, own, far, commits[seed], threads):
                    done, moved, copied = done + 1, moved + size, copied + bool(size)
                    if on_progress:
                        on_progress(done, total)
    writer.index()
    seconds = time.perf_counter() - began
    return CopyReport(
        str(reader.path), str(writer.path), tuple(chosen), copied, total - copied, moved, seconds
    )


def _opened(reader: CacheReader, out: str | Path) -> CacheWriter:
    try:
        return CacheWriter.open(out, reader.spec, reader.keys(), grow=True)
    except MismatchError as error:
        raise MismatchError(
            f"{out} is another cache than {reader.path}", error.fields, "copy to another place"
        ) from error


def _copy_seed(
    reader: CacheReader, own: SeedWriter, far: CacheReader, commits: Commits, threads: ThreadPoolExecutor
) -> Iterator[int]:
    """Copy one seed's committed shards; yield the bytes of each, 0 where it was there already."""
    seed, there = own.seed, own.commits()
    _refuse_other(reader, far, seed, commits, there)

    def bring(shard: int) -> int:
        if there[shard]:
            far.read(seed, shard)
            return 0
        files = reader.files(seed, shard)
        try:
            own.adopt(shard, int(commits[shard]), files)
        except FormatError:
            reader.read(seed, shard)  # if it is the source that is damaged, say so
            raise
        return sum(map(len, files.values()))

    return threads.map(bring, map(int, np.flatnonzero(commits)))


def _refuse_other(reader: CacheReader, far: CacheReader, seed: int, theirs: Commits, ours: Commits) -> None:
    """Refuse to mix two dumps of one seed, which different hardware may have made."""
    if (other := np.flatnonzero((ours != 0) & (theirs != 0) & (ours != theirs))).size:
        shard = int(other[0])
        raise MismatchError(
            f"seed {seed} of {far.path} holds other numbers than that of {reader.path}",
            [Difference(f"digest of shard {shard}", f"{theirs[shard]:016x}", f"{ours[shard]:016x}")],
            f"delete {far.path}/seed-{seed} to have it copied, or leave the seed out with --seeds",
        )
