"""Class statistics are those that were written for this cache, or there is an error of ours, or there are none."""

import dataclasses
import json
import shutil
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

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
    assert_equal_statistics,
    assert_holds,
    calibrate,
    files_of,
    fill,
    first_statistics,
    read_or_refuse,
    spec_of,
    statistics_of,
    zeroed,
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
    files = [f for f in held.rglob("*") if f.is_file() and not f.name.startswith(".")]
    assert info["bytes_on_disk"] == sum(f.stat().st_size for f in files)
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
