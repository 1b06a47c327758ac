"""One shard: the form of its arrays, their stored values, their digest, their files."""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
import zarr
from zarr.abc.buffer import Buffer as AnyBuffer
from zarr.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from logitcache.errors import FormatError, OptionError
from logitcache.format.quantize import code_gaps, round_mantissa
from logitcache.format.schema import ArraySpec, CacheSpec, itemsize
from logitcache.store.codecs import codec_arguments, pack, profile_codecs, require_codecs, unpack
from logitcache.store.disk import HOW_TO_MEND, reading

Arrays = Mapping[str, npt.NDArray[Any]]
ATTRIBUTE = "logitcache"  # of the root group: its value is the CacheSpec
DIGEST = "logitcache_digest"  # of the root group: of that value
COMMIT = (
    "commit/zarr.json"  # written last of a seed's metadata: without it, or empty, the seed has not been begun
)
PACKERS = 4  # threads
MOST_SHARDS = 1 << 16  # of one seed: a file each, so more are a mistake or an attack
MOST_SHARD_BYTES = 1 << 30  # before compression: a reader holds a shard in memory, whatever the root says


def require_shard(spec: CacheSpec, shard: int) -> None:
    """Check that the cache has a shard of this index.

    Raises:
        OptionError: it has not.
    """
    if not 0 <= shard < spec.layout.shards:
        raise OptionError(f"no shard {shard}: expected 0 to {spec.layout.shards - 1}")


def seed_arrays(spec: CacheSpec) -> tuple[ArraySpec, ...]:
    """Return the arrays of one seed, in the order in which they are written: `commit` last."""
    return (*spec.arrays(), spec.commit_array())


def metadata_files(spec: CacheSpec) -> list[str]:
    """Return the names of one seed's metadata files in its folder, `COMMIT` last."""
    return ["zarr.json", *(f"{a.name}/zarr.json" for a in seed_arrays(spec))]


def shard_file(array: ArraySpec, shard: int) -> str:
    """Return the name of the file that holds one shard of an array, in its seed's folder."""
    return f"{array.name}/c/" + "/".join([str(shard), *("0" for _ in array.shape[1:])])


def shard_files(spec: CacheSpec, shard: int) -> list[str]:
    """Return the names of one shard's files, its commit last; an array that is all zeros may have none."""
    return [shard_file(a, shard) for a in seed_arrays(spec)]


def most_bytes(spec: CacheSpec) -> int:
    """Return more bytes than any file of a shard can have: twice those of the array, and 1 MiB for framing."""
    return max(2 * itemsize(a.dtype) * math.prod(a.shards or a.chunks) for a in seed_arrays(spec)) + (1 << 20)


def root_attributes(spec: CacheSpec) -> dict[str, Any]:
    """Return the attributes of the root group: the spec, and its digest."""
    value = spec.to_dict()
    return {ATTRIBUTE: value, DIGEST: _root_digest(value)}


def parse_root(attributes: Mapping[str, Any], where: object) -> CacheSpec:
    """Parse the attributes of a root group.

    Raises:
        FormatError: it is no cache, a newer one, or damaged.
    """
    if ATTRIBUTE not in attributes:
        raise FormatError(
            f"{where} is a Zarr group, but no logitcache: it lacks attrs[{ATTRIBUTE!r}]; name a whole cache"
        )
    value = attributes[ATTRIBUTE]
    try:
        spec = CacheSpec.from_dict(value)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    if (found := attributes.get(DIGEST)) != (expected := _root_digest(value)):
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


