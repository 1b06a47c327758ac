"""The spool: one seed of a cache, decoded once into a packed file that every process on the node maps.

Random reads through Zarr's chunks are slow, decoding a whole seed is fast, and a look-up in mapped memory is
faster still. A spool holds one row of bytes per sample (`RowLayout`), is named by what it holds, and is shared
by all workers, ranks and student runs. It is written to a temporary file, then renamed. Behind the rows stands the
CRC-32C of name and rows, which every opening compares: a scratch disk's flipped bit must not become a wrong number.

Where a disk has no flock, a lock may be one of which nobody can say whether its holder lives. Such a one is not
waited for: the spool is built a second time, under a name of its own, with the same bytes.
"""

import hashlib
import json
import math
import mmap
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch

from logitcache.errors import LogitCacheError, StorageError
from logitcache.format.schema import CacheSpec, RowLayout
from logitcache.locks import HeldError, lock
from logitcache.paths import expand_home, read_variable, user_cache_folder
from logitcache.store.reader import CacheReader
from logitcache.teacher.completion import Completion
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool_file import CRC_BYTES, is_intact, map_rows, start_crc

PackedRows = npt.NDArray[np.uint8]
DEFAULT_SPOOL_LIMIT = 50_000_000_000
PAGE = mmap.PAGESIZE
PRIVATE = ".private"  # ends a temporary file that no lock guards
LONGEST_BUILD = 86_400.0  # seconds; older ones are of a process that was killed
DECODERS = 2  # threads; as many shards are in memory, and the one being written


def default_spool_folder() -> Path:
    """Return where spools go: $LOGITCACHE_SPOOL, or logitcache/spool in the user's cache folder."""
    if chosen := read_variable("LOGITCACHE_SPOOL"):
        return expand_home(chosen)
    return user_cache_folder() / "logitcache" / "spool"


def spool_path(reader: CacheReader, seed: int, folder: str | Path | None = None) -> Path:
    """Return where `open_spool` keeps a complete seed."""
    layout = RowLayout.of(reader.spec)
    folder = expand_home(folder) if folder else default_spool_folder()
    return folder / f"{reader.identity(seed)}-{_layout_digest(layout)}.spool"


def open_spool(
    reader: CacheReader, seed: int, folder: str | Path | None = None, limit: int = DEFAULT_SPOOL_LIMIT
) -> PackedRows:
    """Map one complete seed, decoding it first if no process has yet.

    Args:
        reader: the cache.
        seed: one of its complete seeds.
        folder: where spools are kept; see `default_spool_folder`.
        limit: bytes that the folder may hold; the spools longest unused are deleted beyond it, before a new one
            is built. The seed asked for is kept whatever the limit; and the bytes of a deleted one are free
            when the last process that has it mapped lets go of it.

    Returns:
        (n, row_bytes) uint8, read-only, mapped.

    Raises:
        IncompleteError: the seed is not complete.
        FormatError: a shard is damaged.
        StorageError: the spool cannot be written.
    """
    reader.require([seed])
    layout = RowLayout.of(reader.spec)
    shape = (reader.spec.dataset.n, layout.row_bytes)
    file = spool_path(reader, seed, folder)
    folder = file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock_spool(file) as temporary:
            if not is_intact(file, shape[0] * shape[1]):
                room = shape[0] * shape[1] + CRC_BYTES
                _trim(
                    folder, limit - room, keep=file
                )  # before building: the disk may be no larger than the limit
                _build(file, temporary, reader, seed, layout)
            _trim(folder, limit, keep=file)
            os.utime(file)
            rows = map_rows(file, shape)
            rows.reshape(-1)[::PAGE].max()  # every page is mapped now, not one by one in the first batches
            return rows
    except LogitCacheError:  # errors of the cache, some of them an OSError too
        raise
    except OSError as error:
        raise StorageError(
            f"cannot keep the decoded seed {seed} in {folder}: {error.strerror or error}; "
            "make room there, or name another folder with --spool-dir or in $LOGITCACHE_SPOOL"
        ) from error


