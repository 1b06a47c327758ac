"""Paths as people write them: `~` for a home folder, environment variables, the folder of what is only kept.

A variable that is set but empty is as good as not set. A user may have no name and no home, as in many containers.
"""

import difflib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from logitcache.errors import OptionError, StorageError, join_alternatives

MANY_NAMES = 10_000  # of a folder; no more are compared


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a text as a path, with the home folder in place of `~` or `~USER` at its beginning; ./~ is a plain name.

    What is a path object already is returned as it is: somebody has read it, and `~` is a plain name there.

    Raises:
        OptionError: there is no such user, or this one has no home folder.
    """
    if not isinstance(path, str):
        return Path(path)
    first, _, rest = path.partition(os.sep)
    if not first.startswith("~"):
        return Path(path)
    try:
        home = find_home() if first == "~" else Path(first).expanduser()
    except RuntimeError:  # no such user
        home = None
    if home is None:
        raise OptionError(
            f"{path}: no home folder for {first}; give the whole path, or ./{first} for a folder of that name"
        )
    return home / rest.lstrip(os.sep)


def write_path(path: Path) -> str:
    """Return a path as text that `expand_home` reads as that very path."""
    return f".{os.sep}{path}" if str(path).startswith("~") else str(path)


def find_near_paths(
    path: str | os.PathLike[str], accept: Callable[[Path], bool] = os.path.exists
) -> list[Path]:
    """Find what somebody may mean by a path that is not there: names alike in the same folder, best first.

    Args:
        path: as people write it; any part of it may be misspelt.
        accept: says of a path whether it can be meant.
    """
    wanted = missing = expand_home(path)
    if os.path.lexists(wanted):
        return []
    while not os.path.exists(missing.parent) and missing != missing.parent:
        missing = missing.parent
    try:
        names = [name for name in os.listdir(missing.parent) if not name.startswith(".")][:MANY_NAMES]
    except OSError:
        return []
    spelt = {name.lower(): name for name in names}
    near = difflib.get_close_matches(missing.name.lower(), spelt, n=3, cutoff=0.75)
    found = [missing.with_name(spelt[name]) / wanted.relative_to(missing) for name in near]
    there = ([one] if os.path.lexists(one) else find_near_paths(one, accept) for one in found)
    return [one for some in there for one in some if accept(one)]


def suggest(paths: Iterable[Path]) -> str:
    """Write paths that may be meant as the end of a message; none: nothing."""
    written = [write_path(path) for path in paths]
    return f"; did you mean {join_alternatives(written)}?" if written else ""


def find_home() -> Path | None:
    """Return the user's home folder: $HOME, or what the system knows of the user; None where neither says."""
    if home := read_variable("HOME"):
        return Path(home)
    try:
        import pwd

        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except (ImportError, KeyError):
        return None


def read_variable(name: str) -> str | None:
    """Return an environment variable; None where it is not set, or empty."""
    return os.environ.get(name, "").strip() or None


def user_cache_folder() -> Path:
    """Return where programs keep what can be made again: $XDG_CACHE_HOME, ~/.cache, or else a temporary folder.

    A relative $XDG_CACHE_HOME is passed over, as the XDG specification has it, and ~/.cache if it cannot be written;
    the temporary folder is this user's own, and nobody else's.

    Raises:
        StorageError: there is no such folder either.
    """
    if (chosen := read_variable("XDG_CACHE_HOME")) and Path(chosen).is_absolute():
        return Path(chosen)
    if (home := find_home()) is not None and home.is_absolute():
        cache = home / ".cache"
        if os.access(cache if cache.exists() else home, os.W_OK | os.X_OK):
            return cache
    return _make_temporary_folder()


def name_user() -> None:
    """Give a user without a name one in $LOGNAME: torch.compile names its folders by it."""
    import getpass

    try:
        getpass.getuser()
    except (ImportError, KeyError, OSError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def _make_temporary_folder() -> Path:
    advice = "name a folder in $XDG_CACHE_HOME or $LOGITCACHE_SPOOL"
    try:
        folder = Path(tempfile.gettempdir()) / f"logitcache-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StorageError(
            f"no home, and no temporary folder either ({error.strerror or error}); {advice}"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise StorageError(f"{folder} belongs to somebody else, or others may write into it; {advice}")
    return folder
