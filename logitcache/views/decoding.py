"""How a picture becomes pixels: a file of any kind, or an image that Pillow has opened."""

import errno
import os
import re
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from logitcache.errors import DataError, ImageError
from logitcache.views.jpeg import decode_jpeg

ORIENTATION = 0x0112  # tag of EXIF
METADATA = (
    "exif",
    "Raw profile type exif",
    "XML:com.adobe.xmp",
    "xmp",
)  # where Pillow keeps what may tell it
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
MIN_IS_WHITE = 0
SIGNED, FLOAT = 2, 3
ADVICE = "of no known range: save it with 8 bits, or 16 without sign"
PILLOW_PIXELS = 1024**3 // 4 // 3  # above twice as many Pillow raises, unless the user has set another limit
MOST_PIXELS = 1 << 30  # of one picture; each takes some 7 bytes while it is decoded
BAND = 1 << 16  # pixels of a large image that are converted at once: they stay in the processor's cache
WHOLE = 4 * BAND  # pixels of an image that is converted as it is
MOST_PER_BYTE = 1 << 10  # pixels, beyond Pillow's limit: as far as zlib packs; more are of a damaged header

OPEN_FILES = "take fewer workers, or allow more open files (`ulimit -n`)"
MEMORY = "there is not enough memory: take fewer workers, or make the image smaller"
MACHINE_IS_SHORT = {
    MemoryError: MEMORY,
    errno.ENOMEM: MEMORY,
    errno.EMFILE: OPEN_FILES,
    errno.ENFILE: OPEN_FILES,
}

T = TypeVar("T")


def decode_image(path: Path, background: str | None = None) -> Tensor:
    """Decode an image file to (3, H, W) uint8 RGB: its first frame, turned as its EXIF or XMP orientation says.

    Metadata that do not parse turn nothing. The tensor lies in memory as the decoder wrote it, mostly row by row with
    the three channels of a pixel together; `contiguous` copies it to channel by channel.

    Args:
        path: of the file.
        background: colour, "#rrggbb", that a transparent picture is put on; None drops its alpha.

    Raises:
        ImageError: it cannot be read or decoded, or its pixels have no known range; the message names the file.
        DataError: the machine is short of memory or of open files.
    """
    from PIL import UnidentifiedImageError

    def decode(file: Any) -> Tensor:
        pixels = decode_jpeg(path, file)
        image = pillow_to_tensor(file, file, background) if pixels is None else _channels_first(pixels)
        return _turn_upright(image, _read_orientation(file))

    try:
        pixels = read_picture(path, decode)
    except Exception as error:  # whatever a decoder raises
        reason = ""
        if isinstance(error, UnidentifiedImageError):
            reason = "it is empty" if path.stat().st_size == 0 else "it is not an image that Pillow knows"
        raise explain_undecoded(printable_path(path), error, reason) from error
    return pixels.expand(3, -1, -1)


def explain_undecoded(where: str, error: Exception, reason: str = "") -> DataError:
    """Return what to raise where an image did not decode: an `ImageError`, unless it may be sound.

    It may where the machine is short of memory or of open files: then no run may leave it out.

    Args:
        where: which image.
        error: what was raised.
        reason: what to say of it; "": what it says, in one line.
    """
    reason = reason or (str(error).strip() or type(error).__name__).splitlines()[0]
    short = MemoryError if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if short in MACHINE_IS_SHORT:
        return DataError(f"{where} cannot be read here ({reason}); {MACHINE_IS_SHORT[short]}")
    return ImageError(f"{where} does not decode ({reason}); mend or remove it")


