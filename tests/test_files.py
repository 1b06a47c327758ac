"""A file is replaced whole, as the umask has it, or stays what it was with nothing beside it."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from reports import a_run, rows_of

from logitcache.errors import StorageError
from logitcache.files import replacing
from logitcache.models.build import build_model, save_weights
from logitcache.models.export import export_model
from logitcache.report.page import report


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
