"""Class statistics are those that were written for this cache, or there is an error of ours, or there are none."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from breaking import flip
from growing import GROWN, KEYS, before_growth, grow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from serving import QuietHandler, serving
from small_caches import (
    SMALL,
    Faults,
    Killed,
    assert_equal_statistics,
    assert_holds,
    files_of,
    fill,
    first_statistics,
    one_line,
    spec_of,
    statistics_of,
)

from logitcache.errors import FormatError, MismatchError, OptionError, StorageError
from logitcache.format.class_statistics import ClassStatistics
from logitcache.format.schema import CacheSpec
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.copy import copy_cache
from logitcache.store.derive import derive_cache
from logitcache.store.statistics import (
    MOST_STATISTICS_BYTES,
    STATISTICS_FILES,
    pack_statistics,
    statistics_digest,
    unpack_statistics,
)

pytestmark = pytest.mark.usefixtures("fast")

PLAIN, CALIBRATED = spec_of(), spec_of(calibrated=True)
GROUP = "class_statistics"


def calibrate(path: Path | str, statistics: ClassStatistics) -> None:
    CacheWriter.open(path, CacheReader(path).spec).write_statistics(statistics)


@pytest.fixture(params=[PLAIN, CALIBRATED], ids=["version 1", "version 2"])
def held(request, tmp_path: Path) -> Path:
    """A cache with class statistics: given to it later, or begun with."""
    path = fill(tmp_path / "held.zarr", request.param)
    if not request.param.calibrated:
        calibrate(path, statistics_of(request.param))
    return path


# Round trips ----------------------------------------------------------------------------------------------

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0])


@st.composite
def class_statistics(draw: st.DrawFn) -> ClassStatistics:
    classes = draw(st.integers(3, 9) | st.sampled_from([100, 1000]))
    factors = draw(st.integers(1, min(classes, 9)))
    return ClassStatistics(
        draw(hnp.arrays(np.float32, classes, elements=numbers, fill=numbers)),
        draw(hnp.arrays(np.float32, (classes, factors), elements=numbers, fill=numbers)),
        noise=draw(st.floats(min_value=0, exclude_min=True, allow_infinity=False)),
        views=draw(st.integers(1, 1 << 70)),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=class_statistics(), calibrated=st.booleans())
def test_what_is_written_is_read_back(first: ClassStatistics, calibrated: bool, tmp_path_factory):
    """Given to a new cache, then other ones in their place, bit for bit."""
    path = tmp_path_factory.mktemp("law") / "c.zarr"
    second = dataclasses.replace(first, factors=first.factors[:, :1].copy(), views=first.views + 1)
    spec = spec_of(classes=first.mean.shape[0], calibrated=calibrated)
    writer = CacheWriter.open(path, spec, statistics=first if calibrated else None)
    assert_equal_statistics(CacheReader(path).statistics(), first if calibrated else None)
    for statistics in (first, second, dataclasses.replace(second, mean=np.zeros_like(first.mean))):
        writer.write_statistics(statistics)
        assert_equal_statistics(CacheReader(path).statistics(), statistics)
    assert CacheReader(path).spec == spec


def test_they_are_read_once(held: Path):
    reader = CacheReader(held)
    first = reader.statistics()
    assert first is not None
    calibrate(held, statistics_of(reader.spec, 1))
    assert reader.statistics() is first


def test_any_zarr_reader_opens_them_and_they_are_named(held: Path):
    import zarr

    group = zarr.open_group(held, mode="r")[GROUP]
    expected = statistics_of(CacheReader(held).spec)
    np.testing.assert_array_equal(group["mean"][:], expected.mean)
    np.testing.assert_array_equal(group["factors"][:], expected.factors)
    assert [group[name].metadata.dimension_names for name in ("mean", "factors")] == [
        ("class",),
        ("class", "factor"),
    ]
    assert dict(group.attrs) == {
        "noise": expected.noise,
        "views": expected.views,
        "digest": statistics_digest(CacheReader(held).spec, expected),
    }


def test_info_tells_of_them_and_counts_their_bytes(held: Path, tmp_path: Path):
    reader = CacheReader(held)
    info = json.loads(json.dumps(reader.info()))
    expected = statistics_of(reader.spec)
    assert info["class_statistics"] == {
        "views": 1000,
        "factors": 2,
        "noise": 0.1,
        "digest": statistics_digest(reader.spec, expected),
    }
    assert info["bytes_on_disk"] == sum(f.stat().st_size for f in held.rglob("*") if f.is_file())
    assert CacheReader(fill(tmp_path / "none.zarr", PLAIN)).info()["class_statistics"] is None


# Whose they are -------------------------------------------------------------------------------------------


def test_a_new_cache_has_them_if_and_only_if_its_spec_is_calibrated(tmp_path: Path):
    for spec, statistics in ((CALIBRATED, None), (PLAIN, statistics_of(PLAIN))):
        with pytest.raises(OptionError, match="if and only if its spec is calibrated"):
            CacheWriter.open(tmp_path / "c.zarr", spec, statistics=statistics)
        assert not (tmp_path / "c.zarr").exists()
    fill(tmp_path / "c.zarr", CALIBRATED)
    for other in (None, statistics_of(CALIBRATED, 1)):  # one that is there has its own
        CacheWriter.open(tmp_path / "c.zarr", CALIBRATED, statistics=other)
        assert_equal_statistics(CacheReader(tmp_path / "c.zarr").statistics(), statistics_of(CALIBRATED))
    with pytest.raises(MismatchError, match="calibrated"):
        CacheWriter.open(tmp_path / "c.zarr", PLAIN)


def test_those_of_other_classes_or_too_many_factors_are_not_written(held: Path):
    before = files_of(held)
    with pytest.raises(OptionError, match="of 5 classes, found 6"):
        calibrate(held, statistics_of(spec_of(classes=6)))
    assert files_of(held) == before
    classes = MOST_STATISTICS_BYTES // 4 // 8
    wide = spec_of(classes=classes)
    large = np.broadcast_to(np.float32(1), (classes, 9))
    with pytest.raises(OptionError, match="keep fewer factors"):
        pack_statistics(wide, ClassStatistics(large[:, 0], large, 1.0, 1))


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "ef"}, {"fingerprint": "ef"}, {"size": 7},
        *({"k": 3, "profile": "compact", "shard": 8, "calibrated": c} for c in (False, True)),
    ],
    ids=str,
)  # fmt: skip
def test_those_of_another_teacher_data_set_or_recipe_are_refused_and_k_and_profile_do_not_count(other):
    theirs, statistics = spec_of(**other), statistics_of(PLAIN)
    files = pack_statistics(PLAIN, statistics)
    if "k" in other:
        assert_equal_statistics(unpack_statistics(files, theirs, "c.zarr"), statistics)
    else:
        with pytest.raises(FormatError, match=r"not the numbers that were written for this cache"):
            unpack_statistics(files, theirs, "c.zarr")


def test_growth_keeps_them(tmp_path: Path):
    cache = before_growth(tmp_path / "c.zarr")
    calibrate(cache, statistics_of(SMALL))
    before = files_of(cache / GROUP)
    grow(cache)
    assert CacheReader(cache).spec == GROWN
    assert_equal_statistics(CacheReader(cache).statistics(), statistics_of(SMALL))
    assert files_of(cache / GROUP) == before
    calibrate(cache, statistics_of(GROWN, 1))  # anew, after it grew
    assert_equal_statistics(CacheReader(cache).statistics(), statistics_of(GROWN, 1))


def test_a_calibrated_cache_grows(tmp_path: Path):
    spec = spec_of(n=7, classes=3, calibrated=True)
    grown = spec.grown(dataclasses.replace(spec.dataset, n=12, fingerprint="grown"))
    CacheWriter.open(tmp_path / "c.zarr", spec, KEYS[:7], statistics_of(spec))
    fill(tmp_path / "c.zarr", spec)
    CacheWriter.open(tmp_path / "c.zarr", grown, KEYS, grow=True)
    fill(tmp_path / "c.zarr", grown)
    reader = CacheReader(tmp_path / "c.zarr")
    assert (reader.spec, reader.complete()) == (grown, [1])
    assert_equal_statistics(reader.statistics(), statistics_of(spec))
    for shard in range(grown.layout.shards):
        assert_holds(reader, 1, shard)


# Copies and caches derived ---------------------------------------------------------------------------------


def test_a_copy_has_them_byte_for_byte_and_the_next_copy_writes_nothing(
    held: Path, root: str, tmp_path: Path
):
    about = held / GROUP / "zarr.json"
    about.write_text(json.dumps(json.loads(about.read_text()), indent=5))  # as another writer may have put it
    copy_cache(held, f"{root}/there.zarr")
    copy_cache(f"{root}/there.zarr", tmp_path / "back.zarr")
    assert files_of(tmp_path / "back.zarr" / GROUP) == files_of(held / GROUP)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "back.zarr" / GROUP).rglob("*")}
    copy_cache(held, tmp_path / "back.zarr")
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "back.zarr" / GROUP).rglob("*")}


def test_a_source_that_was_calibrated_after_it_was_copied_gives_them_to_the_next_copy(
    root: str, tmp_path: Path
):
    source, out = fill(tmp_path / "c.zarr", PLAIN), f"{root}/d.zarr"
    copy_cache(source, out)
    assert CacheReader(out).statistics() is None
    calibrate(source, statistics_of(PLAIN))
    copy_cache(source, out)
    assert_equal_statistics(CacheReader(out).statistics(), statistics_of(PLAIN))
    calibrate(source, statistics_of(PLAIN, 1))
    with pytest.raises(
        MismatchError, match=r"another cache than .*class_statistics: expected .* copy to another"
    ):
        copy_cache(source, out)
    assert_equal_statistics(CacheReader(out).statistics(), statistics_of(PLAIN))
    copy_cache(fill(tmp_path / "none.zarr", PLAIN), out)  # a source that has none takes none away
    assert_equal_statistics(CacheReader(out).statistics(), statistics_of(PLAIN))


@pytest.mark.parametrize("name", STATISTICS_FILES)
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_damaged_ones_are_restored_from_a_copy_and_not_copied(
    damage: str, name: str, held: Path, tmp_path: Path
):
    replica = Path(shutil.copytree(held, tmp_path / "replica.zarr"))
    if damage == "gone":
        (held / name).unlink()
    else:
        flip(held / name, 0.3)
    if read_or_refuse(held, None) is not None:  # else the group of a plain cache is gone, and it has none
        with pytest.raises(FormatError, match=r"held\.zarr"):
            copy_cache(held, tmp_path / "new.zarr")
        assert not (tmp_path / "new.zarr").exists()
        with pytest.raises(FormatError, match=r"held\.zarr"):
            copy_cache(held, replica)
    copy_cache(replica, held)
    assert files_of(held) == files_of(replica)


@pytest.mark.parametrize("spec", [PLAIN, CALIBRATED, spec_of(k=5, profile="exact")], ids=["1", "2", "exact"])
def test_what_is_derived_has_those_of_its_source(spec: CacheSpec, tmp_path: Path):
    source, out = fill(tmp_path / "c.zarr", spec), tmp_path / "d.zarr"
    derive_cache(source, out, top_k=1, profile="compact")
    derived = CacheReader(out)
    assert (derived.spec.calibrated, derived.spec.k) == (spec.calibrated, 1)
    assert_equal_statistics(derived.statistics(), first_statistics(spec))
    if not spec.calibrated:
        calibrate(source, statistics_of(spec))
        derive_cache(source, out, top_k=1, profile="compact")
        assert_equal_statistics(CacheReader(out).statistics(), statistics_of(spec))
        assert files_of(out / GROUP) == files_of(source / GROUP)
    before = files_of(out)
    calibrate(source, statistics_of(spec, 1))
    with pytest.raises(MismatchError, match=r"class_statistics: expected .* derive to another place"):
        derive_cache(source, out, top_k=1, profile="compact")
    assert files_of(out) == before


def test_a_tail_without_variance_is_derived_as_one_that_has_it(tmp_path: Path):
    plain, calibrated = spec_of(k=3), spec_of(k=3, calibrated=True)
    for name, spec in (("plain", plain), ("calibrated", calibrated)):
        fill(tmp_path / f"{name}.zarr", spec)
        derive_cache(tmp_path / f"{name}.zarr", tmp_path / f"{name}-1.zarr", top_k=1)
    for shard in range(plain.layout.shards):
        mine, theirs = (
            CacheReader(tmp_path / f"{name}-1.zarr").read(1, shard) for name in ("calibrated", "plain")
        )
        assert theirs.keys() - mine.keys() == {"tail_var"}
        for array in mine:
            np.testing.assert_array_equal(mine[array], theirs[array], err_msg=array)


# Damage ---------------------------------------------------------------------------------------------------


def read_or_refuse(path: Path, *allowed: ClassStatistics | None) -> str | None:
    """Reading them gives one of these, or an error of ours in one line that says what to do; return it."""
    try:
        found = CacheReader(path).statistics()
    except (FormatError, StorageError) as error:
        said = str(one_line(error))
        assert said.endswith("or make them anew with `logitcache calibrate`")
        assert str(path) in said
        return said
    for each in allowed:
        with contextlib.suppress(AssertionError):
            assert_equal_statistics(found, each)
            return None
    raise AssertionError("other numbers than were written, and nobody said so")


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


def zeroed(statistics: ClassStatistics) -> ClassStatistics:
    """The same with a mean of zeros, which has no file: one that is left over would be taken for it."""
    return dataclasses.replace(statistics, mean=np.zeros_like(statistics.mean))


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


# Elsewhere ------------------------------------------------------------------------------------------------


def test_at_a_url_they_are_what_they_are_here(root: str):
    for spec in (PLAIN, CALIBRATED):
        url = f"{root}/{spec.format_version}.zarr"
        CacheWriter.open(url, spec, statistics=first_statistics(spec))
        assert_equal_statistics(CacheReader(url).statistics(), first_statistics(spec))
        for statistics in (statistics_of(spec, 1), zeroed(statistics_of(spec, 2))):
            calibrate(url, statistics)
            assert_equal_statistics(CacheReader(url).statistics(), statistics)
        size = CacheReader(url).info()["bytes_on_disk"]
        assert size > sum(map(len, pack_statistics(spec, statistics).values()))


def test_what_was_left_at_a_url_is_not_taken_for_the_next_ones(tmp_path: Path):
    url = f"memory://{tmp_path.name}/c.zarr"
    CacheWriter.open(url, CALIBRATED, statistics=statistics_of(CALIBRATED))
    CacheReader(url).place.delete(["zarr.json"])
    CacheWriter.open(url, PLAIN)
    assert CacheReader(url).statistics() is None


class _ListsNothing(QuietHandler):
    missing = HTTPStatus.NOT_FOUND

    def send_error(self, code: int, *args: Any, **options: Any) -> None:
        super().send_error(self.missing if code == HTTPStatus.NOT_FOUND else code, *args, **options)

    def list_directory(self, path: object) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)


class _Forbids(_ListsNothing):
    """Says 403 of what is not there, as S3 does to those who may not list."""

    missing = HTTPStatus.FORBIDDEN


@pytest.mark.parametrize("handler", [_ListsNothing, _Forbids])
def test_on_the_web_they_are_found_by_their_names(handler, tmp_path: Path):
    for spec in (PLAIN, CALIBRATED):
        path = fill(tmp_path / f"{spec.format_version}.zarr", spec)
        with serving(partial(handler, directory=tmp_path)) as host:
            url = f"{host}/{path.name}"
            assert_equal_statistics(CacheReader(url).statistics(), first_statistics(spec))
            calibrate(path, statistics_of(spec, 1))
            assert_equal_statistics(CacheReader(url).statistics(), statistics_of(spec, 1))
            (path / STATISTICS_FILES[0]).unlink()
            with pytest.raises((FormatError, StorageError)):
                CacheReader(url).statistics()
            (path / STATISTICS_FILES[-1]).unlink()
            if spec.calibrated:
                with pytest.raises((FormatError, StorageError)):
                    CacheReader(url).statistics()
            else:
                assert CacheReader(url).statistics() is None
