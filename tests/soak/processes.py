"""Faults of processes and disks: killed, out of power, out of room, out of order."""

import errno
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from logitcache.errors import LogitCacheError, StorageError
from logitcache.store import CacheReader
from logitcache.store.copy import copy_cache
from logitcache.store.derive import derive_cache
from logitcache.teacher.spool import open_spool
from soak.disk import Recorder, replay
from soak.subject import SAMPLES, SEEDS, HangError, Truth, UntypedError, dump_digits, one_line
from soak.watch import Operation, Watch

SERVER = multiprocessing.get_context("forkserver")  # children start in no time: the server has imported torch
SERVER.set_forkserver_preload(["soak.processes"])
LONGEST = 120.0  # seconds after which a child is taken to hang

# Killed ---------------------------------------------------------------------------------------------------


def _child(work: Callable[..., None], told: Any, *args: Any) -> None:
    told.send("begun")
    work(*args, lambda seed, shard: told.send((seed, shard)))
    told.send("done")


def _dumping(out: Path, promise: Callable[[int, int], None]) -> None:
    dump_digits(out, promise)


def _deriving(source: Path, out: Path, promise: Callable[[int, int], None]) -> None:
    derive_cache(source, out, top_k=2)


def _copying(source: Path, out: Path, promise: Callable[[int, int], None]) -> None:
    copy_cache(source, out)


def _spooling(source: Path, spools: Path, promise: Callable[[int, int], None]) -> None:
    for seed in SEEDS:
        open_spool(CacheReader(source), seed, spools)


def killed(rng: random.Random, work: Callable[..., None], *args: Any) -> tuple[set[tuple[int, int]], bool]:
    """Run `work` in a process and kill it; return which shards it told of, and whether it had ended before."""
    told, tell = SERVER.Pipe(duplex=False)
    child = SERVER.Process(target=_child, args=(work, tell, *args))
    child.start()
    tell.close()
    promised, done = set(), False
    try:
        if not told.poll(LONGEST):
            raise HangError("the process has not begun")
        with suppress(EOFError):
            told.recv()
            until = time.monotonic() + rng.uniform(0, 0.35)
            while not done and told.poll(max(0.0, until - time.monotonic())):
                done = _heard(told.recv(), promised)
        child.kill()
        child.join(LONGEST)
        with suppress(EOFError):
            while told.poll():
                done |= _heard(told.recv(), promised)
    finally:
        child.kill()
        child.join()
        told.close()
    return promised, done


def _heard(message: Any, promised: set[tuple[int, int]]) -> bool:
    if message != "done":
        promised.add(message)
    return bool(message == "done")


def kill_dump(rng: random.Random, truth: Truth, folder: Path) -> None:
    """`kill -9` a dump, up to three times in a row; then go on."""
    out, promised = folder / "c.zarr", set()
    for _ in range(rng.randint(1, 3)):
        now, _ = killed(rng, _dumping, out)
        promised |= now
        truth.require_survived(out, promised)
    dump_digits(out)
    truth.require_whole(out)


def kill_derive(rng: random.Random, truth: Truth, folder: Path) -> None:
    """`kill -9` a derive; then go on to the cache that an undisturbed one makes."""
    killed(rng, _deriving, truth.path, folder / "c.zarr")
    with one_line():
        derive_cache(truth.path, folder / "c.zarr", top_k=2)
        derive_cache(truth.path, folder / "whole.zarr", top_k=2)
        expected = Truth(folder / "whole.zarr", folder / "spool")
        expected.require_whole(folder / "c.zarr")


def kill_copy(rng: random.Random, truth: Truth, folder: Path) -> None:
    """`kill -9` a copy; then go on with it."""
    killed(rng, _copying, truth.path, folder / "c.zarr")
    truth.require_survived(folder / "c.zarr", set())
    with one_line():
        copy_cache(truth.path, folder / "c.zarr")
    truth.require_whole(folder / "c.zarr")


