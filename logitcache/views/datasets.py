"""Data sets by name: `open_images` understands the names that the command line takes.

`Images` (in `images`) is the base for your own; files in folders are in `folders`.
"""

import copy
import importlib.resources
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.errors import (
    DataError,
    ImageError,
    LogitCacheError,
    NotFoundError,
    OptionError,
    UnknownNameError,
)
from logitcache.format.identity import RecipeSpec
from logitcache.paths import expand_home, read_variable
from logitcache.plugins import load_callable, require_own
from logitcache.views.decoding import pillow_to_tensor, printable_path
from logitcache.views.folders import FolderImages
from logitcache.views.images import Images, Labels, Samples, check_labels, hash_parts
from logitcache.views.items import (
    Item,
    describe_own_error,
    find_file,
    is_renumbered,
    read_class_names,
    read_item,
    read_labels,
    says_class,
)
from logitcache.views.picture_sample import PictureSample, is_transparent, spread_evenly
from logitcache.views.recipes import recipe_named, with_background

LOOKED_AT = 256  # items of a data set of your own, when it is opened


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
    if kind == "imagefolder" and rest:
        return FolderImages.labelled(name, expand_home(rest), split)
    if kind == "folder" and rest:
        return FolderImages.unlabelled(name, expand_home(rest), split)
    if rest and kind not in SHIPPED:
        return _own_images(name, split)
    if name and expand_home(name).is_dir():
        classes = (expand_home(name) / "train").is_dir()
        hint = "" if classes else "(without labels; with them, put a folder per class into train/ and val/)"
        meant = f"{'imagefolder' if classes else 'folder'}:{name}"
        raise UnknownNameError("data set", name, (), hint, meant=meant)
    known = [*SHIPPED, "cifar10", "cifar100", "imagefolder:PATH", "folder:PATH"]
    raise UnknownNameError("data set", name, known, "(or your own as module:function)")


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


# Your own -------------------------------------------------------------------------------------------------


