"""Caches that somebody crafted: each case damages a good one, and reading it must end soon, in little memory."""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c

Craft = Callable[[Path], object]
CASES: dict[str, Craft] = {}


def _case(name: str, craft: Craft) -> None:
    assert name not in CASES
    CASES[name] = craft


# The root -------------------------------------------------------------------------------------------------


def _root(path: str, value: object) -> Craft:
    """Set one field of the root's attributes; its digest is made to fit."""

    def craft(cache: Path) -> None:
        file = cache / "zarr.json"
        root = json.loads(file.read_bytes())
        about: Any = root["attributes"]["logitcache"]
        *parents, name = path.split(".")
        for parent in parents:
            about = about[parent]
        about[name] = value
        sign(root)
        file.write_text(json.dumps(root))

    return craft


def sign(root: dict[str, Any]) -> None:
    """Make the root's digest fit what it says, as somebody would who means harm."""
    text = json.dumps(root["attributes"]["logitcache"], sort_keys=True)
    root["attributes"]["logitcache_digest"] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


for _path, _value in [
    ("dataset.n", 1 << 60), ("dataset.n", 1 << 40), ("dataset.n", 41), ("dataset.n", float("nan")),
    ("dataset.num_classes", 1 << 31), ("k", 1 << 30), ("k", 2), ("shard_samples", 1 << 24),
    ("shard_samples", 1 << 60),
    ("chunk_samples", 1), ("canaries", 1024), ("canaries", 1 << 40), ("profile.gap_step", 1e-300),
    ("profile.gap_dtype", "uint8"), ("versions", {str(i): "x" for i in range(200_000)}),
    ("format_version", 2), ("format_version", 3), ("format_version", 4), ("calibrated", True), ("calibrated", 2),
    ("format_version", "1"), ("format_version", 1.0), ("format_version", 10**400),
    ("teacher.name", "x" * 2_000_000), ("teacher.adapter.std", [0.0]), ("teacher.adapter.mean", [1e400]),
    ("recipe.steps", [{"transform": "os:system", "args": {"command": "touch /tmp/owned"}}]),
    ("recipe.steps", [{"transform": "RandomCrop"}] * 10_000),
]:  # fmt: skip
    _case(f"root {_path} = {str(_value)[:40]} ({len(CASES)})", _root(_path, _value))


def _everything_large(cache: Path) -> None:
    """Make a root and arrays that agree with each other on a shard of many gigabytes, which holds nothing."""
    n = shard = 1 << 24
    _root("dataset.num_classes", 1 << 16)(cache)
    _root("k", 512)(cache)
    for field in ("dataset.n", "shard_samples", "chunk_samples"):
        _root(field, n)(cache)
    for file in cache.glob("seed-*/*/zarr.json"):
        about = json.loads(file.read_bytes())
        name = file.parent.name
        if name in ("canary", "commit"):
            about["shape"][0] = 1
        else:
            rest = [512] if name in ("ids", "gap") else []
            about["shape"] = [n, *rest]
            about["chunk_grid"]["configuration"]["chunk_shape"] = [shard, *rest]
            about["codecs"][0]["configuration"]["chunk_shape"] = [shard, *rest]
        file.write_text(json.dumps(about))
        if name != "commit":
            for data in file.parent.glob("c/**/*"):
                if data.is_file():
                    data.unlink()


_case("a root and arrays that agree on 34 GB", _everything_large)
for _name, _text in {
    "deep": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 200_000,
    "huge": b'{"zarr_format": 3, "attributes": {"x": "' + b"x" * (20 << 20) + b'"}, "node_type": "group"}',
    "numbers": b'{"zarr_format": 3, "node_type": "group", "attributes": {"logitcache": '
    + b"9" * 100_000
    + b"}}",
    "NaN": b'{"zarr_format": NaN, "node_type": "group", "attributes": {"logitcache": Infinity}}',
    "latin": b'{"zarr_format": 3, "node_type": "gr\xf6up"}',
}.items():
    _case(f"root text: {_name}", lambda cache, text=_text: (cache / "zarr.json").write_bytes(text))
    _case(
        f"array text: {_name}", lambda cache, text=_text: (cache / "seed-0/ids/zarr.json").write_bytes(text)
    )


def _twice(cache: Path) -> None:
    file = cache / "zarr.json"
    text = file.read_text()
    about = json.dumps(json.loads(text)["attributes"]["logitcache"]).replace('"k": 3', '"k": 2')
    file.write_text(text.replace('"logitcache":', f'"logitcache": {about}, "logitcache":', 1))


_case("root attribute twice", _twice)


# Arrays ---------------------------------------------------------------------------------------------------


def _array(name: str, change: Callable[[dict[str, Any]], object]) -> Craft:
    def craft(cache: Path) -> None:
        for seed in ("seed-0", "seed-1"):
            file = cache / seed / name / "zarr.json"
            about = json.loads(file.read_bytes())
            change(about)
            file.write_text(json.dumps(about))

    return craft


