"""Locks: a file that one process at a time holds, and lets go of however that process ends.

A lock is flock(2) on the file, and the file says who holds it. Where a disk has no flock (Lustre mounted without it,
NFS without its lock service, some FUSE mounts), what the file says is the lock: a holder of this host that has ended
is passed over; one of another host cannot be asked, so who wants the lock is told who that is, since when, and how to
take over. Of several locks that one process holds (`Locks`), all are names, hard links, of one file: they take one
descriptor, however many they are.
"""

import calendar
import errno
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

if os.name != "nt":  # Windows has no flock
    import fcntl

POLL = 0.05  # seconds between attempts
BRIEF = 0.5  # seconds in which a lock is free again that is held only while its name is given to another file
FRESH = 2.0  # seconds in which the holder of a new file has written into it who it is
NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
MOST_TEXT = 4096  # bytes that a lock file is read

_MUTEX = threading.RLock()


class HeldError(Exception):
    """Another process holds a lock.

    Attributes:
        who: that process, and since when, for messages.
        process: it alone, as lock files name it.
        how: how to take over from it, for messages; empty where the system says that it lives.
        since: when it took the lock, in seconds since 1970; None where it does not say.
        brief: seconds within which it is over, if it is what it seems: a moment's work of another process.
    """

    def __init__(self, file: Path, claim: "_Claim | None", *, brief: float = 0.0, asked: bool = True) -> None:
        self.who = str(claim) if claim else "another process"
        self.process = claim.process if claim else ""
        self.since, self.brief = claim.since if claim else None, brief
        self.how = (
            ""
            if asked or claim is None
            else "this disk has no flock that would tell whether that process lives: if it has ended, delete "
            f"{file} and run the same command again"
        )
        super().__init__(f"{file} is held by {self.who}")


class Locks:
    """Locks of one process, which take one descriptor together where the disk has hard links."""

    def __init__(self) -> None:
        self._held: dict[Path, int] = {}
        self._process = os.getpid()

    @contextmanager
    def hold(self, file: Path, wait: float = 0.0, wait_unknown: float | None = None) -> Iterator[None]:
        """Hold the lock `file`, which is made if it is not there; its folder must be.

        Args:
            file: which.
            wait: seconds to wait for another holder.
            wait_unknown: seconds from when a holder took the lock of which nobody can say whether it lives; by
                default as `wait`.

        Raises:
            HeldError: another process, or this one, holds it.
            OSError: the disk said no.
        """
        began = time.monotonic()
        wait_unknown = wait if wait_unknown is None else wait_unknown
        while True:
            try:
                descriptor = self._take(file)
                break
            except HeldError as error:
                passed = time.monotonic() - began
                if error.how:
                    passed, most = max(passed, time.time() - (error.since or 0)), wait_unknown
                else:
                    most = max(wait, error.brief)
                if passed >= most:
                    raise
                time.sleep(POLL)
        process = os.getpid()
        try:
            yield
        finally:
            if os.getpid() == process:  # else this is a fork of it
                self._give_back(file, descriptor)

    def _take(self, file: Path) -> int | None:
        """Take a lock; return the descriptor that holds it, None where the file alone does."""
        with _MUTEX:
            while True:
                descriptor, new = _open(file)
                try:
                    if (locked := _flock(descriptor)) is None:
                        if _claim_alone(file, descriptor, new=new):
                            return None
                        continue
                    claim = _read_claim(descriptor)
                    if not locked:
                        brief = BRIEF if claim is None or claim.is_over() else 0.0
                        raise HeldError(file, claim, brief=brief)
                    if not _is_named(descriptor, file):
                        continue  # its name was given to another file meanwhile
                    if claim and claim.alone and not claim.is_over():
                        raise HeldError(file, claim, asked=claim.is_here())
                    kept = self._keep(file, descriptor)
                    if kept == descriptor:
                        descriptor = -1
                    return kept
                finally:
                    if descriptor >= 0:
                        os.close(descriptor)

    def _keep(self, file: Path, descriptor: int) -> int:
        """Keep a file that `descriptor` has locked; return the descriptor that holds it from now on."""
        if self._process != os.getpid():  # the parent's
            self._held, self._process = {}, os.getpid()
        aside = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
        for other, held in reversed(self._held.items()):
            with suppress(OSError):
                if _is_named(held, other) and _link(other, aside):
                    aside.replace(file)
                    self._held[file] = held
                    return held
            break
        if os.fstat(descriptor).st_nlink > 1:  # of a run that was killed: its other names are others' to take
            descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
            _flock(descriptor)
            aside.replace(file)
        with suppress(OSError):  # a full disk: what it says is for messages alone
            _write_claim(descriptor, alone=False)
        self._held[file] = descriptor
        return descriptor

    def _give_back(self, file: Path, descriptor: int | None) -> None:
        if descriptor is None:
            _unclaim(file)
            return
        with _MUTEX:
            self._held.pop(file, None)
            if descriptor in self._held.values():
                with suppress(OSError):
                    if _is_named(descriptor, file):
                        file.unlink()
                return
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked worker may have the descriptor too
            os.close(descriptor)


