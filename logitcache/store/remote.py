"""A cache wherever fsspec reaches: s3://, gs://, memory://, and https:// for reading.

Objects are read and written whole, several at a time, each in a few attempts. There are no locks: it is for the user
to let one process write a seed (docs/sharing.md). A commit is written only where there is none.
"""

import errno
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from logitcache.errors import FormatError, LogitCacheError, OptionError, StorageError
from logitcache.files import is_stray
from logitcache.store.place import CLASS_STATISTICS, INDEX, KEYS, MOST_METADATA, Place

AT_ONCE = 16  # requests of one call
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}

_T = TypeVar("_T")
_A = TypeVar("_A")
_B = TypeVar("_B")


@dataclass(frozen=True)
class Patience:
    """How long to wait for a host, in seconds.

    Attributes:
        attempts: at most so many.
        pause: before the second attempt; it doubles from one to the next.
        silence: after which a connection is taken for dead.
        enough: after which no new attempt begins.
        longest: of one attempt.
    """

    attempts: int = 4
    pause: float = 0.3
    silence: float = 15.0
    enough: float = 60.0
    longest: float = 600.0


PATIENCE = Patience()


class RemotePlace(Place):
    """A folder of a cache behind an fsspec file system."""

    path: str

    def __init__(self, filesystem: Any, root: str, path: str) -> None:
        self.filesystem, self.root, self.path = filesystem, root, path
        self.writable = "http" not in filesystem.protocol

    @classmethod
    def of(cls, url: str) -> "RemotePlace":
        """Return the place that a URL names.

        Raises:
            OptionError: fsspec knows no such URLs, or a package that it needs is not installed.
        """
        url = url.rstrip("/")
        shown = re.sub(r"//[^/@]*@", "//", url)
        scheme = urlsplit(url).scheme
        try:
            filesystem, root = fsspec.url_to_fs(url, **_options(scheme))
        except ImportError as error:
            extra = EXTRAS.get(scheme)
            how = f"pip install 'logitcache[{extra}]'" if extra else " ".join(str(error).split())
            raise OptionError(f"{shown}: {scheme}:// needs another package: {how}") from error
        except LogitCacheError:
            raise
        except Exception as error:  # each file system has errors of its own for odd URLs
            raise OptionError(f"{shown}: no file system opens this URL: {_reason(error)}") from error
        if scheme in ("s3", "s3a"):
            filesystem.retries = 1  # its attempts would multiply with ours
        return cls(filesystem, root.rstrip("/"), shown)

    def at(self, name: str) -> "RemotePlace":
        """Return the folder `name` in this one."""
        return RemotePlace(self.filesystem, f"{self.root}/{name}", f"{self.path}/{name}")

    def map(self, work: Callable[[_A], _B], items: Iterable[_A]) -> list[_B]:
        """Call `work` on each item, several at a time: a host's answers take long; return the results in order."""
        listed = list(items)
        if len(listed) < 2:
            return [work(item) for item in listed]
        with ThreadPoolExecutor(min(AT_ONCE, len(listed)), "remote") as threads:
            return list(threads.map(work, listed))

    def names(self) -> list[str]:
        """List the names in this folder but for strays; on the web those that seeds.json gives, if there is one."""
        if not self.writable and (index := self.fetch([INDEX]).get(INDEX)):
            return _parse_index(index, f"{self.path}/{INDEX}")
        found = self._attempt("list", lambda: _or_none(self.filesystem.ls, self.root, detail=True)) or []
        names = {entry["name"].rstrip("/"): entry.get("size") for entry in found}
        if not names.get(self.root, 1):  # an empty object that the host's console made, to show a folder
            del names[self.root]
        return sorted(name for path in names if not is_stray(name := path.rsplit("/", 1)[-1]))

    def vacant(self) -> bool:
        """Return whether this folder holds at most what is left of a cache that was never finished."""
        others = set(self.names()) - {KEYS, CLASS_STATISTICS}
        return all(map(self._is_empty, others))

    def files(self) -> set[str] | None:
        """List every file below this folder but for strays; None on the web, which does not list."""
        if not self.writable:
            return None
        found = self._attempt("list", lambda: _or_none(self.filesystem.find, self.root)) or []
        names = (file.removeprefix(self.root).lstrip("/") for file in found if not file.endswith("/"))
        return {name for name in names if name and not any(map(is_stray, name.split("/")))}

    def nonempty(self, files: Iterable[str]) -> set[str]:
        """Return those of these files that exist and are not empty."""
        return {name for name, data in self.fetch(files).items() if data}

    def fetch(self, files: Iterable[str], most: int = MOST_METADATA) -> dict[str, bytes]:
        """Read those of these files that exist, each of at most so many bytes."""
        names = list(files)

        def read(name: str) -> bytes | None:
            data = self._attempt("read", lambda: self._get(f"{self.root}/{name}", most + 1), name)
            if data is not None and len(data) > most:
                raise FormatError(f"{self.path}/{name}: expected at most {most} bytes, found more")
            return data

        return {
            name: data for name, data in zip(names, self.map(read, names), strict=True) if data is not None
        }

    def size(self, *, recurse: bool = True) -> int | None:
        """Sum the bytes of the files in this folder; None on the web, which does not tell."""
        if not self.writable:
            return None
        depth = {} if recurse else {"maxdepth": 1}
        find = self.filesystem.find
        found = self._attempt("list", lambda: _or_none(find, self.root, detail=True, **depth)) or {}
        return sum(entry["size"] or 0 for entry in found.values())

    def put(self, files: Mapping[str, bytes], *, new: bool = False) -> None:
        """Write files, each whole or not at all; a `new` one only where there is none."""
        mode = {"mode": "create"} if new else {}

        def write(name: str) -> None:
            where = f"{self.root}/{name}"
            try:
                self._attempt("write", lambda: self.filesystem.pipe_file(where, files[name], **mode), name)
            except FileExistsError as error:
                # Ours it may be, from an attempt whose answer was lost; or the same, from another process.
                if self.fetch([name], len(files[name])).get(name) != files[name]:
                    raise StorageError(
                        f"{self.path}/{name} was written meanwhile by somebody else, and with something else; "
                        "let one process write each seed, then run the same command again"
                    ) from error
            except FileNotFoundError as error:
                raise StorageError(f"cannot write {self.path}/{name}: {_reason(error)}") from error

        self.map(write, list(files))

    def delete(self, files: Iterable[str]) -> None:
        """Delete those of these files that exist."""

        def remove(name: str) -> None:
            where = f"{self.root}/{name}"
            self._attempt("delete", lambda: _or_none(self.filesystem.rm_file, where), name)

        self.map(remove, list(files))

    def delete_folder(self, name: str) -> None:
        """Delete every file below the folder `name`."""
        find, where = self.filesystem.find, f"{self.root}/{name}"
        found = self._attempt("list", lambda: _or_none(find, where), name) or []
        self.delete([file.removeprefix(f"{self.root}/") for file in found])

    def create(self, files: Mapping[str, bytes], root: bytes, stale: Iterable[str] = ()) -> None:
        """Write files, then the root's zarr.json, unless this folder holds a cache or anything else."""
        if self.vacant():
            self.delete(stale)
            self.put(files)
            self.put({"zarr.json": root}, new=True)

    def lock_root(self) -> AbstractContextManager[object]:
        """Lock nothing: object storage has no locks that end with their process."""
        return nullcontext()

    def lock_seed(self, name: str) -> AbstractContextManager[None]:
        """Lock nothing: object storage has no locks that end with their process."""
        return nullcontext()

    def lock_shard(self, shard: int) -> AbstractContextManager[None]:
        """Lock nothing: a second writer's objects are the first one's, byte for byte, or its commit is refused."""
        return nullcontext()

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Raise whatever goes wrong while writing as `StorageError`."""
        try:
            yield
        except LogitCacheError:
            raise
        except Exception as error:
            raise StorageError(
                f"cannot write {self.path}: {_reason(error)}; committed shards are safe"
            ) from error

    def _is_empty(self, name: str) -> bool:
        """Return whether `name` is a folder with no more in it than what shows folders on the host's console."""
        find, where = self.filesystem.find, f"{self.root}/{name}"
        found = self._attempt("list", lambda: _or_none(find, where), name) or []
        return all(file.endswith("/") for file in found)

    def _get(self, where: str, most: int) -> bytes | None:
        try:
            if not self.writable:
                return _download(self.filesystem, where, most)
            longest = {"timeout": PATIENCE.longest} if self.filesystem.async_impl else {}
            return bytes(self.filesystem.cat_file(where, start=0, end=most, **longest))
        except FileNotFoundError:
            return None
        except Exception as error:
            if _status(error) == 416:  # range not satisfiable: the file is empty
                return b""
            raise

    def _attempt(self, what: str, attempt: Callable[[], _T], name: str = "") -> _T:
        """Return what `attempt` returns, calling it again, after pauses that double, where that may help."""
        began, where = time.monotonic(), f"{self.path}/{name}".rstrip("/")
        for number in range(PATIENCE.attempts):
            try:
                return attempt()
            except (FileNotFoundError, FileExistsError, LogitCacheError):
                raise
            except Exception as error:
                count = number + 1
                over = count == PATIENCE.attempts or time.monotonic() - began > PATIENCE.enough
                if over or _is_final(error):
                    times = f" ({count} attempts)" if count > 1 else ""
                    denied = isinstance(error, PermissionError) or _status(error) in (401, 403)
                    advice = "; check or renew your credentials, then run the same command again"
                    text = f"cannot {what} {where}{times}: {_reason(error)}{advice if denied else ''}"
                    refused = StorageError(text)
                    if denied:
                        refused.errno = errno.EACCES
                    raise refused from error
                time.sleep(PATIENCE.pause * 2**number)
        raise AssertionError("unreachable")