def _inner(about: dict[str, Any]) -> dict[str, Any]:
    inner: dict[str, Any] = about["codecs"][0]["configuration"]
    return inner


for _name, _change in {
    "2^60 rows": lambda about: about.update(shape=[1 << 60, 3]),
    "a chunk of 2^50 rows": lambda about: _inner(about).update(chunk_shape=[1 << 50, 3]),
    "a shard of 2^50 rows": lambda about: about["chunk_grid"]["configuration"].update(
        chunk_shape=[1 << 50, 3]
    ),
    "chunks of one row": lambda about: _inner(about).update(chunk_shape=[1, 1]),
    "no chunks": lambda about: _inner(about).update(chunk_shape=[0, 0]),
    "index at the start": lambda about: _inner(about).update(index_location="start"),
    "index compressed": lambda about: _inner(about)["index_codecs"].append({"name": "gzip"}),
    "index without checksum": lambda about: _inner(about)["index_codecs"].pop(),
    "no checksum": lambda about: _inner(about)["codecs"].pop(),
    "big-endian": lambda about: _inner(about)["codecs"][0].update(configuration={"endian": "big"}),
    "transposed": lambda about: _inner(about)["codecs"].insert(
        0, {"name": "transpose", "configuration": {"order": [1, 0]}}
    ),
    "an unknown codec": lambda about: _inner(about)["codecs"].append({"name": "own", "configuration": {}}),
    "a codec of numcodecs": lambda about: _inner(about)["codecs"].append({"name": "numcodecs.bz2"}),
    "shards in shards": lambda about: _inner(about).update(
        codecs=[json.loads(json.dumps(about["codecs"][0]))]
    ),
    "other dimension names": lambda about: about.update(dimension_names=["rank", "sample"]),
    "fill value 1": lambda about: about.update(fill_value=1),
    "fill value NaN": lambda about: about.update(fill_value="NaN"),
    "keys with dots": lambda about: about.update(
        chunk_key_encoding={"name": "default", "configuration": {"separator": "."}}
    ),
    "keys of version 2": lambda about: about.update(chunk_key_encoding={"name": "v2"}),
    "a storage transformer": lambda about: about.update(storage_transformers=[{"name": "own"}]),
    "an attribute of the wrong type": lambda about: about.update(attributes=7),
    "signed": lambda about: about.update(data_type="int16"),
    "a structure": lambda about: about.update(data_type={"name": "structured"}),
}.items():
    _case(f"array ids: {_name}", _array("ids", _change))
_case("array commit: 2^60 rows", _array("commit", lambda about: about.update(shape=[1 << 60])))
_case("array commit: fill value 1", _array("commit", lambda about: about.update(fill_value=1)))
_case("array canary: 2^60 rows", _array("canary", lambda about: about.update(shape=[1 << 60, 8])))


# Shards ---------------------------------------------------------------------------------------------------


def checked(data: bytes) -> bytes:
    """Append the CRC-32C."""
    return data + struct.pack("<I", google_crc32c.value(data))


