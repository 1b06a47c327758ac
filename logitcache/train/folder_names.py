"""What run folders are called: STUDENT-LOSS, in letters that no shell wants quoted."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

LONGEST = 100  # characters of a folder's name


def name_folders(labels: Sequence[str]) -> list[str]:
    """Name a folder for each label, of letters, digits and `-_.+=` alone.

    Long names end with a digest of the label, and so do those of several labels that differ in other characters only.
    """
    names = [_name_folder(label) for label in labels]
    return [
        name if names.count(name) == 1 else f"{name}-{_digest(label)}"
        for name, label in zip(names, labels, strict=True)
    ]


def find_folders(parent: Path, labels: Sequence[str]) -> list[Path]:
    """Return the folder of each label: of the name that it had once where there is a run, else of its name today."""
    folders = [parent / name for name in name_folders(labels)]
    earlier = [parent / _name_as_before(label) for label in labels]
    return [
        before if os.path.isfile(before / "config.json") else now
        for before, now in zip(earlier, folders, strict=True)
    ]


def find_label(name: str, labels: Sequence[str]) -> int | None:
    """Return which label a folder is of, by its name today or before, with a number behind it or none."""
    known = {_name_as_before(label): number for number, label in enumerate(labels)}
    known |= {folder: number for number, folder in enumerate(name_folders(labels))}
    return known.get(name, known.get(re.sub(r"-\d+$", "", name)))


def _name_folder(label: str) -> str:
    return _shorten(re.sub(r"[^A-Za-z0-9_.+=-]+", "_", label).strip("_"), label)


def _name_as_before(label: str) -> str:
    """Name a folder as was done before names needed no quoting."""
    name = re.sub(r"[/:\s'\"]+", "_", label)
    return _shorten(name, name)


def _shorten(name: str, label: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{_digest(label)}"


def _digest(label: str) -> str:
    return hashlib.blake2b(label.encode(), digest_size=4).hexdigest()
