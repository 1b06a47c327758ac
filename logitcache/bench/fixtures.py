"""Caches of made-up teacher logits: what they hold as `SeedWriter.write` takes it, and as other records hold it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.bench.synthetic import BLOCK, TeacherLogits, open_logits
from logitcache.format.class_statistics import ClassStatistics
from logitcache.format.identity import PROFILES, AdapterSpec, DatasetSpec, RecipeSpec, TeacherSpec
from logitcache.format.schema import SHARD_SAMPLES, CacheSpec
from logitcache.store import CacheWriter
from logitcache.teacher.completion import fit_statistics
from logitcache.teacher.sparse import SparseTeacher

Arrays = dict[str, npt.NDArray[Any]]
Records = npt.NDArray[np.void]
FULL_BLOCKS = 8  # blocks of logits, evenly spaced, of whose views some are kept whole
APART = 8  # one in so many is, to compare distributions with, and another for the class statistics
FIELDS = ("ids", "gap", "top", "tail_lse", "tail_mean")


@dataclass(frozen=True)
class CacheContents:
    """What a cache of one seed holds, and some of the logits that it was made of.

    Attributes:
        spec: of the caches that hold it.
        about: whose logits these are, in words.
        statistics: how the classes vary together, from views that are not among `rows`; None when k = C.
        shards: arrays of each shard, as `SeedWriter.write` takes them.
        records: (n,) the same as TinyViT saves it: a seed, k ids, k float16 probabilities.
        logits: (rows, C) of some samples.
        rows: their numbers.
        top1_probability, tail_mass: means over all samples.
    """

    spec: CacheSpec
    about: str
    statistics: ClassStatistics | None
    shards: list[Arrays]
    records: Records
    logits: Tensor
    rows: npt.NDArray[np.int64]
    top1_probability: float
    tail_mass: float

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.spec.dataset.n

    @classmethod
    def of(cls, logits: TeacherLogits, k: int) -> "CacheContents":
        """Keep k logits of each view."""
        spec = synthetic_spec(logits.n, logits.num_classes, k, shard_samples=min(logits.n, SHARD_SAMPLES))
        parts: list[SparseTeacher] = []
        compared, seen, rows, start = [], [], [], 0
        for number, block in enumerate(logits.blocks()):
            parts.append(SparseTeacher.from_logits(block, spec.k))
            if number % max(1, logits.n // BLOCK // FULL_BLOCKS) == 0:
                compared.append(block[::APART])
                seen.append(block[APART // 2 :: APART])
                rows.append(np.arange(start, start + len(block), APART))
            start += len(block)
        arrays = join_arrays(parts)
        soft = [part.listed_at(1.0) for part in parts]
        p, tail = torch.cat([s.probs for s in soft]), torch.cat([s.tail_mass for s in soft])
        return cls(
            spec,
            logits.about,
            fit_statistics(torch.cat(seen)) if spec.calibrated else None,
            [shard_arrays(arrays, spec, number) for number in range(spec.layout.shards)],
            _tinyvit_records(arrays["ids"], p.numpy(), logits.num_classes),
            torch.cat(compared),
            np.concatenate(rows),
            float(p[:, 0].mean()),
            float(tail.mean()),
        )

    def write(self, path: Path, profile: str) -> None:
        """Write a cache of one seed."""
        spec = dataclasses.replace(self.spec, profile=PROFILES[profile])
        with CacheWriter.open(path, spec, statistics=self.statistics).seed(0) as seed_writer:
            for shard, arrays in enumerate(self.shards):
                seed_writer.write(shard, arrays)


def write_cache(path: Path, n: int, k: int) -> None:
    """Write a cache of `n` made-up views under seed 0."""
    CacheContents.of(open_logits(n, "folder"), k).write(path, "default")


def synthetic_spec(n: int, num_classes: int, k: int, shard_samples: int | None = None) -> CacheSpec:
    """Describe a calibrated cache of made-up logits; by default its shards are as large as `dump` makes them."""
    teacher = TeacherSpec("made-up", "none", "0" * 64, "float32", AdapterSpec(3, 224, (0.5,) * 3, (0.5,) * 3))
    data = DatasetSpec("made-up", "train", n, num_classes, "0" * 64)
    recipe = RecipeSpec("none", 1, ())
    calibrated = k < num_classes
    return CacheSpec.new(
        teacher, data, recipe, k=k, versions={}, shard_samples=shard_samples, calibrated=calibrated
    )


def join_arrays(parts: list[SparseTeacher]) -> Arrays:
    """Join parts of a sparse teacher into arrays as `dump` hands them over."""
    pieces = {name: [getattr(part, name) for part in parts] for name in FIELDS}
    arrays = {name: torch.cat(piece).numpy() for name, piece in pieces.items() if piece[0] is not None}
    return arrays | {"ids": arrays["ids"].astype(np.int32)}


def shard_arrays(arrays: Arrays, spec: CacheSpec, shard: int) -> Arrays:
    """Return the arrays of one shard; where the cache has more samples than `arrays`, these come again."""
    samples = spec.layout.samples_of(shard)
    first = samples.start % len(arrays["top"])
    rows = {name: values[first : first + len(samples)] for name, values in arrays.items()}
    return rows | {"canary": np.ones((1, spec.canaries), np.uint32)}


def _tinyvit_records(ids: npt.NDArray[Any], p: npt.NDArray[Any], num_classes: int) -> Records:
    k = ids.shape[1]
    id_type = "<u2" if num_classes <= 1 << 16 else "<u4"
    records = np.zeros(len(ids), np.dtype([("seed", "<i4"), ("ids", id_type, (k,)), ("p", "<f2", (k,))]))
    records["ids"], records["p"] = ids, p
    return records
