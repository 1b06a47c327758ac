"""`~` is the home folder wherever a path is named; users without a home or a name, and empty variables."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from command import succeeds
from reports import a_run, rows_of
from small_caches import SMALL, fill

from logitcache.errors import NotFoundError, OptionError, StorageError
from logitcache.models.build import build_model, save_weights
from logitcache.models.weights import download_weights
from logitcache.paths import expand_home, find_home, user_cache_folder, write_path
from logitcache.report.page import report
from logitcache.store import CacheReader
from logitcache.store.copy import copy_cache
from logitcache.stream.stream_inputs import read_samples
from logitcache.teacher.spool import default_spool_folder, open_spool
from logitcache.train.run_folder import RunFolder
from logitcache.train.trained import TrainedStudent
from logitcache.views.datasets import open_images
from logitcache.views.recipes import recipe_named


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another one to work in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def nobody(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the system does not know."""
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(home))


def test_tilde_is_the_home_folder_and_a_plain_name_elsewhere(home: Path, monkeypatch) -> None:
    assert expand_home("~") == home
    assert expand_home("~/a/b") == home / "a" / "b"
    assert expand_home(Path("~/a")) == Path("~/a")  # which is no text, and has been read
    assert expand_home(write_path(Path("./~a"))) == Path("~a")
    assert expand_home("~root") == Path(pwd.getpwnam("root").pw_dir)
    for plain in ("a", "./~", "./~x/y", "a/~", "/~"):
        assert expand_home(plain) == Path(plain)
    with pytest.raises(OptionError, match=r"~nobody-of-that-name/x: no home folder for ~nobody.*\./~nobody"):
        expand_home("~nobody-of-that-name/x")
    monkeypatch.setenv("HOME", "")
    assert find_home() == Path(pwd.getpwuid(os.getuid()).pw_dir)


def test_every_text_that_the_library_takes_as_a_path_may_begin_with_it(home: Path) -> None:
    fill(home / "c.zarr", SMALL, seeds=(0,))
    copy_cache("~/c.zarr", "~/d.zarr")
    reader = CacheReader("~/d.zarr")
    assert reader.complete() == CacheReader(home / "c.zarr").complete() == [0]
    open_spool(reader, 0, home / "spool")
    run = a_run(home / "run", rows_of(2))
    assert not RunFolder(Path("~/run")).has_run()  # a path object is what it says
    save_weights("~/w.safetensors", build_model("digits_tiny", num_classes=10, view_size=8, weights="random"))
    build_model("digits_tiny", num_classes=10, view_size=8, weights="~/w.safetensors")
    assert TrainedStudent.find("~/w.safetensors").name == "digits_tiny"
    report("~/report.html", ["~/run"])
    (home / "samples.txt").write_text("3 1")
    assert read_samples(home / "samples.txt") == (3, 1)
    (home / "r.toml").write_text('name = "r"\n[[steps]]\ntransform = "CenterCrop"\nsize = 8\n')
    assert recipe_named("~/r.toml").name == "r"
    for name in ("imagefolder:~/none", "folder:~/none", "cifar10:~/none"):
        with pytest.raises(NotFoundError, match=str(home / "none")):
            open_images(name)
    made = {
        "c.zarr",
        "d.zarr",
        "spool",
        "run",
        "w.safetensors",
        "report.html",
        "samples.txt",
        "r.toml",
        "none",
    }
    assert {file.name for file in home.iterdir()} <= made
    assert run.parent == home
    assert not list(Path.cwd().iterdir())


def test_the_config_file_may_name_the_home_folder(home: Path) -> None:
    Path("logitcache.toml").write_text(
        '[train]\nstudent = "digits_tiny"\nloss = "ce"\nout = "~/run"\nepochs = 1\nworkers = 0\ndevice = "cpu"\n'
    )
    succeeds("train", cwd=Path.cwd())
    assert (home / "run" / "config.json").exists()
    assert [file.name for file in Path.cwd().iterdir()] == ["logitcache.toml"]


# Where what can be made again is kept ---------------------------------------------------------------------


@pytest.mark.parametrize("chosen", ["", "  ", "relative/folder"])
def test_a_cache_folder_that_is_empty_or_relative_is_passed_over(
    chosen: str, home: Path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", chosen)
    monkeypatch.setenv("LOGITCACHE_SPOOL", "")
    assert default_spool_folder() == home / ".cache" / "logitcache" / "spool"
    monkeypatch.setenv("LOGITCACHE_SPOOL", "~/sp")
    assert default_spool_folder() == home / "sp"
    with pytest.raises(Exception, match=str(home / ".cache" / "torch" / "hub")):
        download_weights("file:///nowhere", "none.pth")
    assert not list(Path.cwd().iterdir())


def test_a_user_without_a_home_keeps_spools_in_a_temporary_folder_of_his_own(
    home: Path, nobody: None, monkeypatch
) -> None:
    own = home / f"logitcache-{os.getuid()}"
    assert user_cache_folder() == own
    assert own.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("HOME", "/nonexistent")
    assert user_cache_folder() == own
    own.chmod(0o777)
    with pytest.raises(StorageError, match=r"others may write into it; name a folder .*LOGITCACHE_SPOOL"):
        user_cache_folder()
    own.rmdir()
    own.symlink_to(home)
    with pytest.raises(StorageError, match="belongs to somebody else"):
        user_cache_folder()
    monkeypatch.setenv("HOME", "")
    with pytest.raises(OptionError, match="no home folder"):
        expand_home("~/x")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be somebody else")
def test_such_a_user_can_compile() -> None:
    code = (
        "import os, pwd, getpass; from logitcache.paths import name_user\n"
        "os.setgid(54321); os.setuid(54321); name_user(); print(getpass.getuser())"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "uid-54321\n", done.stderr
