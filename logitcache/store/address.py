"""Where a local path or an fsspec URL points to."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from logitcache.store.local import LocalPlace
from logitcache.store.place import Place


def place_of(path: str | Path) -> Place:
    """Return where a local path or an fsspec URL points to.

    Raises:
        OptionError: no file system answers to such URLs, or its package is not installed.
    """
    if "://" not in str(path):
        return LocalPlace(Path(path))
    if str(path).startswith("file://"):
        return LocalPlace(Path(unquote(urlsplit(str(path)).path)))
    from logitcache.store.remote import RemotePlace  # fsspec, and aiohttp with it, only where they are needed

    return RemotePlace.of(str(path))
