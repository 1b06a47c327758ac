"""A cache wherever fsspec reaches: s3://, gs://, memory://, and https:// for reading.

Objects are fetched and put whole, several at a time, each with a few patient attempts.
There are no locks: who writes a seed is the user's business (docs/sharing.md). A commit is put only where there is
none.
"""

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
from logitcache.store.place import INDEX, KEYS, MOST_METADATA, Place

AT_ONCE = 16  # requests of one call
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}

_T = TypeVar("_T")
_A = TypeVar("_A")
_B = TypeVar("_B")


@dataclass(frozen=True)
class Patience:
    """How long to put up with a host: attempts, the first pause between them (it doubles), and seconds of silence
    after which a connection is dead; no new attempt begins after `enough` seconds, and none lasts `longest`.
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
        """Return the place that a URL points to.

        Raises:
            OptionError: no file system answers to such URLs, or its package is not installed.
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
            filesystem.retries = 1  # attempts within attempts would multiply
        return cls(filesystem, root.rstrip("/"), shown)

    def at(self, name: str) -> "RemotePlace":
        """Return the folder `name` in this one."""
        return RemotePlace(self.filesystem, f"{self.root}/{name}", f"{self.path}/{name}")

    def each(self, work: Callable[[_A], _B], items: Iterable[_A]) -> list[_B]:
        """Do something for each item, several at a time: a host's answers are long in coming."""
        several = list(items)
        if len(several) < 2:
            return [work(item) for item in several]
        with ThreadPoolExecutor(min(AT_ONCE, len(several)), "remote") as threads:
            return list(threads.map(work, several))

    def names(self) -> list[str]:
        """List the names in this folder; where a host does not list, those of the seeds in its seeds.json."""
        if not self.writable and (index := self.fetch([INDEX]).get(INDEX)):
            return _indexed(index, f"{self.path}/{INDEX}")
        found = self._patiently("list", lambda: _or_none(self.filesystem.ls, self.root, detail=False)) or []
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found})

    def files(self) -> set[str] | None:
        """List every file below this folder; None on the web, which does not list."""
        if not self.writable:
            return None
        found = self._patiently("list", lambda: _or_none(self.filesystem.find, self.root)) or []
        return {file.removeprefix(f"{self.root}/") for file in found}

    def filled(self, files: Iterable[str]) -> set[str]:
        """Return which of these files are there and not empty."""
        return {name for name, data in self.fetch(files).items() if data}

    def fetch(self, files: Iterable[str], most: int = MOST_METADATA) -> dict[str, bytes]:
        """Read those of these files that are there, each of at most so many bytes."""
        names = list(files)

        def read(name: str) -> bytes | None:
            data = self._patiently("read", lambda: self._get(f"{self.root}/{name}", most + 1), name)
            if data is not None and len(data) > most:
                raise FormatError(f"{self.path}/{name}: expected at most {most} bytes, found more")
            return data

        return {
            name: data for name, data in zip(names, self.each(read, names), strict=True) if data is not None
        }

    def size(self, *, recurse: bool = True) -> int | None:
        """Sum the bytes of the files here; None on the web, which does not tell."""
        if not self.writable:
            return None
        depth = {} if recurse else {"maxdepth": 1}
        find = self.filesystem.find
        found = self._patiently("list", lambda: _or_none(find, self.root, detail=True, **depth)) or {}
        return sum(entry["size"] or 0 for entry in found.values())

    def put(self, files: Mapping[str, bytes], *, new: bool = False) -> None:
        """Put files, each whole or not at all."""
        mode = {"mode": "create"} if new else {}

        def write(name: str) -> None:
            where = f"{self.root}/{name}"
            try:
                self._patiently("write", lambda: self.filesystem.pipe_file(where, files[name], **mode), name)
            except FileExistsError as error:
                # An attempt whose answer was lost may have been ours; and who computed the same may have been first.
                if self.fetch([name], len(files[name])).get(name) != files[name]:
                    raise StorageError(
                        f"{self.path}/{name} was written meanwhile by somebody else, and with something else; "
                        "let one process write each seed, then run the same command again"
                    ) from error
            except FileNotFoundError as error:
                raise StorageError(f"cannot write {self.path}/{name}: {_reason(error)}") from error

        self.each(write, list(files))

    def delete(self, files: Iterable[str]) -> None:
        """Delete those of these files that are there."""

        def remove(name: str) -> None:
            where = f"{self.root}/{name}"
            self._patiently("delete", lambda: _or_none(self.filesystem.rm_file, where), name)

        self.each(remove, list(files))

    def delete_folder(self, name: str) -> None:
        """Delete whatever lies under `name`."""
        find, where = self.filesystem.find, f"{self.root}/{name}"
        found = self._patiently("list", lambda: _or_none(find, where), name) or []
        self.delete([file.removeprefix(f"{self.root}/") for file in found])

    def create(self, files: Mapping[str, bytes], root: bytes) -> None:
        """Make this the root of a cache, unless it is one, or holds something else: files, then its zarr.json."""
        if set(self.names()) <= {KEYS}:
            self.put(files)
            self.put({"zarr.json": root}, new=True)

    def growing(self) -> AbstractContextManager[None]:
        """Own nothing: object storage has no locks that die with their process."""
        return nullcontext()

    def owned(self, whose: str) -> AbstractContextManager[None]:
        """Own nothing: object storage has no locks that die with their process."""
        return nullcontext()

    def turn(self, shard: int) -> AbstractContextManager[None]:
        """Wait for nobody: a second writer's objects are the first one's, byte for byte, or its commit is refused."""
        return nullcontext()

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Turn whatever goes wrong while writing into `StorageError`."""
        try:
            yield
        except LogitCacheError:
            raise
        except Exception as error:
            raise StorageError(
                f"cannot write {self.path}: {_reason(error)}; committed shards are safe"
            ) from error

    def _get(self, where: str, most: int) -> bytes | None:
        try:
            if not self.writable:
                return _download(self.filesystem, where, most)
            longest = {"timeout": PATIENCE.longest} if self.filesystem.async_impl else {}
            return bytes(self.filesystem.cat_file(where, start=0, end=most, **longest))
        except FileNotFoundError:
            return None
        except Exception as error:
            if _status(error) == 416:  # no first byte to begin at: the file is empty
                return b""
            raise

    def _patiently(self, what: str, attempt: Callable[[], _T], name: str = "") -> _T:
        """Try a few times, with pauses that double, what may go well next time."""
        began, where = time.monotonic(), f"{self.path}/{name}".rstrip("/")
        for number in range(PATIENCE.attempts):
            try:
                return attempt()
            except (FileNotFoundError, FileExistsError, LogitCacheError):
                raise
            except Exception as error:
                tried = number + 1
                over = tried == PATIENCE.attempts or time.monotonic() - began > PATIENCE.enough
                if over or _final(error):
                    times = f" ({tried} attempts)" if tried > 1 else ""
                    raise StorageError(f"cannot {what} {where}{times}: {_reason(error)}") from error
                time.sleep(PATIENCE.pause * 2**number)
        raise AssertionError("unreachable")


def _options(scheme: str) -> dict[str, Any]:
    """Return what we ask of a file system: no remembered listings, no waiting for ever, retries that are ours alone.

    What the user's fsspec configuration says of the same goes first.
    """
    chosen = fsspec.config.conf.get(scheme, {})
    if scheme in ("s3", "s3a"):
        ours = {"retries": {"total_max_attempts": 1}, "read_timeout": PATIENCE.silence}
        return {"use_listings_cache": False, "config_kwargs": ours | chosen.get("config_kwargs", {})}
    if scheme in ("http", "https"):
        from aiohttp import ClientTimeout

        bounds = {"sock_connect": PATIENCE.silence, "sock_read": PATIENCE.silence, "total": PATIENCE.longest}
        return {"client_kwargs": {"timeout": ClientTimeout(**bounds)} | chosen.get("client_kwargs", {})}
    return {"use_listings_cache": False} if scheme in ("gs", "gcs") else {}


def _download(filesystem: Any, url: str, most: int) -> bytes:
    """Read at most so many bytes from the web, whatever its host goes on sending.

    A block size of 0 streams; with any size given, fsspec does not ask the host for it first.
    """
    data = bytearray()
    with filesystem.open(url, "rb", block_size=0, size=1) as file:
        while len(data) < most and (piece := file.read(most - len(data))):
            data += piece
    return bytes(data)


def _or_none(call: Callable[..., _T], *args: Any, **options: Any) -> _T | None:
    try:
        return call(*args, **options)
    except FileNotFoundError:
        return None


def _indexed(index: bytes, where: str) -> list[str]:
    """Parse seeds.json, which nobody vouches for: {"seeds": [0, 1, …]}."""
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
    """Return the HTTP status that an error of aiohttp, gcsfs or botocore speaks of."""
    cause = error.__cause__
    for found in (getattr(error, "status", None), getattr(error, "code", None)):
        if str(found).isdecimal():
            return int(str(found))
    response = getattr(error, "response", None) or getattr(cause, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    return None


def _final(error: Exception) -> bool:
    """Would another attempt fail in the same way?"""
    if isinstance(error, PermissionError | NotImplementedError | ImportError | ValueError | TypeError):
        return True
    status = _status(error)
    return type(error).__name__ == "NoCredentialsError" or (
        status is not None and 400 <= status < 500 and status not in (408, 425, 429)
    )


def _reason(error: BaseException) -> str:
    """Say in one line what a file system said."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]
