"""From a local path or an fsspec URL to the place that it names."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from logitcache.paths import expand_home
from logitcache.store.local import LocalPlace
from logitcache.store.place import Place


def place_of(path: str | Path) -> Place:
    """Return the place that a local path or an fsspec URL names.

    Raises:
        OptionError: it begins with `~`, and there is no such home; fsspec knows no such URLs, or a package that it
            needs is not installed.
    """
    if "://" not in str(path):
        return LocalPlace(expand_home(path))
    if str(path).startswith("file://"):
        return LocalPlace(Path(unquote(urlsplit(str(path)).path)))
    from logitcache.store.remote import RemotePlace  # imports fsspec

    return RemotePlace.of(str(path))
