"""Images that are files below one folder."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from logitcache.errors import DataError, NotFoundError
from logitcache.files import is_stray
from logitcache.views.decoding import decode_image, printable_path
from logitcache.views.images import Images, Labels, Samples, hash_parts

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


class FolderImages(Images):
    """Images that are files below one folder, ordered by path.

    What systems hide is left out (`is_hidden`), and `note` says so where pictures are among it.

    The fingerprint covers relative paths, file sizes and labels. Contents are proved by the canaries of a
    cache: to read them all would take as long as a pass over the data. Files that are newer than a cache are told
    (`changes.describe_newer_images`).
    """

    def __init__(
        self, name: str, split: str, root: Path, files: list[str], labels: Labels, num_classes: int | None
    ) -> None:
        self.name, self.split, self.root = name, split, root
        self.files, self.labels, self.num_classes = files, labels, num_classes
        stats = [_stat(root / file) for file in files]
        self._reopen: Callable[[], FolderImages] | None = None
        self._sizes = np.array([size for size, _ in stats], dtype=np.int64)
        self._times = np.array([time for _, time in stats])
        self._fingerprint = self.fingerprint_of(slice(None))

    @classmethod
    def labelled(cls, name: str, root: Path, split: str, *, hidden: bool = False) -> "FolderImages":
        """Open train/ or val/ of a folder, each with one folder per class.

        Args:
            name, root, split: which.
            hidden: also files and folders within a class that systems hide; never such folders as classes.
        """
        folder = root / ("train" if split == "train" else "val")
        expected = f"{name}: expected {root}/train and {root}/val, each with a folder per class"
        named_split = root.name in ("train", "val") and (root.parent / folder.name).is_dir()
        _require_folder(folder, expected, root, f"imagefolder:{root.parent}" if named_split else "")
        classes, left_out = _class_folders(folder)
        if split != "train" and (root / "train").is_dir():
            trained, _ = _class_folders(root / "train")
            if extra := sorted(set(classes) - set(trained)):
                raise DataError(
                    f"{printable_path(folder)}: class folder {extra[0]!r} is not in {printable_path(root)}/train"
                )
            classes = trained
        if len(classes) < 2:
            raise DataError(
                f"{printable_path(folder)}: expected at least 2 class folders, found {len(classes)}"
                f"{_blame_hidden(folder, left_out)}; for images without classes use folder:PATH"
            )
        files: list[str] = []
        labels: list[int] = []
        for label, name_of_class in enumerate(classes):
            found, not_shown = _image_files(folder, name_of_class)
            if hidden:
                found = _sorted_paths([*found, *not_shown])
            left_out += not_shown
            if not found and split == "train":
                raise _no_images(folder / name_of_class, folder, not_shown)
            files += found
            labels += [label] * len(found)
        if not files:
            raise _no_images(folder, folder, left_out)
        opened = cls(name, split, folder, files, np.asarray(labels, dtype=np.int64), len(classes))
        opened.class_names = [printable_path(Path(name_of_class)) for name_of_class in classes]
        if left_out and not hidden:
            opened.note = _describe_hidden(folder, left_out)
            opened._reopen = partial(cls.labelled, name, root, split, hidden=True)
        return opened

    @classmethod
    def unlabelled(cls, name: str, root: Path, split: str, *, hidden: bool = False) -> "FolderImages":
        """Open every image below a folder, without labels; `hidden` as for `labelled`."""
        _require_folder(root, f"{name}: expected a folder of images", root)
        if split != "train":
            raise DataError(f"{name}: images without labels have no test split to evaluate on")
        files, left_out = _image_files(root, "")
        if hidden:
            files = _sorted_paths([*files, *left_out])
        if not files:
            raise _no_images(root, root, left_out)
        opened = cls(name, split, root, files, np.full(len(files), -1, dtype=np.int64), None)
        if left_out and not hidden:
            opened.note = _describe_hidden(root, left_out)
            opened._reopen = partial(cls.unlabelled, name, root, split, hidden=True)
        return opened

    def with_hidden(self) -> "FolderImages | None":
        """Return the same images with the hidden ones, in the order that they had before these were left out."""
        return self._reopen() if self._reopen else None

    def image(self, sample: int) -> Tensor:
        """Decode one file to (3, H, W) uint8."""
        return decode_image(self.root / self.files[sample])

    def describe(self, sample: int) -> str:
        """Return the file's path."""
        return printable_path(self.root / self.files[sample])

    @property
    def fingerprint(self) -> str:
        """Digest of relative paths, sizes and labels."""
        return self._fingerprint

    def fingerprint_of(self, samples: Samples) -> str:
        """Digest of relative paths, sizes and labels of some samples."""
        chosen = range(len(self))[samples] if isinstance(samples, slice) else samples.tolist()
        parts = (f"{self._sizes[i]}\0".encode() + os.fsencode(self.files[i]) + b"\0" for i in chosen)
        return hash_parts(b"".join(parts), self.labels[samples].data)

    def times(self) -> npt.NDArray[np.float64]:
        """Return when each file, or its entry, was last changed, (n,) seconds of the epoch."""
        return self._times

    def stable_name(self, sample: int) -> bytes:
        """Return the relative path, with "/" between folders."""
        return os.fsencode(self.files[sample].replace(os.sep, "/"))


