"""Files written by a temporary file, then a rename; whether one can be written; and those that nobody meant."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from logitcache.errors import LogitCacheError, OptionError, StorageError

_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR}
_OF_SYSTEMS = {  # names of files and folders, in lower case
    ".appledouble",
    ".directory",
    ".ds_store",
    ".fseventsd",
    ".localized",
    ".snapshot",
    ".spotlight-v100",
    ".temporaryitems",
    ".trashes",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@tmp",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "found.000",
    "lost+found",
    "thumbs.db",
    "~snapshot",
    "network trash folder",
    "system volume information",
    "temporary items",
}
_NUMBERED = re.compile(r"\._.*|\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+|\.trash-\d+|.*_\$folder\$")


def is_stray(name: str) -> bool:
    """Return whether a file or folder of that name is one that systems and file managers leave in any folder."""
    lower = name.casefold()
    return lower in _OF_SYSTEMS or _NUMBERED.fullmatch(lower) is not None


def require_file(out: Path, example: str) -> None:
    """Insist that a file can be written at `out`, before hours of work for it; `example` is what it may be called.

    Raises:
        OptionError: it is a folder.
        StorageError: it, or the folder that it would lie in, cannot be written.
    """
    _require_nameable(out)
    if out.is_dir():
        raise OptionError(f"{out} is a folder; name the file to write, such as {out / example}")
    _require_writable(out)


def require_folder(out: Path) -> None:
    """Insist that files can be written into the folder `out`, or that it can be made.

    Raises:
        OptionError: it is a file.
        StorageError: it cannot be written or made.
    """
    _require_nameable(out)
    if out.exists() and not out.is_dir():
        raise OptionError(f"{out} is a file; name a folder to write into")
    _require_writable(out)


def _require_nameable(out: Path) -> None:
    try:
        out.exists()
    except OSError as error:  # a name longer than the disk allows, for one
        shown = str(out) if len(str(out)) <= 100 else f"{str(out)[:99]}…"
        raise StorageError(f"cannot write {shown}: {error.strerror or error}; name another place") from error


def _require_writable(out: Path) -> None:
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if there != out and not there.is_dir():
        raise StorageError(f"cannot write {out}: {there} is a file; name another place")
    if not os.access(there, os.W_OK):
        raise StorageError(f"cannot write {out}: {there} is read-only; name another place")


@contextmanager
def writing(file: Path) -> Iterator[Path]:
    """Yield a path to write at as `replacing` does, in a folder that is made where it is lacking.

    Raises:
        StorageError: the disk said no; `file` is what it was.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            yield temporary
    except OSError as error:
        if isinstance(error, LogitCacheError):
            raise
        raise StorageError(
            f"cannot write {file}: {error.strerror or str(error).partition(chr(10))[0]}"
        ) from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path to write at, then flush it and rename it to `file`; after an error it is deleted.

    The file's mode is what the umask gives, whatever the library that writes it sets.

    Raises:
        OSError: the disk said no; `file` is what it was.
    """
    aside = file.with_name(f"{file.name}.part")
    aside.unlink(missing_ok=True)  # of a process that was killed
    try:
        aside.touch()
        mode = stat.S_IMODE(aside.stat().st_mode)
        yield aside
        aside.chmod(mode)
        flush(aside)
        aside.replace(file)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush_folder(file.parent)


def flush(file: Path) -> None:
    """Flush a file to the disk.

    Raises:
        OSError: the disk said no.
    """
    try:
        # some network disks flush nothing that is open for reading only
        descriptor = os.open(file, os.O_RDWR)
    except PermissionError:
        descriptor = os.open(file, os.O_RDONLY)
    _sync(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where that can be done.

    Many network and FUSE mounts, and Windows, cannot flush a folder; they keep names in an order of their own, or at
    once. So go on there, as SQLite and git do.

    Raises:
        OSError: the disk failed at it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:  # EACCES: one may write into it, but not list it; on Windows, any folder
        if error.errno not in _CANNOT_FLUSH | {errno.EACCES, errno.EPERM}:
            raise
        return
    try:
        _sync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