def lock(file: Path, wait: float = 0.0, wait_unknown: float | None = None) -> AbstractContextManager[None]:
    """Hold one lock, as `Locks.hold` does."""
    return Locks().hold(file, wait, wait_unknown)


_FLAGS = (
    getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
)  # it may be a pipe


def _open(file: Path) -> tuple[int, bool]:
    """Open a lock file, and say whether it is new."""
    while True:
        try:
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666), True
        except FileExistsError:
            with suppress(FileNotFoundError):  # its holder deleted it meanwhile
                return os.open(file, os.O_RDWR | _FLAGS), False


def _flock(descriptor: int) -> bool | None:
    """Lock a file, unless another descriptor has; None where the disk has no locks."""
    if os.name == "nt":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in NO_FLOCK:
            return None
        raise
    return True


def _link(source: Path, target: Path) -> bool:
    """Make a hard link; False where the disk has none, or no more."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in NO_LINKS:
            return False
        raise
    return True


def _is_named(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(file))
    except FileNotFoundError:
        return False


# Who holds a lock -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Claim:
    """What a lock file says: a process, its host, since when, and whether it has nothing but this file.

    `system` tells boots and containers apart that are called alike, `start` processes of one number; either may be
    empty.
    """

    pid: int
    host: str
    since: float | None
    alone: bool
    system: str
    start: str

    def __str__(self) -> str:
        return self.process if self.since is None else f"{self.process} since {_moment(self.since)}"

    @property
    def process(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_here(self) -> bool:
        """Is it of this host, as it runs now?"""
        return self.host == socket.gethostname() and self.system in ("", _system())

    def is_over(self) -> bool:
        """Is it of this host, and has ended?"""
        if not self.is_here():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:  # somebody else's
            pass
        start = _start(self.pid)
        return bool(self.start and start) and self.start != start


_TEXT = re.compile(
    r"process (\d{1,10}) on (\S+) since (\d+-\d+-\d+ \d+:\d+:\d+) UTC(, without flock)?\n(\S*) ?(\d*)\n"
)
_FILELOCK = re.compile(r"(\d{1,10})\n(\S+)\n")  # as that library puts it, which logitcache used before


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _write_claim(descriptor: int, *, alone: bool) -> None:
    text = (
        f"process {os.getpid()} on {socket.gethostname()} since {_moment(time.time())}"
        f"{', without flock' if alone else ''}\n{_system()} {_start(os.getpid())}\n"
    )
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text.encode())


def _read_claim(descriptor: int) -> _Claim | None:
    """Read who holds a lock; None where the file does not say."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    return _parse_claim(os.read(descriptor, MOST_TEXT))


def _parse_claim(data: bytes) -> _Claim | None:
    text = data.decode(errors="replace")
    if found := _TEXT.match(text):
        try:
            since = calendar.timegm(time.strptime(found[3], "%Y-%m-%d %H:%M:%S"))
        except ValueError:
            return None
        return _Claim(int(found[1]), found[2], since, bool(found[4]), found[5], found[6])
    if found := _FILELOCK.match(text):
        return _Claim(int(found[1]), found[2], None, True, "", "")
    return None


def _system() -> str:
    """Identify this boot, and the container within it, as far as the system tells; without spaces."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start(pid: int) -> str:
    """Return when a process of this system began, in a unit of the system's; empty where it does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""


# Without flock --------------------------------------------------------------------------------------------


def _claim_alone(file: Path, descriptor: int, *, new: bool) -> bool:
    """Claim a lock by what its file says; False where another attempt is to be made.

    A new file was made by this process alone, so it is its own. One of a holder that has ended is put aside, for a
    new one: of several processes that do so, one renames that file, and the others find that they have another's.
    """
    if new:
        _write_claim(descriptor, alone=True)
        return True
    os.lseek(descriptor, 0, os.SEEK_SET)
    data = os.read(descriptor, MOST_TEXT)
    claim = _parse_claim(data)
    if claim and not claim.is_over():
        raise HeldError(file, claim, asked=claim.is_here())
    if not data and abs(time.time() - os.fstat(descriptor).st_mtime) < FRESH:
        raise HeldError(file, None, brief=FRESH + BRIEF)
    aside = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    with suppress(FileNotFoundError):
        file.rename(aside)
        if aside.read_bytes() != data:  # who was faster has it
            with suppress(OSError):
                os.link(aside, file)
        aside.unlink()
    return False


def _unclaim(file: Path) -> None:
    """Delete a lock file that is this process's own."""
    with suppress(OSError):
        claim = _parse_claim(file.read_bytes())
        if claim and claim.is_here() and claim.pid == os.getpid():
            file.unlink()
