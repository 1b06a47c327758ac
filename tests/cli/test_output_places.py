"""Wherever a command is told to write: it does, or ends in one line before its work begins."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command import fails, logitcache, succeeds
from dumping import dump_digits
from typer.main import get_command

from logitcache.errors import OptionError, StorageError
from logitcache.files import require_file, require_folder, writing
from logitcache_cli.main import app


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, a run, a file, and a folder that is not empty."""
    folder = tmp_path_factory.mktemp("places")
    words = ("--seeds", 0, "--out", "good.zarr", "--shard-samples", 1024)
    succeeds("dump", "--teacher", "digits_small", *words, cwd=folder)
    words = ("--loss", "ce", "--epochs", 1, "--out", "run", "--workers", 0)
    succeeds("train", "--student", "digits_tiny", *words, cwd=folder)
    (folder / "file").write_text("mine")
    (folder / "folder").mkdir()
    (folder / "folder" / "file").write_text("mine")
    return folder


TRAIN = "train --student digits_tiny --epochs 1 --workers 0"
FILES = {
    "init": "init --force --out X",
    "export": "export run --format torchscript --out X",
    "report": "report run --out X",
    "bench": "bench scale --n 600 --rounds 1 --plot X",
    "select": "select good.zarr --by margin --keep 5 --out X",
}
FOLDERS = {
    "demo": "demo --repeats 1 --student-epochs 1 --teacher-epochs 1 --out X",
    "dump": "dump --teacher digits_small --seeds 0 --shard-samples 1024 --out X",
    "derive": "derive good.zarr X --top-k 2",
    "copy": "copy good.zarr X",
    "train": f"{TRAIN} --loss ce --out X",
    "students": f"{TRAIN} --student digits_small --loss ce --out X",
    "spools": f"{TRAIN} --cache good.zarr --out runs/new --spool-dir X",
    "stats": "stats good.zarr --pictures X",
}


def words_of(command: str, place: str) -> list[str]:
    return [place if word == "X" else word for word in command.split()]


@pytest.mark.parametrize("place", ["file/x/y", "/proc/none/x", "n" * 300], ids=["file", "proc", "long"])
@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_a_place_that_cannot_be_is_refused_in_one_line(
    name: str, place: str, things: Path, tmp_path: Path
) -> None:
    if (name, place) == ("bench", "/proc/none/x"):
        pytest.skip("whether one may write there is only known after minutes")
    folder = Path(shutil.copytree(things, tmp_path / "here"))
    line = fails(*words_of({**FILES, **FOLDERS}[name], place), cwd=folder)
    assert f"{place}" in line or place.rpartition("/")[0] in line
    assert (folder / "file").read_text() == "mine"


@pytest.mark.parametrize("name", FILES)
def test_a_folder_where_a_file_is_wanted_is_refused(name: str, things: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(things, tmp_path / "here"))
    for place in ("folder", "."):
        line = fails(*words_of(FILES[name], place), cwd=folder)
        assert f"{place} is a folder; name the file to write, such as " in line
    assert [file.name for file in (folder / "folder").iterdir()] == ["file"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_where_a_folder_is_wanted_is_refused(name: str, things: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(things, tmp_path / "here"))
    assert "file" in fails(*words_of(FOLDERS[name], "file"), cwd=folder)
    assert (folder / "file").read_text() == "mine"


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_an_empty_path_is_a_wrong_option(name: str, things: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(things, tmp_path / "here"))
    before = {str(path) for path in folder.rglob("*")}
    ended = logitcache(*words_of({**FILES, **FOLDERS}[name], ""), cwd=folder)
    assert ended.exit_code == 2, ended.output
    assert "the path is empty" in ended.stderr
    assert {str(path) for path in folder.rglob("*")} == before


@pytest.mark.parametrize("name", ["init", "export", "report", "stats"])
def test_folders_that_are_lacking_are_made(name: str, things: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(things, tmp_path / "here"))
    succeeds(*words_of({**FILES, **FOLDERS}[name], "new/deep/x"), cwd=folder)
    assert (folder / "new" / "deep" / "x").exists()


def test_no_option_that_names_an_output_is_left_out() -> None:
    """An option or argument of a new command that is called like these is to be tried here."""
    outputs = {"--out", "--plot", "--pictures", "--spool-dir", "out", "destination"}
    tried = {(command.split()[0]) for command in (*FILES.values(), *FOLDERS.values())}
    commands = get_command(app).commands  # type: ignore[attr-defined]
    named = {
        name for name, one in commands.items() if outputs & {x for p in one.params for x in (*p.opts, p.name)}
    }
    assert named == tried


@pytest.mark.parametrize("check", [lambda path: require_file(path, "x"), require_folder])
def test_what_is_read_only_is_refused_before_the_work(
    check: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(tmp_path / "new" / "x")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # to root, everything is writable
    with pytest.raises(StorageError, match="is read-only; name another place"):
        check(tmp_path / "new" / "x")


def test_an_error_while_writing_is_told_as_it_is(tmp_path: Path) -> None:
    full = pytest.raises(StorageError, match=r"cannot write .*/a/b: No space left on device")
    with full, writing(tmp_path / "a" / "b"):
        raise OSError(28, "No space left on device")
    with pytest.raises(OptionError, match="not this"), writing(tmp_path / "a" / "b"):
        raise OptionError("not this")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_run_is_not_written_into_a_cache(things: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(things, tmp_path / "things")
    before = {file.name for file in (folder / "good.zarr").iterdir()}
    line = fails(*words_of(FOLDERS["train"], "good.zarr"), cwd=folder)
    assert "good.zarr is a cache; choose another --out" in line
    assert {file.name for file in (folder / "good.zarr").iterdir()} == before


def test_a_folder_called_like_a_home_is_a_plain_name_everywhere(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", n=64, seeds=(0,))
    words = ("train", "--student", "digits_tiny", "--cache", "c.zarr", "--epochs", 1, "--spool-dir", "./~s")
    succeeds(*words, "--out", "./~x", cwd=tmp_path)
    succeeds("evaluate", "./~x", cwd=tmp_path)
    succeeds("report", "./~x", "--out", "./~r.html", cwd=tmp_path)
    succeeds("train", "--out", "./~x", "--resume", cwd=tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"c.zarr", "~s", "~x", "~r.html"}
