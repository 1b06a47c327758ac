"""What the faults are done to: a small cache of digits, by a real dump, and all that a reader offers of it."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from dumping import a_teacher
from small import few_digits
from statistics_numbers import numbers_of

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import LogitCacheError
from logitcache.format.schema import CacheSpec, RowLayout
from logitcache.store import CacheReader, SeedWriter
from logitcache.stream.stream import Stream
from logitcache.teacher.completion import Completion
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import open_spool
from logitcache.views.datasets import ArrayImages
from logitcache.views.recipes import recipe_named

SAMPLES, SEEDS = 40, (0, 1)
CONFIG = DumpConfig(SEEDS, 3, shard_samples=16, batch_size=8, workers=0, device="cpu", grow=True)
Promise = Callable[[int, int], None]


class WrongNumberError(AssertionError):
    """A number that is not the one that was stored, and nobody said so."""


class LostShardError(AssertionError):
    """A shard that was committed, and is no longer there."""


class HangError(AssertionError):
    """Something that did not end."""


class UntypedError(AssertionError):
    """Something else than one line of ours was raised, or memory ran off."""


def images(n: int = SAMPLES) -> ArrayImages:
    """The digits that the cache is made of."""
    return few_digits(n)


def dump_digits(out: Path, promise: Promise | None = None, n: int = SAMPLES) -> None:
    """Dump both seeds, or go on with it, or let it grow to n samples; tell of each shard that has been committed."""
    write = SeedWriter.write_if_missing

    def settled(self: SeedWriter, shard: int, arrays: Any) -> int:
        commit = write(self, shard, arrays)
        if promise is not None:
            promise(self.seed, shard)
        return commit

    with mock.patch.object(SeedWriter, "write_if_missing", settled):
        dump(out, images(n), recipe_named("digits"), a_teacher(), CONFIG)


@contextmanager
def one_line() -> Iterator[None]:
    """Let errors of ours through, and nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Zarr warns of files that it does not know
            yield
    except (LogitCacheError, WrongNumberError, LostShardError, HangError) as error:
        if "\n" in str(error):
            raise UntypedError(f"more than one line: {error!r}") from error
        raise
    except Exception as error:
        raise UntypedError(f"{type(error).__name__}: {error}") from error