_SUFFIX_LIST = " ".join(IMAGE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Tell whether systems and tools hide a file or folder, or keep it for themselves: ._1.png, __MACOSX, @eaDir."""
    return name.startswith(".") or is_stray(name)


def _class_folders(folder: Path) -> tuple[list[str], list[str]]:
    """List the folders in one, sorted, that are classes; and the images in those that are hidden."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    hidden = [
        file for name in names if is_hidden(name) for found in _image_files(folder, name) for file in found
    ]
    return [name for name in names if not is_hidden(name)], hidden


def _image_files(root: Path, below: str) -> tuple[list[str], list[str]]:
    """List image files below root/below as paths relative to root, sorted by their bytes: shown ones, hidden ones.

    Links are followed, but each folder is read once, and none that lies above: a link in a class folder that leads
    back up would put all classes into it.
    """
    shown: list[str] = []
    hidden: list[str] = []
    seen = {os.fspath(above) for above in (root / below).resolve().parents}
    begin, later = (hidden if is_hidden(below) else shown), list[str]()

    def walk(start: str, found: list[str]) -> None:
        for folder, inside, names in os.walk(start, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:
                inside.clear()
                continue
            seen.add(real)
            if found is shown:
                later.extend(os.path.join(folder, name) for name in inside if is_hidden(name))
                inside[:] = [name for name in inside if not is_hidden(name)]
            inside.sort(key=os.fsencode)  # which of two ways to a folder comes first is not left to the disk
            relative = os.path.relpath(folder, root)
            for name in names:
                if name.lower().endswith(IMAGE_SUFFIXES):
                    path = os.path.normpath(os.path.join(relative, name))
                    (hidden if is_hidden(name) else found).append(path)

    walk(os.fspath(root / below), begin)
    for folder in later:  # after all that is shown: a link may show what lies in a hidden folder
        walk(folder, hidden)
    return _sorted_paths(shown), _sorted_paths(hidden)


def _sorted_paths(paths: list[str]) -> list[str]:
    return sorted(paths, key=lambda path: os.fsencode(path.replace(os.sep, "/")))


def _describe_hidden(folder: Path, files: list[str]) -> str:
    first = printable_path(folder / files[0])
    return f"left out as hidden, or of the system: {first}" + (
        f" and {len(files) - 1:,} others" if files[1:] else ""
    )


def _no_images(where: Path, root: Path, hidden: list[str]) -> DataError:
    expected = f"expected files in {_SUFFIX_LIST}"
    return DataError(f"{printable_path(where)}: no images{_blame_hidden(root, hidden)}; {expected}")


def _blame_hidden(folder: Path, files: list[str]) -> str:
    return f" ({_describe_hidden(folder, files)}; rename what is meant)" if files else ""


def _stat(path: Path) -> tuple[int, float]:
    """Return a file's bytes, and when its bytes or its entry last changed, which no copy can set back."""
    try:
        found = path.stat()
    except OSError:  # a broken link, say: `decode_image` will name it
        return -1, 0.0
    return found.st_size, max(found.st_mtime, found.st_ctime)


def _require_folder(folder: Path, expected: str, root: Path, meant: str = "") -> None:
    if not folder.is_dir():
        gone = root if not root.exists() else folder
        found = "does not exist" if not gone.exists() else "is not a folder"
        advice = f"; did you mean {meant}?" if meant else ""
        raise NotFoundError(f"{expected}; {printable_path(gone)} {found}{advice}")