class WrappedImages(Images):
    """A map-style data set of (image, label) pairs: images as (C, H, W) uint8 tensors or PIL images.

    Labels are what the items say (`items.read_labels`). Gray images have one channel; but where one of up to 256
    images spread over the data is in colour, all have three. The fingerprint covers the labels and 32 evenly spaced
    images.
    """

    def __init__(self, name: str, split: str, data: Any) -> None:
        from PIL import Image

        self.name, self.split, self.data = name, split, data
        self._channels = 1
        self._background: str | None = None
        said: dict[int, Any] = {}
        sides: list[int] = []
        clear: list[int] = []
        for sample in spread_evenly(len(data), LOOKED_AT):
            with suppress(ImageError):
                picture, said[sample] = self._read_item(sample)
                pixels = self._to_pixels(picture, sample)
                clear += [sample] * (isinstance(picture, Image.Image) and is_transparent(picture))
                self._channels = max(self._channels, len(pixels))
                sides.append(min(pixels.shape[1:]))
        self._sample = PictureSample(tuple(sides), len(clear), self.describe(clear[0]) if clear else "")
        labels = read_labels(data, said, self.describe)
        names = [] if is_renumbered(data, labels) else read_class_names(data)
        self.class_names = names
        self.labels = check_labels(name, labels, len(data), len(names) or None)
        highest = int(self.labels.max())
        self.num_classes = (len(names) if names[1:] else 0) or highest + 1 or None
        if split == "train" and self.num_classes == 1:
            raise DataError(
                f"{name}: expected at least 2 classes, found no label but 0; for images without labels give -1 as "
                "label"
            )
        self._fingerprint = self.fingerprint_of(slice(None))

    def image(self, sample: int) -> Tensor:
        """Return one image, (C, H, W) uint8.

        Raises:
            ImageError: it does not decode.
            DataError: it is no image, or of another label than when the data set was opened.
        """
        picture, label = self._read_item(sample)
        image = self._to_pixels(picture, sample, self._background)
        if not says_class(label, int(self.labels[sample])):
            raise DataError(
                f"{self.describe(sample)} says label {label}, and the data set {self.labels[sample]} when it was "
                "opened; an item's label must not change, and must be that of `targets` where there are some"
            )
        if len(image) > self._channels:
            raise DataError(
                f"{self.describe(sample)} is in colour, and {LOOKED_AT} others, evenly spaced, are gray; "
                'let the data set give all in one mode, by image.convert("RGB")'
            )
        return image.expand(self._channels, -1, -1).contiguous()

    def on_background(self, colour: str | None) -> "WrappedImages":
        """Return the same images, transparent ones on a colour; in colour where it is no gray."""
        images = copy.copy(self)
        images._background = colour
        if colour and not colour[1:3] == colour[3:5] == colour[5:7]:
            images._channels = 3
        return images

    def sample_pictures(self) -> PictureSample:
        """Return what was seen of them when the data set was opened."""
        return self._sample

    def describe(self, sample: int) -> str:
        """Say which image this is, for messages; by its file too, where the data set lists its files."""
        file = find_file(self.data, sample)
        return super().describe(sample) + (f" ({printable_path(Path(file))})" if file else "")

    def _read_item(self, sample: int) -> Item:
        """Read an image, as the data set gives it, and what its item says is its label."""
        return read_item(self.data, sample, self.describe(sample))

    def _to_pixels(self, image: Any, sample: int, background: str | None = None) -> Tensor:
        """Convert an image to (1 or 3, H, W) uint8."""
        from PIL import Image

        if isinstance(image, Image.Image):
            try:
                image = pillow_to_tensor(image, None, background)
            except (OSError, SyntaxError, ValueError) as error:
                raise ImageError(f"{self.describe(sample)} does not decode ({error})") from error
        if (
            not isinstance(image, Tensor)
            or image.dtype != torch.uint8
            or image.ndim != 3
            or len(image) not in (1, 3)
            or not image.numel()
        ):
            found = f"{tuple(image.shape)} {image.dtype}" if hasattr(image, "shape") else type(image).__name__
            raise DataError(
                f"{self.describe(sample)}: expected a PIL image or a (C, H, W) uint8 tensor with C of 1 or 3, "
                f"found {found}; {_advise_on(image)}"
            )
        return image

    def _proof(self, sample: int) -> bytes:
        try:
            image = self._to_pixels(
                self._read_item(sample).image, sample
            )  # on no background: that is the recipe's
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
        shown = chosen[spread_evenly(len(chosen), 32)]
        return hash_parts(self.labels[samples].data, *map(self._proof, shown.tolist()))


def _advise_on(image: Any) -> str:
    """Say how what a data set gave becomes an image."""
    shape, kind = tuple(getattr(image, "shape", ())), str(getattr(image, "dtype", ""))
    if "float" in kind:
        return "leave ToTensor and Normalize out of the data set"
    if isinstance(image, Tensor) and kind == "torch.uint8" and len(shape) == 3 and shape[2] in (1, 3):
        return "its channels are to come first, by image.permute(2, 0, 1)"
    if isinstance(image, Tensor) and kind == "torch.uint8" and len(shape) == 2:
        return "its one channel is to come first, by image[None]"
    if isinstance(image, np.ndarray) and kind == "uint8" and len(shape) in (2, 3):
        if len(shape) == 2 or shape[2] in (3, 4):
            return "PIL.Image.fromarray(image) makes an image of it"
        if shape[2] == 1:
            return "PIL.Image.fromarray(image[:, :, 0]) makes an image of it"
        if shape[0] in (1, 3):
            return "torch.from_numpy(image) makes a tensor of it"
    return "let the data set convert it"


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


def wrap_images(data: Any, name: str, split: str = "train") -> Images:
    """Wrap a map-style data set of (image, label) pairs as images of that name.

    Raises:
        DataError: it is no such data set.
    """
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise DataError(
            f"{name}: expected logitcache Images or a data set with len() and [i], found {type(data).__name__}"
        )
    try:
        len(data)
    except Exception as error:
        raise DataError(f"{name}: len() of the data set raised {describe_own_error(error)}") from error
    return WrappedImages(name, split, data)
