"""Files that systems, file managers and consoles leave in folders: no cache is refused or read otherwise for them."""

import os
from pathlib import Path

import fsspec
import pytest
from small_caches import SMALL, assert_same_cache, fill, make

from logitcache.errors import NotFoundError
from logitcache.files import is_stray
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.copy import copy_cache

STRAYS = [
    ".DS_Store", "._zarr.json", ".localized", "Thumbs.db", "thumbs.db", "desktop.ini", ".nfs000000000123abcd",
    ".directory", "seed-0_$folder$",
]  # fmt: skip
FOLDERS = ["lost+found", ".Trash-1000", "@eaDir", "System Volume Information"]
INSIDE = ["", "seed-0", "seed-0/ids", "seed-0/ids/c", "seed-0/commit/c", "sample_key"]


def leave_strays(folder: Path) -> None:
    for name in STRAYS:
        (folder / name).write_bytes(b"x")
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "anything").touch()


def leave_markers(url: str, *folders: str) -> None:
    """Make folders as the console of S3 does: empty objects whose names end with a slash."""
    host, root = fsspec.url_to_fs(url)
    bucket, _, key = root.partition("/")
    for folder in folders:
        host.call_s3("put_object", Bucket=bucket, Key=f"{key}/{folder}", Body=b"")


def test_names_of_a_cache_and_of_people_are_no_strays() -> None:
    assert all(map(is_stray, [*STRAYS, *FOLDERS]))
    ours = (
        "zarr.json",
        ".lock",
        ".new",
        "seed-0",
        "ids",
        "c",
        "0",
        "0.partial",
        "sample_key",
        "a.txt",
        ".git",
    )
    assert not any(map(is_stray, ours))


def test_a_cache_is_begun_where_only_strays_lie_and_is_the_one_made_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    out.mkdir()
    leave_strays(out)
    fill(out, SMALL, seeds=(0,))
    plain = fill(tmp_path / "plain.zarr", SMALL, seeds=(0,))
    for folder in INSIDE:
        if (out / folder).is_dir():
            leave_strays(out / folder)
    assert_same_cache(CacheReader(out), CacheReader(plain))
    assert CacheReader(out).strays(0) == []
    fill(out, SMALL, seeds=(0, 1))
    copy_cache(out, tmp_path / "copy.zarr")
    assert CacheReader(tmp_path / "copy.zarr").complete() == [0, 1]


def test_folders_made_on_the_console_of_s3_are_empty_places(s3: str, tmp_path: Path) -> None:
    root = f"s3://bucket/{tmp_path.name}"
    leave_markers(root, "c.zarr/", "c.zarr/seed-0/", "c.zarr/seed-0/commit/c/", "c.zarr_$folder$")
    assert CacheWriter.find(f"{root}/c.zarr") is None
    made = make(f"{root}/c.zarr", SMALL, seeds=(0,))
    leave_markers(
        root, "c.zarr/sample_key/", "c.zarr/seed-1/", "c.zarr/seed-0/ids/c/", "c.zarr/seed-0/.DS_Store"
    )
    reader = CacheReader(f"{root}/c.zarr")
    assert_same_cache(reader, make(tmp_path / "c.zarr", SMALL, seeds=(0,)))
    assert reader.seeds() == made.seeds() == [0]
    assert reader.strays(0) == []
    assert reader.without_metadata() == []
    copy_cache(reader.path, tmp_path / "copy.zarr")
    fill(f"{root}/c.zarr", SMALL, seeds=(1,))
    assert CacheReader(f"{root}/c.zarr").complete() == [0, 1]


def test_what_lies_where_a_cache_was_to_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for name in ("b.txt", "a.txt", ".DS_Store"):
        (tmp_path / "here" / name).touch()
    with pytest.raises(
        NotFoundError, match=r"where something else is \(a\.txt, b\.txt\); name a cache, or an"
    ):
        CacheWriter.open(tmp_path / "here", SMALL)
    for name in ("c\n", "d", "e"):
        (tmp_path / "here" / name).touch()
    with pytest.raises(NotFoundError, match=r"\(a\.txt, b\.txt, 'c\\n' and 2 more\)") as refused:
        CacheReader(tmp_path / "here")
    assert "\n" not in str(refused.value)
    with pytest.raises(NotFoundError, match=r"where something else is \(a file\)"):
        CacheReader(tmp_path / "here" / "a.txt")
    assert len(os.listdir(tmp_path / "here")) == 6
