"""Files that are written whole or not at all."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a path to write at; what is whole takes the place of `file`, durably, and what fails leaves nothing.

    Whoever may read it is as the umask says, whatever the library that writes it would have.

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
    flush(file.parent)


def flush(path: Path) -> None:
    """Let the disk have a file, or the names in a folder, before anything else is done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
