"""A lock is held by one process at a time, on disks with flock and without, however its holder ends."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from small_caches import FORK, SMALL, fill

from logitcache.errors import BusyError
from logitcache.locks import FRESH, HeldError, Locks, lock
from logitcache.store import CacheReader, CacheWriter
from logitcache.teacher.spool import open_spool, spool_path

NO_FLOCK = ["ENOSYS", "EOPNOTSUPP", "ENOLCK"]


def take_flock_away(monkeypatch: pytest.MonkeyPatch, error: str = "ENOSYS") -> None:
    """Let this disk say that it has no flock."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))

    monkeypatch.setattr(fcntl, "flock", flock)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_free(file: Path) -> bool:
    """Could another process hold it?"""
    told, tell = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_try, args=(file, tell))
    child.start()
    child.join()
    return bool(told.recv())


def _try(file: Path, tell) -> None:
    try:
        with lock(file):
            tell.send(True)
    except HeldError:
        tell.send(False)


def _hold(files: list[Path], tell) -> None:
    locks = Locks()
    with ExitStack() as stack:
        for file in files:
            stack.enter_context(locks.hold(file))
        tell.send("held")
        signal.pause()


def hold_and_die(files: list[Path]) -> None:
    """Hold locks in a process that is killed."""
    told, tell = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_hold, args=(files, tell))
    child.start()
    assert told.recv() == "held"
    child.kill()
    child.join()


