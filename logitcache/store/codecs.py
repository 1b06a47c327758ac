"""The files of a cache's arrays, packed and unpacked: docs/format.md, section 3.

The files are plain Zarr v3, and Zarr writes and reads the metadata. Their bytes pass through here, to Zarr's own
codecs and no others, straight between a file and its array: Zarr's pipeline would copy them several times over, one
chunk after the other. And a few bytes of any compressor can unpack to any size: what a chunk says of itself is looked
at before a byte of it is unpacked.
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


def codecs(array: ArraySpec) -> dict[str, Any]:
    """Return how the chunks of an array are encoded, in the arguments of Zarr's `create_array`."""
    checksum: dict[str, Any] = {"name": "crc32c"}
    if array.codec == "pcodec":
        return {
            "serializer": {"name": "numcodecs.pcodec", "configuration": {"level": PCODEC_LEVEL}},
            "compressors": [checksum],
        }
    compressor: dict[str, Any] = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}
    if array.codec != "zstd":
        size = {"typesize": itemsize(array.dtype), "blocksize": 0}
        how = {"cname": "zstd", "clevel": BLOSC_LEVEL, "shuffle": array.codec}
        compressor = {"name": "blosc", "configuration": size | how}
    return {"compressors": [compressor, checksum]}


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


def require_codecs(array: Any, expected: ArraySpec, where: object) -> None:
    """Insist that an array that Zarr has opened names its files as this format does, and encodes them so.

    Raises:
        FormatError: it does not.
    """
    name = f"{where}: array {expected.name!r}"
    chain: list[Any] = [
        codec.to_dict() for codec in array.metadata.codecs
    ]  # the same in every version of Zarr
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


def packed(values: npt.NDArray[Any], array: ArraySpec) -> bytes | None:
    """Return the file that holds (rows, …) values of one shard, or of the chunk of an array without shards.

    Bit for bit what Zarr makes of them; None where they are all zeros, which need no file.
    """
    step = array.chunks[0]
    chunks = [_packed_chunk(values[first : first + step], array) for first in range(0, len(values), step)]
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
    return b"".join([*filter(None, chunks), _with_crc(index)])


def unpacked(file: bytes | None, array: ArraySpec, rows: int) -> npt.NDArray[Any]:
    """Return the first rows of what `packed` was given, in the dtype of the array; zeros where there is no file.

    Damaged bytes surface as an exception of any kind: to be called within `reading`, which says where.
    """
    step, *width = array.chunks
    count = -(-rows // step)
    if file is None:
        return np.zeros((rows, *width), _stored(array))
    values = np.empty((count * step, *width), _stored(array))
    for number, chunk in enumerate(_chunks(file, array)[:count]):
        part = values[number * step : (number + 1) * step]
        if chunk is None:
            part[...] = 0
        else:
            _unpack_chunk(chunk, array, part)
    return values[:rows]


def _packed_chunk(values: npt.NDArray[Any], array: ArraySpec) -> bytes | None:
    """Return a chunk with its CRC-32C, filled up with zeros; None where there is nothing else."""
    whole = np.ascontiguousarray(values, _stored(array))
    if not whole.view(np.uint8).any():  # −0.0 is something else
        return None
    if missing := array.chunks[0] - len(whole):
        whole = np.concatenate([whole, np.zeros((missing, *array.chunks[1:]), whole.dtype)])
    if array.codec == "zstd":
        return _with_crc(zstd.compress(whole, ZSTD_LEVEL, False))
    if array.codec == "pcodec":
        from numcodecs import PCodec  # there if pcodec is

        return _with_crc(PCodec(level=PCODEC_LEVEL).encode(whole))
    return _with_crc(blosc.compress(whole, b"zstd", BLOSC_LEVEL, SHUFFLES[array.codec], 0, whole.itemsize))


def _chunks(file: bytes, array: ArraySpec) -> list[npt.NDArray[np.uint8] | None]:
    """Take a file apart into its chunks; None for those that are not there."""
    data = np.frombuffer(file, np.uint8)
    if array.shards is None:
        return [data]
    size = 16 * (array.shards[0] // array.chunks[0]) + CRC
    if (end := len(data) - size) < 0:
        raise ValueError("the file is shorter than its index")
    chunks: list[npt.NDArray[np.uint8] | None] = []
    for first, length in struct.iter_unpack("<QQ", _without_crc(data[end:]).tobytes()):
        if first + length > end and (first, length) != (NO_CHUNK, NO_CHUNK):
            raise ValueError("a chunk lies outside its file")
        chunks.append(None if first == NO_CHUNK else data[first : first + length])
    return chunks


def _unpack_chunk(chunk: npt.NDArray[np.uint8], array: ArraySpec, values: npt.NDArray[Any]) -> None:
    """Unpack a chunk into values of its shape, once it has said that it holds as many."""
    body = _without_crc(chunk)
    if (
        array.codec == "pcodec"
    ):  # what its frames say of themselves need not be so: it is given the room, and no more
        from pcodec import standalone  # an optional package

        done = standalone.simple_decompress_into(body.tobytes(), values.reshape(-1))
        if done.n_processed != values.size or not done.finished:
            raise ValueError(f"a chunk holds {done.n_processed} numbers or more, expected {values.size}")
        return
    header = body[:18].tobytes()
    said = zstd_size(header) if array.codec == "zstd" else blosc_size(header, len(body))
    if said != values.nbytes:
        raise ValueError(
            f"a chunk says that it holds {'no number of' if said is None else said} bytes, expected {values.nbytes}"
        )
    (zstd if array.codec == "zstd" else blosc).decompress(body, values)


def _stored(array: ArraySpec) -> np.dtype[Any]:
    return np.dtype(array.dtype).newbyteorder("<")


def _with_crc(data: bytes) -> bytes:
    crc: int = google_crc32c.value(data)
    return data + crc.to_bytes(CRC, "little")


def _without_crc(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    body, crc = data[:-CRC], data[-CRC:]
    if google_crc32c.value(body) != int.from_bytes(crc.tobytes(), "little"):
        raise ValueError("the CRC-32C of a chunk is not that of its bytes")
    return body


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
