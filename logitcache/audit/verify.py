"""Verify a cache: every checksum, every commit digest, every number; a few shards at a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from dask.base import compute
from dask.delayed import delayed
from dask.system import cpu_count

from logitcache.audit.invariants import check_invariants
from logitcache.errors import FormatError, IncompleteError, LogitCacheError, OptionError, StorageError
from logitcache.format.spec import Spec
from logitcache.store.disk import HOW_TO_MEND
from logitcache.store.reader import CacheReader
from logitcache.store.root import seed_list
from logitcache.store.shards import shard_digest
from logitcache.store.statistics import HOW_TO_RENEW, fetch_statistics, unpack_statistics

GRAPH_SHARDS = 1024  # per dask graph, which so stays small

METADATA, COMMIT, UNREADABLE, DAMAGED, DIGEST = "metadata", "commit", "unreadable", "damaged", "digest"
KEYS, STATISTICS = "keys", "statistics"


@dataclass(frozen=True)
class Problem(Spec):
    """What is wrong with a shard, with the metadata of a seed, with the sample keys or the class statistics.

    Attributes:
        seed: which; None for sample keys and class statistics.
        shard: which; None for these and for the metadata of a seed.
        kind: "keys", "statistics", "metadata", "commit" (its entry is damaged), "unreadable" (the disk said no),
            "damaged" (a checksum or a truncated file), "digest" (not what was committed), or an invariant of
            `audit.invariants`.
        rows: how many rows break the invariant; 0 for the other kinds.
        sample: the first sample that breaks it; None for the other kinds.
        reason: in words.
        image: the file of this sample, where the data is named or can be opened by the cache's name for it.
    """

    seed: int | None
    shard: int | None
    kind: str
    rows: int
    sample: int | None
    reason: str
    image: str | None = None

    def __str__(self) -> str:
        seed = "" if self.seed is None else f"seed {self.seed}"
        where = seed if self.shard is None else f"{seed}, shard {self.shard}"
        first = "" if self.sample is None else f"; the first is sample {self.sample}"
        first += f" ({self.image})" if self.image else ""
        return f"{where}{': ' if where else ''}{self.reason}{first}"


@dataclass(frozen=True)
class SeedState(Spec):
    """One seed: its number of shards, of committed and of bad ones, and of files that belong to no commit."""

    seed: int
    shards: int
    committed: int
    bad: int
    strays: int


@dataclass(frozen=True)
class VerifyReport(Spec):
    """What was found. Incomplete seeds, stray files and samples without a teacher are no problems.

    Attributes:
        without_teacher: samples whose images did not decode, under any of the seeds.
    """

    path: str
    clean: bool
    shards: int
    views: int
    seeds: tuple[SeedState, ...]
    problems: tuple[Problem, ...]
    seconds: float
    without_teacher: tuple[int, ...] = ()


def verify_cache(
    reader: CacheReader,
    seeds: Sequence[int] | None = None,
    workers: int = -1,
    on_progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check all that is committed: checksums, digests, class statistics, and the invariants of a teacher's numbers.

    Args:
        reader: the cache.
        seeds: which seeds; by default all that have been begun.
        workers: threads, each with one decoded shard in memory; −1: one per core, at most 8.
        on_progress: called with (shards done, shards to do).

    Raises:
        IncompleteError: the cache has no such seed.
        OptionError: `workers` is below −1.
    """
    if workers < -1:
        raise OptionError(f"workers must be -1 (as fits) or more, found {workers}")
    threads = min(8, cpu_count()) if workers == -1 else max(1, workers)
    begun = sorted({*reader.seeds(), *reader.without_metadata()})
    if missing := sorted(set(seeds or ()) - set(begun)):
        raise IncompleteError(f"{reader.path} has no {seed_list(missing)}; it has {seed_list(begun)}")
    chosen = begun if seeds is None else sorted(set(seeds))
    started = time.perf_counter()
    without: set[int] = set()
    states, problems, views = [], [*_check_keys(reader), *_check_statistics(reader)], 0
    for number, seed in enumerate(chosen):
        checked: list[_Checked] = []
        if metadata := _check_metadata(reader, seed):
            problems.append(metadata)
        else:
            for first in range(0, reader.spec.layout.shards, GRAPH_SHARDS):
                shards = range(first, min(first + GRAPH_SHARDS, reader.spec.layout.shards))
                tasks = [delayed(_check_shard)(reader, seed, shard) for shard in shards]
                checked += compute(*tasks, scheduler="threads", num_workers=threads)  # type: ignore[no-untyped-call]
                if on_progress:
                    done = number * reader.spec.layout.shards + shards.stop
                    on_progress(done, len(chosen) * reader.spec.layout.shards)
        committed = [shard for shard in checked if shard.committed]
        views += sum(shard.views for shard in committed)
        without.update(*(shard.without_teacher for shard in committed))
        problems += [problem for shard in committed for problem in shard.problems]
        bad = sum(bool(shard.problems) for shard in committed)
        strays = 0 if metadata else len(reader.strays(seed))
        states.append(SeedState(seed, reader.spec.layout.shards, len(committed), bad, strays))
    return VerifyReport(
        path=str(reader.path),
        clean=not problems,
        shards=sum(state.committed for state in states),
        views=views,
        seeds=tuple(states),
        problems=tuple(problems),
        seconds=time.perf_counter() - started,
        without_teacher=tuple(sorted(without)),
    )