class Truth:
    """What a cache holds that nothing happened to."""

    def __init__(self, path: Path, spools: Path) -> None:
        self.path = path
        reader = CacheReader(path)
        self.spec: CacheSpec = reader.spec
        statistics = reader.statistics()
        assert statistics is not None
        self.statistics, self.completion = statistics, Completion.of(statistics)
        self.about = _about(reader)
        self.layout = RowLayout.of(reader.spec)
        self.shards = {(s, j): reader.read(s, j) for s in SEEDS for j in range(reader.spec.layout.shards)}
        self.canaries = {s: reader.canaries(s) for s in SEEDS}
        self.rows = {s: np.array(open_spool(reader, s, spools)) for s in SEEDS}

    def copy(self, folder: Path) -> Path:
        """Return a copy to be damaged."""
        return Path(shutil.copytree(self.path, folder / "c.zarr"))

    def require_shard(self, reader: CacheReader, seed: int, shard: int) -> None:
        """Read one shard and insist on the right numbers."""
        found, expected = reader.read(seed, shard), self.shards[seed, shard]
        if found.keys() != expected.keys():
            raise WrongNumberError(f"arrays {sorted(found)} of seed {seed}, shard {shard}")
        for name, values in expected.items():
            same = found[name].dtype == values.dtype and np.array_equal(
                found[name], values, equal_nan=values.dtype.kind == "f"
            )
            if not same:
                raise WrongNumberError(f"{name} of seed {seed}, shard {shard}")

    def require_rows(self, reader: CacheReader, spools: Path, seed: int) -> None:
        """Open a spool and insist on the right rows."""
        if not np.array_equal(open_spool(reader, seed, spools), self.rows[seed]):
            raise WrongNumberError(f"rows of the spool of seed {seed}")

    def require_batch(self, reader: CacheReader, spools: Path) -> None:
        """Take a batch of each seed and insist on the right answers."""
        stream = Stream.from_cache(
            reader, images(), spool_folder=spools, batch_size=16, workers=0, device="cpu", seeds=SEEDS
        )
        for epoch in range(len(SEEDS)):
            batch = next(iter(stream.epoch(epoch)))
            (seed,) = set(batch.seeds.tolist())
            rows = torch.from_numpy(self.rows[seed][batch.samples.numpy()])
            expected = SparseTeacher.unpack(rows, self.layout, self.completion)
            assert batch.teacher is not None
            for name in ("ids", "gap", "top", "tail_lse", "tail_mean", "logits"):
                if not torch.equal(getattr(batch.teacher, name), getattr(expected, name)):
                    raise WrongNumberError(f"{name} of a batch of seed {seed}")

    def require_statistics(self, reader: CacheReader) -> None:
        """Read the class statistics, and insist on the right ones."""
        found = reader.statistics()
        if numbers_of(found) != numbers_of(self.statistics):
            raise WrongNumberError("class statistics")

    def require_canaries(self, reader: CacheReader, seed: int) -> None:
        """Read canaries; those of whole shards must be right, of a shard that is refused they are nobody's."""
        for sample, crc in reader.canaries(seed).items():
            if crc != self.canaries[seed].get(sample):
                self.require_shard(reader, seed, self.spec.layout.shard_of(sample))
                raise WrongNumberError(f"canary of sample {sample} under seed {seed}")

    def require_about(self, reader: CacheReader) -> None:
        """Insist that what is said of the cache is so."""
        if (found := _about(reader)) != self.about:
            differ = [key for key in self.about if found.get(key) != self.about[key]]
            raise WrongNumberError(f"what the cache says of itself: {', '.join(differ)}")

    def require_all(self, path: Path, spools: Path, *, about: bool = True) -> list[str]:
        """Read all that there is to read; each is right, or an error of ours, in one line. Return the errors.

        `about`: what the cache says of itself, too, must be right (who crafts one says what he likes).
        """
        said: list[str] = []
        try:
            with one_line():
                reader = CacheReader(path)
        except LogitCacheError as error:
            return [f"{type(error).__name__}: {error}"]
        attempts: list[Callable[[], Any]] = [partial(self.require_about, reader)] if about else []
        attempts.append(partial(self.require_statistics, reader))
        for seed in SEEDS:
            attempts += [
                partial(self.require_canaries, reader, seed),
                partial(self.require_rows, reader, spools, seed),
                *(
                    partial(self.require_shard, reader, seed, shard)
                    for shard in range(self.spec.layout.shards)
                ),
            ]
        attempts.append(partial(self.require_batch, reader, spools))
        for attempt in attempts:
            try:
                with one_line():
                    attempt()
            except LogitCacheError as error:
                said.append(f"{type(error).__name__}: {error}")
        return said

    def require_survived(self, path: Path, promised: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Insist that what was promised is committed, and all that is committed right; return what is committed."""
        committed: set[tuple[int, int]] = set()
        with one_line():
            if not (path / "zarr.json").exists() and not promised:
                return committed
            reader = CacheReader(path)
            for seed in reader.seeds():
                committed |= {(seed, int(shard)) for shard in np.flatnonzero(reader.commits(seed))}
            if lost := promised - committed:
                raise LostShardError(f"seed, shard {sorted(lost)}")
            for seed, shard in committed:
                self.require_shard(reader, seed, shard)
        return committed

    def require_whole(self, path: Path) -> None:
        """Insist that the cache holds all that it was to hold, and go through it as a student would."""
        with one_line():
            self.require_survived(path, set(self.shards))
            reader = CacheReader(path)
            self.require_about(reader)
            for seed in SEEDS:
                self.require_canaries(reader, seed)


def _about(reader: CacheReader) -> dict[str, Any]:
    unsteady = ("path", "seeds", "bytes_on_disk", "bytes_per_sample_view", "class_statistics")
    about = {key: value for key, value in reader.info().items() if key not in unsteady}
    return {**about, "spec": reader.spec.to_dict()}
