"""A file is replaced whole, as the umask has it, or stays what it was with nothing beside it."""

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from reports import a_run, rows_of
from small_caches import SMALL, calibrate, fill, statistics_of

from logitcache.errors import StorageError
from logitcache.files import replacing
from logitcache.models.build import build_model, save_weights
from logitcache.models.export import export_model
from logitcache.report.page import report
from logitcache.store import CacheReader
from logitcache.store.copy import copy_cache


@contextmanager
def full_disk(room: int = 1000) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


WAYS = ("torchscript", "weights", "report")


def write(way: str, run: Path, file: Path) -> None:
    if way == "report":
        report(file, [run])
        return
    student = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    save_weights(file, student) if way == "weights" else export_model(student, file, way)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_leaves_the_file_before_and_nothing_else(way: str, tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run", rows_of(2)), tmp_path / "out"
    out.mkdir()
    (out / "file").write_bytes(b"the one before")
    with full_disk(), pytest.raises(StorageError, match="cannot write"):
        write(way, run, out / "file")
    assert [(file.name, file.read_bytes()) for file in out.iterdir()] == [("file", b"the one before")]
    write(way, run, out / "file")
    assert [file.name for file in out.iterdir()] == ["file"]
    assert (out / "file").stat().st_size > 1000


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_who_may_read_a_file_is_as_the_umask_says(umask: int, tmp_path: Path) -> None:
    run, before = a_run(tmp_path / "run", rows_of(2)), os.umask(umask)
    try:
        for way in WAYS:
            write(way, run, tmp_path / way)
    finally:
        os.umask(before)
    assert {(tmp_path / way).stat().st_mode & 0o777 for way in WAYS} == {0o666 & ~umask}


def test_what_a_killed_process_left_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"of another")
    with replacing(tmp_path / "file") as aside, aside.open("ab") as end:
        end.write(b"ours")
    assert (tmp_path / "file").read_bytes() == b"ours"
    assert len(list(tmp_path.iterdir())) == 1


# Where a folder cannot be flushed -------------------------------------------------------------------------


def fail_at_folders(error: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the system refuse to flush folders, but no files; return the files that are flushed, as it goes."""
    flushed: list[str] = []

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(error, os.strerror(error))
        flushed.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)

    monkeypatch.setattr(os, "fsync", fsync)
    return flushed


def dump_and_copy(folder: Path) -> None:
    fill(folder / "labs" / "c.zarr", SMALL, seeds=(0,))
    calibrate(folder / "labs" / "c.zarr", statistics_of(SMALL))
    copy_cache(folder / "labs" / "c.zarr", folder / "copy.zarr")


@pytest.mark.parametrize("error", ["EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EISDIR"])
def test_a_disk_that_cannot_flush_a_folder_is_written_to_all_the_same(error, tmp_path, monkeypatch) -> None:
    flushed = fail_at_folders(getattr(errno, error), monkeypatch)
    with replacing(tmp_path / "file") as aside:
        aside.write_bytes(b"ours")
    assert (tmp_path / "file").read_bytes() == b"ours"
    dump_and_copy(tmp_path)
    assert CacheReader(tmp_path / "copy.zarr").complete() == [0]
    assert {"file.part", "zarr.json.partial"} <= set(flushed)  # files are flushed as ever


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EROFS"])
def test_a_disk_that_fails_at_flushing_a_folder_ends_the_run(error, tmp_path, monkeypatch) -> None:
    fail_at_folders(getattr(errno, error), monkeypatch)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, error))), replacing(tmp_path / "file"):
        pass
    with pytest.raises(StorageError, match="cannot write"):
        dump_and_copy(tmp_path)


def test_a_folder_that_may_not_be_listed_is_written_into_all_the_same(tmp_path, monkeypatch) -> None:
    opened = os.open

    def refuse(path, flags, *args, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", refuse)  # root may list everything
    dump_and_copy(tmp_path)
    assert CacheReader(tmp_path / "copy.zarr").complete() == [0]
