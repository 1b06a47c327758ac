"""How numbers are rounded before they are stored, and what stored gaps stand for: idea and bounds in docs/format.md.

Rounding happens once, before the digest of a shard is taken, so a shard is the same bytes however often its
numbers pass through here: rounding what is rounded changes nothing.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from logitcache.errors import OptionError
from logitcache.format.identity import Profile


def round_mantissa(values: npt.NDArray[Any], bits: int) -> npt.NDArray[np.float32]:
    """Round float32 values to `bits` explicit bits of mantissa, ties to even; relative error at most 2^−(bits + 1).

    NaN, infinities, and values that would round to infinity stay as they are.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if bits == 23:
        return values
    drop = 23 - bits
    raw = values.view(np.uint32)
    up = (raw >> np.uint32(drop)) & np.uint32(1)
    short = (raw + (up + np.uint32((1 << (drop - 1)) - 1))) & np.uint32(0xFFFFFFFF >> drop << drop)
    result = short.view(np.float32)
    return np.where(np.isfinite(result) & np.isfinite(values), result, values)


def code_gaps(gap: npt.NDArray[Any], profile: Profile) -> npt.NDArray[Any]:
    """Code (rows, k) gaps ≥ 0 as the profile stores them: clipped to its range, rounded, perhaps as differences.

    A difference too large for its dtype is clipped, and the ranks after it make up for what is missing.

    Raises:
        OptionError: gaps are stored as differences, and fall from one rank to the next.
    """
    stored = np.dtype(profile.stored_gap)
    whole: npt.NDArray[np.int32]
    if profile.gap_step is None:
        dtype = np.dtype(profile.gap_dtype)
        codes: npt.NDArray[Any] = np.clip(gap, 0, float(np.finfo(dtype).max)).astype(dtype)
        np.abs(codes, out=codes)  # −0.0 has other bits
        if profile.gap_coding == "values":
            return codes
        whole = codes.view(np.uint16).astype(np.int32)
    else:
        ranks = gap.shape[1] if profile.gap_coding == "differences" else 1
        furthest = int(np.iinfo(stored).max) * ranks
        short = np.clip(gap, 0, furthest * profile.gap_step).astype(np.float32)
        whole = np.minimum(np.round(short / np.float32(profile.gap_step)), furthest).astype(np.int32)
        if profile.gap_coding == "values":
            return whole.astype(stored)
    return _differences(whole, int(np.iinfo(stored).max)).astype(stored)


def _differences(whole: npt.NDArray[np.int32], most: int) -> npt.NDArray[np.int32]:
    """Take (rows, k) rising numbers apart into steps from rank to rank, from 0 on, of `most` or less."""
    steps = np.diff(whole, axis=1, prepend=0)
    if (steps < 0).any():
        raise OptionError("gaps of a shard: expected them rising along the ranks, found one that falls")
    if (steps > most).any():
        reach = most * np.arange(1, whole.shape[1] + 1)  # nothing gets further by steps of `most`
        whole = np.minimum(np.minimum.accumulate(whole - reach, axis=1), 0) + reach
        steps = np.diff(whole, axis=1, prepend=0)
    return steps


def decode_gaps(stored: npt.NDArray[Any], profile: Profile) -> npt.NDArray[np.float32]:
    """Return the (rows, k) float32 gaps that stored ones stand for; `SparseTeacher.unpack` does so in torch."""
    if profile.gap_coding == "differences":
        stored = np.cumsum(stored, axis=1, dtype=np.int32)
        if profile.gap_step is None:
            stored = stored.astype(np.uint16).view(np.float16)
    gap = stored.astype(np.float32)
    return gap if profile.gap_step is None else gap * np.float32(profile.gap_step)


def clipped_gaps(stored: npt.NDArray[Any], profile: Profile) -> npt.NDArray[np.bool_]:
    """Say which of (rows, k) stored gaps may stand for larger ones, being the largest that could be stored."""
    if profile.gap_step is None:
        largest: npt.NDArray[np.bool_] = decode_gaps(stored, profile) == np.finfo(profile.gap_dtype).max
        return largest
    return np.asarray(stored == np.iinfo(stored.dtype).max)


def gap_error(gap: npt.NDArray[np.float32], profile: Profile) -> npt.NDArray[np.float32]:
    """Return the most by which rounding may have changed gaps that were not clipped."""
    if profile.gap_step is not None:
        return np.full_like(gap, profile.gap_step / 2)
    kind = np.finfo(profile.gap_dtype)
    return np.abs(gap) * np.float32(kind.eps / 2) + np.float32(kind.smallest_subnormal / 2)


def scalar_error(values: npt.NDArray[np.float32], profile: Profile) -> npt.NDArray[np.float32]:
    """Return the most by which rounding may have changed `top` or numbers of the tail."""
    return np.abs(values) * np.float32(2.0 ** -(profile.scalar_bits + 1)) + np.float32(2.0**-149)
