"""Image sets: images (and labels, where there are any) in a stable order, with a fingerprint.

`open_images` understands the names that the command line takes; `Images` is the base for your own.
"""

import abc
import hashlib
import importlib.resources
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.errors import DataError, ImageError, NotFoundError, OptionError, UnknownNameError
from logitcache.plugin import load_callable
from logitcache.schema import DatasetSpec

Labels = npt.NDArray[np.int64]
Samples = npt.NDArray[np.int64] | slice
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
UNLABELLED_CLASSES = 1000


class Images(abc.ABC):
    """Images in a stable order; subclass it for your own data.

    Attributes:
        name: what the user called it.
        split: "train" or "test".
        labels: (n,) int64; −1 where there is no label.
        num_classes: C; None when unlabelled images leave it to the teacher.
        class_names: what to call the classes, for people; empty where nobody said.
        recipe: name of the recipe that fits such images when none is asked for.
        left_out: how many further images the data has by now, where these are the samples of a cache.
    """

    name: str
    split: str
    labels: Labels
    num_classes: int | None
    class_names: Sequence[str] = ()
    recipe: str = "imagenet"
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def image(self, sample: int) -> Tensor:
        """Return one image, (C, H, W) uint8 with C of 1 or 3.

        Raises:
            ImageError: it does not decode; the message names it.
        """

    def pixels(self) -> Tensor | None:
        """Return all images, (n, C, H, W) uint8, if they lie in memory, so that `image` only looks one up."""
        return None

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of what the images are and of their order."""

    def fingerprint_of(self, samples: Samples) -> str:
        """Hex digest of some of the images in this order: what `fingerprint` was when there were only these.

        Args:
            samples: (m,) int64, or a slice.

        Raises:
            DataError: these images do not say.
        """
        raise DataError(
            f"{self.name}: the data has grown, or changed its order, since the cache was made; give "
            f"{type(self).__name__} a fingerprint_of(samples), so that the old samples can be told"
        )

    def stable_name(self, sample: int) -> bytes:
        """Name an image so that it keeps its name when others come; here: by its place, so others come after."""
        return str(sample).encode()

    def keys(self) -> npt.NDArray[np.uint64]:
        """Return the sample keys, (n,) uint64: BLAKE2b-64 of each stable name, little-endian."""
        names = (self.stable_name(sample) for sample in range(len(self)))
        digests = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names)
        return np.frombuffer(digests, dtype="<u8").astype(np.uint64)

    def population(self, sample: int) -> int:
        """Return how many samples there were when this one came: whom it may be mixed with, whatever came later."""
        return len(self)

    def describe(self, sample: int) -> str:
        """Say which image this is, for messages."""
        return f"sample {sample} of {self.name}"

    def spec(self, num_classes: int | None = None) -> DatasetSpec:
        """Return what a cache records of these images."""
        classes = self.num_classes or num_classes or UNLABELLED_CLASSES
        return DatasetSpec(self.name, self.split, len(self), classes, self.fingerprint)


def open_images(name: str, split: str = "train") -> Images:
    """Open images by name.

    Args:
        name: ``digits``, ``cifar10[:ROOT]``, ``cifar100[:ROOT]``, ``imagefolder:PATH`` (train/ and val/ with
            a folder per class), ``folder:PATH`` (unlabelled) or ``package.module:function``, called as
            ``function(split)`` and returning `Images` or a map-style data set of (image, label).
        split: "train" or "test" (for an image folder: val/).

    Raises:
        UnknownNameError: nothing of that name.
        NotFoundError: the folder or file is not there.
        DataError: it is there, but not as expected.
    """
    if split not in ("train", "test"):
        raise OptionError(f"split must be train or test, found {split!r}")
    kind, _, rest = name.partition(":")
    if kind == "digits" and not rest:
        return digits(split)
    if kind in ("cifar10", "cifar100"):
        return cifar(kind, rest, split)
    if kind == "imagefolder" and rest:
        return FolderImages.labelled(name, Path(rest), split)
    if kind == "folder" and rest:
        return FolderImages.unlabelled(name, Path(rest), split)
    if is_code(name):
        return _own_images(name, split)
    known = ["digits", "cifar10", "cifar100", "imagefolder:PATH", "folder:PATH"]
    raise UnknownNameError("data set", name, known, "(or your own as module:function)")


def is_code(name: str) -> bool:
    """Would opening images of this name run code, ``package.module:function``?"""
    kind, _, rest = name.partition(":")
    return bool(rest) and kind not in ("digits", "cifar10", "cifar100", "imagefolder", "folder")


# In memory ------------------------------------------------------------------------------------------------


class ArrayImages(Images):
    """Images that are one (n, C, H, W) uint8 tensor in memory."""

    def __init__(
        self, name: str, split: str, images: Tensor, labels: Labels, num_classes: int, recipe: str
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
            raise DataError(
                f"{name}: expected (n, C, H, W) uint8 images, found {tuple(images.shape)} {images.dtype}"
            )
        self.name, self.split, self.recipe = name, split, recipe
        self.images, self.num_classes = images.contiguous(), num_classes
        self.labels = _checked_labels(name, labels, len(images), num_classes)
        self._fingerprint = self.fingerprint_of(slice(None))

    def image(self, sample: int) -> Tensor:
        """Return one image, (C, H, W) uint8."""
        return self.images[sample]

    def pixels(self) -> Tensor | None:
        """Return the tensor, unless a subclass makes something else of it."""
        return self.images if getattr(self.image, "__func__", None) is ArrayImages.image else None

    @property
    def fingerprint(self) -> str:
        """Digest of all pixels and labels."""
        return self._fingerprint

    def fingerprint_of(self, samples: Samples) -> str:
        """Digest of the pixels and labels of some samples."""
        images, labels = self.images.numpy()[samples], self.labels[samples]
        return _fingerprint(str(images.shape).encode(), images.data, labels.data)


def digits(split: str = "train") -> ArrayImages:
    """Return the 1,797 UCI optical digits that ship with logitcache: 1,437 to train, 360 to test on."""
    with digits_file().open("rb") as file, np.load(file, allow_pickle=False) as data:
        rows = data["test"] == (split == "test")
        pixels = np.round(data["images"][rows] * (255 / 16)).astype(np.uint8)
        labels = data["labels"][rows].astype(np.int64)
    return ArrayImages("digits", split, torch.from_numpy(pixels)[:, None], labels, 10, "digits")


def digits_file() -> Any:
    """Return the file of the digits: inside an installed package, or in data/ of a checkout."""
    installed = importlib.resources.files("logitcache") / "data" / "digits.npz"
    return installed if installed.is_file() else Path(__file__).parent.parent / "data" / "digits.npz"


def cifar(kind: str, root: str, split: str) -> ArrayImages:
    """Return CIFAR-10 or CIFAR-100 by torchvision's loader, which checks the files' digests before reading.

    `root` defaults to $LOGITCACHE_DATA or ./data; what is not there is downloaded.
    """
    from torchvision import datasets as tv

    folder = Path(root or os.environ.get("LOGITCACHE_DATA", "data"))
    loader = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100}[kind]
    try:
        try:
            data = loader(str(folder), train=split == "train", download=False)
        except RuntimeError:
            data = loader(str(folder), train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise NotFoundError(
            f"{kind} is not in {folder} and cannot be downloaded ({error}); put {loader.filename} there and "
            f"unpack it, so that {folder / loader.base_folder} exists, or give its place as {kind}:ROOT"
        ) from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2)
    labels = np.asarray(data.targets, dtype=np.int64)
    found = ArrayImages(f"{kind}:{root}" if root else kind, split, images, labels, len(data.classes), "cifar")
    found.class_names = data.classes
    return found


# In folders -----------------------------------------------------------------------------------------------


class FolderImages(Images):
    """Images that are files below one folder, ordered by path.

    The fingerprint covers relative paths, file sizes and labels. Contents are proved by the canaries of a
    cache: to read them all would take as long as a pass over the data.
    """

    def __init__(
        self, name: str, split: str, root: Path, files: list[str], labels: Labels, num_classes: int | None
    ) -> None:
        self.name, self.split, self.root = name, split, root
        self.files, self.labels, self.num_classes = files, labels, num_classes
        self._sizes = np.array([_size(root / file) for file in files], dtype=np.int64)
        self._fingerprint = self.fingerprint_of(slice(None))

    @classmethod
    def labelled(cls, name: str, root: Path, split: str) -> "FolderImages":
        """Open train/ or val/ of a folder, each with one folder per class."""
        folder = root / ("train" if split == "train" else "val")
        _require_folder(folder, f"{name}: expected {root}/train and {root}/val, each with a folder per class")
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if split != "train" and (root / "train").is_dir():
            trained = sorted(entry.name for entry in os.scandir(root / "train") if entry.is_dir())
            if extra := sorted(set(classes) - set(trained)):
                raise DataError(
                    f"{printable(folder)}: class folder {extra[0]!r} is not in {printable(root)}/train"
                )
            classes = trained
        if len(classes) < 2:
            raise DataError(
                f"{printable(folder)}: expected at least 2 class folders, found {len(classes)}; "
                "for images without classes use folder:PATH"
            )
        files: list[str] = []
        labels: list[int] = []
        for label, name_of_class in enumerate(classes):
            found = _image_files(folder, name_of_class)
            if not found and split == "train":
                raise DataError(
                    f"{printable(folder / name_of_class)}: no images; expected files in {_SUFFIX_LIST}"
                )
            files += found
            labels += [label] * len(found)
        if not files:
            raise DataError(f"{printable(folder)}: no images; expected files in {_SUFFIX_LIST}")
        opened = cls(name, split, folder, files, np.asarray(labels, dtype=np.int64), len(classes))
        opened.class_names = [printable(Path(name_of_class)) for name_of_class in classes]
        return opened

    @classmethod
    def unlabelled(cls, name: str, root: Path, split: str) -> "FolderImages":
        """Open every image below a folder, without labels."""
        _require_folder(root, f"{name}: expected a folder of images")
        if split != "train":
            raise DataError(f"{name}: images without labels have no test split to evaluate on")
        files = _image_files(root, "")
        if not files:
            raise DataError(f"{printable(root)}: no images; expected files in {_SUFFIX_LIST}")
        return cls(name, split, root, files, np.full(len(files), -1, dtype=np.int64), None)

    def image(self, sample: int) -> Tensor:
        """Decode one file to (3, H, W) uint8."""
        return decode(self.root / self.files[sample])

    def describe(self, sample: int) -> str:
        """Return the file's path."""
        return printable(self.root / self.files[sample])

    @property
    def fingerprint(self) -> str:
        """Digest of relative paths, sizes and labels."""
        return self._fingerprint

    def fingerprint_of(self, samples: Samples) -> str:
        """Digest of relative paths, sizes and labels of some samples."""
        chosen = range(len(self))[samples] if isinstance(samples, slice) else samples.tolist()
        parts = (f"{self._sizes[i]}\0".encode() + os.fsencode(self.files[i]) + b"\0" for i in chosen)
        return _fingerprint(b"".join(parts), self.labels[samples].data)

    def stable_name(self, sample: int) -> bytes:
        """Return the relative path, with "/" between folders."""
        return os.fsencode(self.files[sample].replace(os.sep, "/"))


