"""What is no cache, or a damaged one, gives right numbers or an error of ours, in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_caches import (
    SMALL,
    arrays_of,
    as_stored,
    assert_holds,
    assert_typed,
    attributes,
    fill,
    set_attributes,
    spec_of,
)

from logitcache.errors import FormatError, IncompleteError, NotFoundError, StorageError
from logitcache.store import CacheReader, CacheWriter


def test_what_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match="no cache at"):
        CacheReader(tmp_path / "nothing")


def test_a_directory_of_something_else_is_no_cache_and_stays_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("\\end")
    with pytest.raises(NotFoundError):
        CacheReader(tmp_path)
    with pytest.raises(NotFoundError):
        CacheWriter.open(tmp_path, SMALL)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "root",
    [
        b"", b"{", b"null", b"[]", b"\xff\xfe", b"\0" * 100, b"[" * 100_000,
        b'{"zarr_format": 3, "node_type": "group", "attributes": {}}',
        b'{"zarr_format": 3, "node_type": "group"}',
        b'{"zarr_format": 3, "node_type": "group", "attributes": {"logitcache": 7}}',
        b'{"zarr_format": 4, "node_type": "group", "attributes": {}}',
        b'{"zarr_format": 3, "node_type": "array"}',
    ],
    ids=lambda root: root[:70].decode("latin1"),
)  # fmt: skip
def test_a_root_that_is_no_cache_is_a_format_error(root, cache):
    (cache / "zarr.json").write_bytes(root)
    with pytest.raises(FormatError, match=r"c\.zarr") as refused:
        CacheReader(cache)
    assert "\n" not in str(refused.value)
    with pytest.raises(FormatError):
        CacheWriter.open(cache, SMALL)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("format_version", 4, "version 4.*upgrade logitcache"),
        ("format_version", 2, "format_version must be 1, found 2"),
        ("format_version", 0, "format_version must be 1"),
        ("format_version", True, "format_version"),
        ("dataset.n", 1 << 50, "2\\^40"),
        ("dataset.n", 1 << 40, "at most 65536 shards"),
        ("dataset.n", -1, "found -1"),
        ("dataset.n", 7.0, "expected int"),
        ("dataset.num_classes", 10**30, "num_classes"),
        ("k", 4, "k must be 1 to 3"),
        ("shard_samples", 1 << 30, "whole number of chunks"),
        ("shard_samples", 0, "whole number of chunks"),
        ("chunk_samples", 0, "whole number of chunks"),
        ("canaries", 1 << 40, "canaries"),
        ("profile.gap_dtype", "object", "gap_dtype"),
        ("profile.gap_step", -1.0, "gap_step"),
        ("recipe_sha256", "00", "recipe_sha256"),
        ("versions", [], "versions"),
        ("calibrated", True, "format_version must be 2, found 1"),
        ("calibrated", 1, "calibrated: expected bool"),
        ("extra", 1, "unknown field 'extra'"),
    ],
)
def test_absurd_attributes_are_a_format_error(field, value, says, cache):
    about = attributes(cache)
    *parents, name = field.split(".")
    inner = about
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    set_attributes(cache, about)
    with pytest.raises(FormatError, match=says) as refused:
        CacheReader(cache)
    assert str(cache) in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1 << 40, 3]},
        {"shape": [7]},
        {"data_type": "float64"},
        {"data_type": "int16"},
        {"data_type": "string", "fill_value": ""},
        {"fill_value": 1},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 3]}}},
        {"codecs": [{"name": "bytes"}]},
        {"codecs": [{"name": "own", "configuration": {}}]},
        {"codecs": []},
        {"node_type": "group"},
    ],
    ids=str,
)
def test_arrays_of_another_form_are_refused_before_they_are_read(change, cache):
    file = cache / "seed-1" / "ids" / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert isinstance(assert_typed(cache), FormatError)
    with pytest.raises(FormatError), CacheWriter.open(cache, SMALL).seed(1):
        pass
    assert assert_typed(cache, seed=2) is None


@pytest.mark.parametrize("name", ["ids", "gap", "top", "canary", "commit"])
def test_a_missing_array_or_seed_directory_is_an_error_of_ours(name, cache):
    shutil.rmtree(cache / "seed-1" / name)
    assert isinstance(assert_typed(cache), IncompleteError if name == "commit" else FormatError)


@pytest.mark.parametrize("seed", ["seed-07", "seed--1", "seed-²", "seed-", "seed-x", "seed-1.old"])
def test_names_that_are_no_seed_are_ignored(seed, cache):
    shutil.copytree(cache / "seed-1", cache / seed)
    assert CacheReader(cache).seeds() == [1, 2]


def shard_files(cache: Path, seed: int = 1) -> list[Path]:
    return sorted(file for file in (cache / f"seed-{seed}").glob("*/c/**/*") if file.is_file())


def test_a_missing_chunk_file_is_an_error_of_ours(written, tmp_path):
    for number, file in enumerate(shard_files(written)):
        cache = Path(shutil.copytree(written, tmp_path / str(number)))
        (cache / file.relative_to(written)).unlink()
        lost = IncompleteError if "commit" in file.parts else FormatError
        assert isinstance(assert_typed(cache), lost), file
    assert number == 2 * 5 - 1


def test_a_truncated_chunk_file_is_an_error_of_ours(cache):
    for file in shard_files(cache)[::2]:
        whole = file.read_bytes()
        for size in {0, 1, 3, 4, len(whole) // 2, len(whole) - 4, len(whole) - 1}:
            file.write_bytes(whole[:size])
            assert isinstance(assert_typed(cache), FormatError), (file, size)
        file.write_bytes(whole)
    assert assert_typed(cache) is None


def test_a_flipped_byte_anywhere_in_a_shard_is_an_error_of_ours(cache):
    reader = CacheReader(cache)
    for file in shard_files(cache)[::2]:
        whole = file.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            file.write_bytes(damaged)
            with pytest.raises((FormatError, StorageError)) as refused:
                assert_holds(reader, 1, 0)
            assert "\n" not in str(refused.value)
        file.write_bytes(whole)
    assert_holds(reader, 1, 0)


@pytest.mark.parametrize(
    "file", ["zarr.json", "seed-1/zarr.json", "seed-1/gap/zarr.json", "seed-1/commit/zarr.json"]
)
def test_a_flipped_byte_in_metadata_gives_right_numbers_or_an_error_of_ours(file, cache):
    whole, errors = (cache / file).read_bytes(), 0
    positions = range(0, len(whole), max(1, len(whole) // 40))
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 7
        (cache / file).write_bytes(damaged)
        errors += assert_typed(cache) is not None
    assert errors > len(positions) // 3


def test_shards_that_change_places_are_refused(written, tmp_path):
    names = ["ids", "gap", "top", "canary", "commit"]
    for number, moved in enumerate([names, names[:4], *([name] for name in names)]):
        for across in ("shards", "seeds"):
            cache = Path(shutil.copytree(written, tmp_path / f"{number}-{across}"))
            for name in moved:
                a, b = cache / "seed-1" / name / "c" / "0", cache / "seed-1" / name / "c" / "1"
                b = cache / "seed-2" / name / "c" / "0" if across == "seeds" else b
                a.rename(tmp_path / "aside")
                b.rename(a)
                (tmp_path / "aside").rename(b)
            assert isinstance(assert_typed(cache), FormatError), (moved, across)


@pytest.mark.parametrize("what", [{"weights": "ef"}, {"fingerprint": "ef"}, {"size": 7}], ids=str)
def test_a_seed_of_another_teacher_data_set_or_recipe_is_refused(what, cache, tmp_path):
    other = fill(tmp_path / "other.zarr", spec_of(n=7, classes=3, profile="exact", **what))
    shutil.rmtree(cache / "seed-1")
    shutil.copytree(other / "seed-1", cache / "seed-1")
    assert isinstance(assert_typed(cache), FormatError)


def test_another_way_to_decode_the_same_bytes_is_refused(tmp_path):
    path = fill(tmp_path / "c.zarr", spec_of(profile="compact"))
    about = attributes(path)
    about["profile"]["gap_step"] = 0.06
    set_attributes(path, about)
    assert isinstance(assert_typed(path), FormatError)


def test_a_seed_copied_between_copies_of_a_cache_is_good(cache, tmp_path):
    other = fill(tmp_path / "other.zarr", SMALL, seeds=(9,))
    shutil.copytree(other / "seed-9", cache / "seed-9")
    assert CacheReader(cache).complete() == [1, 2, 9]
    assert assert_typed(cache, seed=9) is None


def test_class_ids_out_of_range_are_refused_on_reading(tmp_path, monkeypatch):
    from logitcache import store

    spec = spec_of(n=4, classes=5)
    path = fill(tmp_path / "c.zarr", spec_of(n=4, classes=50), shards=[])
    about = attributes(path)
    about["dataset"]["num_classes"] = 5
    stored = as_stored(spec, arrays_of(spec, 1, 0)) | {"ids": np.full((4, 2), 7, np.uint16)}
    with CacheWriter.open(path, spec_of(n=4, classes=50)).seed(1) as own:
        own.write(0, stored)
    digest = store.shard_digest(spec, 1, 0, stored)  # as a writer would that does not check
    set_attributes(path, about)
    import zarr

    zarr.open_array(path / "seed-1" / "commit", mode="r+")[0] = digest
    with pytest.raises(FormatError, match="class 7 of 5"):
        CacheReader(path).read(1, 0)


def test_a_damaged_seed_leaves_the_others_to_be_read(cache):
    shard_files(cache)[0].write_bytes(b"")
    with pytest.raises(FormatError):
        CacheReader(cache).commits(1) if "commit" in str(shard_files(cache)[0]) else CacheReader(cache).read(
            1, 0
        )
    assert assert_typed(cache, seed=2) is None
