"""Faults of files: flipped, cut, swapped, gone, replaced, edited. Whatever is read after is right, or refused."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from logitcache.store import CacheReader
from logitcache.teacher.spool import open_spool
from soak import hostile as cases
from soak.processes import SERVER
from soak.subject import SEEDS, HangError, Truth, UntypedError, WrongNumberError

Damage = Callable[[random.Random, Path], object]


def _after(damage: Damage) -> Callable[[random.Random, Truth, Path], None]:
    """Make a fault of a damage: do it to a copy, once or a few times, and read everything."""

    def fault(rng: random.Random, truth: Truth, folder: Path) -> None:
        cache = truth.copy(folder)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            damage(rng, cache)
        truth.require_all(cache, folder / "spool")

    fault.__doc__ = damage.__doc__
    return fault


def some_file(rng: random.Random, cache: Path) -> Path:
    """Choose a file; metadata as often as data."""
    files = sorted(file for file in cache.rglob("*") if file.is_file() and not file.name.startswith(".lock"))
    metadata = [file for file in files if file.name == "zarr.json"]
    return rng.choice(metadata if rng.random() < 0.4 else files)


def flip_bits(rng: random.Random, cache: Path) -> None:
    """Flip a few bits of a file."""
    file = some_file(rng, cache)
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 8]) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def cut_or_grow(rng: random.Random, cache: Path) -> None:
    """Cut a file short, empty it, lengthen it, or put bytes into it."""
    file = some_file(rng, cache)
    data = file.read_bytes()
    at = rng.randint(0, len(data))
    junk = rng.choice([b"\0", b"\xff", b" ", b"}"]) * rng.choice([1, 4, 4096])
    file.write_bytes(rng.choice([data[:at], b"", data + junk, data[:at] + junk + data[at:], data[at:]]))


def scribble(rng: random.Random, cache: Path) -> None:
    """Write random bytes, or zeros, over all or part of a file."""
    file = some_file(rng, cache)
    data = bytearray(file.read_bytes())
    start = rng.choice([0, rng.randint(0, len(data))])
    stop = rng.choice([len(data), rng.randint(start, len(data))])
    data[start:stop] = rng.choice([bytes(stop - start), rng.randbytes(stop - start)])
    file.write_bytes(data)


def take_away(rng: random.Random, cache: Path) -> None:
    """Delete a file, or a folder with all that is in it."""
    file = some_file(rng, cache)
    if rng.random() < 0.7:
        file.unlink()
    else:
        folder = rng.choice(sorted(path for path in cache.rglob("*") if path.is_dir()))
        shutil.rmtree(folder)


def exchange(rng: random.Random, cache: Path) -> None:
    """Let two files, or two folders, change places; or put a copy of one in the other's."""
    whole = rng.random() < 0.3
    paths = sorted(path for path in cache.rglob("*") if path.is_dir() == whole)
    a = rng.choice(paths)
    alike = [b for b in paths if b.name == a.name or b.parts[-4:-2] == a.parts[-4:-2]]
    b = rng.choice(alike if rng.random() < 0.8 else paths)
    if a == b or a in b.parents or b in a.parents:
        return
    aside = cache.with_name("aside")
    if rng.random() < 0.7:
        a.rename(aside)
        b.rename(a)
        aside.rename(b)
    elif whole:
        shutil.rmtree(b)
        shutil.copytree(a, b)
    else:
        shutil.copyfile(a, b)


def make_another_kind(rng: random.Random, cache: Path) -> None:
    """Put a folder, a link, a pipe or a device where a file was."""
    file = some_file(rng, cache)
    held = file.read_bytes()
    file.unlink()
    outside = cache.with_name(f"outside-{rng.randrange(1 << 30)}")
    outside.write_bytes(rng.choice([held, b"other", b""]))
    kind = rng.choice(["folder", "link", "loop", "nowhere", "folder link", "pipe", "device"])
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        target = {
            "link": Path("..") / os.path.relpath(outside, file.parent),
            "loop": file,
            "nowhere": cache / "nowhere",
            "folder link": Path("/"),
            "device": Path("/dev/zero"),
        }[kind]
        file.symlink_to(target if kind != "link" else os.path.relpath(outside, file.parent))


ABSURD: list[Any] = [
    0, 1, -1, 2**31, 2**53 + 1, 2**60, 2**64, 10**400, 0.1, -0.0, 1e308, float("nan"), float("inf"),
    True, None, "", "x", "../../..", "x" * 5000, [], {}, [[]], [1 << 40], {"name": "own", "configuration": {}},
]  # fmt: skip