def pack_rows(spec: CacheSpec, layout: RowLayout, arrays: dict[str, npt.NDArray[Any]]) -> PackedRows:
    """Pack arrays of one shard, (rows, …) in stored dtypes, into (rows, row_bytes) uint8."""
    rows = np.zeros((len(arrays["top"]), layout.row_bytes), dtype=np.uint8)
    for name, dtype, count, offset in layout.fields:
        values = np.ascontiguousarray(arrays[name], dtype=np.dtype(dtype).newbyteorder("<"))
        record = np.dtype((np.void, values.itemsize * count))  # copied as one piece: four times as fast
        field = np.ndarray(len(rows), record, rows, offset, (layout.row_bytes,))
        field[:] = values.reshape(len(rows), count).view(record)[:, 0]
    return rows


def decode_shard(
    reader: CacheReader, seed: int, shard: int, completion: Completion | None = None
) -> SparseTeacher:
    """Read one committed shard without a spool: the answers for its rows, on the CPU; top is NaN where there is none.

    Raises:
        IncompleteError: the shard is not committed.
        FormatError: it is damaged.
    """
    layout = RowLayout.of(reader.spec)
    rows = pack_rows(reader.spec, layout, reader.read(seed, shard))
    return SparseTeacher.unpack(torch.from_numpy(rows), layout, completion)


def _layout_digest(layout: RowLayout) -> str:
    """Digest a layout for the file's name, so that rows packed by another layout are not read."""
    text = json.dumps(layout.to_dict(), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


@contextmanager
def _lock_spool(file: Path) -> Iterator[Path]:
    """Lock a spool, and yield the temporary file to build it in."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(file.with_suffix(".lock"), math.inf, wait_unknown=0.0))
            temporary = file.with_suffix(".part")
        except HeldError:
            temporary = file.with_name(f"{file.stem}-{uuid.uuid4().hex}{PRIVATE}")
        yield temporary


def _build(file: Path, temporary: Path, reader: CacheReader, seed: int, layout: RowLayout) -> None:
    """Decode a seed into `temporary`, then `file`, a few shards at a time; a failure leaves no file behind."""
    crc = start_crc(file)
    try:
        with temporary.open("wb") as out:
            for rows in _decode_shards(reader, seed, layout):
                crc = google_crc32c.extend(crc, rows)
                out.write(rows.data)
            out.write(crc.to_bytes(CRC_BYTES, "little"))
        temporary.replace(file)  # not flushed: the CRC tells if a power cut has damaged it
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _decode_shards(reader: CacheReader, seed: int, layout: RowLayout) -> Iterator[PackedRows]:
    """Yield the rows of each shard in turn, while the next ones are decoded."""

    def rows(shard: int) -> PackedRows:
        return pack_rows(reader.spec, layout, reader.read(seed, shard))

    with ThreadPoolExecutor(DECODERS, "decode") as threads:
        ahead: deque[Future[PackedRows]] = deque()
        try:
            for shard in range(reader.spec.layout.shards):
                ahead.append(threads.submit(rows, shard))
                if len(ahead) > DECODERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _trim(folder: Path, limit: int, keep: Path) -> None:
    """Delete the spools longest unused until the folder is within `limit`; processes that have one mapped keep it.

    Unfinished files of killed processes are deleted too.
    """
    for part in folder.glob("*.part"):
        with suppress(HeldError), lock(part.with_suffix(".lock")):  # else: being built now
            part.unlink(missing_ok=True)
    for private in folder.glob(f"*{PRIVATE}"):
        with suppress(FileNotFoundError):
            if time.time() - private.stat().st_mtime > LONGEST_BUILD:
                private.unlink()
    spools = []
    for spool in folder.glob("*.spool"):
        with suppress(FileNotFoundError):  # another process trims too
            found = spool.stat()
            spools.append((found.st_mtime_ns, found.st_size, spool))
    total = sum(size for _, size, _ in spools)
    for _, size, spool in sorted(spools):
        if total <= limit:
            return
        if spool != keep:
            with suppress(HeldError), lock(spool.with_suffix(".lock")):  # else: being opened now
                spool.unlink(missing_ok=True)
                total -= size
