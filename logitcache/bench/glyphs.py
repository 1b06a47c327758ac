"""Letters in many typefaces, drawn: how `data/letters.npz` was made, and other letters that any machine can make.

    python -m logitcache.bench.glyphs letters.npz
    logitcache train --student letters_small --loss ce --recipe letters --data logitcache.bench.glyphs:rare_glyphs

The typefaces are those that matplotlib ships (the extra `pictures`): twelve to train on, and four others to test on.
"""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from logitcache.errors import OptionError
from logitcache.views.datasets import ArrayImages

TEST_FACES = ("DejaVuSans-BoldOblique", "DejaVuSansMono", "DejaVuSerif-Italic", "STIXGeneralBol")
TRAIN_FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "STIXGeneral",
    "STIXGeneralItalic", "STIXGeneralBolIta",
)  # fmt: skip
SIDE, SIZES = 20, (13, 16)  # pixels
CLASSES, RARE_CLASSES = 200, 151


def draw_glyphs(letters: tuple[str, ...], split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw letters in every typeface of a split and two sizes: images, (n, SIDE, SIDE) uint8, and labels, (n,).

    Raises:
        OptionError: matplotlib is not installed.
    """
    faces = TRAIN_FACES if split == "train" else TEST_FACES
    images = [_draw(letter, face, size) for face in faces for size in SIZES for letter in letters]
    return np.stack(images), np.tile(np.arange(len(letters)), len(faces) * len(SIZES))


def rare_glyphs(split: str = "train") -> ArrayImages:
    """Return the 151 letters that come after those that ship: 3,624 images to train on, 1,208 to test on.

    Raises:
        OptionError: matplotlib is not installed.
    """
    letters = choose_letters()[CLASSES:]
    images, labels = draw_glyphs(letters, split)
    pixels = torch.from_numpy(images)[:, None]
    found = ArrayImages(f"{__name__}:rare_glyphs", split, pixels, labels, len(letters), "letters")
    found.class_names = letters
    return found


@cache
def choose_letters() -> tuple[str, ...]:
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


def main() -> None:
    """Draw the letters that ship, into the file that is named."""
    if len(sys.argv) != 2:
        sys.exit(
            f"expected the file to write, found {len(sys.argv) - 1} names; name one, such as letters.npz"
        )
    letters = choose_letters()[:CLASSES]
    drawn = {split: draw_glyphs(letters, split) for split in ("train", "test")}
    images, labels = (np.concatenate(parts) for parts in zip(*drawn.values(), strict=True))
    test = np.arange(len(labels)) >= len(drawn["train"][1])
    np.savez_compressed(
        sys.argv[1], images=images, labels=labels.astype(np.uint8), test=test, letters=np.array(letters)
    )


if __name__ == "__main__":
    main()
