"""Reading a cache, and trusting nothing in it."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from logitcache.errors import FormatError, IncompleteError, NotFoundError
from logitcache.schema import CacheSpec
from logitcache.store.disk import local, reading, size_of
from logitcache.store.shards import (
    ATTRIBUTE,
    MOST_SHARDS,
    begun,
    open_array,
    require_shard,
    shard_digest,
)

SEED = re.compile("seed-(0|[1-9][0-9]{0,18})")


class CacheReader:
    """Reads one cache and trusts nothing in it: shapes, digests and class ids are checked.

    Raises:
        NotFoundError: there is no cache at `path`.
        FormatError: what is there is damaged, or newer than this library.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local(path)
        if not (self.path / "zarr.json").is_file():
            raise NotFoundError(f"no cache at {self.path}; `logitcache dump --out {self.path}` makes one")
        with reading(self.path):
            attributes = zarr.open_group(zarr.storage.LocalStore(self.path), mode="r").attrs.asdict()
        if ATTRIBUTE not in attributes:
            raise FormatError(
                f"{self.path} is a Zarr group, but no logitcache: it lacks attrs[{ATTRIBUTE!r}]"
            )
        try:
            self.spec = CacheSpec.from_dict(attributes[ATTRIBUTE])
        except FormatError as error:
            raise FormatError(f"{self.path}: {error}") from error
        if self.spec.shards > MOST_SHARDS:
            raise FormatError(
                f"{self.path}: expected at most {MOST_SHARDS} shards of a seed, found {self.spec.shards}"
            )
        self._opened: dict[int, dict[str, Any]] = {}

    def seeds(self) -> list[int]:
        """List the seeds that have been begun, in rising order."""
        with reading(self.path):
            names = os.listdir(self.path)
        return sorted(int(n[5:]) for n in names if SEED.fullmatch(n) and begun(self.path / n))

    def commits(self, seed: int) -> npt.NDArray[np.uint64]:
        """Return the commit digests of one seed, (shards,) uint64; 0 where a shard is not there."""
        with reading(self.path / f"seed-{seed}"):
            return np.asarray(self._arrays(seed)["commit"][:], dtype=np.uint64)

    def complete(self) -> list[int]:
        """List the seeds whose every shard is committed."""
        return [seed for seed in self.seeds() if self.commits(seed).all()]

    def require(self, seeds: list[int]) -> None:
        """Insist that these seeds are complete.

        Raises:
            IncompleteError: they are not; the message says which are.
        """
        complete = self.complete()
        if missing := [s for s in seeds if s not in complete]:
            raise IncompleteError(
                f"{self.path} lacks {seed_list(missing)}; complete: {seed_list(complete)}; "
                "go on with `logitcache dump`, or choose complete ones with --seeds"
            )

    def read(self, seed: int, shard: int) -> dict[str, npt.NDArray[Any]]:
        """Decode one committed shard: arrays by name, rows of this shard only, in stored dtypes.

        Raises:
            OptionError: the cache has no such shard.
            IncompleteError: the shard is not committed.
            FormatError: its bytes are not what was committed.
        """
        require_shard(self.spec, shard)
        commit = int(self.commits(seed)[shard])
        if not commit:
            raise IncompleteError(f"shard {shard} of seed {seed} of {self.path} is not committed")
        found = {}
        with reading(f"{self.path}, seed {seed}, shard {shard}"):
            for a in self.spec.arrays():
                found[a.name] = np.ascontiguousarray(self._arrays(seed)[a.name][self.spec.place(a, shard)])
        if shard_digest(self.spec, seed, shard, found) != commit:
            raise FormatError(
                f"{self.path}, seed {seed}, shard {shard}: the data is not what was committed; "
                f"delete {self.path / f'seed-{seed}'} and dump that seed again"
            )
        if found["ids"].max() >= self.spec.dataset.num_classes:
            raise FormatError(
                f"{self.path}, seed {seed}, shard {shard}: class {found['ids'].max()} "
                f"of {self.spec.dataset.num_classes}"
            )
        return found

    def canaries(self, seed: int) -> dict[int, int]:
        """Return the view digests of one seed's committed shards: CRC-32 by sample."""
        committed = self.commits(seed)
        with reading(self.path / f"seed-{seed}"):
            digests = np.asarray(self._arrays(seed)["canary"][:])
        return {
            sample: int(crc)
            for shard in np.flatnonzero(committed)
            for sample, crc in zip(self.spec.canary_samples(int(shard)), digests[shard], strict=True)
        }

    def info(self) -> dict[str, Any]:
        """Describe the cache in JSON values: what it holds, how far it is, how large."""
        shards = self.spec.shards
        seeds, views, size = [], 0, 0
        for seed in self.seeds():
            done = np.flatnonzero(self.commits(seed))
            views += sum(len(self.spec.shard_range(int(shard))) for shard in done)
            size += size_of(self.path / f"seed-{seed}")
            seeds.append(
                {"seed": seed, "complete": len(done) == shards, "shards_done": len(done), "shards": shards}
            )
        spec = self.spec.to_dict()
        return {
            "path": str(self.path),
            "format_version": spec["format_version"],
            "teacher": spec["teacher"],
            "dataset": spec["dataset"],
            "recipe": spec["recipe"],
            "n": self.spec.dataset.n,
            "num_classes": self.spec.dataset.num_classes,
            "k": self.spec.k,
            "profile": self.spec.profile.name,
            "seeds": seeds,
            "bytes_on_disk": size + size_of(self.path, recurse=False),
            "bytes_per_sample_view": round(size / views, 2) if views else None,
            "versions": spec["versions"],
        }

    def identity(self, seed: int) -> str:
        """Name what a seed holds, wherever the cache lies: 16 hex digits over spec and commits."""
        text = f"{sorted(self.spec.to_dict().items())}/{seed}/"
        return hashlib.blake2b(text.encode() + self.commits(seed).tobytes(), digest_size=8).hexdigest()

    def _arrays(self, seed: int) -> dict[str, Any]:
        if seed not in self._opened:
            folder = self.path / f"seed-{seed}"
            if not begun(folder):
                raise IncompleteError(f"{self.path} has no seed {seed}; it has {seed_list(self.seeds())}")
            group = zarr.open_group(zarr.storage.LocalStore(folder), mode="r")
            specs = (*self.spec.arrays(), self.spec.commit_array())
            self._opened[seed] = {a.name: open_array(group, a, folder) for a in specs}
        return self._opened[seed]


def seed_list(seeds: list[int]) -> str:
    """Write seeds for people: "seeds 0-3, 7", "seed 5" or "no seed"."""
    if not seeds:
        return "no seed"
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"seed{'s' if len(seeds) > 1 else ''} {text}"