def bomb(size: int, *, told: bool = True, really: int | None = None) -> bytes:
    """Return a Zstandard frame of zeros that says that it holds `size` bytes, or does not say, and holds `really`."""
    block = 1 << 17
    count = max(1, (size if really is None else really) // block)
    header = bytes([0xE0]) + struct.pack("<Q", size) if told else bytes([0x00, 0x58])
    blocks = struct.pack("<I", block << 3 | 1 << 1)[:3] + b"\0"
    last = struct.pack("<I", block << 3 | 1 << 1 | 1)[:3] + b"\0"
    return b"\x28\xb5\x2f\xfd" + header + blocks * (count - 1) + last


def blosc(size: int, packed: int = 64) -> bytes:
    """Return a Blosc block of 64 bytes that says that it holds `size` bytes in `packed`."""
    return struct.pack("<BBBBIII", 2, 1, 0x91, 2, size, size, packed) + bytes(48)


def _chunk(frame: bytes) -> Craft:
    """Put a chunk into every shard of `ids`, with checksums that fit."""

    def craft(cache: Path) -> None:
        body = checked(frame)
        for file in cache.glob("seed-*/ids/c/*/0"):
            file.write_bytes(body + checked(struct.pack("<QQ", 0, len(body))))

    return craft


for _name, _frame in {
    "100 GB said": bomb(100 << 30, really=1 << 17),
    "8 GB said": bomb(8 << 30, really=1 << 17),
    "3 GB": bomb(3 << 30),
    "3 GB unsaid": bomb(3 << 30, told=False),
    "600 MB": bomb(600 << 20),
    "2 GB of Blosc said": blosc((1 << 31) - 1),
    "Blosc past its end": blosc(96, 1 << 20),
    "Blosc of nothing": blosc(96),
    "an empty frame": bomb(0, really=0),
    "nothing": b"",
}.items():
    _case(f"chunk: {_name}", _chunk(_frame))


def _small(name: str, frame: bytes) -> Craft:
    def craft(cache: Path) -> None:
        for file in cache.glob(f"seed-*/{name}/c/**/*"):
            if file.is_file():
                file.write_bytes(checked(frame))

    return craft


_case("commit: 3 GB", _small("commit", bomb(3 << 30)))
_case("canary: 3 GB unsaid", _small("canary", bomb(3 << 30, told=False)))
_case("commit: 100 GB said", _small("commit", bomb(100 << 30, really=1 << 17)))


def _index(offset: int, length: int) -> Craft:
    """Let the index of every shard of `ids` point elsewhere."""

    def craft(cache: Path) -> None:
        for file in cache.glob("seed-*/ids/c/*/0"):
            data = file.read_bytes()[:-20]
            file.write_bytes(data + checked(struct.pack("<QQ", offset % 2**64, length % 2**64)))

    return craft


for _offset, _length in [
    (0, 0), (0, 1 << 40), (1 << 40, 64), (1 << 63, 64), (-16, 64), (-1, 64), (0, -1), (-1, -2), (10, 20),
    (0, 1 << 63),
]:  # fmt: skip
    _case(f"index: {_offset}, {_length}", _index(_offset, _length))


# Class statistics -----------------------------------------------------------------------------------------

_STATISTICS = "class_statistics"


def _statistics(name: str, change: Callable[[dict[str, Any]], object]) -> Craft:
    def craft(cache: Path) -> None:
        file = cache / _STATISTICS / name
        about = json.loads(file.read_bytes())
        change(about)
        file.write_text(json.dumps(about))

    return craft


def _of_shape(*shape: int) -> Callable[[dict[str, Any]], object]:
    grid = {"name": "regular", "configuration": {"chunk_shape": shape}}
    return lambda about: about.update(shape=shape, chunk_grid=grid)


for _field, _value in [
    ("noise", 0), ("noise", float("nan")), ("noise", 10**400), ("views", 0), ("views", 10**400), ("views", 1.0),
    ("digest", "a\nb"), ("digest", "x" * 1_000_000), ("digest", 7), ("more", {}),
]:  # fmt: skip
    _case(
        f"statistics: {_field} = {str(_value)[:20]!r}",
        _statistics("zarr.json", lambda about, f=_field, v=_value: about["attributes"].update({f: v})),  # type: ignore[misc]
    )
for _name, _shape in [
    ("mean", (1 << 60,)), ("mean", (0,)), ("factors", (1 << 60, 2)), ("factors", (10, 1 << 60)),
    ("factors", (10, 11)), ("factors", (10, 0)), ("factors", (10,)),
]:  # fmt: skip
    _case(f"statistics: {_name} of {_shape}", _statistics(f"{_name}/zarr.json", _of_shape(*_shape)))


def _many_classes(cache: Path) -> None:
    """Make a root and class statistics that agree with each other on 34 GB of factors."""
    _root("dataset.num_classes", 1 << 21)(cache)
    for name, shape in (("mean", (1 << 21,)), ("factors", (1 << 21, 4096))):
        _statistics(f"{name}/zarr.json", _of_shape(*shape))(cache)
        for file in (cache / _STATISTICS / name / "c").rglob("0"):
            if file.is_file():
                file.unlink()


_case("a root and class statistics that agree on 34 GB", _many_classes)
for _name, _frame in {
    "3 GB": bomb(3 << 30),
    "3 GB unsaid": bomb(3 << 30, told=False),
    "nothing": b"",
}.items():
    _case(
        f"statistics: {_name}",
        lambda cache, frame=_frame: (cache / _STATISTICS / "factors/c/0/0").write_bytes(checked(frame)),
    )


# Files ----------------------------------------------------------------------------------------------------


def _instead(name: str, make: Callable[[Path], object]) -> Craft:
    def craft(cache: Path) -> None:
        file = cache / name
        file.unlink()
        make(file)

    return craft


def _sparse(file: Path) -> None:
    with file.open("wb") as out:
        out.truncate(1 << 40)


_SHARD, _COMMIT = "seed-0/ids/c/0/0", "seed-0/commit/c/0"
for _name in (
    "zarr.json",
    "seed-0/zarr.json",
    "seed-0/ids/zarr.json",
    "seed-0/commit/zarr.json",
    f"{_STATISTICS}/zarr.json",
    f"{_STATISTICS}/mean/c/0",
    _SHARD,
    _COMMIT,
):
    _case(f"{_name}: a pipe", _instead(_name, os.mkfifo))
    _case(f"{_name}: /dev/zero", _instead(_name, lambda file: file.symlink_to("/dev/zero")))
    _case(f"{_name}: a terabyte of nothing", _instead(_name, _sparse))
    _case(f"{_name}: /etc/passwd", _instead(_name, lambda file: file.symlink_to("/etc/passwd")))
    _case(f"{_name}: a folder", _instead(_name, Path.mkdir))
