"""One shard in arrays: the form that a spec gives them, their stored values, their digest, their files."""

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
import zarr
from zarr.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from logitcache.errors import FormatError, OptionError
from logitcache.format.quantize import code_gaps, rounded
from logitcache.format.schema import ArraySpec, CacheSpec, itemsize
from logitcache.store.codecs import knowing_codecs, packed, require_codecs, unpacked
from logitcache.store.disk import MENDS, reading

Arrays = Mapping[str, npt.NDArray[Any]]
ATTRIBUTE = "logitcache"  # of the root group: its value is the CacheSpec
DIGEST = "logitcache_digest"  # of the root group: of that value
COMMIT = (
    "commit/zarr.json"  # made last of a seed's metadata: without it, or empty, the seed has not been begun
)
PACKERS = 4  # threads
MOST_SHARDS = 1 << 16  # of one seed: a file each, so more are a mistake or an attack
MOST_SHARD_BYTES = (
    1 << 30
)  # before compression: a reader holds one in memory, and the root is not to be trusted


def require_shard(spec: CacheSpec, shard: int) -> None:
    """Insist that the cache has a shard of this index."""
    if not 0 <= shard < spec.layout.shards:
        raise OptionError(f"no shard {shard}: expected 0 to {spec.layout.shards - 1}")


def seed_arrays(spec: CacheSpec) -> tuple[ArraySpec, ...]:
    """Return the arrays of one seed; `commit` last, as it is written last."""
    return (*spec.arrays(), spec.commit_array())


def metadata_files(spec: CacheSpec) -> list[str]:
    """Return the metadata files of one seed, as its folder names them; `COMMIT` last, as it is made last."""
    return ["zarr.json", *(f"{a.name}/zarr.json" for a in seed_arrays(spec))]


def shard_file(array: ArraySpec, shard: int) -> str:
    """Return the file that holds one shard of an array, as its seed's folder names it."""
    return f"{array.name}/c/" + "/".join([str(shard), *("0" for _ in array.shape[1:])])


def shard_files(spec: CacheSpec, shard: int) -> list[str]:
    """Return the files of one shard, its commit last; of an array that is all zeros there may be none."""
    return [shard_file(a, shard) for a in seed_arrays(spec)]


def most_bytes(spec: CacheSpec) -> int:
    """Return more bytes than any file of a shard can have: twice the array's own, and something for framing."""
    return max(2 * itemsize(a.dtype) * math.prod(a.shards or a.chunks) for a in seed_arrays(spec)) + (1 << 20)


def root_attributes(spec: CacheSpec) -> dict[str, Any]:
    """Return the attributes of a root group: what the cache is, and the digest of that."""
    about = spec.to_dict()
    return {ATTRIBUTE: about, DIGEST: _root_digest(about)}


def root_spec(attributes: Mapping[str, Any], where: object) -> CacheSpec:
    """Parse the attributes of a root group, which nobody vouches for.

    Raises:
        FormatError: it is no cache, a newer one, or damaged.
    """
    if ATTRIBUTE not in attributes:
        raise FormatError(f"{where} is a Zarr group, but no logitcache: it lacks attrs[{ATTRIBUTE!r}]")
    about = attributes[ATTRIBUTE]
    try:
        spec = CacheSpec.from_dict(about)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    if (found := attributes.get(DIGEST)) != (expected := _root_digest(about)):
        raise FormatError(
            f"{where}: damaged: attrs[{DIGEST!r}] is {str(found)[:40]!r}, and {expected!r} by what the root says; "
            "restore its zarr.json from a copy"
        )
    if spec.layout.shards > MOST_SHARDS:
        raise FormatError(
            f"{where}: expected at most {MOST_SHARDS} shards of a seed, found {spec.layout.shards}"
        )
    if (size := spec.shard_samples * spec.sample_bytes) > MOST_SHARD_BYTES:
        raise FormatError(f"{where}: expected shards of at most {MOST_SHARD_BYTES} bytes, found {size}")
    return spec


def _root_digest(about: object) -> str:
    """Digest what the root says: a changed byte in it must not change what numbers mean."""
    return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()


def seed_shards(files: Mapping[str, bytes], spec: CacheSpec, where: object) -> int:
    """Insist on the form of one seed's arrays by its metadata files; return how many shards they are long enough for.

    That may be the number of before the data grew: `commit` is lengthened last.
    """
    forms = zip(*map(seed_arrays, spec.history()), strict=True)
    with knowing_codecs(spec):
        group = opened(files)
        lengths = {now.name: require_form(group, (*then, now), where) for *then, now in forms}
    (held,) = (state for state in spec.history() if state.layout.shards == lengths["commit"])
    if short := [a.name for a in seed_arrays(held) if lengths[a.name] < a.shape[0]]:
        raise FormatError(f"{where}: array {short[0]!r} is shorter than 'commit', which is lengthened last")
    return held.layout.shards


def opened(files: Mapping[str, bytes]) -> zarr.Group:
    """Open a group by its metadata files."""
    return zarr.open_group(MemoryStore({n: Buffer.from_bytes(data) for n, data in files.items()}), mode="r")


