"""Locks: held by one process at a time, free when it ends however it ends, with flock and on disks without."""

import errno
import fcntl
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from logitcache.locks import NO_FLOCK, HeldError, claim, lock

FORK = multiprocessing.get_context("fork")
Disk = str | None


@pytest.fixture(params=[None, *sorted(errno.errorcode[code] for code in NO_FLOCK)])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk with flock, or the error of one without; forks of this process have it too."""
    if request.param:
        lose_flock(monkeypatch, getattr(errno, request.param))
    return request.param


def lose_flock(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSYS) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


def hold(take: Callable[[], "contextmanager[None]"], told: Connection) -> None:
    with take():
        told.send("held")
        time.sleep(600)


@contextmanager
def elsewhere(take: Callable[[], "contextmanager[None]"]) -> Iterator[multiprocessing.process.BaseProcess]:
    """Another process that holds what `take` takes, until it is killed."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(take, there))
    process.start()
    try:
        assert here.poll(60)
        assert here.recv() == "held"
        yield process
    finally:
        kill(process)


def kill(process: multiprocessing.process.BaseProcess) -> None:
    process.kill()
    process.join()


def give_to_another_host(*files: Path) -> None:
    """Make soft locks those of a pod that is gone."""
    for file in files:
        text = file.read_text().splitlines()
        file.write_text("\n".join([text[0], "pod-7", *text[2:], ""]))


def claims(folder: Path, names: str) -> "contextmanager[None]":
    """Claim folders as the store does."""
    with ExitStack() as stack:
        for name in names:
            (folder / name).mkdir(exist_ok=True)
            with lock(folder / ".lock", 60):
                stack.enter_context(claim(folder / name, folder))
        yield


claim_all = contextmanager(claims)


# One lock -------------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_process_who_is_named_and_is_free_when_that_is_killed(
    disk: Disk, tmp_path: Path
) -> None:
    file = tmp_path / "a.lock"
    began = time.time()
    with elsewhere(lambda: lock(file)) as process:
        with pytest.raises(HeldError) as refused, lock(file):
            pass
        found = re.fullmatch(
            rf"process {process.pid} on {re.escape(os.uname().nodename)} since (.*) UTC", refused.value.who
        )
        assert found
        assert abs(refused.value.since - began) < 60
        assert refused.value.how == ""  # that process lives: nobody shall delete its lock
        kill(process)
        with lock(file):
            pass
    with lock(file), pytest.raises(HeldError, match=f"process {os.getpid()} on "), lock(file):
        pass  # nor twice by one process
    with lock(file):
        pass


def test_who_waits_has_it_as_soon_as_it_is_free(disk: Disk, tmp_path: Path) -> None:
    file = tmp_path / "a.lock"
    with elsewhere(lambda: lock(file)) as process:
        threading.Timer(0.3, kill, [process]).start()
        began = time.monotonic()
        with lock(file, wait=60):
            assert 0.2 < time.monotonic() - began < 30


def count(file: Path, number: Path, times: int) -> None:
    for _ in range(times):
        with lock(file, 60):
            number.write_text(str(int(number.read_text()) + 1))


