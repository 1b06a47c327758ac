"""A disk that forgets: what may be left of recorded operations when the power fails.

POSIX promises little, and this model takes it at its word. A file holds what it held when it was last flushed, or
that and any part of what was written since, torn or as zeros. A folder names what it named when it was last flushed,
and of the entries made, renamed and deleted since, any that happened to get there, others not, in whatever order.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from soak.watch import Operation, Watch


class Recorder(Watch):
    """Keeps the operations that succeeded, and what was promised between them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.log: list[Operation] = []

    @contextmanager
    def around(self, operation: Operation) -> Iterator[None]:
        """Record it, unless it fails."""
        yield
        if operation.kind != "read":
            self.log.append(operation)

    def promise(self, seed: int, shard: int) -> None:
        """Note that a shard has been said to be committed."""
        with self._lock:
            self.log.append(Operation("promise", f"{seed}/{shard}"))


@dataclass
class File:
    """What is in memory, and what has been flushed; None: nothing ever was."""

    now: bytes = b""
    flushed: bytes | None = None


@dataclass
class Folder:
    """Entries by name: as they are, as they were flushed, and the changes between, oldest first."""

    now: dict[str, "File | Folder"] = field(default_factory=dict)
    flushed: dict[str, "File | Folder"] = field(default_factory=dict)
    changes: list[dict[str, "File | Folder | None"]] = field(default_factory=list)

    def change(self, entries: dict[str, "File | Folder | None"]) -> None:
        """Change entries, all together or not at all; None deletes."""
        _apply(self.now, entries)
        self.changes.append(entries)

    def flush(self) -> None:
        """Make the entries, not what they name, durable."""
        self.flushed, self.changes = dict(self.now), []


class Disk:
    """The folder that operations were recorded in, empty at first, and durable itself."""

    def __init__(self) -> None:
        self.root = Folder()
        self.promised: set[tuple[int, int]] = set()

    def apply(self, operation: Operation) -> None:
        """Let one operation happen, in memory."""
        kind, path = operation.kind, PurePosixPath(operation.path)
        if kind == "promise":
            seed, shard = operation.path.split("/")
            self.promised.add((int(seed), int(shard)))
        elif kind == "sync":
            found = self._find(path)
            if isinstance(found, Folder):
                found.flush()
            else:
                found.flushed = found.now
        elif kind in ("write", "truncate"):
            file = self._find(path)
            assert isinstance(file, File)
            before = file.now[: operation.offset].ljust(operation.offset, b"\0")
            after = file.now[operation.offset + len(operation.data) :] if kind == "write" else b""
            file.now = before + operation.data + after
        elif kind == "rename":
            target = PurePosixPath(operation.other)
            moved = self._find(path)
            if path.parent == target.parent:
                self._folder(path).change({path.name: None, target.name: moved})
            else:
                self._folder(target).change({target.name: moved})
                self._folder(path).change({path.name: None})
        else:
            new: File | Folder | None = {"create": File(), "mkdir": Folder()}.get(kind)
            self._folder(path).change({path.name: new})

    def _find(self, path: PurePosixPath) -> File | Folder:
        found: File | Folder = self.root
        for name in path.parts:
            assert isinstance(found, Folder)
            found = found.now[name]
        return found

    def _folder(self, path: PurePosixPath) -> Folder:
        found = self._find(path.parent)
        assert isinstance(found, Folder)
        return found

    def fail(self, rng: random.Random, out: Path, kept: float | None = None) -> None:
        """Write into the empty folder `out` what may be left after the power failed.

        `kept` of what was not flushed is there all the same; by default any share.
        """
        kept = rng.choice([0.0, 0.5, 0.9, 1.0]) if kept is None else kept
        _leave(self.root, out, kept, rng)


def replay(log: Sequence[Operation], operations: int) -> Disk:
    """Return the disk after the first so many operations."""
    disk = Disk()
    for operation in log[:operations]:
        disk.apply(operation)
    return disk


def _apply(entries: dict[str, File | Folder], changes: dict[str, File | Folder | None]) -> None:
    for name, entry in changes.items():
        if entry is None:
            entries.pop(name, None)
        else:
            entries[name] = entry


def _leave(folder: Folder, out: Path, kept: float, rng: random.Random) -> None:
    entries = dict(folder.flushed)
    for change in folder.changes:
        if rng.random() < kept:
            _apply(entries, change)
    for name, entry in entries.items():
        if isinstance(entry, Folder):
            (out / name).mkdir()
            _leave(entry, out / name, kept, rng)
        else:
            (out / name).write_bytes(_left_of(entry, kept, rng))


def _left_of(file: File, kept: float, rng: random.Random) -> bytes:
    if file.flushed == file.now:
        return file.now
    if not kept:
        return file.flushed or b""
    if rng.random() < kept / 2:
        return file.now
    cut = rng.randint(0, len(file.now))
    return rng.choice(
        [
            file.flushed or b"",
            file.now[:cut],
            bytes(len(file.now)),
            file.now[:cut] + bytes(len(file.now) - cut),
        ]
    )