def _options(scheme: str) -> dict[str, Any]:
    """Return a file system's options: no cached listings, time-outs, and no retries of its own.

    The user's fsspec configuration goes first.
    """
    configured = fsspec.config.conf.get(scheme, {})
    if scheme in ("s3", "s3a"):
        ours = {"retries": {"total_max_attempts": 1}, "read_timeout": PATIENCE.silence}
        return {"use_listings_cache": False, "config_kwargs": ours | configured.get("config_kwargs", {})}
    if scheme in ("http", "https"):
        from aiohttp import ClientTimeout

        bounds = {"sock_connect": PATIENCE.silence, "sock_read": PATIENCE.silence, "total": PATIENCE.longest}
        return {"client_kwargs": {"timeout": ClientTimeout(**bounds)} | configured.get("client_kwargs", {})}
    return {"use_listings_cache": False} if scheme in ("gs", "gcs") else {}


def _download(filesystem: Any, url: str, most: int) -> bytes:
    """Read at most so many bytes from the web, whatever its host goes on sending.

    A block size of 0 streams; with any size given, fsspec does not ask the host for it first.
    """
    data, deadline = bytearray(), time.monotonic() + PATIENCE.longest
    with filesystem.open(url, "rb", block_size=0, size=1) as file:
        while len(data) < most and (piece := file.read(most - len(data))):
            if time.monotonic() > deadline:  # the user's own time-outs may know no end
                raise TimeoutError(f"still sending after {PATIENCE.longest:.0f} seconds")
            data += piece
    return bytes(data)


