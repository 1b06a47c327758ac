"""Data sets by name: `open_images` understands the names that the command line takes.

`Images` (in `images`) is the base of all; files in folders are in `folders`, data sets of your own in `own_images`.
"""

import importlib.resources
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.errors import DataError, LogitCacheError, NotFoundError, OptionError, UnknownNameError
from logitcache.format.identity import RecipeSpec
from logitcache.paths import expand_home, read_variable
from logitcache.plugins import load_callable, require_own
from logitcache.views.decoding import printable_path
from logitcache.views.folders import FolderImages
from logitcache.views.images import Images, Labels, Samples, check_labels, hash_parts
from logitcache.views.items import describe_own_error
from logitcache.views.own_images import wrap_images
from logitcache.views.recipes import recipe_named, with_background


def open_images(name: str, split: str = "train") -> Images:
    """Open images by name.

    Args:
        name: ``letters``, ``digits``, ``cifar10[:ROOT]``, ``cifar100[:ROOT]``, ``imagefolder:PATH`` (train/ and val/
            with a folder per class), ``folder:PATH`` (unlabelled) or ``package.module:function``, called as
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
    if name in SHIPPED:
        return SHIPPED[name](split)
    if kind in ("cifar10", "cifar100"):
        return load_cifar(kind, rest, split)
    if kind in ("imagefolder", "folder") and rest:
        return _open_folder(kind, name, expand_home(rest), split)
    if rest and kind not in SHIPPED:
        return _own_images(name, split)
    if name and os.path.isdir(expand_home(name)):
        classes = os.path.isdir(expand_home(name) / "train")
        hint = "" if classes else "(without labels; with them, put a folder per class into train/ and val/)"
        meant = f"{'imagefolder' if classes else 'folder'}:{name}"
        raise UnknownNameError("data set", name, (), hint, meant=meant)
    known = [*SHIPPED, "cifar10", "cifar100", "imagefolder:PATH", "folder:PATH"]
    raise UnknownNameError("data set", name, known, "(or your own as module:function)")


def _open_folder(kind: str, name: str, root: Path, split: str) -> FolderImages:
    try:
        return (FolderImages.labelled if kind == "imagefolder" else FolderImages.unlabelled)(
            name, root, split
        )
    except LogitCacheError:
        raise
    except OSError as error:  # without some folder there would be fewer images
        where = printable_path(Path(error.filename or root))
        advice = "; let your user read it, or move it elsewhere" if isinstance(error, PermissionError) else ""
        raise DataError(
            f"{name}: expected folders that can be read, found {where}: {error.strerror}{advice}"
        ) from error


def _own_images(name: str, split: str) -> Images:
    function = load_callable(name)
    try:
        data = function(split)
    except LogitCacheError:
        raise
    except Exception as error:
        raise DataError(f"{name} raised {describe_own_error(error)}") from error
    if isinstance(data, Images):
        data.name, data.split = name, split
        return data
    return wrap_images(data, name, split)


def take_images(images: Any, split: str = "train", name: str = "") -> Images:
    """Return images, whether these are given, a map-style data set of (image, label), or text for `open_images`.

    Args:
        images: one of these.
        split: "train" or "test", which text does not say.
        name: what to call a data set; "": as its class.

    Raises:
        UnknownNameError, NotFoundError: as `open_images`.
        DataError: likewise; or it is neither.
    """
    if isinstance(images, Images):
        return images
    if isinstance(images, str):
        return open_images(images, split)
    return wrap_images(images, name or type(images).__name__, split)


def open_recorded(name: str, split: str, where: object) -> Images:
    """Open images by the name that a cache or a run has for them; a path in it is seen from the current folder.

    Raises:
        OptionError: the name is of code that is not your own.
        NotFoundError: they are not there; the message says which file names them, and what to do.
        UnknownNameError, DataError: as `open_images`.
    """
    require_own(where, name)
    try:
        return open_images(name, split)
    except NotFoundError as error:
        if (path := name.partition(":")[2]) and expand_home(path).exists():
            raise
        raise NotFoundError(
            f"{error}; {where} names {name} as it lay where that was made, seen from there: say with --data where "
            "the images lie now"
        ) from error


def choose_recipe(images: Images, background: str | None = None) -> tuple[RecipeSpec, str]:
    """Choose the recipe of training views for images whose user names none; of test images by the training ones.

    Args:
        images: opened by name.
        background: as `recipes.with_background` takes it.

    Returns:
        The recipe; why it is that, in a few words, or "" where it does not depend on the pictures.
    """
    if images.split == "test" and images.sample_pictures():
        with suppress(LogitCacheError):  # there are no training images
            images = open_images(images.name)
    sample = images.sample_pictures()
    reason = sample.describe_sides() if sample and sample.sides else ""
    return with_background(recipe_named(images.default_recipe()), background), reason


def describe_transparency(images: Images, recipe: RecipeSpec, advice: str) -> str | None:
    """Say, where pictures are transparent and a recipe names no background, what becomes of them; else None.

    Args:
        images: opened.
        recipe: of their views.
        advice: what puts them on a background.
    """
    sample = images.sample_pictures()
    if recipe.background is not None:
        return None if sample else f"{images.name} has no alpha, so that the background changes nothing"
    if not sample or not sample.transparent:
        return None
    return (
        f"{sample.transparent:,} of {len(sample.sides):,} pictures looked at are transparent, first {sample.first}; "
        f"their alpha is dropped, so that colours hidden behind it show; {advice}"
    )


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
        self.labels = check_labels(name, labels, len(images), num_classes)
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
        return hash_parts(str(images.shape).encode(), images.data, labels.data)


def load_letters(split: str = "train") -> ArrayImages:
    """Return the 200 letters that ship with logitcache, 20 x 20 pixels: 4,800 images to train, 1,600 to test on.

    Those to test on are in typefaces that those to train on are not in.
    """
    images, labels, letters = _read_shipped("letters.npz", split, "letters")
    found = ArrayImages("letters", split, torch.from_numpy(images)[:, None], labels, len(letters), "letters")
    found.class_names = letters.tolist()
    return found


def load_digits(split: str = "train") -> ArrayImages:
    """Return the 1,797 UCI optical digits that ship with logitcache, 8 x 8: 1,437 to train, 360 to test on."""
    images, labels = _read_shipped("digits.npz", split)
    pixels = np.round(images * (255 / 16)).astype(np.uint8)
    return ArrayImages("digits", split, torch.from_numpy(pixels)[:, None], labels, 10, "digits")


SHIPPED = {"letters": load_letters, "digits": load_digits}


def choose_shipped(networks: Iterable[str] = ()) -> str:
    """Name the images to take where none are named: those that all networks are named after, else the digits."""
    named = {network.partition("_")[0] for network in networks}
    return named.pop() if len(named) == 1 and named <= SHIPPED.keys() else "digits"


def _read_shipped(file_name: str, split: str, *more: str) -> list[npt.NDArray[Any]]:
    """Read images and labels of a split, and other arrays of the file as they are."""
    with find_shipped(file_name).open("rb") as file, np.load(file, allow_pickle=False) as data:
        rows = data["test"] == (split == "test")
        return [data["images"][rows], data["labels"][rows].astype(np.int64), *(data[name] for name in more)]


def find_shipped(file_name: str) -> Any:
    """Return a file of data that ships: inside an installed package, or in data/ of a checkout."""
    installed = importlib.resources.files("logitcache") / "data" / file_name
    return installed if installed.is_file() else Path(__file__).parents[2] / "data" / file_name


def load_cifar(kind: str, root: str, split: str) -> ArrayImages:
    """Return CIFAR-10 or CIFAR-100 by torchvision's loader, which checks the files' digests before reading.

    `root` defaults to $LOGITCACHE_DATA or ./data; what is not there is downloaded.
    """
    from torchvision import datasets as tv

    folder = expand_home(root or read_variable("LOGITCACHE_DATA") or "data")
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