def kill_spool(rng: random.Random, truth: Truth, folder: Path) -> None:
    """`kill -9` a process that decodes seeds into spools; then open them."""
    killed(rng, _spooling, truth.path, folder)
    with one_line():
        for seed in SEEDS:
            truth.require_rows(CacheReader(truth.path), folder, seed)


# Out of power ---------------------------------------------------------------------------------------------


def lose_power(rng: random.Random, truth: Truth, folder: Path, outages: int = 6) -> int:
    """Dump, go on after the power failed at some operation, and so on; return how often it failed."""
    (folder / "0").mkdir()
    log = recorded(folder / "0", rng)
    for outage in range(outages):
        after = folder / f"after-{outage}"
        after.mkdir()
        disk = replay(log, rng.randint(0, len(log)))
        disk.fail(rng, after)
        out = after / OUT
        truth.require_survived(out, disk.promised)
        with one_line():
            dump_digits(out)
        truth.require_whole(out)
    return outages


def lose_power_growing(rng: random.Random, truth: Truth, folder: Path, outages: int = 4) -> int:
    """Let a cache grow, go on after the power failed at some operation, and so on; return how often it failed."""
    for n in FEW, SAMPLES:
        dump_digits(folder / "whole.zarr", n=n)
    grown = Truth(folder / "whole.zarr", folder / "spool")
    recorder = Recorder(folder / "0")
    (folder / "0").mkdir()
    with recorder.watching():
        dump_digits(folder / "0" / OUT, recorder.promise, n=FEW)
        begun = len(recorder.log)
        dump_digits(folder / "0" / OUT, recorder.promise)
    for outage in range(outages):
        after = folder / f"after-{outage}"
        after.mkdir()
        disk = replay(recorder.log, rng.randint(begun, len(recorder.log)))
        disk.fail(rng, after)
        grown.require_survived(after / OUT, disk.promised)
        with one_line():
            dump_digits(after / OUT)
        grown.require_whole(after / OUT)
    return outages


FEW = 24  # samples of a cache that is to grow
OUT = "labs/ours/caches/c.zarr"  # folders that the dump has to make, too


def recorded(folder: Path, rng: random.Random) -> list[Operation]:
    """Record a dump; half of the time one that takes up what a dump that was stopped left behind."""
    recorder = Recorder(folder)
    with recorder.watching():
        if rng.random() < 0.5:
            stop = rng.randint(1, 5)
            with suppress(KeyboardInterrupt):
                dump_digits(folder / OUT, _stopping(recorder.promise, stop))
        dump_digits(folder / OUT, recorder.promise)
    return recorder.log


def _stopping(promise: Callable[[int, int], None], after: int) -> Callable[[int, int], None]:
    left = [after]

    def told(seed: int, shard: int) -> None:
        promise(seed, shard)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return told


# A disk that says no --------------------------------------------------------------------------------------

SAYS = {
    "full": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "read-only": (errno.EROFS,),
    "permission": (errno.EACCES, errno.EPERM),
    "broken": (errno.EIO,),
}


class Refusing(Watch):
    """Lets so many operations happen; then the next fails, or all that follow."""

    def __init__(self, folder: Path, allowed: int, error: int, kinds: set[str], *, lasting: bool) -> None:
        super().__init__(folder)
        self.left, self.error, self.kinds, self.lasting = allowed, error, kinds, lasting
        self.refused = 0

    @contextmanager
    def around(self, operation: Operation) -> Iterator[None]:
        """Fail, when it is time."""
        if operation.kind in self.kinds:
            self.left -= 1
            if self.left == -1 or (self.left < -1 and self.lasting):
                self.refused += 1
                raise OSError(self.error, os.strerror(self.error), str(self.folder / operation.path))
        yield


CHANGES = {"create", "truncate", "write", "sync", "rename", "unlink", "mkdir", "rmdir"}


