"""What this process does to the files of a folder, one operation after the other, seen before it happens."""

import builtins
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock


class Operation(NamedTuple):
    """`kind` on `path`, relative to the folder; `other` is where a rename goes to.

    Kinds: create, truncate, write (of `data` at `offset`), sync, rename, unlink, mkdir, rmdir, read.
    """

    kind: str
    path: str
    other: str = ""
    data: bytes = b""
    offset: int = 0


class Watch:
    """Calls `around` for each operation below `folder`; a subclass records it there, or lets it fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._opened: dict[int, str] = {}
        self._lock = threading.RLock()

    def around(self, operation: Operation) -> AbstractContextManager[object]:
        """Enter before the operation happens, and leave after."""
        return nullcontext()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch Python's own calls, which are all that the library and Zarr's local store use."""
        with mock.patch.multiple(
            os,
            open=self._opening(os.open),
            fsync=self._syncing(os.fsync),
            rename=self._renaming(os.rename),
            replace=self._renaming(os.replace),
            unlink=self._on_path("unlink", os.unlink),
            remove=self._on_path("unlink", os.remove),
            mkdir=self._on_path("mkdir", os.mkdir),
            rmdir=self._on_path("rmdir", os.rmdir),
        ), mock.patch.object(io, "open", self._file(io.open)), mock.patch.object(
            builtins, "open", self._file(builtins.open)
        ):  # fmt: skip
            yield

    def _name(self, path: Any, folder: int | None = None) -> str | None:
        """Name a path relative to the watched folder; None outside of it."""
        if isinstance(path, int):
            return self._opened.get(path)
        if folder is not None:
            inside = self._opened.get(folder)
            return None if inside is None else os.path.normpath(os.path.join(inside, os.fsdecode(path)))
        # not `resolve`: a link is an entry of the folder that it lies in
        whole = os.path.abspath(os.fsdecode(path))
        root = str(self.folder)
        return os.path.relpath(whole, root) if whole == root or whole.startswith(root + os.sep) else None

    def _happens(self, operation: Operation, really: Callable[[], Any]) -> Any:
        with self._lock, self.around(operation):
            return really()

    def _opening(self, really: Callable[..., int]) -> Callable[..., int]:
        def opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
            name = self._name(path, options.get("dir_fd"))
            call = lambda: really(path, flags, *args, **options)  # noqa: E731
            if name is None:
                return call()
            new = flags & os.O_CREAT and not os.path.lexists(path)
            descriptor: int = self._happens(Operation("create", name), call) if new else call()
            self._opened[descriptor] = name
            return descriptor

        return opened

    def _syncing(self, really: Callable[[int], None]) -> Callable[[int], None]:
        def synced(descriptor: int) -> None:
            name = self._opened.get(descriptor)
            if name is None:
                return really(descriptor)
            self._happens(Operation("sync", name), lambda: None)  # nobody cuts the power of this machine
            return None

        return synced

    def _renaming(self, really: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: Any, target: Any, **options: Any) -> None:
            name, other = self._name(source), self._name(target)
            call = lambda: really(source, target, **options)  # noqa: E731
            if name is None or other is None:
                return call()
            return self._happens(Operation("rename", name, other), call)

        return renamed

    def _on_path(self, kind: str, really: Callable[..., None]) -> Callable[..., None]:
        def done(path: Any, *args: Any, **options: Any) -> None:
            name = self._name(path, options.get("dir_fd"))
            call = lambda: really(path, *args, **options)  # noqa: E731
            return call() if name is None else self._happens(Operation(kind, name), call)

        return done

    def _file(self, really: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
            name = None if isinstance(file, int) else self._name(file)
            if name is None or set(mode) & set("xa"):
                return really(file, mode, buffering, *args, **options)
            raw = _Raw(self, name, file, mode)
            self._opened[raw.fileno()] = name
            if buffering == 0:
                return raw
            buffered = (io.BufferedWriter if "w" in mode else io.BufferedReader)(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **options)

        return opened


class _Raw(io.FileIO):
    """A file whose every transfer is an operation."""

    def __init__(self, watch: Watch, name: str, file: Any, mode: str) -> None:
        self._watch, self._name = watch, name
        plain = mode.replace("b", "").replace("t", "")
        if "w" in plain:
            kind = "truncate" if os.path.lexists(file) else "create"
            watch._happens(Operation(kind, name), lambda: super(_Raw, self).__init__(file, plain))
        else:
            super().__init__(file, plain)

    def write(self, data: Any) -> int:
        held = bytes(data)
        operation = Operation("write", self._name, data=held, offset=self.tell())
        done: int = self._watch._happens(operation, lambda: super(_Raw, self).write(held))
        return done

    def readinto(self, buffer: Any) -> int | None:
        call = super().readinto
        found: int | None = self._watch._happens(Operation("read", self._name), lambda: call(buffer))
        return found

    def readall(self) -> bytes:
        call = super().readall
        found: bytes = self._watch._happens(Operation("read", self._name), call)
        return found
