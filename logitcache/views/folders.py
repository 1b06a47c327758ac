"""Images that are files below one folder."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from logitcache.errors import DataError, NotFoundError
from logitcache.paths import find_near_paths, suggest
from logitcache.views.decoding import decode_image, printable_path
from logitcache.views.images import Images, Labels, Samples, hash_parts
from logitcache.views.picture_files import (
    IMAGE_SUFFIXES,
    LATER_SUFFIXES,
    SUFFIX_LIST,
    PictureFiles,
    is_hidden,
)
from logitcache.views.picture_sample import PictureSample


class Listing(NamedTuple):
    """Which files of a folder are taken: hidden ones, and those whose suffixes earlier versions did not take."""

    hidden: bool = False
    later: bool = True


NOW = Listing()
BEFORE_LATER, BEFORE_HIDING = Listing(later=False), Listing(hidden=True, later=False)


class FolderImages(Images):
    """Images that are files below one folder, ordered by path.

    What systems hide is left out, and what is not read here (`picture_files`), which is `unread`; `note` says so.

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
        self.unread: list[str] = []
        self._earlier: tuple[Listing, ...] = ()
        self._background: str | None = None
        self._sizes = np.array([size for size, _ in stats], dtype=np.int64)
        self._times = np.array([time for _, time in stats])
        self._fingerprint = self.fingerprint_of(slice(None))

    @classmethod
    def labelled(cls, name: str, root: Path, split: str, listing: Listing = NOW) -> "FolderImages":
        """Open train/ or val/ of a folder, each with one folder per class.

        Args:
            name, root, split: which.
            listing: which files are taken; hidden folders are never classes.
        """
        folder = root / ("train" if split == "train" else "val")
        expected = f"{name}: expected {root}/train and {root}/val, each with a folder per class"
        named_split = root.name in ("train", "val") and (root.parent / folder.name).is_dir()
        _require_folder(folder, expected, root, f"imagefolder:{root.parent}" if named_split else "")
        classes, beside = _class_folders(folder)
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
                f"{_blame_left_out(folder, beside)}; for images without classes use folder:PATH"
            )
        files: list[str] = []
        labels: list[int] = []
        by_class = [PictureFiles.below(folder, name_of_class) for name_of_class in classes]
        for label, (name_of_class, found) in enumerate(zip(classes, by_class, strict=True)):
            taken = found.all(**listing._asdict())
            if not taken and split == "train":
                raise _no_images(folder / name_of_class, folder, found)
            files += taken
            labels += [label] * len(taken)
        everything = beside.join(*by_class)
        if not files:
            raise _no_images(folder, folder, everything)
        opened = cls(name, split, folder, files, np.asarray(labels, dtype=np.int64), len(classes))
        opened.class_names = [printable_path(Path(name_of_class)) for name_of_class in classes]
        opened._tell(everything, listing, partial(cls.labelled, name, root, split))
        return opened

    @classmethod
    def unlabelled(cls, name: str, root: Path, split: str, listing: Listing = NOW) -> "FolderImages":
        """Open every image below a folder, without labels; `listing` as for `labelled`."""
        _require_folder(root, f"{name}: expected a folder of images", root)
        if split != "train":
            raise DataError(f"{name}: images without labels have no test split to evaluate on")
        found = PictureFiles.below(root)
        files = found.all(**listing._asdict())
        if not files:
            raise _no_images(root, root, found)
        opened = cls(name, split, root, files, np.full(len(files), -1, dtype=np.int64), None)
        opened._tell(found, listing, partial(cls.unlabelled, name, root, split))
        return opened

    def _tell(
        self, found: PictureFiles, listing: Listing, reopen: "Callable[[Listing], FolderImages]"
    ) -> None:
        """Note what is left out, and how earlier versions would have listed the same files."""
        self.note = found.describe_left_out(self.root, **listing._asdict())
        self.unread = [file.replace(os.sep, "/") for file in found.unread]
        self._reopen = reopen
        if listing == NOW:
            self._earlier = (BEFORE_LATER,) * bool(found.later) + (BEFORE_HIDING,) * bool(found.hidden)

    def earlier_listings(self) -> Iterator["FolderImages"]:
        """Open the same folder as earlier versions listed it: without some kinds of files, or with hidden ones."""
        for listing in self._earlier:
            with suppress(DataError):  # a class had no images then
                yield self._reopen(listing)

    def image(self, sample: int) -> Tensor:
        """Decode one file to (3, H, W) uint8."""
        return decode_image(self.root / self.files[sample], self._background)

    def on_background(self, colour: str | None) -> "FolderImages":
        """Return the same images, transparent ones on a colour."""
        images = copy.copy(self)
        images._background = colour
        return images

    def sample_pictures(self) -> PictureSample:
        """Look at a few files."""
        return self._sample

    @cached_property
    def _sample(self) -> PictureSample:
        return PictureSample.of_files([self.root / file for file in self.files], self.describe)

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


def _class_folders(folder: Path) -> tuple[list[str], PictureFiles]:
    """List the folders in one, sorted, that are classes; and the pictures beside them: hidden, or in no folder."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    names = [entry.name for entry in entries if entry.is_dir()]
    hidden = [PictureFiles.below(folder, name).hidden for name in names if is_hidden(name)]
    outside = [
        entry.name
        for entry in entries
        if entry.name.lower().endswith(IMAGE_SUFFIXES + LATER_SUFFIXES)
        and not is_hidden(entry.name)
        and entry.is_file()
    ]
    beside = PictureFiles(hidden=[file for found in hidden for file in found], outside=outside)
    return [name for name in names if not is_hidden(name)], beside


def _no_images(where: Path, root: Path, found: PictureFiles) -> DataError:
    expected = f"expected files in {SUFFIX_LIST}"
    return DataError(f"{printable_path(where)}: no images{_blame_left_out(root, found)}; {expected}")


def _blame_left_out(folder: Path, found: PictureFiles) -> str:
    note = found.describe_left_out(folder)
    return f" ({note}{'; rename what is meant' if found.hidden else ''})" if note else ""


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
        advice = f"; did you mean {meant}?" if meant else suggest(find_near_paths(root, Path.is_dir))
        raise NotFoundError(f"{expected}; {printable_path(gone)} {found}{advice}")