def another_holder(file: Path, *, host: str = "pod-7", pid: int | None = None, start: str = "") -> None:
    """Say in a lock file that another process holds it, since a minute ago, and has no flock."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() - 60))
    file.write_text(f"process {pid or os.getpid()} on {host} since {since}, without flock\n {start}\n")


@pytest.fixture(params=["flock", *NO_FLOCK])
def any_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "flock":
        take_flock_away(monkeypatch, request.param)
    return str(request.param)


def test_one_holder_at_a_time_and_free_when_it_ends(any_disk: str, tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with lock(file):
        assert not is_free(file)
        with pytest.raises(
            HeldError, match=rf"process {os.getpid()} on {socket.gethostname()} since 20.* UTC"
        ):
            lock(file).__enter__()
    assert is_free(file)
    hold_and_die([file])
    assert is_free(file)
    with lock(file):
        pass
    assert not [other for other in tmp_path.iterdir() if other != file]


def test_processes_that_want_a_lock_of_one_that_was_killed_have_it_in_turn(
    any_disk: str, tmp_path: Path
) -> None:
    file, counted = tmp_path / "lock", tmp_path / "count"
    hold_and_die([file])
    counted.write_text("0")
    children = [FORK.Process(target=_count, args=(file, counted, 10)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert counted.read_text() == "40"


def _count(file: Path, counted: Path, times: int) -> None:
    for _ in range(times):
        with lock(file, wait=60):
            number = int(counted.read_text())
            time.sleep(0.001)
            counted.write_text(str(number + 1))


# One descriptor -------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for number in range(40):
        (tmp_path / str(number)).mkdir()
    return [tmp_path / str(number) / "lock" for number in range(40)]


def test_many_locks_take_one_descriptor_and_are_let_go_one_by_one(files: list[Path]) -> None:
    before, locks = descriptors(), Locks()
    with ExitStack() as rest, ExitStack() as first:
        for number, file in enumerate(files):
            (first if number < 20 else rest).enter_context(locks.hold(file))
        assert descriptors() == before + 1
        assert not any(map(is_free, files[::7]))
        with pytest.raises(BlockingIOError), files[3].open("r+") as old:  # as an earlier logitcache locks
            fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
        first.close()
        assert [is_free(file) for file in files[::5]] == [True] * 4 + [False] * 4
        assert descriptors() == before + 1
    assert descriptors() == before
    assert all(map(is_free, files[::7]))


def test_of_a_killed_run_others_take_what_they_want_each(files: list[Path]) -> None:
    hold_and_die(files)
    assert files[0].stat().st_nlink == len(files)
    mine, others = Locks(), Locks()
    with mine.hold(files[0]), others.hold(files[1]), mine.hold(files[2]), others.hold(files[3]):
        assert not any(map(is_free, files[:4]))
        assert is_free(files[4])
    assert all(map(is_free, files[:5]))


def test_without_hard_links_each_lock_has_a_descriptor(files: list[Path], monkeypatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    before, locks = descriptors(), Locks()
    with ExitStack() as stack:
        for file in files[:5]:
            stack.enter_context(locks.hold(file))
        assert descriptors() == before + 5
        assert not any(map(is_free, files[:5]))
    assert descriptors() == before
    assert all(map(is_free, files[:5]))


def test_what_this_process_holds_is_not_let_go_by_its_forks(files: list[Path]) -> None:
    locks = Locks()
    with locks.hold(files[0]):
        child = FORK.Process(target=_hold_more, args=(locks, files[1]))
        child.start()
        child.join()
        assert child.exitcode == 0
        assert not is_free(files[0])
        assert is_free(files[1])


def _hold_more(locks: Locks, file: Path) -> None:
    with locks.hold(file):
        pass


# Holders that cannot be asked -----------------------------------------------------------------------------


@pytest.mark.parametrize("flock", [True, False])
def test_a_holder_of_another_host_is_named_and_not_passed_over(
    flock: bool, tmp_path: Path, monkeypatch
) -> None:
    if not flock:
        take_flock_away(monkeypatch)
    file = tmp_path / "lock"
    another_holder(file)
    with pytest.raises(HeldError) as refused:
        lock(file).__enter__()
    assert re.fullmatch(rf"process {os.getpid()} on pod-7 since 20\d\d-.* UTC", refused.value.who)
    assert f"if it has ended, delete {file} and run the same command again" in refused.value.how
    began = time.monotonic()
    with pytest.raises(HeldError):
        lock(file, wait=30).__enter__()  # it has held it for a minute already
    assert time.monotonic() - began < 5
    file.unlink()
    with lock(file):
        pass


@pytest.mark.parametrize("flock", [True, False])
def test_a_holder_of_this_host_is_passed_over_once_it_has_ended(
    flock: bool, tmp_path: Path, monkeypatch
) -> None:
    if not flock:
        take_flock_away(monkeypatch)
    file, here = tmp_path / "lock", socket.gethostname()
    ended = FORK.Process(target=int)
    ended.start()
    ended.join()
    another_holder(file, host=here, pid=ended.pid)
    with lock(file):
        pass
    another_holder(file, host=here, start="1")  # a process of our number, but before our time
    with lock(file):
        pass
    file.write_text(f"{ended.pid}\n{here}\n")  # as filelock's soft locks say it
    with lock(file):
        pass
    another_holder(file, host=here)
    with pytest.raises(HeldError) as refused:
        lock(file).__enter__()
    assert not refused.value.how  # the system knows it


def test_an_empty_file_is_nobodys_unless_it_is_new(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "lock"
    with lock(file):
        pass
    assert file.read_bytes() == b""  # as flock leaves it
    take_flock_away(monkeypatch)
    began = time.monotonic()
    with lock(file):  # its maker might be about to write who it is
        assert time.monotonic() - began > FRESH / 2
        assert b"without flock" in file.read_bytes()
    assert not file.exists()


def test_a_full_disk_keeps_no_lock_from_being_held(tmp_path: Path, monkeypatch) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with lock(tmp_path / "lock"), pytest.raises(HeldError, match="another process"):
        lock(tmp_path / "lock").__enter__()


# In the store ---------------------------------------------------------------------------------------------


def test_who_holds_a_seed_is_said_with_what_frees_all_its_seeds(tmp_path: Path, monkeypatch) -> None:
    take_flock_away(monkeypatch)
    path = fill(tmp_path / "c o.zarr", SMALL, seeds=(0, 1, 2))
    for seed in (0, 1):
        another_holder(path / f"seed-{seed}" / "commit" / ".lock")
    another_holder(path / "seed-2" / "commit" / ".lock", host="pod-70")
    with pytest.raises(BusyError, match=r"seed 0 of .* written by process \d+ on pod-7 since") as refused:
        fill(path, SMALL, seeds=(0,))
    told = str(refused.value)
    assert "\n" not in told
    assert f"if it has ended, delete {path}/seed-0/commit/.lock and run" in told
    subprocess.run(told.partition("all that it held: ")[2], shell=True, check=True)
    fill(path, SMALL, seeds=(0, 1))
    with pytest.raises(BusyError, match="pod-70"):
        fill(path, SMALL, seeds=(2,))


def test_a_spool_is_built_beside_a_lock_that_nobody_answers_for(tmp_path: Path, monkeypatch) -> None:
    take_flock_away(monkeypatch)
    reader = CacheReader(fill(tmp_path / "c.zarr", SMALL, seeds=(0,)))
    rows = open_spool(reader, 0, tmp_path / "one").copy()
    (tmp_path / "two").mkdir()
    left = spool_path(reader, 0, tmp_path / "two").with_suffix(".lock")
    another_holder(left)
    assert (open_spool(reader, 0, tmp_path / "two") == rows).all()
    assert sorted(file.suffix for file in (tmp_path / "two").iterdir()) == [".lock", ".spool"]
    assert "pod-7" in left.read_text()


def test_a_cache_is_begun_and_goes_on_where_there_is_no_flock(any_disk: str, tmp_path: Path) -> None:
    path = fill(tmp_path / "c.zarr", SMALL, seeds=(0, 1))
    writer = CacheWriter.open(path, SMALL)
    with writer.seed(0), pytest.raises(BusyError, match="wait, or choose other seeds"), writer.seed(0):
        pass
    assert CacheReader(path).complete() == [0, 1]
    assert [CacheReader(path).strays(seed) for seed in (0, 1)] == [[], []]
