"""What the numbers of a valid shard satisfy, whatever the teacher: docs/format.md, section 4, in code.

Checksums and digests show that a shard is what was written, and find a broken disk. These invariants show that what
was written can be a teacher's output, and find a broken writer.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from logitcache.format.quantize import decode_gaps, gap_error, scalar_error
from logitcache.format.schema import CacheSpec
from logitcache.store.shards import Arrays

BLOCK = 16_384  # rows checked at a time, to save memory
FLOAT32_SUMS = 2.0**-16  # relative: the error that sums over C float32 numbers may have, in any order

Flags = npt.NDArray[np.bool_]


class BrokenInvariant(NamedTuple):
    """An invariant that rows of a shard break: how many do, and the first of them, counted from the shard's first."""

    invariant: str
    rows: int
    first: int


def check_invariants(spec: CacheSpec, shard: int, arrays: Arrays) -> list[BrokenInvariant]:
    """Return the invariants that one shard's stored arrays break; none if it is valid."""
    rows = len(arrays["top"])
    found: dict[str, BrokenInvariant] = {}
    for start in range(0, rows, BLOCK):
        block = {name: values[start : start + BLOCK] for name, values in arrays.items() if name != "canary"}
        for invariant, wrong in _check_rows(spec, block):
            if count := int(wrong.sum()):
                broken = found.get(invariant, BrokenInvariant(invariant, 0, start + int(wrong.argmax())))
                found[invariant] = broken._replace(rows=broken.rows + count)
    return [*found.values(), *_check_canaries(spec, shard, arrays)]


def _check_rows(spec: CacheSpec, arrays: Arrays) -> Iterator[tuple[str, Flags]]:
    """Yield each invariant and the rows that break it, (rows,) bool; some of these are left out of later ones."""
    ids, top = arrays["ids"], arrays["top"]
    yield "ids are classes", np.any(ids >= spec.dataset.num_classes, axis=1)
    valid = ~np.isnan(top)  # the rest of an invalid sample may be anything
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
    tail = {name: values.astype(np.float32) for name, values in arrays.items() if name.startswith("tail_")}
    lse, mean = tail["tail_lse"], tail["tail_mean"]
    sound = np.all([np.isfinite(values) for values in tail.values()], axis=0)
    yield "tail numbers are finite", valid & ~sound
    valid &= sound
    if not spec.calibrated:
        yield "tail_var is not negative", valid & (tail["tail_var"] < 0)
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


def _check_canaries(spec: CacheSpec, shard: int, arrays: Arrays) -> Iterator[BrokenInvariant]:
    rows = np.array(spec.layout.canary_samples(shard)) - spec.layout.samples_of(shard).start
    wrong = (arrays["canary"][0] == 0) != np.isnan(arrays["top"][rows])
    if wrong.any():
        name = "canaries are 0 where top is NaN, and only there"
        yield BrokenInvariant(name, int(wrong.sum()), int(rows[wrong][0]))
