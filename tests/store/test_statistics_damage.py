"""Class statistics that are damaged, or whose writing was cut short: never other numbers than were written."""

import contextlib
import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from small_caches import (
    Faults,
    Killed,
    assert_equal_statistics,
    assert_holds,
    calibrate,
    fill,
    read_or_refuse,
    spec_of,
    statistics_of,
    zeroed,
)

from logitcache.errors import StorageError
from logitcache.format.schema import CacheSpec
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.statistics import (
    STATISTICS_FILES,
    pack_statistics,
)

pytestmark = pytest.mark.usefixtures("fast")

PLAIN, CALIBRATED = spec_of(), spec_of(calibrated=True)
GROUP = "class_statistics"


# Damage ---------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_an_error_of_ours_or_changes_no_number(held: Path):
    expected, refused = statistics_of(CacheReader(held).spec), 0
    files = [held / name for name in STATISTICS_FILES]
    for file in files:
        whole = file.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            file.write_bytes(damaged)
            error = read_or_refuse(held, expected)
            assert error or file.name == "zarr.json", (file, position)
            refused += error is not None
        file.write_bytes(whole)
    assert refused > 0.5 * sum(file.stat().st_size for file in files)
    assert read_or_refuse(held, expected) is None


@pytest.mark.parametrize("name", STATISTICS_FILES)
def test_a_file_that_is_gone_cut_short_empty_or_no_file_is_an_error_of_ours(name: str, held: Path):
    file = held / name
    whole = file.read_bytes()
    for size in (0, 1, 4, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert read_or_refuse(held)
    file.unlink()
    if name == f"{GROUP}/zarr.json":
        lost = read_or_refuse(held, None)
        assert (lost is not None) == CacheReader(held).spec.calibrated
        assert lost is None or "held.zarr has lost its class statistics; restore them" in lost
    else:
        assert read_or_refuse(held)
    os.mkfifo(file)
    assert read_or_refuse(held)
    file.unlink()
    file.symlink_to("/dev/zero")
    assert read_or_refuse(held)


def absurd(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        about = json.loads(file.read_text())
        change(about)
        file.write_text(json.dumps(about))

    return damage


def shape(*values: int) -> Callable[[dict[str, Any]], object]:
    grid = {"name": "regular", "configuration": {"chunk_shape": [*values]}}
    return lambda about: about.update(shape=[*values], chunk_grid=grid)


ATTRIBUTES: list[tuple[str, Any]] = [
    ("noise", 0.0), ("noise", -1.0), ("noise", float("nan")), ("noise", 10**400), ("noise", "0.1"), ("noise", 0.2),
    ("views", 0), ("views", -5), ("views", 1001), ("views", True), ("views", 1000.0), ("views", 10**400),
    ("digest", "0" * 16), ("digest", "two\nlines"), ("digest", None), ("more", 1),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), ATTRIBUTES, ids=lambda v: str(v)[:20])
def test_absurd_attributes_are_an_error_of_ours(field: str, value: Any, held: Path):
    file = held / GROUP / "zarr.json"
    about = json.loads(file.read_text())
    about["attributes"][field] = value
    file.write_text(json.dumps(about))
    assert read_or_refuse(held)


@pytest.mark.parametrize("field", ["noise", "views", "digest"])
def test_attributes_that_are_missing_are_an_error_of_ours(field: str, held: Path):
    absurd(lambda about: about["attributes"].pop(field))(held / GROUP / "zarr.json")
    assert read_or_refuse(held)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mean", shape(6)), ("mean", shape(1 << 40)), ("mean", shape(5, 1)), ("mean", shape(0)),
        ("factors", shape(5, 3)), ("factors", shape(5, 6)), ("factors", shape(5, 1 << 40)),
        ("factors", shape(1 << 40, 2)), ("factors", shape(5, 0)), ("factors", shape(10)),
        ("factors", lambda about: about["chunk_grid"]["configuration"].update(chunk_shape=[1, 2])),
        ("factors", lambda about: about.update(data_type="float64")),
        ("mean", lambda about: about.update(fill_value=1.0)),
        ("mean", lambda about: about.update(node_type="group")),
        ("mean", lambda about: about["codecs"].pop()),
    ],
)  # fmt: skip
def test_arrays_of_another_form_are_refused_before_they_are_read(name: str, change, held: Path):
    absurd(change)(held / GROUP / name / "zarr.json")
    assert read_or_refuse(held)


