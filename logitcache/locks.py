"""Locks: a file that one process at a time holds, and lets go of however that process ends.

They are filelock's. Where a disk has no flock (Lustre mounted without it, NFS without its lock service, some FUSE
mounts), the lock is that a file exists, its name ending in SOFT. That of an ended process of this host is taken over;
of another host nobody can tell, so who wants the lock is told who that is, since when, and how to take over.
"""

import errno
import functools
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

POLL = 0.05  # seconds between attempts
TAKE_OVER = 0.05  # seconds that it takes to take over from a process that has ended
SOFT = ".soft"  # ends the name of a lock without flock
NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class HeldError(Exception):
    """Another process holds a lock.

    Attributes:
        who: that process, and since when, for messages.
        since: when it took the lock, in seconds since 1970.
        how: how to take over from it, for messages; empty where the system says that it lives.
    """

    def __init__(self, file: Path, *, soft: bool = False) -> None:
        process, host, self.since = _read_holder(file)
        name = host.partition("?")[0]  # behind it filelock names the container
        moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        self.who = f"{f'process {process} on {name}' if host else 'another process'} since {moment}"
        self.how = ""
        if soft and host != _this_host():
            self.how = (
                f"no flock tells if it lives: if it has ended, delete {file} and run the same command again"
            )
        super().__init__(f"{file} is held by {self.who}")


@contextmanager
def lock(file: Path, wait: float = 0.0, wait_unknown: float | None = None) -> Iterator[None]:
    """Hold the lock `file`, which is made if it is not there; its folder must be.

    Args:
        file: which.
        wait: seconds to wait for another holder.
        wait_unknown: seconds from when a holder took the lock of which nobody can say whether it lives; by default
            as `wait`.

    Raises:
        HeldError: another process, or this one, holds it.
        OSError: the disk said no.
    """
    soft = file.with_name(file.name + SOFT)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(file, thread_local=False, on_acquired=_sign).acquire(wait, POLL))
            has_flock = True
        except Timeout as error:
            raise HeldError(file) from error
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            has_flock = False
        if not has_flock or soft.exists():  # made by a host where this disk has no flock
            stack.enter_context(_lock_softly(soft, wait, wait if wait_unknown is None else wait_unknown))
        yield


@contextmanager
def _lock_softly(file: Path, wait: float, wait_unknown: float) -> Iterator[None]:
    held, began = SoftFileLock(file, thread_local=False), time.monotonic()
    while not held.is_locked:
        try:
            held.acquire(TAKE_OVER, TAKE_OVER / 4)
        except Timeout as timeout:
            error, passed = HeldError(file, soft=True), time.monotonic() - began
            if passed >= wait or (error.how and time.time() - error.since >= wait_unknown):
                raise error from timeout
    try:
        yield
    finally:
        held.release()


def _sign(descriptor: int) -> None:
    """Write into a lock file who holds it, as filelock does without flock."""
    with suppress(OSError):  # a full disk: it is for messages alone
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n{socket.gethostname()}\n".encode())


def _read_holder(file: Path) -> tuple[str, str, float]:
    """Read process and host of a lock's holder, empty where the file does not say, and since when it holds it."""
    with suppress(OSError):
        found = re.match(r"(\d+)\n(\S+)\n", file.read_text(encoding="utf-8", errors="replace"))
        return found[1] if found else "", found[2] if found else "", file.stat().st_mtime
    return "", "", time.time()


@functools.cache
def _this_host() -> str:
    """Return what filelock calls this host, and the container on it, in a soft lock."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLock(file := Path(folder) / "lock"):
        return _read_holder(file)[1]


# Many folders, one descriptor -----------------------------------------------------------------------------


class _Run:
    """A lock of this process, for so many folders; the number in its file's name stands in them."""

    def __init__(self, locks: Path) -> None:
        self.number, self.folders, self.held = uuid.uuid4().hex, 0, ExitStack()
        self.file = locks / f".lock-{self.number}"


_RUNS: dict[tuple[int, Path], _Run] = {}  # by process, for this one may be a fork, and folder
_MUTEX = threading.Lock()


@contextmanager
def claim(folder: Path, locks: Path) -> Iterator[None]:
    """Claim a folder until the context is left, or the process ends; hold a lock that all claimants hold to enter it.

    However many a process claims, it holds one lock, in the folder `locks`; their files `.owner` say which.

    Raises:
        HeldError: another process, or this one, has claimed it.
        OSError: the disk said no.
    """
    owner, key = folder / ".owner", (os.getpid(), locks)
    with _MUTEX:
        number = owner.read_text(encoding="utf-8", errors="replace") if owner.exists() else ""
        if re.fullmatch(r"[0-9a-f]{32}", number):
            with lock(file := locks / f".lock-{number}"):  # that process has ended
                file.unlink(missing_ok=True)
        run = _RUNS.get(key) or _Run(locks)
        owner.unlink(missing_ok=True)  # were it a link, writing would follow it
        owner.write_text(run.number, encoding="utf-8")
        if not run.folders:
            run.held.enter_context(lock(run.file))
            _RUNS[key] = run
        run.folders += 1
    try:
        yield
    finally:
        if os.getpid() == key[0]:
            with _MUTEX, suppress(OSError), ExitStack() as end:
                run.folders -= 1
                if not run.folders:
                    end.enter_context(_RUNS.pop(key).held)
                    end.callback(run.file.unlink)
                owner.unlink()
