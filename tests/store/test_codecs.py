"""The files of arrays: bit for bit those of Zarr, whoever packs and whoever unpacks them; refused when damaged."""

import warnings
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from logitcache.format.schema import ArraySpec
from logitcache.store.codecs import codec_arguments, pack, unpack

KINDS = [
    ("uint16", "bitshuffle"), ("uint32", "bitshuffle"), ("float16", "shuffle"), ("uint8", "bitshuffle"),
    ("float32", "bitshuffle"), ("uint16", "pcodec"), ("float16", "pcodec"), ("float32", "pcodec"),
    ("uint32", "zstd"), ("uint64", "zstd"),
]  # fmt: skip


@st.composite
def shards(draw) -> tuple[ArraySpec, np.ndarray]:
    """The form of an array of one shard (or chunk), and its values: some rows, long runs of zeros, rare −0.0."""
    dtype, codec = draw(st.sampled_from(KINDS))
    step, count = draw(st.integers(1, 300)), 1 if codec == "zstd" else draw(st.integers(1, 4))
    width = draw(st.sampled_from([(), (1,), (3,)]))
    rows = draw(st.integers(1, step * count))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = rng.integers(0, 200, (rows, *width)).astype(dtype)
    values[draw(st.integers(0, rows)) : draw(st.integers(0, rows))] = 0
    if draw(st.booleans()):
        values[draw(st.integers(0, rows - 1)) :] = 0
    if np.dtype(dtype).kind == "f" and draw(st.booleans()):
        values[rng.random(values.shape) < 0.1] = draw(st.sampled_from([-0.0, np.nan, np.inf]))
    shard = None if codec == "zstd" else (step * count, *width)
    names = ("sample", "rank")[: values.ndim]
    return ArraySpec("a", dtype, values.shape, (step, *width), shard, names, codec), values


def zarrs_array(files: dict[str, Any], array: ArraySpec) -> zarr.Array:
    return zarr.create_array(
        MemoryStore(files), shape=array.shape, dtype=array.dtype, chunks=array.chunks, shards=array.shards,
        fill_value=0, **codec_arguments(array),
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def knowing_pcodec():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3")
        yield


@given(shards())
def test_a_file_is_bit_for_bit_what_zarr_makes_and_reads_as_zarr_reads_it(made):
    array, values = made
    files: dict[str, Any] = {}
    theirs = zarrs_array(files, array)
    key = "/".join(["c", *("0" for _ in array.shape)])
    theirs[:] = values
    ours = pack(values, array)
    assert ours == (files[key].to_bytes() if key in files else None)
    found = unpack(ours, array, len(values))
    assert found.dtype == values.dtype
    assert found.tobytes() == values.tobytes() == theirs[:].tobytes()


@given(shards(), st.data())
def test_a_damaged_file_is_refused_or_holds_the_same_numbers(made, data):
    array, values = made
    whole = pack(values, array)
    if whole is None:
        return
    damaged = bytearray(whole)
    kind = data.draw(st.sampled_from(["flip", "cut", "empty", "grow"]))
    position = data.draw(st.integers(0, len(whole) - 1))
    if kind == "flip":
        damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "grow":
        damaged[position:position] = b"\0" * data.draw(st.integers(1, 40))
    else:
        del damaged[position if kind == "cut" else 0 :]
    try:
        found = unpack(bytes(damaged), array, len(values))
    except Exception:  # `reading` names the file
        return
    assert found.tobytes() == values.tobytes()


def test_a_file_without_its_index_is_refused():
    array = ArraySpec("a", "uint16", (8,), (2,), (8,), ("sample",), "bitshuffle")
    for file in (b"", b"\0\0\0\0", pack(np.arange(8), array)[:40]):
        with pytest.raises(ValueError, match="shorter than its index"):
            unpack(file, array, 8)