def require_form(
    group: zarr.Group, forms: Sequence[ArraySpec], where: object, *, longer: bool = False
) -> int:
    """Insist that an array has one of these forms, the last one or `longer`; return how long it is."""
    name = forms[-1].name
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise FormatError(f"{where}: array {name!r} is missing")
    shape = forms[-1].shape if longer and array.shape[:1] > forms[-1].shape[:1] else array.shape
    found = (shape, str(array.dtype), array.chunks, array.shards, float(array.fill_value))
    wanted = [(form.shape, form.dtype, form.chunks, form.shards, 0.0) for form in forms]
    if found not in wanted:
        raise FormatError(
            f"{where}: array {name!r}: "
            f"expected shape, dtype, chunks, shards, fill value {wanted[-1]}, found {found}"
        )
    require_codecs(array, forms[-1], where)
    return int(array.shape[0])


def as_stored(values: npt.NDArray[Any], array: ArraySpec, spec: CacheSpec, shard: int) -> npt.NDArray[Any]:
    """Bring one array of a shard to its stored dtype; numbers are rounded as the profile says.

    Raises:
        OptionError: its shape is not the shard's, it names classes that are not there, or its gaps fall.
    """
    place = spec.slice_of(array, shard)
    shape = (place.stop - place.start, *array.shape[1:])
    if (found := np.shape(values)) != shape:
        raise OptionError(f"array {array.name!r} of a shard: expected shape {shape}, found {found}")
    if array.name == "gap":
        values = code_gaps(values, spec.profile)
    elif array.dtype == "float32":
        values = rounded(values, spec.profile.scalar_bits)
    if array.name == "ids" and not 0 <= np.min(values) <= np.max(values) < spec.dataset.num_classes:
        raise OptionError(
            f"ids of a shard: expected classes 0 to {spec.dataset.num_classes - 1}, "
            f"found {np.min(values)} to {np.max(values)}"
        )
    return np.ascontiguousarray(values, dtype=array.dtype)


def shard_digest(spec: CacheSpec, seed: int, shard: int, stored: Arrays) -> int:
    """Digest one shard: XXH3-64 over whose it is, then each array's name and little-endian bytes; never 0.

    Whose: teacher, data, recipe, how to decode it, and its place. A shard of another cache, seed or place is not
    taken for this one, whatever it holds.
    """
    t, p, classes = spec.teacher, spec.profile, spec.dataset.num_classes
    whose = (
        t.weights_sha256,
        t.precision,
        spec.layout.fingerprint_of(shard),
        spec.recipe_sha256,
        classes,
        spec.k,
    )
    text = "/".join(map(str, (*whose, seed, shard, p.gap_coding)))
    digest = xxhash.xxh3_64(text.encode())
    digest.update(struct.pack("<d", p.gap_step or 0.0))
    for a in spec.arrays():
        digest.update(a.name.encode())
        digest.update(np.ascontiguousarray(stored[a.name], dtype=np.dtype(a.dtype).newbyteorder("<")).data)
    return digest.intdigest() or 1


def packed_shard(arrays: Arrays, spec: CacheSpec, seed: int, shard: int) -> tuple[int, dict[str, bytes]]:
    """Return the commit digest of one shard, and its files by their names in the seed's folder; none for zeros alone.

    Raises:
        OptionError: the arrays are not such as the shard has.
    """
    forms = spec.arrays()
    with ThreadPoolExecutor(
        PACKERS, "pack"
    ) as threads:  # NumPy, digest and compressors let go of Python's lock
        made = threads.map(lambda a: as_stored(arrays[a.name], a, spec, shard), forms)
        stored = {a.name: values for a, values in zip(forms, made, strict=True)}
        digest = threads.submit(shard_digest, spec, seed, shard, stored)
        files = threads.map(lambda a: packed(stored[a.name], a), forms)
        found = {shard_file(a, shard): file for a, file in zip(forms, files, strict=True) if file is not None}
        return digest.result(), found


def stored_shard(files: Mapping[str, bytes], spec: CacheSpec, shard: int) -> dict[str, npt.NDArray[Any]]:
    """Unpack the files of one shard: arrays by name, rows of this shard only, in stored dtypes."""
    rows = {a.name: spec.slice_of(a, shard) for a in spec.arrays()}
    return {
        a.name: unpacked(files.get(shard_file(a, shard)), a, rows[a.name].stop - rows[a.name].start)
        for a in spec.arrays()
    }


def commit_file(spec: CacheSpec, digest: int) -> bytes:
    """Return the file of a commit."""
    array = spec.commit_array()
    file = packed(np.array([digest], array.dtype), array)
    assert file is not None  # no digest is 0
    return file


def commit_entry(files: Mapping[str, bytes], spec: CacheSpec, shard: int) -> int:
    """Return the commit digest of one shard by its files; 0 where it is not there."""
    array = spec.commit_array()
    return int(unpacked(files.get(shard_file(array, shard)), array, 1)[0])


def checked_shard(
    files: Mapping[str, bytes], commit: int, spec: CacheSpec, seed: int, shard: int, where: object
) -> dict[str, npt.NDArray[Any]]:
    """Unpack the files of one shard as `stored_shard`, and insist that they hold what was committed.

    Raises:
        FormatError: they are damaged, or not what `commit` is the digest of.
    """
    name = f"{where}, seed {seed}, shard {shard}"
    with reading(name):
        found = stored_shard(files, spec, shard)
    if shard_digest(spec, seed, shard, found) != commit:
        raise FormatError(f"{name}: the data is not what was committed; {MENDS}")
    if found["ids"].max() >= spec.dataset.num_classes:
        raise FormatError(f"{name}: class {found['ids'].max()} of {spec.dataset.num_classes}")
    return found