@pytest.mark.parametrize("really", [1 << 17, 1 << 28])
def test_a_few_bytes_that_say_they_are_many_are_refused(really: int, held: Path):
    block, size = 1 << 17, really
    blocks = (struct.pack("<I", block << 3 | 1 << 1)[:3] + b"\0") * (really // block - 1)
    last = struct.pack("<I", block << 3 | 1 << 1 | 1)[:3] + b"\0"
    frame = b"\x28\xb5\x2f\xfd" + bytes([0xE0]) + struct.pack("<Q", size) + blocks + last
    for name in STATISTICS_FILES[:2]:
        file = held / name
        whole = file.read_bytes()
        file.write_bytes(frame + struct.pack("<I", google_crc32c.value(frame)))
        assert "a chunk says that it holds" in str(read_or_refuse(held))
        file.write_bytes(whole)


def test_too_many_bytes_are_refused_whatever_the_root_says(tmp_path: Path):
    """A root of very many classes, and arrays that agree with it on more than a reader takes."""
    spec = spec_of(classes=1 << 25)
    CacheWriter.open(tmp_path / "c.zarr", spec)
    files = pack_statistics(PLAIN, statistics_of(PLAIN))
    writer = CacheWriter.open(tmp_path / "c.zarr", spec)
    writer.write_statistics(files)
    for name, wanted in (("mean", shape(1 << 25)), ("factors", shape(1 << 25, 4))):
        absurd(wanted)(tmp_path / "c.zarr" / GROUP / name / "zarr.json")
        (tmp_path / "c.zarr" / GROUP / name / "c").rename(tmp_path / name)
    assert "expected 1 to 2 factors" in str(read_or_refuse(tmp_path / "c.zarr"))


# Crashes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["disk full", "killed"])
@pytest.mark.parametrize("spec", [PLAIN, CALIBRATED], ids=["version 1", "version 2"])
def test_rewriting_that_fails_at_any_file_operation_leaves_the_old_none_or_the_new(
    spec: CacheSpec, failure: str, tmp_path: Path, monkeypatch
):
    old, new = statistics_of(spec), zeroed(statistics_of(spec, 1))
    base = fill(tmp_path / "base.zarr", spec)
    calibrate(base, old)
    allowed, finished, seen = 0, False, []
    while not finished:
        cache = Path(shutil.copytree(base, tmp_path / f"{allowed}.zarr"))
        error = Killed() if failure == "killed" else OSError(errno.ENOSPC, "No space left on device")
        with monkeypatch.context() as patch:
            faults = Faults(patch, allowed, error)
            with contextlib.suppress(Killed, StorageError):
                calibrate(cache, new)
        finished = faults.left >= 0
        if (cache / GROUP / "zarr.json").exists():
            assert read_or_refuse(cache, old, new) is None
            seen.append("old" if CacheReader(cache).statistics().views == old.views else "new")  # type: ignore[union-attr]
        else:
            error_or_none = read_or_refuse(cache, None)
            assert (error_or_none is not None) == spec.calibrated
            seen.append("none")
        assert_holds(CacheReader(cache), 1, 0)
        calibrate(cache, new)
        assert_equal_statistics(CacheReader(cache).statistics(), new)
        assert not list((cache / GROUP).rglob("*.partial"))
        shutil.rmtree(cache)
        allowed += 1
    if failure == "killed":
        assert seen == sorted(seen, key=["old", "none", "new"].index)
    assert set(seen) == {"old", "none", "new"}


def test_old_ones_are_durably_gone_before_new_ones_come_and_these_are_on_the_disk_before_they_count(
    held: Path, monkeypatch
):
    """Record what is flushed, renamed and deleted, in order: a power cut may lose anything after the last flush."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell a descriptor's file")
    happened: list[tuple[str, str]] = []
    replace, unlink = os.replace, os.unlink

    def renamed(source, target, **options):
        happened.append(("name", str(target)))
        replace(source, target, **options)

    def deleted(path, **options):
        happened.append(("delete", str(path)))
        unlink(path, **options)

    monkeypatch.setattr(os, "fsync", lambda d: happened.append(("flush", os.readlink(f"/proc/self/fd/{d}"))))
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "unlink", deleted)
    calibrate(held, statistics_of(PLAIN, 1))
    monkeypatch.undo()
    group, (*others, commit) = str(held / GROUP), [str(held / name) for name in STATISTICS_FILES]
    gone = happened.index(("flush", group))
    assert [each for each in happened[:gone] if each[0] != "flush"] == [("delete", commit)]
    counts = happened.index(("name", commit))
    for file in others:
        named = happened.index(("name", file))
        assert gone < happened.index(("delete", file)) < named < counts
        assert ("flush", f"{file}.partial") in happened[gone:named]
        for path in Path(file).parents:
            if str(path).startswith(group):
                assert ("flush", str(path)) in happened[named:counts]
    assert ("flush", f"{commit}.partial") in happened[:counts]
    assert ("flush", group) in happened[counts:]


@pytest.mark.parametrize(
    "other",
    [PLAIN, CALIBRATED, spec_of(weights="ef", calibrated=True)],
    ids=["version 1", "version 2", "of another teacher"],
)
def test_what_a_cache_that_never_came_to_be_left_is_not_taken_for_the_next_ones(
    other: CacheSpec, tmp_path: Path, monkeypatch
):
    """Killed at any file operation of its beginning; then another cache begins there, or the same."""
    allowed, finished, left_over = 0, False, 0
    statistics = zeroed(statistics_of(other, 1)) if other.calibrated else None
    while not finished:
        path = tmp_path / f"{allowed}.zarr"
        with monkeypatch.context() as patch:
            faults = Faults(patch, allowed, Killed())
            with contextlib.suppress(Killed):
                CacheWriter.open(path, CALIBRATED, statistics=statistics_of(CALIBRATED))
        finished = faults.left >= 0
        if not (path / "zarr.json").exists():
            left_over += (path / GROUP / "zarr.json").exists()
            CacheWriter.open(path, other, statistics=statistics)
            assert_equal_statistics(CacheReader(path).statistics(), statistics)
        else:
            assert_equal_statistics(CacheReader(path).statistics(), statistics_of(CALIBRATED))
        shutil.rmtree(path)
        allowed += 1
    assert left_over > 1