def _check_keys(reader: CacheReader) -> list[Problem]:
    """Read the sample keys, and return what is wrong with them."""

    def problem(kind: str, reason: str) -> list[Problem]:
        return [Problem(None, None, kind, 0, None, reason)]

    try:
        keys = reader.keys()
    except StorageError as error:
        return problem(UNREADABLE, f"the sample keys cannot be read ({_reason(error)})")
    except FormatError as error:
        return problem(KEYS, f"the sample keys are damaged ({_reason(error)})")
    if keys is not None and len(np.unique(keys)) < len(keys):
        return problem(KEYS, "the sample keys are damaged (two samples have the same)")
    return []


def _check_statistics(reader: CacheReader) -> list[Problem]:
    """Read the class statistics, and return what is wrong with them."""

    def problem(kind: str, reason: str) -> list[Problem]:
        return [Problem(None, None, kind, 0, None, reason)]

    try:
        if files := fetch_statistics(reader.place, reader.spec):
            unpack_statistics(files, reader.spec, reader.path)
        elif reader.spec.calibrated:
            return problem(STATISTICS, f"the class statistics are lost; {HOW_TO_RENEW}")
    except StorageError as error:
        return problem(UNREADABLE, f"the class statistics cannot be read ({_reason(error)})")
    except FormatError as error:
        return problem(STATISTICS, f"the class statistics are damaged ({_reason(error)}); {HOW_TO_RENEW}")
    return []


@dataclass(frozen=True)
class _Checked:
    """One shard: whether it is committed, its views with a teacher, what is wrong with it, samples without one."""

    committed: bool
    views: int = 0
    problems: tuple[Problem, ...] = ()
    without_teacher: tuple[int, ...] = ()


def _check_metadata(reader: CacheReader, seed: int) -> Problem | None:
    """Open one seed's arrays, and return what is wrong with their metadata."""
    try:
        reader.check_metadata(seed)
    except StorageError as error:
        return Problem(seed, None, UNREADABLE, 0, None, f"its metadata cannot be read ({_reason(error)})")
    except FormatError as error:
        return Problem(seed, None, METADATA, 0, None, f"its metadata is damaged ({_reason(error)})")
    return None


def _reason(error: LogitCacheError) -> str:
    """Return in one line what Zarr or the disk said, without the advice that our error adds to it."""
    cause = error.__cause__ or error
    return " ".join(f"{type(cause).__name__}: {cause}".removesuffix(f"; {HOW_TO_MEND}").split())[:200]


def _check_shard(reader: CacheReader, seed: int, shard: int) -> _Checked:
    """Check one shard: commit entry, data, digest, invariants."""

    def bad(kind: str, reason: str) -> _Checked:
        return _Checked(True, 0, (Problem(seed, shard, kind, 0, None, reason),))

    kind, part = COMMIT, "its commit entry"
    try:
        commit = reader.commit(seed, shard)
        if not commit:
            return _Checked(False)
        kind, part = DAMAGED, "its data"
        arrays = reader.decode(seed, shard)
    except StorageError as error:
        return bad(UNREADABLE, f"{part} cannot be read ({_reason(error)})")
    except FormatError as error:
        return bad(kind, f"{part} is damaged ({_reason(error)})")
    if (found := shard_digest(reader.spec, seed, shard, arrays)) != commit:
        return bad(DIGEST, f"its data is not what was committed (digest {found:016x}, not {commit:016x})")
    samples = reader.spec.layout.samples_of(shard)
    broken = tuple(
        Problem(seed, shard, name, rows, samples[first], f"{rows} rows break the rule that {name}")
        for name, rows, first in check_invariants(reader.spec, shard, arrays)
    )
    without = () if broken else tuple((np.flatnonzero(np.isnan(arrays["top"])) + samples.start).tolist())
    return _Checked(True, int(np.count_nonzero(~np.isnan(arrays["top"]))), broken, without)
