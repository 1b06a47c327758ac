"""The files of a cache's arrays, packed and unpacked: docs/format.md, section 3.

The files are plain Zarr v3, and Zarr writes and reads the metadata. The chunks are encoded here, by the codecs that
Zarr uses, straight between a file and its array: Zarr's own pipeline copies them several times over, one chunk after
the other. A few compressed bytes can unpack to any size, so the size in a chunk's header is checked first.
"""

import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc, zstd

from logitcache.errors import FormatError, OptionError
from logitcache.format.schema import ArraySpec, CacheSpec, itemsize

INDEX = ("bytes", "crc32c")
NO_CHUNK = (1 << 64) - 1
CRC = 4  # bytes of it
BLOSC_LEVEL, ZSTD_LEVEL, PCODEC_LEVEL = 2, 3, 12
SHUFFLES = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}


# Metadata -------------------------------------------------------------------------------------------------


def codec_arguments(array: ArraySpec) -> dict[str, Any]:
    """Return the arguments of Zarr's `create_array` that say how the chunks of an array are encoded."""
    checksum: dict[str, Any] = {"name": "crc32c"}
    if array.codec == "pcodec":
        return {
            "serializer": {"name": "numcodecs.pcodec", "configuration": {"level": PCODEC_LEVEL}},
            "compressors": [checksum],
        }
    compressor: dict[str, Any] = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}
    if array.codec != "zstd":
        size = {"typesize": itemsize(array.dtype), "blocksize": 0}
        method = {"cname": "zstd", "clevel": BLOSC_LEVEL, "shuffle": array.codec}
        compressor = {"name": "blosc", "configuration": size | method}
    return {"compressors": [compressor, checksum]}


