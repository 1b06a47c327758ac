"""Copying a cache, or some of its seeds, from one place to another: stored bytes as they are, commits last.

Started again, it goes on where it was: shards that the destination has with the same digest stay. Every shard is read
back there and must have the digest that it was committed with.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from logitcache.errors import Difference, FormatError, IncompleteError, MismatchError, OptionError
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.store.reader import CacheReader, Commits
from logitcache.store.root import seed_list
from logitcache.store.seed_writer import SeedWriter
from logitcache.store.statistics import fetch_statistics, read_statistics, statistics_digest
from logitcache.store.writer import CacheWriter


@dataclass(frozen=True)
class CopyReport(Spec):
    """What a copy did: shards and bytes copied now, shards that the destination had already, seconds."""

    source: str
    path: str
    seeds: tuple[int, ...]
    shards_copied: int
    shards_there: int
    bytes_copied: int
    seconds: float


def copy_cache(
    source: str | Path,
    out: str | Path,
    *,
    seeds: Sequence[int] = (),
    workers: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> CopyReport:
    """Copy the committed shards of a cache; started again, go on at the first that is missing.

    Args:
        source: local path or fsspec URL.
        out: local path or fsspec URL; it may hold a copy of the same cache already, also from before it grew.
        seeds: which to copy, complete or not; by default all that have been begun.
        workers: shards that are copied at once; each is held in memory as it is stored.
        on_progress: called with (shards done, shards to do) after every shard.

    Raises:
        IncompleteError: the source has not begun one of the seeds.
        MismatchError: there is another cache at `out`, or it has other class statistics, or one of its shards has
            another digest.
        BusyError: another process writes one of the seeds at `out`.
        FormatError: a shard is damaged, in the source or at `out`; the message says which.
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
    try:
        writer = open_copy(reader, out, reader.spec)
    except MismatchError as error:
        advice = "copy to another place"
        raise MismatchError(f"{out} is another cache than {reader.path}", error.fields, advice) from error
    destination = CacheReader(out)
    commits = {seed: reader.commits(seed) for seed in chosen}
    total = sum(int(np.count_nonzero(digests)) for digests in commits.values())
    done, copied, copied_bytes = 0, 0, 0
    with ThreadPoolExecutor(workers, "copy") as threads:
        for seed in chosen:
            with writer.seed(seed, reader.metadata(seed)) as seed_writer:
                for size in _copy_seed(reader, seed_writer, destination, commits[seed], threads):
                    done, copied, copied_bytes = done + 1, copied + bool(size), copied_bytes + size
                    if on_progress:
                        on_progress(done, total)
    return CopyReport(
        source=str(reader.path),
        path=str(writer.path),
        seeds=tuple(chosen),
        shards_copied=copied,
        shards_there=total - copied,
        bytes_copied=copied_bytes,
        seconds=time.perf_counter() - began,
    )


def open_copy(reader: CacheReader, out: str | Path, spec: CacheSpec) -> CacheWriter:
    """Create the cache at `out`, or open it, for rows of another cache; it has that one's keys and class statistics.

    Statistics are copied as they are stored where `out` has none, or damaged ones, and read back.

    Args:
        reader: the other cache.
        out: local path or fsspec URL.
        spec: of the cache at `out`; of the same teacher, data and recipe.

    Raises:
        MismatchError: there is another cache at `out`, or it has other class statistics.
        FormatError: keys or class statistics are damaged.
        StorageError: the disk or the host said no.
    """
    ours = reader.statistics()
    files = fetch_statistics(reader.place, reader.spec) if ours else {}
    writer = CacheWriter.open(out, spec, reader.keys(), files if spec.calibrated else None, grow=True)
    if ours is None:
        return writer
    try:
        theirs = read_statistics(writer.place, writer.spec)
    except FormatError:  # damaged, or lost
        theirs = None
    if theirs is None:
        writer.write_statistics(files)
        theirs = read_statistics(writer.place, writer.spec)
    expected, found = (statistics_digest(spec, each) if each else None for each in (theirs, ours))
    if found != expected:
        raise MismatchError(
            f"{out} has other class statistics than {reader.path}",
            [Difference("class_statistics", expected, found)],
            "give another place",
        )
    return writer


def _copy_seed(
    reader: CacheReader,
    writer: SeedWriter,
    destination: CacheReader,
    commits: Commits,
    threads: ThreadPoolExecutor,
) -> Iterable[int]:
    """Copy one seed's committed shards; yield the bytes of each, 0 where the destination had it already."""
    seed, existing = writer.seed, writer.commits()
    _refuse_other(reader, destination, seed, commits, existing)

    def copy_shard(shard: int) -> int:
        if existing[shard]:
            destination.read(seed, shard)  # checks its digest
            return 0
        files = reader.files(seed, shard)
        try:
            writer.write_files(shard, int(commits[shard]), files)
        except FormatError:
            reader.read(seed, shard)  # where it is the source that is damaged, its error says so
            raise
        return sum(map(len, files.values()))

    return threads.map(copy_shard, map(int, np.flatnonzero(commits)))


def _refuse_other(
    reader: CacheReader, destination: CacheReader, seed: int, commits: Commits, existing: Commits
) -> None:
    """Refuse to mix two dumps of one seed, which may have been made on different hardware."""
    if (other := np.flatnonzero((existing != 0) & (commits != 0) & (existing != commits))).size:
        shard = int(other[0])
        raise MismatchError(
            f"seed {seed} of {destination.path} holds other numbers than that of {reader.path}",
            [Difference(f"digest of shard {shard}", f"{existing[shard]:016x}", f"{commits[shard]:016x}")],
            f"delete {destination.path}/seed-{seed} to have it copied, or leave the seed out with --seeds",
        )
