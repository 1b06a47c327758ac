"""Made-up answers, ready to be written: as a cache takes them, and as other people's records hold them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.bench.synthetic import BLOCK, Answers, answers
from logitcache.format.identity import PROFILES, AdapterSpec, DatasetSpec, RecipeSpec, TeacherSpec
from logitcache.format.schema import SHARD_SAMPLES, CacheSpec
from logitcache.store import CacheWriter
from logitcache.teacher.sparse import SparseTeacher

Arrays = dict[str, npt.NDArray[Any]]
Records = npt.NDArray[np.void]
SAMPLED = 8  # blocks of answers, evenly spaced, are kept whole, to compare distributions with
FIELDS = ("ids", "gap", "top", "tail_lse", "tail_mean", "tail_var")


@dataclass(frozen=True)
class Made:
    """Answers as `SeedWriter.write` takes them, one dictionary per shard, and some of the logits they are of.

    Attributes:
        spec: of the caches that hold them.
        about: what they are, in words.
        shards: arrays of each shard.
        records: (n,) the same answers as TinyViT saves them: a seed, k ids, k float16 probabilities.
        logits: (rows, C) of some samples.
        rows: their numbers.
        top1_probability, tail_mass: means over all samples.
    """

    spec: CacheSpec
    about: str
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
    def of(cls, said: Answers, k: int) -> "Made":
        """Keep k logits of each answer."""
        spec = cache_spec(said.n, said.num_classes, k, shard_samples=min(said.n, SHARD_SAMPLES))
        parts: list[SparseTeacher] = []
        whole, rows, start = [], [], 0
        for number, block in enumerate(said.blocks()):
            parts.append(SparseTeacher.from_logits(block, spec.k))
            if number % max(1, said.n // BLOCK // SAMPLED) == 0:
                whole.append(block)
                rows.append(np.arange(start, start + len(block)))
            start += len(block)
        arrays = joined(parts)
        soft = [part.at(1.0) for part in parts]
        p, tail = torch.cat([s.probs for s in soft]), torch.cat([s.tail_mass for s in soft])
        return cls(
            spec,
            said.about,
            [shard_of(arrays, spec, number) for number in range(spec.layout.shards)],
            _records(arrays["ids"], p.numpy(), said.num_classes),
            torch.cat(whole),
            np.concatenate(rows),
            float(p[:, 0].mean()),
            float(tail.mean()),
        )

    def write(self, path: Path, profile: str) -> None:
        """Write a cache of one seed."""
        spec = dataclasses.replace(self.spec, profile=PROFILES[profile])
        with CacheWriter.open(path, spec).seed(0) as own:
            for shard, arrays in enumerate(self.shards):
                own.write(shard, arrays)


def write_cache(path: Path, n: int, k: int) -> None:
    """Write a cache of `n` made-up answers under seed 0."""
    Made.of(answers(n, "folder"), k).write(path, "default")


def cache_spec(n: int, num_classes: int, k: int, shard_samples: int | None = None) -> CacheSpec:
    """Describe a cache of made-up answers; shards are as large as `dump` makes them unless said."""
    teacher = TeacherSpec("made-up", "none", "0" * 64, "float32", AdapterSpec(3, 224, (0.5,) * 3, (0.5,) * 3))
    data = DatasetSpec("made-up", "train", n, num_classes, "0" * 64)
    recipe = RecipeSpec("none", 1, ())
    return CacheSpec.new(teacher, data, recipe, k=k, versions={}, shard_samples=shard_samples)


def joined(parts: list[SparseTeacher]) -> Arrays:
    """Join answers into arrays as `dump` hands them over."""
    pieces = {name: [getattr(part, name) for part in parts] for name in FIELDS}
    arrays = {name: torch.cat(piece).numpy() for name, piece in pieces.items() if piece[0] is not None}
    return arrays | {"ids": arrays["ids"].astype(np.int32)}


def shard_of(arrays: Arrays, spec: CacheSpec, shard: int) -> Arrays:
    """Return the arrays of one shard; where answers are fewer than samples, whole shards of them come again."""
    samples = spec.layout.samples_of(shard)
    first = samples.start % len(arrays["top"])
    rows = {name: values[first : first + len(samples)] for name, values in arrays.items()}
    return rows | {"canary": np.ones((1, spec.canaries), np.uint32)}


def _records(ids: npt.NDArray[Any], p: npt.NDArray[Any], num_classes: int) -> Records:
    k = ids.shape[1]
    whole = "<u2" if num_classes <= 1 << 16 else "<u4"
    made = np.zeros(len(ids), np.dtype([("seed", "<i4"), ("ids", whole, (k,)), ("p", "<f2", (k,))]))
    made["ids"], made["p"] = ids, p
    return made