def edit_json(rng: random.Random, cache: Path) -> None:
    """Change, remove, repeat or nest a field of a metadata file."""
    file = rng.choice(sorted(cache.rglob("zarr.json")))
    try:
        about = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return  # damaged before
    places = list(_fields(about))
    if not places:
        return
    holder, key = rng.choice(places)
    action = rng.choice(["absurd", "absurd", "near", "near", "gone", "moved", "twice", "deep"])
    text = None
    if action == "absurd":
        holder[key] = rng.choice(ABSURD)
    elif action == "near":
        holder[key] = _near(rng, holder[key])
    elif action == "gone":
        del holder[key]
    elif action == "moved":
        other, there = rng.choice(places)
        holder[key] = other.get(there) if isinstance(other, dict) else 7
    elif action == "twice" and isinstance(holder, dict):
        text = json.dumps(about).replace(
            f'{json.dumps(key)}: ', f'{json.dumps(key)}: {json.dumps(rng.choice(ABSURD))}, {json.dumps(key)}: ', 1
        )  # fmt: skip
    else:
        mark = "deep-mark"
        holder[key] = mark
        depth = rng.choice([40, 500, 100_000])
        text = json.dumps(about).replace(f'"{mark}"', "[" * depth + "]" * depth)
    try:
        file.write_text(text or json.dumps(about))
    except (ValueError, RecursionError):
        return  # two edits may have tied a knot


def _fields(value: Any) -> Any:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inner:
        yield value, key
        yield from _fields(held)


def _near(rng: random.Random, value: Any) -> Any:
    """Return something much like it."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + rng.choice([1, -1, 0.5])
    if isinstance(value, str):
        at = rng.randint(0, len(value))
        return value[:at] + rng.choice(["", "x", "0"]) + value[at + 1 :]
    if isinstance(value, list):
        return rng.choice([value[1:], value + value, value[::-1]])
    return {**value, "more": 1}


DAMAGES: tuple[Damage, ...] = (
    flip_bits, cut_or_grow, scribble, take_away, exchange, make_another_kind, edit_json,
)  # fmt: skip
flip, cut, garbage, gone = map(_after, (flip_bits, cut_or_grow, scribble, take_away))
swap, other_kind, edit = map(_after, (exchange, make_another_kind, edit_json))


# Spools ---------------------------------------------------------------------------------------------------


def damage_spool(rng: random.Random, truth: Truth, folder: Path) -> None:
    """Damage a spool that has been built; who opens it gets the right rows all the same."""
    spools = folder / "spool"
    for seed in SEEDS:
        open_spool(CacheReader(truth.path), seed, spools)
    for file in sorted(spools.glob("*.spool")):
        data = bytearray(file.read_bytes())
        how = rng.choice(["flip", "cut", "zeros", "gone", "swap"])
        if how == "flip":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif how == "cut":
            data = data[: rng.randrange(len(data))]
        elif how == "zeros":
            start = rng.randrange(len(data))
            data[start:] = bytes(len(data) - start)
        elif how == "swap":
            data = bytearray(rng.choice(sorted(spools.glob("*.spool"))).read_bytes())
        file.unlink()  # who has it mapped keeps what was
        if how != "gone":
            file.write_bytes(data)
    for seed in SEEDS:
        truth.require_rows(CacheReader(truth.path), spools, seed)


# Crafted --------------------------------------------------------------------------------------------------

MOST_GROWTH = 300 << 20  # bytes of memory that reading a crafted cache of a few kilobytes may take
MOST_SECONDS = 30.0


def hostile(rng: random.Random, truth: Truth, folder: Path) -> None:
    """Read a cache that somebody crafted, in a process of its own, in bounded time and memory."""
    names = sorted(cases.CASES)
    crafted(names[rng.randrange(len(names))], truth, folder)


def crafted(case: str, truth: Truth, folder: Path) -> list[str]:
    """Read everything of the crafted cache called `case`; return the errors that were said."""
    cache = truth.copy(folder)
    cases.CASES[case](cache)
    told, tell = SERVER.Pipe(duplex=False)
    child = SERVER.Process(target=_read_all, args=(truth.path, cache, folder, tell))
    child.start()
    tell.close()
    try:
        if not told.poll(MOST_SECONDS):
            raise HangError(f"crafted cache {case!r} is still being read after {MOST_SECONDS:.0f} s")
        said, wrong, grown = told.recv()
    except EOFError as error:
        raise UntypedError(f"the process that read crafted cache {case!r} died") from error
    finally:
        child.kill()
        child.join()
        told.close()
    if wrong:
        raise {"WrongNumberError": WrongNumberError}.get(wrong[0], UntypedError)(f"{case}: {wrong[1]}")
    if grown > MOST_GROWTH:
        raise UntypedError(f"reading crafted cache {case!r} took {grown >> 20} MB of memory")
    return list(said)


def _read_all(whole: Path, cache: Path, folder: Path, told: Any) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # for the sake of this machine
    truth = Truth(whole, folder / "truth-spool")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said: list[str] = []
    wrong = None
    try:
        said = truth.require_all(cache, folder / "spool", about=False)
    except AssertionError as error:
        wrong = (type(error).__name__, str(error))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    told.send((said, wrong, grown))