def test_processes_that_take_turns_lose_no_turn(disk: Disk, tmp_path: Path) -> None:
    number = tmp_path / "n"
    number.write_text("0")
    processes = [FORK.Process(target=count, args=(tmp_path / "a.lock", number, 5)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert number.read_text() == "15"


def test_a_lock_of_another_host_without_flock_is_never_taken_over_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_flock(monkeypatch)
    file, soft = tmp_path / "a.lock", tmp_path / "a.lock.soft"
    with elsewhere(lambda: lock(file)) as process:
        give_to_another_host(soft)
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(HeldError) as refused, lock(file, wait=600, wait_unknown=0):
            pass
        assert re.match(rf"process {process.pid} on pod-7 since \d", refused.value.who)
        assert f"delete {soft}" in refused.value.how
    os.utime(soft, (0, 0))  # a lock that is held for moments only, since 1970
    with pytest.raises(HeldError, match="since 1970-01-01 00:00:00 UTC"), lock(file, wait=600):
        pass
    assert time.monotonic() - began < 60
    monkeypatch.undo()
    with pytest.raises(HeldError, match="pod-7"), lock(file):  # another node mounts that disk with flock
        pass
    soft.unlink()  # as advised
    with lock(file):
        pass


@pytest.mark.parametrize("text", ["", "?", "12\n", "99999999999999999999\nhere\n"])
def test_a_soft_lock_that_names_nobody_can_be_taken_over_by_hand(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_flock(monkeypatch)
    soft = tmp_path / "a.lock.soft"
    soft.write_text(text)
    with pytest.raises(HeldError) as refused, lock(tmp_path / "a.lock"):
        pass
    assert f"delete {soft}" in refused.value.how
    soft.unlink()
    with lock(tmp_path / "a.lock"):
        pass


def test_other_errors_of_the_disk_are_told_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_flock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), lock(tmp_path / "a.lock"):
        pass
    assert not (tmp_path / "a.lock.soft").exists()


# Claims ---------------------------------------------------------------------------------------------------


def test_folders_are_claimed_by_one_process_each_and_are_free_when_it_is_killed(
    disk: Disk, tmp_path: Path
) -> None:
    with elsewhere(lambda: claim_all(tmp_path, "abc")) as process, claim_all(tmp_path, "def"):
        for name in "abc":
            with (
                pytest.raises(HeldError, match=f"process {process.pid} on .* since "),
                claim_all(tmp_path, name),
            ):
                pass
        with pytest.raises(HeldError, match=f"process {os.getpid()} on "), claim_all(tmp_path, "d"):
            pass
        kill(process)
        with claim_all(tmp_path, "cb"):
            pass
        with elsewhere(lambda: claim_all(tmp_path, "ab")), pytest.raises(HeldError), claim_all(tmp_path, "b"):
            pass
    with claim_all(tmp_path, "abcdef"):
        pass
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [".lock"]


def descriptors(folder: Path) -> int:
    files = (os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
    return sum(file.startswith(str(folder)) for file in files)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors as Linux does")
def test_any_number_of_folders_takes_one_descriptor(disk: Disk, tmp_path: Path) -> None:
    with claim_all(tmp_path, "abcdefghijklmnopqrstuvwxyz"):
        assert descriptors(tmp_path) == 1
    assert descriptors(tmp_path) == 0


def test_claims_that_end_in_any_order_stay_claims_until_each_has_ended(disk: Disk, tmp_path: Path) -> None:
    first, second = claim_all(tmp_path, "a"), claim_all(tmp_path, "b")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with elsewhere(lambda: claim_all(tmp_path, "a")):
        assert not can_claim(tmp_path, "b")
    second.__exit__(None, None, None)
    assert can_claim(tmp_path, "ab")


def can_claim(folder: Path, names: str) -> bool:
    """Ask another process whether it can claim these folders now."""
    process = FORK.Process(target=claim_and_exit, args=(folder, names))
    process.start()
    process.join()
    return process.exitcode == 0


def claim_and_exit(folder: Path, names: str) -> None:
    try:
        with claim_all(folder, names):
            pass
    except HeldError:
        sys.exit(1)


FORKING = """
import os, sys, time
from pathlib import Path
from logitcache.locks import claim, lock
folder = Path(sys.argv[1])
with lock(folder / ".lock", 60):
    held = claim(folder / "a", folder)
    held.__enter__()
if os.fork() == 0:  # a worker; what the interpreter tears down here is the parent's
    {worker}
    sys.exit()
os.write(1, b"forked\\n")
{parent}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_that_ends_ends_no_claim_of_its_parent(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    code = FORKING.format(
        worker="held.__exit__(None, None, None)", parent="os.wait(); print('ended', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["forked\n", "ended\n"]
        assert not can_claim(tmp_path, "a")
        process.kill()
    assert can_claim(tmp_path, "a")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_that_outlives_its_parent_keeps_no_claim(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    code = FORKING.format(
        worker="os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)", parent="time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        worker = None
        try:
            lines = sorted(process.stdout.readline() for _ in range(2))
            worker = int(lines[0])
            assert lines[1] == "forked\n"
            process.kill()
            process.wait()
            assert can_claim(tmp_path, "a")
            os.kill(worker, 0)  # it is there still
        finally:
            process.kill()
            if worker is not None:
                os.kill(worker, signal.SIGKILL)


def test_what_earlier_versions_wrote_beside_their_locks_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for text in ("process 1 on elsewhere", "", "../../etc/passwd", "0" * 31):
        (tmp_path / "a" / ".owner").write_text(text)
        with claim_all(tmp_path, "a"):
            pass
    outside = tmp_path / "outside"
    outside.write_text("stays")
    (tmp_path / "a" / ".owner").symlink_to(outside)
    with claim_all(tmp_path, "a"):
        pass
    assert outside.read_text() == "stays"
