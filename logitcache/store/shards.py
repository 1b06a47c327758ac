"""One shard in arrays: the form that a spec gives them, their stored values, their digest, their files."""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from logitcache.errors import FormatError, OptionError
from logitcache.schema import ArraySpec, CacheSpec

Arrays = Mapping[str, npt.NDArray[Any]]
ATTRIBUTE = "logitcache"  # of the root group: its value is the CacheSpec
MOST_SHARDS = 1 << 16  # of one seed: a file each, so more are a mistake or an attack


def begun(folder: Path) -> bool:
    """Has this seed its arrays? `commit` is made last, and a power cut may leave its file empty."""
    file = folder / "commit" / "zarr.json"
    return file.is_file() and file.stat().st_size > 0


def require_shard(spec: CacheSpec, shard: int) -> None:
    """Insist that the cache has a shard of this index."""
    if not 0 <= shard < spec.shards:
        raise OptionError(f"no shard {shard}: expected 0 to {spec.shards - 1}")


def open_array(group: zarr.Group, expected: ArraySpec, folder: Path) -> Any:
    """Open one array and insist on the form that the spec gives it."""
    array = group.get(expected.name)
    if not isinstance(array, zarr.Array):
        raise FormatError(f"{folder}: array {expected.name!r} is missing")
    found = (array.shape, str(array.dtype), array.chunks, array.shards, float(array.fill_value))
    wanted = (expected.shape, expected.dtype, expected.chunks, expected.shards, 0.0)
    if found != wanted:
        raise FormatError(
            f"{folder}: array {expected.name!r}: "
            f"expected shape, dtype, chunks, shards, fill value {wanted}, found {found}"
        )
    return array


def as_stored(values: npt.NDArray[Any], array: ArraySpec, spec: CacheSpec, shard: int) -> npt.NDArray[Any]:
    """Bring one array of a shard to its stored dtype; gaps are rounded, quantised, clipped to its range.

    Raises:
        OptionError: its shape is not the shard's, or it names classes that are not there.
    """
    place = spec.place(array, shard)
    shape = (place.stop - place.start, *array.shape[1:])
    if (found := np.shape(values)) != shape:
        raise OptionError(f"array {array.name!r} of a shard: expected shape {shape}, found {found}")
    if array.name == "gap":
        dtype, step = np.dtype(array.dtype), spec.profile.gap_step
        most = np.iinfo(dtype).max if dtype.kind == "u" else np.finfo(dtype).max
        values = np.clip(values, 0, float(most) * (step or 1.0))
        if step is not None:
            values = np.round(np.asarray(values, dtype=np.float32) / step)
    if array.name == "ids" and not 0 <= np.min(values) <= np.max(values) < spec.dataset.num_classes:
        raise OptionError(
            f"ids of a shard: expected classes 0 to {spec.dataset.num_classes - 1}, "
            f"found {np.min(values)} to {np.max(values)}"
        )
    return np.ascontiguousarray(values, dtype=array.dtype)


def shard_digest(spec: CacheSpec, seed: int, shard: int, stored: Arrays) -> int:
    """Digest one shard: BLAKE2b-64 over whose it is, then each array's name and little-endian bytes; never 0.

    Whose: teacher, data, recipe, how to decode it, and its place. A shard of another cache, seed or place is not
    taken for this one, whatever it holds.
    """
    t, d, p = spec.teacher, spec.dataset, spec.profile
    whose = (t.weights_sha256, t.precision, d.fingerprint, spec.recipe_sha256, d.num_classes, spec.k)
    digest = hashlib.blake2b("/".join(map(str, (*whose, seed, shard))).encode(), digest_size=8)
    digest.update(struct.pack("<d", p.gap_step or 0.0))
    for a in spec.arrays():
        digest.update(a.name.encode())
        digest.update(np.ascontiguousarray(stored[a.name], dtype=np.dtype(a.dtype).newbyteorder("<")).data)
    return int.from_bytes(digest.digest(), "little") or 1


def shard_file(folder: Path, array: ArraySpec, shard: int) -> Path:
    """Return the file that holds one shard of an array."""
    return folder / array.name / "c" / "/".join([str(shard), *("0" for _ in array.shape[1:])])
