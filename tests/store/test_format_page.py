"""A second reader, written from docs/format.md alone: JSON, Blosc, Zstandard, CRC-32C and numpy, no Zarr.

What `CacheWriter` writes, this reader reads; digests and canaries recomputed from the page agree.
"""

import dataclasses
import hashlib
import json
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorstore
import torch
import xarray
import xxhash
from numcodecs import Blosc, PCodec, Zstd
from small_caches import assert_equal_statistics, first_statistics, statistics_of

from logitcache.format.class_statistics import MOST_FACTORS, ClassStatistics
from logitcache.format.identity import AdapterSpec, DatasetSpec, RecipeSpec, StepSpec, TeacherSpec
from logitcache.format.schema import CacheSpec
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.statistics import MOST_STATISTICS_BYTES
from logitcache.views import keys
from logitcache.views.datasets import load_digits
from logitcache.views.maker import digest

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
NO_CHUNK = (1 << 64) - 1


# The reader -----------------------------------------------------------------------------------------------


def checked(data: bytes) -> bytes:
    """Section 3: bytes followed by their CRC-32C."""
    body, crc = data[:-4], int.from_bytes(data[-4:], "little")
    assert google_crc32c.value(body) == crc
    return body


def chunks_of(data: bytes, count: int, codec: str) -> list[bytes | None]:
    """Section 3: the decoded chunks of one shard file; None where there is none."""
    decode = {"blosc": Blosc, "pcodec": PCodec}[codec]().decode
    index = checked(data[-(16 * count + 4) :])
    pairs = [struct.unpack_from("<QQ", index, 16 * i) for i in range(count)]
    return [
        None if offset == NO_CHUNK else bytes(decode(checked(data[offset : offset + size])))
        for offset, size in pairs
    ]


def gaps_by_the_page(about: dict, stored: np.ndarray) -> np.ndarray:
    """Section 4: gaps of any reader's array `gap`."""
    profile = about["profile"]
    if profile["gap_coding"] == "differences":
        stored = stored.cumsum(1, dtype=np.int64)
        if profile["gap_dtype"] == "float16":
            stored = stored.astype("<u2").view("<f2")
    return stored.astype(np.float32) * np.float32(profile["gap_step"] or 1.0)