def _root_digest(value: object) -> str:
    """Return the digest of the root's spec: no changed byte in it must change what numbers mean."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def count_shards(files: Mapping[str, bytes], spec: CacheSpec, where: object) -> int:
    """Check the form of one seed's arrays by its metadata files; return how many shards they are long enough for.

    That may be how many there were before the data set grew: `commit` is lengthened last.

    Raises:
        FormatError: an array is missing or has another form.
    """
    forms = zip(*map(seed_arrays, spec.history()), strict=True)
    with profile_codecs(spec):
        group = open_group(files)
        lengths = {now.name: require_form(group, (*earlier, now), where) for *earlier, now in forms}
    (state,) = (state for state in spec.history() if state.layout.shards == lengths["commit"])
    if short := [a.name for a in seed_arrays(state) if lengths[a.name] < a.shape[0]]:
        raise FormatError(f"{where}: array {short[0]!r} is shorter than 'commit', which is lengthened last")
    return state.layout.shards


def group_metadata(
    arrays: Iterable[ArraySpec], attributes: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """Return the metadata files of a group of arrays, as Zarr makes them."""
    files: dict[str, AnyBuffer] = {}
    group = zarr.create_group(MemoryStore(files), attributes=dict(attributes or {}))
    for array in arrays:
        group.create_array(
            array.name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=array.chunks,
            shards=array.shards,
            dimension_names=array.dimensions,
            fill_value=0,
            **codec_arguments(array),
        )
    return {name: data.to_bytes() for name, data in files.items()}


def open_group(files: Mapping[str, bytes]) -> zarr.Group:
    """Open a group whose metadata files are in memory.

    Damaged ones raise exceptions of every kind, but none of the disk: call it within `disk.reading`.
    """
    try:
        return zarr.open_group(
            MemoryStore({n: Buffer.from_bytes(data) for n, data in files.items()}), mode="r"
        )
    except OSError as error:  # so Zarr calls metadata that says it is no group's
        raise ValueError("zarr.json is not that of a group") from error


def require_form(
    group: zarr.Group, forms: Sequence[ArraySpec], where: object, *, longer: bool = False
) -> int:
    """Check that an array has one of these forms, or with `longer` is longer than the last; return its length.

    Raises:
        FormatError: it is missing or has another form.
    """
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


def to_stored(values: npt.NDArray[Any], array: ArraySpec, spec: CacheSpec, shard: int) -> npt.NDArray[Any]:
    """Convert one array of a shard to its stored dtype; numbers are rounded as the profile says.

    Raises:
        OptionError: its shape is not the shard's, a class id is out of range, or gaps fall from rank to rank.
    """
    rows = spec.slice_of(array, shard)
    shape = (rows.stop - rows.start, *array.shape[1:])
    if (found := np.shape(values)) != shape:
        raise OptionError(f"array {array.name!r} of a shard: expected shape {shape}, found {found}")
    if array.name == "gap":
        values = code_gaps(values, spec.profile)
    elif array.dtype == "float32":
        values = round_mantissa(values, spec.profile.scalar_bits)
    if array.name == "ids" and not 0 <= np.min(values) <= np.max(values) < spec.dataset.num_classes:
        raise OptionError(
            f"ids of a shard: expected classes 0 to {spec.dataset.num_classes - 1}, "
            f"found {np.min(values)} to {np.max(values)}"
        )
    return np.ascontiguousarray(values, dtype=array.dtype)


def shard_digest(spec: CacheSpec, seed: int, shard: int, stored: Arrays) -> int:
    """Return the digest of one shard: XXH3-64 over its identity, then each array's name and little-endian bytes.

    Its identity: teacher, data, recipe, how to decode it, seed and index. A shard of another cache, seed or index is
    not taken for this one, whatever it holds. The digest is never 0.
    """
    t, p, classes = spec.teacher, spec.profile, spec.dataset.num_classes
    identity = (
        t.weights_sha256,
        t.precision,
        spec.layout.fingerprint_of(shard),
        spec.recipe_sha256,
        classes,
        spec.k,
    )
    text = "/".join(map(str, (*identity, seed, shard, p.gap_coding)))
    digest = xxhash.xxh3_64(text.encode())
    digest.update(struct.pack("<d", p.gap_step or 0.0))
    for a in spec.arrays():
        digest.update(a.name.encode())
        digest.update(np.ascontiguousarray(stored[a.name], dtype=np.dtype(a.dtype).newbyteorder("<")).data)
    return digest.intdigest() or 1


def pack_shard(arrays: Arrays, spec: CacheSpec, seed: int, shard: int) -> tuple[int, dict[str, bytes]]:
    """Return the commit digest of one shard, and its files by name; an array that is all zeros has none.

    Raises:
        OptionError: the arrays do not fit the shard; see `to_stored`.
    """
    forms = spec.arrays()
    with ThreadPoolExecutor(PACKERS, "pack") as threads:  # NumPy, digest and compressors release the GIL
        converted = threads.map(lambda a: to_stored(arrays[a.name], a, spec, shard), forms)
        stored = {a.name: values for a, values in zip(forms, converted, strict=True)}
        digest = threads.submit(shard_digest, spec, seed, shard, stored)
        packed = zip(forms, threads.map(lambda a: pack(stored[a.name], a), forms), strict=True)
        files = {shard_file(a, shard): file for a, file in packed if file is not None}
        return digest.result(), files


def unpack_shard(files: Mapping[str, bytes], spec: CacheSpec, shard: int) -> dict[str, npt.NDArray[Any]]:
    """Unpack the files of one shard: arrays by name, rows of this shard only, in stored dtypes."""
    rows = {a.name: spec.slice_of(a, shard) for a in spec.arrays()}
    return {
        a.name: unpack(files.get(shard_file(a, shard)), a, rows[a.name].stop - rows[a.name].start)
        for a in spec.arrays()
    }


def pack_commit(spec: CacheSpec, digest: int) -> bytes:
    """Return the file of a commit entry."""
    array = spec.commit_array()
    file = pack(np.array([digest], array.dtype), array)
    assert file is not None  # no digest is 0
    return file


def unpack_commit(files: Mapping[str, bytes], spec: CacheSpec, shard: int) -> int:
    """Return the commit digest of one shard by its files; 0 if it is not committed."""
    array = spec.commit_array()
    return int(unpack(files.get(shard_file(array, shard)), array, 1)[0])


def unpack_checked(
    files: Mapping[str, bytes], commit: int, spec: CacheSpec, seed: int, shard: int, where: object
) -> dict[str, npt.NDArray[Any]]:
    """Unpack the files of one shard as `unpack_shard` does, and check them against the commit digest.

    Raises:
        FormatError: they are damaged, or have another digest.
    """
    name = f"{where}, seed {seed}, shard {shard}"
    with reading(name):
        arrays = unpack_shard(files, spec, shard)
    if shard_digest(spec, seed, shard, arrays) != commit:
        raise FormatError(f"{name}: the data is not what was committed; {HOW_TO_MEND}")
    if (largest := arrays["ids"].max()) >= spec.dataset.num_classes:
        raise FormatError(f"{name}: class {largest} of {spec.dataset.num_classes}")
    return arrays
