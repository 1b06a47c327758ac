"""How numbers are rounded before they are stored, and how gaps are coded; docs/format.md has idea and bounds.

Numbers are rounded before the digest of a shard is taken, and rounding them again changes nothing: a shard that is
read and written anew is the same bytes.
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
    odd = (raw >> np.uint32(drop)) & np.uint32(1)
    rounded = (raw + (odd + np.uint32((1 << (drop - 1)) - 1))) & np.uint32(0xFFFFFFFF >> drop << drop)
    result = rounded.view(np.float32)
    return np.where(np.isfinite(result) & np.isfinite(values), result, values)


def code_gaps(gap: npt.NDArray[Any], profile: Profile) -> npt.NDArray[Any]:
    """Code (rows, k) gaps ≥ 0 as the profile stores them: clipped to its range, rounded, as values or differences.

    A difference too large for its dtype is clipped, and those of later ranks are larger by what is missing.

    Raises:
        OptionError: gaps are stored as differences, and fall from one rank to the next.
    """
    stored = np.dtype(profile.stored_gap)
    numbers: npt.NDArray[np.int32]  # gaps as whole numbers
    if profile.gap_step is None:
        dtype = np.dtype(profile.gap_dtype)
        values: npt.NDArray[Any] = np.clip(gap, 0, float(np.finfo(dtype).max)).astype(dtype)
        np.abs(values, out=values)  # −0.0 has other bits
        if profile.gap_coding == "values":
            return values
        numbers = values.view(np.uint16).astype(np.int32)
    else:
        ranks = gap.shape[1] if profile.gap_coding == "differences" else 1
        most = int(np.iinfo(stored).max) * ranks
        clipped = np.clip(gap, 0, most * profile.gap_step).astype(np.float32)
        numbers = np.minimum(np.round(clipped / np.float32(profile.gap_step)), most).astype(np.int32)
        if profile.gap_coding == "values":
            return numbers.astype(stored)
    return _differences(numbers, int(np.iinfo(stored).max)).astype(stored)


def _differences(values: npt.NDArray[np.int32], most: int) -> npt.NDArray[np.int32]:
    """Return the differences from rank to rank of (rows, k) rising numbers, from 0 on, each at most `most`."""
    differences = np.diff(values, axis=1, prepend=0)
    if (differences < 0).any():
        raise OptionError("gaps of a shard: expected them rising along the ranks, found one that falls")
    if (differences > most).any():
        reach = most * np.arange(1, values.shape[1] + 1)  # the largest values that differences of `most` give
        values = np.minimum(np.minimum.accumulate(values - reach, axis=1), 0) + reach
        differences = np.diff(values, axis=1, prepend=0)
    return differences


def decode_gaps(stored: npt.NDArray[Any], profile: Profile) -> npt.NDArray[np.float32]:
    """Return the (rows, k) float32 gaps that are stored so; `SparseTeacher.unpack` is the same in torch."""
    if profile.gap_coding == "differences":
        stored = np.cumsum(stored, axis=1, dtype=np.int32)
        if profile.gap_step is None:
            stored = stored.astype(np.uint16).view(np.float16)
    gap = stored.astype(np.float32)
    return gap if profile.gap_step is None else gap * np.float32(profile.gap_step)


def clipped_gaps(stored: npt.NDArray[Any], profile: Profile) -> npt.NDArray[np.bool_]:
    """Return which of (rows, k) stored gaps are the largest that can be stored, and may have been clipped."""
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