@dataclass
class SecondReader:
    path: Path

    def __post_init__(self):
        root = json.loads((self.path / "zarr.json").read_text())
        assert (root["zarr_format"], root["node_type"]) == (3, "group")
        self.about = about = root["attributes"]["logitcache"]
        assert about["format_version"] == (
            3 if "background" in about["recipe"] else 2 if about.get("calibrated") else 1
        )
        self.n, self.classes, self.k = about["dataset"]["n"], about["dataset"]["num_classes"], about["k"]
        self.per_shard, self.per_chunk = about["shard_samples"], about["chunk_samples"]
        parts = [part["n"] for part in about.get("parts", [])] or [self.n]
        self.parts = [*zip([0, *parts[:-1]], parts, strict=True)]
        self.ranges = [
            range(first, min(first + self.per_shard, stop))
            for start, stop in self.parts
            for first in range(start, stop, self.per_shard)
        ]
        self.shards = len(self.ranges)
        self.rows = (self.shards - 1) * self.per_shard + len(self.ranges[-1])

    def tables(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Section 3: dtype and the shape of one sample, by name, in the order of the digest."""
        ids = "<u4" if self.classes > 65_536 else "<u2"
        gap = {"float16": "<f2", "float32": "<f4", "uint8": "|u1"}[self.about["profile"]["gap_dtype"]]
        if (gap, self.about["profile"]["gap_coding"]) == ("<f2", "differences"):
            gap = "<u2"
        tail = ("tail_lse", "tail_mean", "tail_var") if self.k < self.classes else ()
        tail = tail[:2] if self.about.get("calibrated") else tail
        return {
            "ids": (ids, (self.k,)),
            "gap": (gap, (self.k,)),
            **dict.fromkeys(("top", *tail), ("<f4", ())),
        }

    def samples(self, shard: int) -> range:
        return self.ranges[shard]

    def place(self, shard: int) -> slice:
        """The rows of a shard."""
        return slice(shard * self.per_shard, shard * self.per_shard + len(self.ranges[shard]))

    def fingerprint(self, shard: int) -> str:
        """Section 6: of the part that the shard belongs to."""
        part = next(p for p, (start, stop) in enumerate(self.parts) if self.ranges[shard].start < stop)
        return (self.about.get("parts") or [self.about["dataset"]])[part]["fingerprint"]

    def keys(self) -> list[int]:
        """Section 3: by sample."""
        found = json.loads((self.path / "sample_key" / "zarr.json").read_text())
        assert (found["shape"], found["data_type"]) == ([self.rows], "uint64")
        assert found["chunk_grid"]["configuration"]["chunk_shape"] == [self.per_shard]
        files = [self.path / "sample_key" / "c" / str(shard) for shard in range(self.shards)]
        rows = [self.one_chunk(file, "<u8", self.per_shard) for file in files]
        return [
            int(key) for held, samples in zip(rows, self.ranges, strict=True) for key in held[: len(samples)]
        ]

    def shard(self, seed: int, shard: int) -> dict[str, np.ndarray]:
        found = {}
        for name, (dtype, shape) in self.tables().items():
            self.check_metadata(seed, name, dtype, shape)
            rows = np.zeros((self.per_shard, *shape), dtype)
            file = self.path / f"seed-{seed}" / name / "c" / "/".join([str(shard), *("0" for _ in shape)])
            decoded = self.chunks(file) if file.exists() else []
            for number, chunk in enumerate(decoded):
                if chunk is not None:
                    here = slice(number * self.per_chunk, (number + 1) * self.per_chunk)
                    rows[here] = np.frombuffer(chunk, dtype).reshape(self.per_chunk, *shape)
            found[name] = rows[: len(self.samples(shard))]
        found["canary"] = self.one_chunk(
            self.path / f"seed-{seed}" / "canary" / "c" / f"{shard}/0", "<u4", self.about["canaries"]
        )
        return found

    def chunks(self, file: Path) -> list[bytes | None]:
        count = self.per_shard // self.per_chunk
        return chunks_of(file.read_bytes(), count, self.about["profile"]["codec"])

    def gaps(self, seed: int, shard: int) -> np.ndarray:
        """Section 4: what the stored gaps stand for."""
        return gaps_by_the_page(self.about, self.shard(seed, shard)["gap"])

    def one_chunk(self, file: Path, dtype: str, count: int) -> np.ndarray:
        if not file.exists():
            return np.zeros(count, dtype)
        return np.frombuffer(Zstd().decode(checked(file.read_bytes())), dtype)

    def check_metadata(self, seed: int, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        found = json.loads((self.path / f"seed-{seed}" / name / "zarr.json").read_text())
        outer, (sharding,) = found["chunk_grid"]["configuration"]["chunk_shape"], found["codecs"]
        inner = sharding["configuration"]
        assert found["shape"] == [self.rows, *shape]
        assert found["data_type"] == np.dtype(dtype).name
        assert found["fill_value"] == 0
        assert outer == [self.per_shard, *shape]
        assert inner["chunk_shape"] == [self.per_chunk, *shape]
        assert found["dimension_names"] == ["sample", "rank"][: len(found["shape"])]
        if self.about["profile"]["codec"] == "blosc":
            shuffle = "shuffle" if name == "gap" and dtype != "|u1" else "bitshuffle"
            size = np.dtype(dtype).itemsize
            blosc = {"cname": "zstd", "clevel": 2, "shuffle": shuffle, "typesize": size, "blocksize": 0}
            assert [c["name"] for c in inner["codecs"]] == ["bytes", "blosc", "crc32c"]
            assert inner["codecs"][1]["configuration"] == blosc
        else:
            assert [c["name"] for c in inner["codecs"]] == ["numcodecs.pcodec", "crc32c"]
        assert [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
        assert inner["index_location"] == "end"

    def commit(self, seed: int, shard: int) -> int:
        file = self.path / f"seed-{seed}" / "commit" / "c" / str(shard)
        return int(self.one_chunk(file, "<u8", 1)[0])

    def digest(self, seed: int, shard: int) -> int:
        """Section 6."""
        a = self.about
        whose = [a["teacher"]["weights_sha256"], a["teacher"]["precision"], self.fingerprint(shard)]
        whose += [a["recipe_sha256"], str(self.classes), str(self.k), str(seed), str(shard)]
        whose += [a["profile"]["gap_coding"]]
        text = "/".join(whose).encode() + struct.pack("<d", a["profile"]["gap_step"] or 0.0)
        for name, values in self.shard(seed, shard).items():
            text += name.encode() + values.tobytes()
        return xxhash.xxh3_64_intdigest(text) or 1

    def statistics(self) -> tuple[dict, np.ndarray, np.ndarray] | None:
        """Section 13: attributes, mean and factors, once their digest is right."""
        folder = self.path / "class_statistics"
        if not (folder / "zarr.json").exists():
            assert not self.about.get("calibrated")
            return None
        group = json.loads((folder / "zarr.json").read_text())["attributes"]
        assert set(group) == {"noise", "views", "digest"}
        arrays = []
        for name, dimensions in (("mean", ["class"]), ("factors", ["class", "factor"])):
            found = json.loads((folder / name / "zarr.json").read_text())
            shape = found["shape"]
            assert shape[0] == self.classes
            assert (found["data_type"], found["fill_value"]) == ("float32", 0)
            assert found["chunk_grid"]["configuration"]["chunk_shape"] == shape
            assert found["dimension_names"] == dimensions
            assert [c["name"] for c in found["codecs"]] == ["bytes", "zstd", "crc32c"]
            file = folder / name / "c" / "/".join("0" for _ in shape)
            arrays.append(self.one_chunk(file, "<f4", int(np.prod(shape))).reshape(shape))
        mean, factors = arrays
        a = self.about
        whose = [a["teacher"]["weights_sha256"], a["teacher"]["precision"], self.fingerprint(0)]
        whose += [a["recipe_sha256"], str(self.classes), str(factors.shape[1]), str(group["views"])]
        text = "/".join(whose).encode() + struct.pack("<d", group["noise"])
        digest = hashlib.blake2b(text + mean.tobytes() + factors.tobytes(), digest_size=8)
        assert digest.hexdigest() == group["digest"]
        return group, mean, factors

    def canary_sample(self, shard: int, position: int) -> int:
        """Section 5."""
        samples = self.samples(shard)
        return samples.start + position * len(samples) // self.about["canaries"]


def canary_crc(view: np.ndarray) -> int:
    """Section 5."""
    return zlib.crc32("({}, {}, {})".format(*view.shape).encode() + view.tobytes()) or 1


# What it reads --------------------------------------------------------------------------------------------


def view_of(sample: int) -> np.ndarray:
    return np.random.default_rng(sample).integers(0, 256, (3, 5, 4), np.uint8)


CACHES = {
    "default": {"profile": "default", "num_classes": 10, "k": 3},
    "wide ids": {"profile": "default", "num_classes": 70_000, "k": 2},
    "compact": {"profile": "compact", "num_classes": 100, "k": 5},
    "archive": {"profile": "archive", "num_classes": 50, "k": 4},
    "exact": {"profile": "exact", "num_classes": 6, "k": 6},
    "one logit": {"profile": "default", "num_classes": 2, "k": 1},
    "grown": {"profile": "default", "num_classes": 10, "k": 3, "grown": True},
    "calibrated": {"profile": "default", "num_classes": 10, "k": 3, "calibrated": True},
    "calibrated, grown": {"profile": "compact", "num_classes": 9, "k": 2, "calibrated": True, "grown": True},
    "calibrated later": {"profile": "exact", "num_classes": 6, "k": 6, "grown": True, "later": True},
}


@pytest.fixture(scope="module", params=CACHES)
def cache(request, tmp_path_factory):
    """A cache of 43 samples in shards of 16 and chunks of 4 by the library, and what was put in.

    The grown one has 21 samples in shards of 16 and 5, then 11 more in a third.
    """
    settings, folder = CACHES[request.param], tmp_path_factory.mktemp("format")
    spec = CacheSpec.from_dict(
        {
            **CacheSpec.new(
                TeacherSpec("t", "random", "ab" * 32, "bfloat16", AdapterSpec(3, 8, (0.5,) * 3, (0.25,) * 3)),
                DatasetSpec(
                    "d", "train", 21 if "grown" in settings else 43, settings["num_classes"], "façade"
                ),
                RecipeSpec("r", 1, (StepSpec("RandomCrop", {"size": 8, "padding": 1}),)),
                k=settings["k"],
                profile=settings["profile"],
                versions={},
                shard_samples=16,
                calibrated="calibrated" in settings,
            ).to_dict(),
            "chunk_samples": 4,
        }
    )
    keys = np.array([key_of(str(i).encode()) for i in range(43)], np.uint64)
    writer = CacheWriter.open(folder / "c.zarr", spec, keys[: spec.dataset.n], first_statistics(spec))
    rng, put = np.random.default_rng(0), {}
    put_shards(writer, spec, rng, put)
    if "grown" in settings:
        spec = spec.grown(dataclasses.replace(spec.dataset, n=32, fingerprint="gewachsen"))
        put_shards(CacheWriter.open(folder / "c.zarr", spec, keys[:32], grow=True), spec, rng, put)
    if "later" in settings:
        later = dataclasses.replace(statistics_of(spec), mean=np.zeros(spec.dataset.num_classes, np.float32))
        CacheWriter.open(folder / "c.zarr", spec).write_statistics(later)  # the mean has no file
    assert list(put) == [0, 1, 2]
    return SecondReader(folder / "c.zarr"), put


def key_of(name: bytes) -> int:
    """Section 3."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def put_shards(cache: CacheWriter, spec: CacheSpec, rng: np.random.Generator, put: dict) -> None:
    with cache.seed(7) as writer:
        for shard in range(len(put), spec.layout.shards):
            samples = spec.layout.samples_of(shard)
            logits = rng.normal(0, 3, (len(samples), min(spec.dataset.num_classes, 100))).astype(np.float32)
            order = np.argsort(-logits, axis=1)[:, : spec.k]
            kept = np.take_along_axis(logits, order, 1)
            arrays = {"ids": order + spec.dataset.num_classes - logits.shape[1], "gap": kept[:, :1] - kept}
            for name in ("top", "tail_lse", "tail_mean", "tail_var"):
                arrays[name] = rng.normal(size=len(samples)).astype(np.float32)
            arrays["top"][1] = np.nan
            if shard == 1:  # all zeros: not a file of it is written
                arrays["tail_mean"][:] = 0
            crcs = [digest(torch.from_numpy(view_of(i))) for i in spec.layout.canary_samples(shard)]
            arrays["canary"] = np.array([crcs], np.uint32)
            writer.write(shard, arrays)
            put[shard] = arrays


def by_the_page(about: dict, values: np.ndarray) -> np.ndarray:
    """Section 4: a number of a view with `scalar_bits` bits of mantissa, by exact arithmetic."""
    fraction, exponent = np.frexp(values.astype(np.float64))
    unit = 2.0 ** (about["profile"]["scalar_bits"] + 1)
    return np.ldexp(np.rint(fraction * unit) / unit, exponent).astype(np.float32)


def assert_right(about: dict, found: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(found["ids"], arrays["ids"])
    for name in {"top", "tail_lse", "tail_mean", "tail_var"} & set(found):
        np.testing.assert_array_equal(found[name], by_the_page(about, arrays[name]), err_msg=name)
    gap = gaps_by_the_page(about, found["gap"])
    if step := about["profile"]["gap_step"]:
        np.testing.assert_array_equal(gap, np.rint(arrays["gap"] / step) * np.float32(step))
    else:
        np.testing.assert_array_equal(gap, arrays["gap"].astype(about["profile"]["gap_dtype"]))


def test_a_reader_written_from_the_page_reads_what_was_written(cache):
    reader, put = cache
    for shard, arrays in put.items():
        found = reader.shard(7, shard)
        none = {*tails(arrays)} if reader.k == reader.classes else set()
        assert set(found) == set(arrays) - none - ({"tail_var"} if reader.about.get("calibrated") else set())
        assert_right(reader.about, found, arrays)


def test_tensorstore_reads_it_by_the_page(cache):
    reader, put = cache
    if reader.about["profile"]["codec"] == "pcodec":
        pytest.skip("the page says that few readers have pcodec")
    for shard, arrays in put.items():
        rows = reader.place(shard)
        found = {}
        for name in reader.tables():
            place = {"driver": "file", "path": str(reader.path / "seed-7" / name)}
            array = tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True).result()
            assert array.domain.labels == ("sample", "rank")[: array.rank]
            found[name] = array[rows.start : rows.stop].read().result()
        assert_right(reader.about, found, arrays)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_xarray_opens_a_seed_with_named_dimensions(cache):
    reader, put = cache
    seed = xarray.open_zarr(reader.path, group="seed-7", zarr_format=3, consolidated=False, chunks=None)
    assert {name: seed[name].dims for name in ("ids", "gap", "top")} == {
        "ids": ("sample", "rank"),
        "gap": ("sample", "rank"),
        "top": ("sample",),
    }
    assert dict(seed.sizes) == {
        "sample": reader.rows,
        "rank": reader.k,
        "shard": reader.shards,
        "canary": reader.about["canaries"],
    }
    for shard, arrays in put.items():
        rows = reader.place(shard)
        part = seed.isel(sample=slice(rows.start, rows.stop))
        assert_right(reader.about, {name: part[name].values for name in reader.tables()}, arrays)


def tails(arrays: dict[str, np.ndarray]) -> list[str]:
    return [name for name in arrays if name.startswith("tail")]


def test_digests_by_the_page_are_the_commit_entries(cache):
    reader, put = cache
    assert [reader.digest(7, shard) for shard in put] == [reader.commit(7, shard) for shard in put]
    assert reader.commit(7, 0) != reader.commit(7, 1) != 0


def test_canaries_by_the_page_are_those_of_the_cache(cache):
    reader, put = cache
    for shard in put:
        expected = [canary_crc(view_of(reader.canary_sample(shard, q))) for q in range(8)]
        assert reader.shard(7, shard)["canary"].tolist() == expected


def test_keys_by_the_page_are_those_of_the_samples(cache):
    reader, _ = cache
    assert reader.keys() == [key_of(str(i).encode()) for i in range(reader.n)]
    assert load_digits().keys()[: reader.n].tolist() == reader.keys()


def test_class_statistics_by_the_page_are_those_of_the_cache(cache):
    reader, _ = cache
    found, expected = reader.statistics(), CacheReader(reader.path).statistics()
    assert (found is None) == (expected is None)
    if found is not None:
        group, mean, factors = found
        assert_equal_statistics(ClassStatistics(mean, factors, group["noise"], group["views"]), expected)
        np.testing.assert_array_equal(factors, statistics_of(CacheReader(reader.path).spec).factors)


def test_chunks_past_the_last_sample_are_not_there_and_a_part_is_padded_with_zeros(cache):
    reader, _ = cache
    data = (reader.path / "seed-7" / "top" / "c" / "2").read_bytes()  # 11 samples: chunks of 4, 4, 3 and none
    chunks = chunks_of(data, 4, reader.about["profile"]["codec"])
    assert [chunk is None for chunk in chunks] == [False, False, False, True]
    assert chunks[2] is not None
    assert np.frombuffer(chunks[2], "<f4")[3] == 0


def test_the_recipe_digest_by_the_page_is_that_of_the_cache(cache):
    reader, _ = cache
    text = '[{"args": {"padding": 1, "size": 8}, "transform": "RandomCrop"}]'
    assert text in PAGE
    assert hashlib.sha256(text.encode()).hexdigest() == reader.about["recipe_sha256"]


def test_every_field_of_the_attributes_is_on_the_page(cache):
    reader, _ = cache

    def names(value):
        return (
            {name for key, v in value.items() for name in (key, *names(v))}
            if isinstance(value, dict)
            else set()
        )

    group = (reader.statistics() or [{}])[0]
    assert not {name for name in names(reader.about) | {*group} if not re.search(rf"[`.]{name}`", PAGE)}


def test_bounds_of_class_statistics_are_those_of_the_page():
    (row,) = re.findall(r"^\| `factors` \|.*", PAGE, re.MULTILINE)
    assert f"r ≤ {MOST_FACTORS:,}," in row
    assert f"at most 2^{MOST_STATISTICS_BYTES.bit_length() - 1} bytes" in row
    assert 1 << MOST_STATISTICS_BYTES.bit_length() - 1 == MOST_STATISTICS_BYTES


def test_keys_by_the_page_are_those_of_views():
    def key(*parts: int) -> int:
        x, most = 0, (1 << 64) - 1
        for p in parts:
            x = (x + 0x9E3779B97F4A7C15 + p) & most
            x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & most
            x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & most
            x = x ^ (x >> 31)
        return x

    vectors = re.findall(r"^\| ([0-9, ]+) \| `(0x[0-9a-f]{16})` \|$", PAGE, re.MULTILINE)
    assert len(vectors) == 4
    for parts, expected in vectors:
        numbers = [int(p) for p in parts.split(",")]
        assert key(*numbers) == keys.key(*numbers) == int(expected, 16)