def read_picture(path: Path, read: Callable[[Any], T]) -> T:
    """Open a file by Pillow and return what `read` makes of it, also of one with more pixels than Pillow takes.

    Up to `MOST_PIXELS` are taken, unless the user has set another limit of Pillow's.

    Raises:
        ValueError: it has more.
        Exception: whatever Pillow and `read` raise.
    """
    from PIL import Image

    _quieten_pillow()
    try:
        with Image.open(path) as file:
            return read(file)
    except Image.DecompressionBombError as error:
        if Image.MAX_IMAGE_PIXELS not in (PILLOW_PIXELS, MOST_PIXELS // 2):
            raise ValueError(f"{error}; PIL.Image.MAX_IMAGE_PIXELS has been set so") from error
    with _raising_limit:  # Pillow's limit is one for all threads
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS // 2
        try:
            with Image.open(path) as file:
                width, height = file.size
                if width * height > MOST_PER_BYTE * (size := path.stat().st_size):
                    raise ValueError(
                        f"it says {width:,} × {height:,} pixels, which {size:,} bytes cannot hold"
                    )
                return read(file)
        except Image.DecompressionBombError as error:
            raise ValueError(f"it has more than {MOST_PIXELS:,} pixels; make it smaller") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


_raising_limit = threading.Lock()


def _quieten_pillow() -> None:
    """Ignore what Pillow warns of metadata and of many pixels; what cannot be decoded raises.

    The filter stays in the process, in front: to set one around each image would make Python forget what it has
    warned of already, and is not safe with threads.
    """
    global _filter
    if _filter is None or warnings.filters[0] != _filter:
        from PIL.Image import DecompressionBombWarning

        warnings.filterwarnings("ignore", category=DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        _filter = warnings.filters[0]


_filter: Any = None


def pillow_to_tensor(image: Any, file: Any = None, background: str | None = None) -> Tensor:
    """Convert a PIL image to (1, H, W) uint8 if it is gray, else (3, H, W) uint8.

    Of more than 8 bits the highest 8 are taken. What is gray and transparent is (3, H, W) on a background in colour.

    Args:
        image: of any mode whose range is known.
        file: what was opened to make it, which says how many bits its pixels have; None: itself.
        background: colour, "#rrggbb", that a transparent image is put on; None drops its alpha.

    Raises:
        ValueError: the range of its pixels is not known.
    """
    file = image if file is None else file
    _refuse_signed_and_float(file)
    image.load()
    width, height = image.size
    if width * height <= WHOLE:
        return _channels_first(np.array(_convert(image, file, background)))
    pixels, rows = None, max(1, BAND // width)
    for top in range(0, height, rows):  # each step of a conversion copies what it converts
        bottom = min(height, top + rows)
        band = _convert(image.crop((0, top, width, bottom)), file, background)
        if pixels is None:
            pixels = np.empty((height, width, band.shape[2]), np.uint8)
        pixels[top:bottom] = band
    return _channels_first(pixels)


def _channels_first(pixels: Any) -> Tensor:
    """View pixels, (H, W, C), as (C, H, W)."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _convert(image: Any, file: Any, background: str | None) -> Any:
    """Convert as `pillow_to_tensor` does, at once, to (H, W, 1 or 3)."""
    if background is not None and (alpha := read_alpha(image)) is not None:
        return _put_on(_convert(image, file, None), alpha, background)
    if image.mode.startswith("I") or image.mode == "F":
        array = _take_high_bits(image, file)
    elif image.mode in ("1", "L", "LA"):
        array = np.asarray(image.convert("L"))
    elif image.mode == "La":
        array = np.asarray(image.convert("LA").convert("L"))
    elif image.mode in ("P", "PA", "RGBa"):
        # straight to RGB warns of transparency, or fails
        array = np.asarray(image.convert("RGBA").convert("RGB"))
    else:
        array = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return array[..., None] if array.ndim == 2 else array


def has_alpha(image: Any) -> bool:
    """Tell by a picture's header whether it may be transparent."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return True
    return "transparency" in image.info and image.mode in ("1", "L", "P", "RGB", "I", "I;16")


def read_alpha(image: Any) -> Any:
    """Return the alpha of a PIL image, (H, W) uint8; None where it has none."""
    if not has_alpha(image):
        return None
    if image.mode.startswith("I"):  # one gray of 16 bits is transparent, which Pillow does not convert
        clear = image.info["transparency"]
        return np.where(np.asarray(image) == clear, 0, 255).astype(np.uint8) if type(clear) is int else None
    if image.mode in ("La", "PA", "1"):
        image = image.convert({"La": "LA", "PA": "RGBA", "1": "RGBA"}[image.mode])
    return np.array(image.convert("RGBA").getchannel("A"))


def is_gray(colour: str | None) -> bool:
    """Tell whether gray pixels stay gray on a colour, "#rrggbb"; on None they do."""
    return colour is None or len({*bytes.fromhex(colour[1:])}) == 1


def _put_on(colours: Any, alpha: Any, background: str) -> Any:
    """Put pixels, (H, W, 1 or 3) uint8 with alpha (H, W), on a colour; in whole numbers, the same everywhere."""
    channels = bytes.fromhex(background[1:])[: 1 if is_gray(background) else 3]
    below = np.array(list(channels), np.int32)
    opacity = alpha[..., None].astype(np.int32)
    return ((colours * opacity + below * (255 - opacity) + 127) // 255).astype(np.uint8)


def _refuse_signed_and_float(file: Any) -> None:
    """Refuse a TIFF whose samples are not unsigned, which Pillow gives in modes of unsigned ones too."""
    formats = np.ravel(getattr(file, "tag_v2", {}).get(SAMPLE_FORMAT, ())).tolist()
    if SIGNED in formats or FLOAT in formats:
        raise ValueError(
            f"its pixels are {'signed' if SIGNED in formats else 'floating-point'} numbers, {ADVICE}"
        )


def _take_high_bits(image: Any, file: Any) -> Any:
    """Return the highest 8 bits of gray pixels, (H, W) uint8."""
    tags = getattr(file, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    elif image.mode == "I" and getattr(file, "format", None) in ("PPM", "PNG"):
        bits = 16  # Pillow scales those of PPM to it
    else:
        kind = "floating-point numbers" if image.mode == "F" else "signed, or of 32 bits,"
        raise ValueError(f"its pixels are {kind} in Pillow's mode {image.mode}, {ADVICE}")
    array = (np.asarray(image) >> (bits - 8)).astype(np.uint8)  # Pillow would clip at 255
    return 255 - array if tags.get(PHOTOMETRIC) == MIN_IS_WHITE else array


def _turn_upright(pixels: Tensor, orientation: int) -> Tensor:
    """Turn an image, (C, H, W), as its orientation, 1 to 8, says; others turn nothing.

    Pillow's `exif_transpose` writes the other metadata anew, and fails where they are not as it would write them.
    """
    flipped = [dim for dim, turns in ((1, (3, 4, 6, 7)), (2, (2, 3, 7, 8))) if orientation in turns]
    if flipped:
        pixels = pixels.flip(flipped)
    return pixels.transpose(1, 2) if orientation in (5, 6, 7, 8) else pixels


def _read_orientation(image: Any) -> int:
    """Return the orientation that EXIF gives, else XMP; 1 (upright) where neither does."""
    if image.info.keys().isdisjoint(METADATA) and not hasattr(image, "tag_v2"):
        return 1
    found = None
    with suppress(Exception):  # whatever does not parse; Pillow then looks into XMP no more
        found = image.getexif().get(ORIENTATION)
    if found is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        text = xmp if isinstance(xmp, bytes) else str(xmp).encode("utf-8", "replace")
        match = re.search(rb'tiff:Orientation(="|>)([0-9])', text)
        found = int(match[2]) if match else 1
    return found if isinstance(found, int) else 1


def printable_path(path: Path) -> str:
    """Return a path as one line of text that any terminal takes, whatever its bytes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
