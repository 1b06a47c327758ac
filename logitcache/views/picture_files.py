"""Which files below a folder are pictures: by their suffixes, and what is left out, with why."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Self

from logitcache.errors import list_some
from logitcache.files import is_stray
from logitcache.views.decoding import printable_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
LATER_SUFFIXES = (
    *(".jfif", ".jpe", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif"),
    *(".apng", ".dib", ".ico", ".pbm", ".pnm", ".tga"),
)  # which earlier versions did not take: read where Pillow has their decoder
PICTURE_LIKE = (
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".svgz", ".eps", ".ai", ".pdf"),
    *(".psd", ".psb", ".xcf", ".exr", ".hdr", ".pfm", ".dcm", ".qoi", ".raw"),
    *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    *(".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm"),
)  # which are not read, and are named where they lie among pictures
SUFFIX_LIST = " ".join(IMAGE_SUFFIXES)


@dataclass(frozen=True)
class PictureFiles:
    """Files below a folder, as paths relative to a root, each list sorted by their bytes.

    Attributes:
        shown: pictures.
        hidden: pictures that systems and tools hide (`is_hidden`).
        later: pictures of `LATER_SUFFIXES`, beside `shown`.
        unread: what looks like a picture, and is not read here.
        outside: pictures that lie in no class folder.
    """

    shown: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    @classmethod
    def below(cls, root: Path, below: str = "") -> Self:
        """List the files below root/below.

        Links are followed, but each folder is read once, and none that lies above: a link in a class folder that
        leads back up would put all classes into it.

        Raises:
            OSError: a folder cannot be read; hidden ones that cannot are passed over.
        """
        found = cls()
        seen = {os.fspath(above) for above in (root / below).resolve().parents}
        later_folders: list[str] = []

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # a class that val/ lacks, for one
                raise error

        def walk(start: str, shown: bool) -> None:
            for folder, inside, names in os.walk(start, onerror=refuse if shown else None, followlinks=True):
                if (real := os.path.realpath(folder)) in seen:
                    inside.clear()
                    continue
                seen.add(real)
                if shown:
                    later_folders.extend(os.path.join(folder, name) for name in inside if is_hidden(name))
                    inside[:] = [name for name in inside if not is_hidden(name)]
                inside.sort(key=os.fsencode)  # not the disk chooses between two ways to a folder
                relative = os.path.relpath(folder, root)
                for name in names:
                    if (kind := found._kind_of(name, shown and not is_hidden(name))) is not None:
                        kind.append(os.path.normpath(os.path.join(relative, name)))

        walk(os.fspath(root / below), not is_hidden(below))
        for folder in later_folders:  # after all that is shown: a link may show what lies in a hidden folder
            walk(folder, False)
        return found._sorted()

    def _kind_of(self, name: str, shown: bool) -> list[str] | None:
        """Return the list that a file belongs to by its name; None for none."""
        suffix = _suffix_of(name)
        if suffix in IMAGE_SUFFIXES:
            return self.shown if shown else self.hidden
        if not shown or suffix not in LATER_SUFFIXES + PICTURE_LIKE:
            return None
        return self.later if suffix in _read_later() else self.unread

    def _sorted(self) -> Self:
        return type(self)(*map(sort_paths, vars(self).values()))

    def all(self, *, hidden: bool = False, later: bool = True) -> list[str]:
        """List what is taken.

        Args:
            hidden: the hidden ones too.
            later: those of later suffixes too.
        """
        return sort_paths(self.shown + (self.hidden if hidden else []) + (self.later if later else []))

    def describe_left_out(self, folder: Path, *, hidden: bool = False, later: bool = True) -> str:
        """Say in one line what of it `all` leaves out, and what to do; "" where it is nothing."""
        notes = []
        if self.hidden and not hidden:
            notes.append(f"left out as hidden, or of the system: {_name_first(folder, self.hidden)}")
        if self.outside:
            notes.append(f"left out, as they lie in no class folder: {_name_first(folder, self.outside)}")
        if self.unread:
            counts = Counter(map(_suffix_of, self.unread))
            kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())
            first = printable_path(folder / self.unread[0])
            pillow = ", or install a Pillow that reads them" if counts.keys() & {*LATER_SUFFIXES} else ""
            notes.append(
                f"left out, as they are not read here: {kinds}, first {first}; save them as JPEG or PNG{pillow}"
            )
        if self.later and not later:
            notes.append(
                "left out, as the cache was made without files of their kind: "
                f"{_name_first(folder, self.later)}; `logitcache dump --grow` adds them"
            )
        return "; ".join(notes)

    def join(self, *others: Self) -> Self:
        """Return these files and those of others, in that order."""
        parts = (self, *others)
        return type(self)(*([file for part in parts for file in getattr(part, name)] for name in vars(self)))


def is_hidden(name: str) -> bool:
    """Tell whether systems and tools hide a file or folder, or keep it for themselves: ._1.png, __MACOSX, @eaDir."""
    return name.startswith(".") or is_stray(name)


def sort_paths(paths: Sequence[str]) -> list[str]:
    """Sort paths by their bytes, with "/" between folders."""
    return sorted(paths, key=lambda path: os.fsencode(path.replace(os.sep, "/")))


def _suffix_of(name: str) -> str:
    _, dot, suffix = name.lower().rpartition(".")
    return dot + suffix


@cache
def _read_later() -> frozenset[str]:
    """Return those of `LATER_SUFFIXES` that Pillow can decode here."""
    from PIL import Image

    formats = Image.registered_extensions()
    return frozenset(suffix for suffix in LATER_SUFFIXES if formats.get(suffix) in Image.OPEN)


def _name_first(folder: Path, files: Sequence[str]) -> str:
    return list_some([printable_path(folder / files[0])], len(files))
