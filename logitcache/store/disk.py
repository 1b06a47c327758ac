"""The disk under the store: flushing, sizes, and the system's errors as errors of this library."""

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from logitcache.errors import FormatError, LogitCacheError, StorageError
from logitcache.files import flush, flush_folder
from logitcache.units import size

HOW_TO_RESTORE = "restore it from a copy"
HOW_TO_MEND = f"`logitcache verify --repair` mends that, or {HOW_TO_RESTORE}"


def make_durable(files: Iterable[Path]) -> None:
    """Flush files to the disk."""
    for file in files:
        flush(file)


def make_names_durable(files: Iterable[Path]) -> None:
    """Flush the folders of files, three levels of them, which may be new themselves, as far as the disk can."""
    for folder in {folder for file in files for folder in list(file.parents)[:3]}:
        flush_folder(folder)


def make_folder(folder: Path) -> None:
    """Make a folder, durably, with those that it lies in."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        flush_folder(path.parent)


def require_file(path: Path, most: int) -> None:
    """Check that what is at `path`, if anything, is a file of at most so many bytes.

    A pipe would block a reader, and a device or a sparse file would fill the memory.

    Raises:
        FormatError: it is something else. (A folder passes: it cannot be read by mistake.)
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise FormatError(f"{path}: expected a file, found something else")
    if stat.S_ISREG(found.st_mode) and found.st_size > most:
        raise FormatError(f"{path}: expected at most {most} bytes, found {found.st_size}")


def size_of(folder: Path, *, recurse: bool = True) -> int:
    """Sum the bytes of the files of a folder that other processes may be writing in, but for hidden ones: locks."""
    size = 0
    for parent, folders, files in os.walk(folder):
        if not recurse:
            folders.clear()
        for file in (name for name in files if not name.startswith(".")):
            with suppress(FileNotFoundError):  # it was renamed meanwhile
                size += (Path(parent) / file).stat().st_size
    return size


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Raise the disk's errors while writing as `StorageError`."""
    try:
        yield
    except LogitCacheError:
        raise
    except OSError as error:
        free = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            room = shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free
            free = f" ({size(room)} free); make room and run the same command again"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            free = "; allow more open files (`ulimit -n`) and run the same command again"
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}{free}; committed shards are safe"
        ) from error


@contextmanager
def reading(where: object, advice: str = HOW_TO_MEND) -> Iterator[None]:
    """Raise the disk's errors while reading as `StorageError`, and whatever damaged bytes raise as `FormatError`."""
    try:
        yield
    except LogitCacheError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {where}: {error}") from error
    except Exception as error:  # codecs raise exceptions of every kind at damaged bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FormatError(f"{where}: damaged ({reason[:200]}); {advice}") from error
