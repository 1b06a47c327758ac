"""Verify a cache: every checksum, every commit digest, every number; shard by shard, a few at a time."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from dask.base import compute
from dask.delayed import delayed

from logitcache.audit.invariants import check_invariants
from logitcache.errors import FormatError, IncompleteError, LogitCacheError, OptionError, StorageError
from logitcache.format.spec import Spec
from logitcache.store import CacheReader, seed_list, shard_digest

Progress = Callable[[int, int], None]
TOGETHER = 1024  # shards per dask graph: it stays small, however many there are

METADATA, COMMIT, UNREADABLE, DAMAGED, DIGEST = "metadata", "commit", "unreadable", "damaged", "digest"
KEYS = "keys"


@dataclass(frozen=True)
class Problem(Spec):
    """What is wrong with one shard; without one, with a whole seed; without a seed, with the cache's sample keys.

    Attributes:
        seed: of which seed; None where it is the sample keys.
        shard: which; None where it is the seed's metadata.
        kind: "keys", "metadata", "commit" (its entry is damaged), "unreadable" (the disk said no), "damaged" (a
            checksum or a truncated file), "digest" (not what was committed), or a rule of `audit.rules`.
        rows: how many rows break the rule; 0 where the whole shard is concerned.
        sample: the first sample that breaks it; None likewise.
        reason: in words.
    """

    seed: int | None
    shard: int | None
    kind: str
    rows: int
    sample: int | None
    reason: str

    def __str__(self) -> str:
        seed = "" if self.seed is None else f"seed {self.seed}"
        where = seed if self.shard is None else f"{seed}, shard {self.shard}"
        first = "" if self.sample is None else f"; the first is sample {self.sample}"
        return f"{where}{': ' if where else ''}{self.reason}{first}"


@dataclass(frozen=True)
class SeedState(Spec):
    """One seed: its shards in all, those committed, those with problems, and files that belong to no commit."""

    seed: int
    shards: int
    committed: int
    bad: int
    strays: int


@dataclass(frozen=True)
class VerifyReport(Spec):
    """What a verification found. Seeds that are incomplete, and stray files, are no problems."""

    path: str
    clean: bool
    shards: int
    views: int
    seeds: tuple[SeedState, ...]
    problems: tuple[Problem, ...]
    seconds: float


def verify_cache(
    reader: CacheReader,
    seeds: Sequence[int] | None = None,
    workers: int = -1,
    on_progress: Progress | None = None,
) -> VerifyReport:
    """Check all that is committed: checksums, digests, and the rules that a teacher's numbers keep.

    Args:
        reader: the cache.
        seeds: which seeds; all that were begun when None.
        workers: threads, each with one decoded shard in memory; −1: one per core, at most 8.
        on_progress: called with (shards done, shards to do).

    Raises:
        IncompleteError: the cache has no such seed.
        OptionError: `workers` is below −1.
    """
    if workers < -1:
        raise OptionError(f"workers must be -1 (as fits) or more, found {workers}")
    threads = min(8, os.cpu_count() or 1) if workers == -1 else max(1, workers)
    begun = sorted({*reader.seeds(), *reader.without_metadata()})
    if missing := sorted(set(seeds or ()) - set(begun)):
        raise IncompleteError(f"{reader.path} has no {seed_list(missing)}; it has {seed_list(begun)}")
    chosen = begun if seeds is None else sorted(set(seeds))
    started = time.perf_counter()
    states, problems, views = [], _key_problems(reader), 0
    for number, seed in enumerate(chosen):
        checked: list[_Checked] = []
        if metadata := _metadata_problem(reader, seed):
            problems.append(metadata)
        else:
            for first in range(0, reader.spec.layout.shards, TOGETHER):
                shards = range(first, min(first + TOGETHER, reader.spec.layout.shards))
                tasks = [delayed(_check)(reader, seed, shard) for shard in shards]
                checked += compute(*tasks, scheduler="threads", num_workers=threads)  # type: ignore[no-untyped-call]
                if on_progress:
                    done = number * reader.spec.layout.shards + shards.stop
                    on_progress(done, len(chosen) * reader.spec.layout.shards)
        there = [shard for shard in checked if shard.there]
        views += sum(shard.views for shard in there)
        problems += [problem for shard in there for problem in shard.problems]
        bad = sum(bool(shard.problems) for shard in there)
        strays = 0 if metadata else len(reader.strays(seed))
        states.append(SeedState(seed, reader.spec.layout.shards, len(there), bad, strays))
    return VerifyReport(
        path=str(reader.path),
        clean=not problems,
        shards=sum(state.committed for state in states),
        views=views,
        seeds=tuple(states),
        problems=tuple(problems),
        seconds=time.perf_counter() - started,
    )


def _key_problems(reader: CacheReader) -> list[Problem]:
    """Read the sample keys; says what keeps them from telling every image."""

    def bad(kind: str, reason: str) -> list[Problem]:
        return [Problem(None, None, kind, 0, None, reason)]

    try:
        keys = reader.keys()
    except StorageError as error:
        return bad(UNREADABLE, f"the sample keys cannot be read ({_why(error)})")
    except FormatError as error:
        return bad(KEYS, f"the sample keys are damaged ({_why(error)})")
    if keys is not None and len(np.unique(keys)) < len(keys):
        return bad(KEYS, "the sample keys are damaged (two samples have the same)")
    return []


@dataclass(frozen=True)
class _Checked:
    """One shard: whether there is anything to check, its views, what is wrong with it."""

    there: bool
    views: int = 0
    problems: tuple[Problem, ...] = ()


def _metadata_problem(reader: CacheReader, seed: int) -> Problem | None:
    """Open one seed's arrays; says what keeps them from being opened."""
    try:
        reader.check_metadata(seed)
    except StorageError as error:
        return Problem(seed, None, UNREADABLE, 0, None, f"its metadata cannot be read ({_why(error)})")
    except FormatError as error:
        return Problem(seed, None, METADATA, 0, None, f"its metadata is damaged ({_why(error)})")
    return None


def _why(error: LogitCacheError) -> str:
    """Say in one line what Zarr or the disk said, without what our error adds for those who meet it elsewhere."""
    said = error.__cause__ or error
    return " ".join(f"{type(said).__name__}: {said}".split())[:200]


def _check(reader: CacheReader, seed: int, shard: int) -> _Checked:
    """Check one shard, from its commit entry to its last number."""

    def bad(kind: str, reason: str) -> _Checked:
        return _Checked(True, 0, (Problem(seed, shard, kind, 0, None, reason),))

    kind, what = COMMIT, "its commit entry"
    try:
        commit = reader.commit(seed, shard)
        if not commit:
            return _Checked(False)
        kind, what = DAMAGED, "its data"
        arrays = reader.decode(seed, shard)
    except StorageError as error:
        return bad(UNREADABLE, f"{what} cannot be read ({_why(error)})")
    except FormatError as error:
        return bad(kind, f"{what} is damaged ({_why(error)})")
    if (found := shard_digest(reader.spec, seed, shard, arrays)) != commit:
        return bad(DIGEST, f"its data is not what was committed (digest {found:016x}, not {commit:016x})")
    rows = reader.spec.layout.samples_of(shard)
    broken = tuple(
        Problem(seed, shard, b.rule, b.rows, rows[b.first], f"{b.rows} rows break the rule that {b.rule}")
        for b in check_invariants(reader.spec, shard, arrays)
    )
    return _Checked(True, int(np.count_nonzero(~np.isnan(arrays["top"]))), broken)
