"""What the numbers of a valid shard satisfy, whatever teacher they are of; `docs/format.md`, section 4, in code.

Checksums and digests prove that a shard is what was written. These rules prove that what was written can be a
teacher's answer: they find a broken writer, where digests find a broken disk.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from logitcache.format.quantize import decode_gaps, gap_error, scalar_error
from logitcache.format.schema import CacheSpec
from logitcache.store import Arrays

BLOCK = 16_384  # rows judged at a time: what a check needs beside the shard itself stays small
FLOAT32_SUMS = 2.0**-16  # relative: how far sums over C float32 numbers may be off, in whatever order

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


class Broken(NamedTuple):
    """One rule that rows of a shard break: how many do, and the first, counted from the shard's first row."""

    rule: str
    rows: int
    first: int


def check_invariants(spec: CacheSpec, shard: int, arrays: Arrays) -> list[Broken]:
    """Judge one shard's stored arrays; an empty list says that it is valid."""
    rows = len(arrays["top"])
    found: dict[str, Broken] = {}
    for start in range(0, rows, BLOCK):
        block = {name: values[start : start + BLOCK] for name, values in arrays.items() if name != "canary"}
        for rule, wrong in _rows_breaking(spec, block):
            if count := int(wrong.sum()):
                first = found.get(rule, Broken(rule, 0, start + int(wrong.argmax())))
                found[rule] = first._replace(rows=first.rows + count)
    return [*found.values(), *_canary_rule(spec, shard, arrays)]


def _rows_breaking(spec: CacheSpec, arrays: Arrays) -> Iterator[tuple[str, Flags]]:
    """Yield each rule and the rows that break it, (rows,) bool; a row that breaks one is not held to later ones."""
    ids, top = arrays["ids"], arrays["top"]
    yield "ids are classes", np.any(ids >= spec.dataset.num_classes, axis=1)
    valid = ~np.isnan(top)  # of an invalid sample the rest may be anything
    ordered = np.sort(ids, axis=1)
    yield "ids are distinct", valid & (ordered[:, 1:] == ordered[:, :-1]).any(1)
    yield "top is finite", np.isinf(top)
    gap = decode_gaps(arrays["gap"], spec.profile)
    sound = np.isfinite(gap).all(1)
    yield "gaps are finite", valid & ~sound
    valid &= sound
    yield "gaps begin with 0", valid & (gap[:, 0] != 0)
    yield "gaps do not fall", valid & (gap[:, 1:] < gap[:, :-1]).any(1)
    if not spec.tail_size:
        return
    lse, mean, var = (arrays[f"tail_{name}"].astype(np.float32) for name in ("lse", "mean", "var"))
    sound = np.isfinite(lse) & np.isfinite(mean) & np.isfinite(var)
    yield "tail numbers are finite", valid & ~sound
    valid &= sound
    yield "tail_var is not negative", valid & (var < 0)
    last, log_size = gap[:, -1], np.float32(math.log(spec.tail_size))
    off_last = gap_error(last, spec.profile)
    off_lse, off_mean = (scalar_error(values, spec.profile) for values in (lse, mean))
    with np.errstate(over="ignore"):
        sums = FLOAT32_SUMS * (1 + np.abs(lse) + np.abs(mean) + log_size)
    yield "tail_mean is at most −(last gap)", valid & (mean > -last + off_last + off_mean + sums)
    yield (
        "tail_lse is at most log(C − k) − (last gap)",
        valid & (lse > log_size - last + off_last + off_lse + sums),
    )
    yield (
        "tail_lse is at least log(C − k) + tail_mean",
        valid & (lse < log_size + mean - off_lse - off_mean - sums),
    )


def _canary_rule(spec: CacheSpec, shard: int, arrays: Arrays) -> Iterator[Broken]:
    rows = np.array(spec.layout.canary_samples(shard)) - spec.layout.samples_of(shard).start
    wrong = (arrays["canary"][0] == 0) != np.isnan(arrays["top"][rows])
    if wrong.any():
        yield Broken("canaries are 0 where top is NaN, and only there", int(wrong.sum()), int(rows[wrong][0]))