def decode(path: Path) -> Tensor:
    """Decode an image file to (3, H, W) uint8 RGB: its first frame, turned as its EXIF orientation says.

    Raises:
        ImageError: it cannot be read or decoded; the message names the file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            wide = file.format == "PPM" and file.mode == "I"  # Pillow scales such pixels to 16 bits
            image = ImageOps.exif_transpose(file)
        pixels = _from_pillow(image.convert("I;16") if wide else image)
    except Exception as error:  # whatever a decoder raises, the file is what is wrong
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, UnidentifiedImageError):
            reason = "it is empty" if path.stat().st_size == 0 else "it is not an image that Pillow knows"
        raise ImageError(
            f"{printable(path)} does not decode ({reason}); mend or remove it, "
            "or leave it out with --on-bad-image skip"
        ) from error
    return pixels.expand(3, -1, -1).contiguous()


_SUFFIX_LIST = " ".join(IMAGE_SUFFIXES)


def _from_pillow(image: Any) -> Tensor:
    """Convert a PIL image of any mode to (1, H, W) uint8 if it is gray, else (3, H, W) uint8."""
    if image.mode.startswith("I;16"):
        array = (np.asarray(image) >> 8).astype(np.uint8)  # Pillow would clip at 255
    elif image.mode in ("1", "L", "LA"):
        array = np.array(image.convert("L"))
    elif image.mode == "P":
        array = np.array(image.convert("RGBA").convert("RGB"))  # straight to RGB warns of transparency
    else:
        array = np.array(image.convert("RGB"))
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _image_files(root: Path, below: str) -> list[str]:
    """List image files below root/below as paths relative to root, sorted by their bytes.

    Links are followed, but each folder is read once, and none that lies above: a link in a class folder that leads
    back up would put all classes into it.
    """
    found = []
    seen = {os.fspath(above) for above in (root / below).resolve().parents}
    for folder, inside, names in os.walk(root / below, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            inside.clear()
            continue
        seen.add(real)
        inside.sort(key=os.fsencode)  # which of two ways to a folder comes first is not left to the disk
        relative = os.path.relpath(folder, root)
        found += [
            os.path.normpath(os.path.join(relative, name))
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES)
        ]
    return sorted(found, key=lambda path: os.fsencode(path.replace(os.sep, "/")))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a broken link, say: `decode` will name it
        return -1


def _require_folder(folder: Path, expected: str) -> None:
    if not folder.is_dir():
        raise NotFoundError(f"{expected}; {printable(folder)} is not a folder")


# Your own -------------------------------------------------------------------------------------------------


class WrappedImages(Images):
    """A map-style data set of (image, label) pairs: images as (C, H, W) uint8 tensors or PIL images.

    The fingerprint covers the labels and 32 evenly spaced images.
    """

    def __init__(self, name: str, split: str, data: Any) -> None:
        self.name, self.split, self.data = name, split, data
        try:
            targets = data.targets if hasattr(data, "targets") else [data[i][1] for i in range(len(data))]
        except (TypeError, LookupError, OSError) as error:
            raise DataError(f"{name}: an item is not an (image, label) pair: {error!r}") from error
        self.class_names = [str(one) for one in getattr(data, "classes", ())]
        classes = len(self.class_names) or None
        self.labels = _checked_labels(name, targets, len(data), classes)
        self.num_classes = classes or int(self.labels.max()) + 1 or None
        self._fingerprint = self.fingerprint_of(slice(None))

    def image(self, sample: int) -> Tensor:
        """Return one image, (C, H, W) uint8."""
        from PIL import Image

        try:
            image = self.data[sample][0]
            if isinstance(image, Image.Image):
                image = _from_pillow(image)
        except (OSError, SyntaxError) as error:
            raise ImageError(f"{self.describe(sample)} does not decode ({error})") from error
        if (
            not isinstance(image, Tensor)
            or image.dtype != torch.uint8
            or image.ndim != 3
            or len(image) not in (1, 3)
        ):
            found = f"{tuple(image.shape)} {image.dtype}" if hasattr(image, "shape") else type(image).__name__
            raise DataError(
                f"{self.describe(sample)}: expected a PIL image or a (C, H, W) uint8 tensor with C of 1 or 3, "
                f"found {found}; leave ToTensor and Normalize out of the data set"
            )
        return image

    def _proof(self, sample: int) -> bytes:
        try:
            image = self.image(sample)
        except ImageError:
            return b"does not decode"
        return f"{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes()

    @property
    def fingerprint(self) -> str:
        """Digest of the labels and of 32 images."""
        return self._fingerprint

    def fingerprint_of(self, samples: Samples) -> str:
        """Digest of the labels of some samples and of 32 of their images."""
        chosen = np.arange(len(self))[samples]
        shown = chosen[sorted({(i * len(chosen)) // 32 for i in range(32)})]
        return _fingerprint(self.labels[samples].data, *map(self._proof, shown.tolist()))


def _own_images(name: str, split: str) -> Images:
    data = load_callable(name)(split)
    if isinstance(data, Images):
        data.name, data.split = name, split
        return data
    return images_of(data, name, split)


def images_of(data: Any, name: str, split: str = "train") -> Images:
    """Take a map-style data set of (image, label) for images of that name.

    Raises:
        DataError: it is none.
    """
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise DataError(
            f"{name}: expected logitcache Images or a data set with len() and [i], found {type(data).__name__}"
        )
    return WrappedImages(name, split, data)


def printable(path: Path) -> str:
    """Return a path as one line of text that any terminal takes, whatever its bytes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _checked_labels(name: str, labels: Any, n: int, num_classes: int | None) -> Labels:
    """Return labels as (n,) int64, or say what they are instead."""
    found = np.asarray(labels)
    if found.shape != (n,) or not n or found.dtype.kind not in "iu":
        raise DataError(
            f"{name}: expected one class number per image, found {found.dtype} labels of shape {found.shape} "
            f"for {n} images"
        )
    last = num_classes - 1 if num_classes else int(found.max())
    if odd := [int(label) for label in (found.min(), found.max()) if not -1 <= label <= last]:
        raise DataError(f"{name}: labels must be 0 to {last} (or -1 for none), found {odd[0]}")
    return np.ascontiguousarray(found, dtype=np.int64)


def _fingerprint(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(memoryview(part).cast("B")).to_bytes(8, "little"))
        digest.update(memoryview(part).cast("B"))
    return digest.hexdigest()