def _refuse_dump(what: str) -> Callable[[random.Random, Truth, Path], int]:
    def refuse(rng: random.Random, truth: Truth, folder: Path) -> int:
        out, promised = folder / "c.zarr", set()
        kinds = CHANGES | {"read"} if what == "broken" else CHANGES
        if what == "full":
            kinds = {"create", "write", "mkdir", "sync", "rename"}
        error = rng.choice(SAYS[what])
        watch = Refusing(folder, rng.randint(0, 600), error, kinds, lasting=rng.random() < 0.5)
        with watch.watching(), suppress(StorageError), one_line():
            dump_digits(out, lambda seed, shard: promised.add((seed, shard)))
        truth.require_survived(out, promised)
        with one_line():
            dump_digits(out)
        truth.require_whole(out)
        return int(watch.refused > 0)

    refuse.__doc__ = f"Dump onto a disk that is {what} from some operation on, or for one; then go on."
    return refuse


full_disk, read_only_disk = _refuse_dump("full"), _refuse_dump("read-only")
no_permission, broken_disk = _refuse_dump("permission"), _refuse_dump("broken")


class Unflushable(Watch):
    """Flushes files, but no folder."""

    def __init__(self, folder: Path, error: int) -> None:
        super().__init__(folder)
        self.error, self.refused = error, 0

    @contextmanager
    def around(self, operation: Operation) -> Iterator[None]:
        """Fail at a folder."""
        if operation.kind == "sync" and (self.folder / operation.path).is_dir():
            self.refused += 1
            raise OSError(self.error, os.strerror(self.error))
        yield


def unflushable_folder(rng: random.Random, truth: Truth, folder: Path) -> int:
    """Dump, go on, and copy on a disk that cannot flush a folder."""
    watch = Unflushable(folder, rng.choice([errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF]))
    out, told = folder / "c.zarr", set()
    with watch.watching(), one_line():
        with suppress(KeyboardInterrupt):
            dump_digits(out, _stopping(lambda seed, shard: told.add((seed, shard)), rng.randint(1, 5)))
        truth.require_survived(out, told)
        dump_digits(out)
        copy_cache(out, folder / "copy.zarr")
    truth.require_whole(out)
    truth.require_whole(folder / "copy.zarr")
    return int(watch.refused > 0)


# Few descriptors ------------------------------------------------------------------------------------------


def _with_few_descriptors(out: Path, spools: Path, more: int, told: Any) -> None:
    import resource

    promised: list[tuple[int, int]] = []
    said = ""
    now = max(map(int, os.listdir("/dev/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (now + more, now + more))
    try:
        with one_line():
            dump_digits(out, lambda seed, shard: promised.append((seed, shard)))
            for seed in SEEDS:
                open_spool(CacheReader(out), seed, spools)
    except LogitCacheError:
        pass
    except AssertionError as error:
        said = str(error)
    told.send((promised, said))


def few_descriptors(rng: random.Random, truth: Truth, folder: Path) -> None:
    """Dump in a process that may open few files, maybe too few; then go on."""
    out = folder / "c.zarr"
    told, tell = SERVER.Pipe(duplex=False)
    child = SERVER.Process(target=_with_few_descriptors, args=(out, folder, rng.randint(4, 24), tell))
    child.start()
    tell.close()
    try:
        if not told.poll(LONGEST):
            raise HangError("a dump with few descriptors does not end")
        promised, said = told.recv()
    finally:
        child.kill()
        child.join()
        told.close()
    if said:
        raise UntypedError(said)
    truth.require_survived(out, set(promised))
    with one_line():
        dump_digits(out)
    truth.require_whole(out)


def unreadable(rng: random.Random, truth: Truth, folder: Path) -> int:
    """Read everything from a disk of which some reads fail."""
    cache = truth.copy(folder)
    watch = Refusing(cache, rng.randint(0, 80), errno.EIO, {"read"}, lasting=rng.random() < 0.3)
    with watch.watching():
        truth.require_all(cache, folder / "spool")
    if said := truth.require_all(cache, folder / "spool"):
        raise LogitCacheError(f"an error that outlived its cause: {said[0]}")
    return int(watch.refused > 0)
