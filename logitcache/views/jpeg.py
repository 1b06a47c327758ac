"""JPEG files by libjpeg-turbo, in less time than Pillow takes, and pixel for pixel what Pillow makes of them."""

import io
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
COLOURSPACES = {"RGB": "RGB", "L": "GRAY"}  # by Pillow's mode of a file; others are left to Pillow


def decode_jpeg(path: Path, file: Any) -> Pixels | None:
    """Decode a JPEG file without Pillow.

    Args:
        path: of the file.
        file: the same, opened by Pillow, not loaded.

    Returns:
        (H, W, 3) uint8, or (H, W, 1) where it is gray; None where it is no JPEG file, is damaged in any way, or is of
        a kind that is Pillow's to decode, which also says what is wrong with it.
    """
    colours = COLOURSPACES.get(file.mode)
    if colours is None or file.format not in ("JPEG", "MPO") or not agrees_with_pillow():
        return None
    pixels = _decode(path.read_bytes(), colours)
    return pixels if pixels is not None and pixels.shape[1::-1] == file.size else None


def name_jpeg_decoder() -> str:
    """Return which library decodes JPEG files here, with its version."""
    if agrees_with_pillow():
        return f"simplejpeg {metadata.version('simplejpeg')}"
    from PIL import features

    library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    version = features.version_feature("libjpeg_turbo") or features.version_codec("jpg")
    return f"pillow with {library} {version}"


@cache
def agrees_with_pillow() -> bool:
    """Tell whether simplejpeg is installed and decodes as Pillow does, by a few pictures of each kind.

    A Pillow that was built with another library than libjpeg-turbo makes other pixels.
    """
    try:
        return _try_pictures()
    except (
        Exception
    ):  # not installed, built for another NumPy, a Pillow without JPEG: then Pillow decodes, and says so
        return False


def _try_pictures() -> bool:
    from PIL import Image

    y, x = np.mgrid[0:37, 0:53]
    noise = (x * x * 7 + y * y * 13 + x * y * 5) % 256  # no two neighbours alike
    picture = Image.fromarray(np.dstack([x * 4, 255 - y * 6, noise]).astype(np.uint8))
    for mode, colours in COLOURSPACES.items():
        for options in ({"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}):
            buffer = io.BytesIO()
            picture.convert(mode).save(buffer, "JPEG", quality=80, **options)
            found = _decode(buffer.getvalue(), colours)
            with Image.open(buffer) as file:
                expected = np.asarray(file)
            if found is None or not np.array_equal(found.squeeze(), expected):
                return False
    return True


def _decode(data: bytes, colours: str) -> Pixels | None:
    """Decode whole data, (H, W, C) uint8; None where anything in them is amiss."""
    import simplejpeg

    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colours)
    except (ValueError, MemoryError):
        return None
    return pixels