@contextmanager
def profile_codecs(spec: CacheSpec) -> Iterator[None]:
    """Let Zarr open arrays of a profile, without its warning that few readers have pcodec (docs/format.md says so).

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


def require_codecs(array: Any, expected: ArraySpec, where: object) -> None:
    """Check that an array that Zarr has opened names and encodes its files as this format does.

    Raises:
        FormatError: it does not.
    """
    name = f"{where}: array {expected.name!r}"
    chain: list[Any] = [codec.to_dict() for codec in array.metadata.codecs]  # equal in every version of Zarr
    first = array.metadata.chunk_key_encoding.encode_chunk_key((0,) * array.ndim)
    if first != "/".join("c" + "0" * array.ndim):
        raise FormatError(f"{name}: expected chunk keys like c/0, of the default encoding, found {first}")
    if expected.shards is not None:
        outer = chain[0].get("configuration", {})
        if [codec["name"] for codec in chain] != ["sharding_indexed"] or outer["index_location"] != "end":
            raise FormatError(f"{name}: expected one sharding codec, its index at the end")
        _require(outer["index_codecs"], INDEX, name)
        chain = outer["codecs"]
    if expected.codec == "pcodec":
        _require(chain, ("numcodecs.pcodec", "crc32c"), name)
    else:
        _require(chain, ("bytes", "zstd" if expected.codec == "zstd" else "blosc", "crc32c"), name)


def _require(chain: Sequence[Mapping[str, Any]], names: Sequence[str], name: str) -> None:
    found = [codec["name"] for codec in chain]
    endian = [c.get("configuration", {}).get("endian", "little") for c in chain if c["name"] == "bytes"]
    if found != list(names) or not set(endian) <= {"little"}:
        raise FormatError(
            f"{name}: expected codecs {', '.join(names)} (little-endian), found {', '.join(map(str, found))}"
        )


# Files ----------------------------------------------------------------------------------------------------


def pack(values: npt.NDArray[Any], array: ArraySpec) -> bytes | None:
    """Return the file that holds the (rows, …) values of one shard, or of one chunk of an array without shards.

    It is bit for bit what Zarr writes; None for values that are all zeros, which need no file.
    """
    step = array.chunks[0]
    chunks = [_pack_chunk(values[first : first + step], array) for first in range(0, len(values), step)]
    if array.shards is None:
        (chunk,) = chunks
        return chunk
    if not any(chunks):
        return None
    chunks += [None] * (array.shards[0] // step - len(chunks))
    index, end = b"", 0
    for chunk in chunks:
        index += struct.pack("<QQ", *((NO_CHUNK, NO_CHUNK) if chunk is None else (end, len(chunk))))
        end += len(chunk or b"")
    return b"".join([*filter(None, chunks), _append_crc(index)])


def unpack(file: bytes | None, array: ArraySpec, rows: int) -> npt.NDArray[Any]:
    """Return the (rows, …) values that `pack` was given, in the dtype of the array; zeros where there is no file.

    Damaged bytes raise exceptions of every kind: call it within `disk.reading`, which raises them as `FormatError`.
    """
    step, *width = array.chunks
    count = -(-rows // step)
    if file is None:
        return np.zeros((rows, *width), _stored_dtype(array))
    values = np.empty((count * step, *width), _stored_dtype(array))
    for number, chunk in enumerate(_split_chunks(file, array)[:count]):
        part = values[number * step : (number + 1) * step]
        if chunk is None:
            part[...] = 0
        else:
            _unpack_chunk(chunk, array, part)
    return values[:rows]


def _pack_chunk(values: npt.NDArray[Any], array: ArraySpec) -> bytes | None:
    """Return a chunk, padded with zeros to its size, with its CRC-32C; None if it is all zeros."""
    chunk = np.ascontiguousarray(values, _stored_dtype(array))
    if not chunk.view(np.uint8).any():  # bytes, as −0.0 is no zero here
        return None
    if missing := array.chunks[0] - len(chunk):
        chunk = np.concatenate([chunk, np.zeros((missing, *array.chunks[1:]), chunk.dtype)])
    if array.codec == "zstd":
        return _append_crc(zstd.compress(chunk, ZSTD_LEVEL, False))
    if array.codec == "pcodec":
        from numcodecs import PCodec  # needs the extra `archive`

        return _append_crc(PCodec(level=PCODEC_LEVEL).encode(chunk))
    return _append_crc(blosc.compress(chunk, b"zstd", BLOSC_LEVEL, SHUFFLES[array.codec], 0, chunk.itemsize))


def _split_chunks(file: bytes, array: ArraySpec) -> list[npt.NDArray[np.uint8] | None]:
    """Split a file into its chunks; None for those that are all zeros."""
    data = np.frombuffer(file, np.uint8)
    if array.shards is None:
        return [data]
    size = 16 * (array.shards[0] // array.chunks[0]) + CRC
    if (end := len(data) - size) < 0:
        raise ValueError("the file is shorter than its index")
    chunks: list[npt.NDArray[np.uint8] | None] = []
    for first, length in struct.iter_unpack("<QQ", _strip_crc(data[end:]).tobytes()):
        if first + length > end and (first, length) != (NO_CHUNK, NO_CHUNK):
            raise ValueError("a chunk lies outside its file")
        chunks.append(None if first == NO_CHUNK else data[first : first + length])
    return chunks


def _unpack_chunk(chunk: npt.NDArray[np.uint8], array: ArraySpec, values: npt.NDArray[Any]) -> None:
    """Unpack a chunk into `values`, an array of its shape, after checking that its size is theirs."""
    body = _strip_crc(chunk)
    if array.codec == "pcodec":  # its header cannot be relied on: it may write into `values` and no further
        from pcodec import standalone  # needs the extra `archive`

        done = standalone.simple_decompress_into(body.tobytes(), values.reshape(-1))
        if done.n_processed != values.size or not done.finished:
            raise ValueError(f"a chunk holds {done.n_processed} numbers or more, expected {values.size}")
        return
    header = body[:18].tobytes()
    size = zstd_size(header) if array.codec == "zstd" else blosc_size(header, len(body))
    if size != values.nbytes:
        raise ValueError(
            f"a chunk says that it holds {'no number of' if size is None else size} bytes, expected {values.nbytes}"
        )
    (zstd if array.codec == "zstd" else blosc).decompress(body, values)


def _stored_dtype(array: ArraySpec) -> np.dtype[Any]:
    return np.dtype(array.dtype).newbyteorder("<")


def _append_crc(data: bytes) -> bytes:
    crc: int = google_crc32c.value(data)
    return data + crc.to_bytes(CRC, "little")


def _strip_crc(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    body, crc = data[:-CRC], data[-CRC:]
    if google_crc32c.value(body) != int.from_bytes(crc.tobytes(), "little"):
        raise ValueError("the CRC-32C of a chunk is not that of its bytes")
    return body


def zstd_size(header: bytes) -> int | None:
    """Return the unpacked bytes of a Zstandard frame, from its first 18 bytes; None if they do not say.

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
    """Return the unpacked bytes of a Blosc block, from its first 16 bytes; None unless it is `length` bytes long.

    Source: c-blosc, README_CHUNK_FORMAT.rst.
    """
    if length < 16:
        return None
    unpacked, _, packed = struct.unpack_from("<III", header, 4)
    return int(unpacked) if packed == length else None