def _or_none(call: Callable[..., _T], *args: Any, **options: Any) -> _T | None:
    try:
        return call(*args, **options)
    except FileNotFoundError:
        return None


def _parse_index(index: bytes, where: str) -> list[str]:
    """Parse seeds.json, which may hold anything; expected is {"seeds": [0, 1, …]}."""
    try:
        seeds = json.loads(index)["seeds"]
        if not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise TypeError("a seed is not a number")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(
            f'{where}: expected {{"seeds": [0, 1, …]}}, found other things ({error})'
        ) from error
    return ["zarr.json", *(f"seed-{seed}" for seed in seeds)]


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in an error of aiohttp, gcsfs or botocore; None if there is none."""
    cause = error.__cause__
    for name in ("status", "code"):  # in this order, as the other one of aiohttp's is deprecated
        if str(found := getattr(error, name, None)).isdecimal():
            return int(str(found))
    response = getattr(error, "response", None) or getattr(cause, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    return None


def _is_final(error: Exception) -> bool:
    """Return whether another attempt would fail in the same way."""
    if isinstance(error, PermissionError | NotImplementedError | ImportError | ValueError | TypeError):
        return True
    status = _status(error)
    return type(error).__name__ == "NoCredentialsError" or (
        status is not None and 400 <= status < 500 and status not in (408, 425, 429)
    )


def _reason(error: BaseException) -> str:
    """Return a file system's message in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(".")
