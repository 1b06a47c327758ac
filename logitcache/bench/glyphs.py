"""Letters in many typefaces, as images: a harder data set than the digits, that any machine can make.

    logitcache train --student resnet8 --loss ce \\
        --data logitcache.bench.glyphs:glyphs --recipe logitcache.bench.glyphs:shifted

The typefaces are those that matplotlib ships (the extra `pictures`): twelve to train on, and four others to test on.
"""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from logitcache.errors import OptionError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.views.datasets import ArrayImages

TEST_FACES = ("DejaVuSans-BoldOblique", "DejaVuSansMono", "DejaVuSerif-Italic", "STIXGeneralBol")
TRAIN_FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "STIXGeneral",
    "STIXGeneralItalic", "STIXGeneralBolIta",
)  # fmt: skip
SIDE, SIZES = 20, (13, 16)  # pixels
CLASSES, RARE_CLASSES = 200, 151


def glyphs(split: str = "train") -> ArrayImages:
    """Return 200 letters in every typeface and two sizes: 4,800 images to train on, 1,600 to test on.

    Raises:
        OptionError: matplotlib is not installed.
    """
    return _images("glyphs", split, _letters()[:CLASSES])


def rare_glyphs(split: str = "train") -> ArrayImages:
    """Return the 151 letters that come after those: 3,624 images to train on, 1,208 to test on.

    Raises:
        OptionError: matplotlib is not installed.
    """
    return _images("rare_glyphs", split, _letters()[CLASSES:])


def _images(name: str, split: str, letters: tuple[str, ...]) -> ArrayImages:
    faces = TRAIN_FACES if split == "train" else TEST_FACES
    images = np.stack([_draw(c, face, size) for face in faces for size in SIZES for c in letters])
    labels = np.tile(np.arange(len(letters)), len(faces) * len(SIZES))
    pixels = torch.from_numpy(images)[:, None]
    return ArrayImages(f"{__name__}:{name}", split, pixels, labels, len(letters), "center@20")


def shifted() -> RecipeSpec:
    """Return the recipe of its views: moved by up to two pixels, sometimes with a part erased."""
    crop = StepSpec("RandomCrop", {"size": SIDE, "padding": 2})
    erased = StepSpec("RandomErasing", {"p": 0.5, "scale": [0.02, 0.15]})
    return RecipeSpec("shifted", 1, (crop, erased), "identity")


@cache
def _letters() -> tuple[str, ...]:
    """Choose the first letters, by code point, that every typeface has and that look like none before them."""
    files = [_file(face) for face in (*TRAIN_FACES, *TEST_FACES)]
    from fontTools.ttLib import TTFont  # comes with matplotlib

    common = set.intersection(*(set(TTFont(file).getBestCmap()) for file in files))
    seen: set[bytes] = set()
    letters: list[str] = []
    for letter in map(chr, sorted(common)):
        if letter.isalpha() and len(letters) < CLASSES + RARE_CLASSES:
            pixels = _draw(letter, TRAIN_FACES[0], SIZES[-1]).tobytes()
            if pixels not in seen:
                letters.append(letter)
            seen.add(pixels)
    return tuple(letters)


def _draw(letter: str, face: str, size: int) -> npt.NDArray[np.uint8]:
    """Draw a letter in the middle of an image, (SIDE, SIDE) uint8."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(_file(face), size)
    image = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(image).text((SIDE / 2, SIDE / 2 + size / 3), letter, 255, font, anchor="ms")
    return np.asarray(image)


def _file(face: str) -> str:
    try:
        from matplotlib import get_data_path
    except ImportError:
        raise OptionError(
            "the glyphs need matplotlib's typefaces; pip install 'logitcache[pictures]'"
        ) from None
    return str(Path(get_data_path(), "fonts", "ttf", f"{face}.ttf"))
