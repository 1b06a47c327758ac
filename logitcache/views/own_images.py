"""A data set of your own: a map-style one of (image, label) pairs, wrapped as images."""

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitcache.errors import DataError, ImageError
from logitcache.views.decoding import explain_undecoded, is_gray, pillow_to_tensor, printable_path
from logitcache.views.images import Images, Samples, check_labels, hash_parts
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

LOOKED_AT = 256  # items, when a data set is opened


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
        channels = self._channels if is_gray(self._background) else 3
        if len(image) > channels:
            raise DataError(
                f"{self.describe(sample)} is in colour, and {LOOKED_AT} others, evenly spaced, are gray; "
                'let the data set give all in one mode, by image.convert("RGB")'
            )
        return image.expand(channels, -1, -1)

    def on_background(self, colour: str | None) -> "WrappedImages":
        """Return the same images, transparent ones on a colour; in colour where it is no gray."""
        images = copy.copy(self)
        images._background = colour
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
            except Exception as error:  # whatever a decoder raises
                raise explain_undecoded(self.describe(sample), error) from error
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
