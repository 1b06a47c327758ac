"""The codecs of a cache's arrays, and no others; and no chunk is unpacked to more than it may hold.

A few bytes of any compressor can unpack to any size, and Zarr unpacks before anyone can look at the result. So what
Zarr is given, in memory only, are codecs of ours around its own, which read what a chunk says of itself.
"""

import dataclasses
import math
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import zarr
from zarr.abc.codec import ArrayBytesCodec, BytesBytesCodec, Codec
from zarr.codecs import ShardingCodec
from zarr.core.array_spec import ArraySpec as ChunkSpec
from zarr.core.buffer import Buffer, NDBuffer

from logitcache.errors import FormatError, OptionError
from logitcache.schema import ArraySpec, CacheSpec, itemsize

INDEX = ("bytes", "crc32c")


def codecs(array: ArraySpec) -> dict[str, Any]:
    """Return how Zarr is to encode the chunks of an array, in the arguments of `create_array`."""
    checksum: dict[str, Any] = {"name": "crc32c"}
    if array.codec == "pcodec":
        return {
            "serializer": {"name": "numcodecs.pcodec", "configuration": {"level": 12}},
            "compressors": [checksum],
        }
    configuration: dict[str, Any] = {"level": 3, "checksum": False}
    if array.codec != "zstd":
        size = {"typesize": itemsize(array.dtype), "blocksize": 0}
        configuration = {**size, "cname": "zstd", "clevel": 2, "shuffle": array.codec}
    name = "zstd" if array.codec == "zstd" else "blosc"
    return {"compressors": [{"name": name, "configuration": configuration}, checksum]}


@contextmanager
def knowing_codecs(spec: CacheSpec) -> Iterator[None]:
    """Let Zarr meet the codecs of a profile; its warning that few readers have pcodec is docs/format.md's to give.

    Raises:
        OptionError: the profile needs pcodec, and it is not installed.
    """
    if spec.profile.codec != "pcodec":
        yield
        return
    if not spec.profile.installed:
        raise OptionError(f"profile {spec.profile.name} needs pcodec; pip install 'logitcache[archive]'")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3")
        yield


def guarded(array: Any, expected: ArraySpec, where: object) -> Any:
    """Return the same array, read and written with the codecs of this format, which it must have.

    Raises:
        FormatError: it has others.
    """
    name, chain = f"{where}: array {expected.name!r}", array.metadata.codecs
    if expected.shards is not None:
        outer = chain[0]
        if len(chain) != 1 or not isinstance(outer, ShardingCodec) or outer.index_location.value != "end":
            raise FormatError(f"{name}: expected one sharding codec, its index at the end")
        _require(outer.index_codecs, INDEX, name)
        chain = (dataclasses.replace(outer, codecs=_guarded(outer.codecs, expected, name)),)
    else:
        chain = _guarded(chain, expected, name)
    return zarr.Array(zarr.AsyncArray(dataclasses.replace(array.metadata, codecs=chain), array.store_path))


def _guarded(chain: Sequence[Codec], expected: ArraySpec, name: str) -> tuple[Codec, ...]:
    if expected.codec == "pcodec":
        _require(chain, ("numcodecs.pcodec", "crc32c"), name)
        serializer, checksum = chain
        assert isinstance(serializer, ArrayBytesCodec)
        return (Bounded(serializer), checksum)
    compressor = "zstd" if expected.codec == "zstd" else "blosc"
    _require(chain, ("bytes", compressor, "crc32c"), name)
    *unpack, checksum = chain
    return (*unpack, Measured(compressor), checksum)


def _require(chain: Sequence[Codec], names: Sequence[str], name: str) -> None:
    found: list[Any] = [codec.to_dict() for codec in chain]
    endian = [c.get("configuration", {}).get("endian", "little") for c in found if c["name"] == "bytes"]
    if [c["name"] for c in found] != list(names) or not set(endian) <= {"little"}:
        raise FormatError(
            f"{name}: expected codecs {', '.join(names)} (little-endian), "
            f"found {', '.join(str(c['name']) for c in found)}"
        )


@dataclasses.dataclass(frozen=True)
class Measured(BytesBytesCodec):
    """Lets a frame pass that says it unpacks to exactly one chunk; stands right behind the compressor."""

    compressor: str
    is_fixed_size = True

    def to_dict(self) -> dict[str, Any]:
        """Return its name: it is never written."""
        return {"name": "logitcache.measured"}

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ChunkSpec) -> int:
        """Return the same size: nothing is changed."""
        return input_byte_length

    async def _encode_single(self, chunk_bytes: Buffer, _chunk_spec: ChunkSpec) -> Buffer:
        return chunk_bytes

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ChunkSpec) -> Buffer:
        header, length = chunk_bytes.as_numpy_array()[:18].tobytes(), len(chunk_bytes)
        said = zstd_size(header) if self.compressor == "zstd" else blosc_size(header, length)
        expected = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        if said != expected:
            raise FormatError(
                f"a chunk says that it holds {'no number of' if said is None else said} bytes, expected {expected}"
            )
        return chunk_bytes


@dataclasses.dataclass(frozen=True)
class Bounded(ArrayBytesCodec):
    """Pcodec, unpacked into an array of the chunk's size: what its frames say of themselves need not be so."""

    inner: ArrayBytesCodec
    is_fixed_size = False

    def to_dict(self) -> dict[str, Any]:
        """Return its name: it is never written."""
        return {"name": "logitcache.bounded"}

    def evolve_from_array_spec(self, array_spec: ChunkSpec) -> Self:
        """Let the codec inside see what it is for."""
        return dataclasses.replace(self, inner=self.inner.evolve_from_array_spec(array_spec))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ChunkSpec) -> int:
        """Return what the codec inside says."""
        return self.inner.compute_encoded_size(input_byte_length, chunk_spec)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ChunkSpec) -> Buffer | None:
        return next(iter(await self.inner.encode([(chunk_array, chunk_spec)])))

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ChunkSpec) -> NDBuffer:
        from pcodec import standalone  # an optional package

        values = np.empty(math.prod(chunk_spec.shape), dtype=chunk_spec.dtype.to_native_dtype())
        done = standalone.simple_decompress_into(chunk_bytes.to_bytes(), values)
        if done.n_processed != len(values) or not done.finished:
            raise FormatError(f"a chunk holds {done.n_processed} numbers or more, expected {len(values)}")
        return chunk_spec.prototype.nd_buffer.from_numpy_array(values.reshape(chunk_spec.shape))


def zstd_size(header: bytes) -> int | None:
    """Return the bytes that a Zstandard frame says it holds, from its first 18 bytes; None if it does not say.

    Source: RFC 8878, section 3.1.1.
    """
    if len(header) < 6 or header[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = header[4]
    single_segment = descriptor >> 5 & 1
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if not width or len(header) < start + width:
        return None
    (size,) = struct.unpack("<Q", header[start : start + width].ljust(8, b"\0"))
    return int(size) + (256 if width == 2 else 0)


def blosc_size(header: bytes, length: int) -> int | None:
    """Return the bytes that a Blosc block says it holds, from its first 16 bytes; None unless it is `length` long.

    Source: c-blosc, README_CHUNK_FORMAT.rst.
    """
    if length < 16:
        return None
    unpacked, _, packed = struct.unpack_from("<III", header, 4)
    return int(unpacked) if packed == length else None
