"""Each row of the table in docs/images.md: what becomes of such a picture here, and by torchvision's loader."""

import io
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from console import ROOT
from pictures import GRAY, GRAY_RGB, SIXTEEN_BITS, image_folder, smooth, tiff, write
from PIL import Image, features
from refusals import refused
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from logitcache.errors import ImageError
from logitcache.views import decoding
from logitcache.views.datasets import open_images
from logitcache.views.decoding import decode_image

Pixels = np.ndarray[Any, Any]
RGB = Image.fromarray(smooth())
PALETTE = RGB.quantize(16)
CLEAR = Image.fromarray(np.dstack([smooth(), GRAY]))


def saved(image: Image.Image, suffix: str, **options: Any) -> tuple[str, bytes]:
    data = io.BytesIO()
    image.save(data, Image.registered_extensions()[suffix], **options)
    return suffix, data.getvalue()


def turned() -> tuple[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(RGB, ".png", exif=exif)


def profiled() -> tuple[str, bytes]:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return saved(RGB, ".png", icc_profile=profile)


def moving(suffix: str, **options: Any) -> tuple[str, bytes]:
    image = PALETTE if suffix == ".gif" else RGB
    return saved(
        image, suffix, save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)], **options
    )


SAME, OTHER, REFUSED = "the same", "other pixels", "refused here"
PALETTE_RGB = np.array(PALETTE.convert("RGB"))
Case = tuple[Callable[[], tuple[str, bytes]], Pixels | None, str]
KINDS: dict[str, list[Case]] = {
    "in colour, 8 bits": [(lambda: saved(RGB, ".png"), smooth(), SAME)],
    "gray, 8 bits": [(lambda: saved(Image.fromarray(GRAY), ".png"), GRAY_RGB, SAME)],
    "of 1 bit": [(lambda: saved(Image.fromarray(GRAY > 99), ".png"), (GRAY_RGB > 99) * 255, SAME)],
    "gray, of 12 or 16 bits": [
        (lambda: saved(Image.fromarray(SIXTEEN_BITS), ".png"), GRAY_RGB, OTHER),
        (lambda: saved(Image.fromarray(SIXTEEN_BITS), ".tif"), GRAY_RGB, OTHER),
        (
            lambda: (".pgm", b"P5 34 21 4095\n" + (GRAY * 4095.0 / 255).round().astype(">u2").tobytes()),
            GRAY_RGB,
            OTHER,
        ),
    ],
    "gray, of 16 bits, where 0 is white": [
        (lambda: (".tif", tiff(16, 1, 65535 - SIXTEEN_BITS, 0)), GRAY_RGB, OTHER)
    ],
    "in colour, of 16 bits": [
        (lambda: (".ppm", b"P6 34 21 65535\n" + (smooth().astype(">u2") * 257).tobytes()), smooth(), SAME)
    ],
    "of signed, 32-bit or floating-point numbers": [
        (lambda: (".tif", tiff(16, 2, GRAY.astype("<i2"))), None, REFUSED),
        (lambda: (".tif", tiff(32, 1, GRAY.astype("<u4"))), None, REFUSED),
        (lambda: (".tif", tiff(32, 3, GRAY.astype("<f4"))), None, REFUSED),
    ],
    "CMYK": [(lambda: saved(RGB.convert("CMYK"), ".tif"), smooth(), SAME)],
    "YCbCr in a TIFF": [(lambda: saved(RGB, ".tif", compression="jpeg"), smooth(), SAME)],
    "with a palette": [(lambda: saved(PALETTE, ".png"), PALETTE_RGB, SAME)],
    "with a colour profile (ICC)": [(profiled, smooth(), SAME)],
    "turned by its EXIF or XMP orientation": [(turned, np.rot90(smooth(), -1), OTHER)],
    "transparent (RGBA, gray with alpha, palette, one clear colour)": [
        (lambda: saved(CLEAR, ".png"), smooth(), SAME),
        (lambda: saved(Image.merge("LA", [Image.fromarray(GRAY)] * 2), ".png"), GRAY_RGB, SAME),
        (lambda: saved(PALETTE, ".png", transparency=bytes(range(16))), PALETTE_RGB, SAME),
        (lambda: saved(RGB, ".png", transparency=(0, 0, 0)), smooth(), SAME),
    ],
    "animated (GIF, WebP, PNG), or a TIFF of several pages": [
        (lambda: moving(".gif"), PALETTE_RGB, SAME),
        (lambda: moving(".webp", lossless=True), smooth(), SAME),
        (lambda: moving(".png"), smooth(), SAME),
        (lambda: moving(".tif"), smooth(), SAME),
    ],
}
ELSEWHERE = {  # rows whose tests are the functions below, or those of other files
    "of 90 to 1,073 million pixels",
    "of more than 1,073 million pixels",
    "truncated, empty, or no picture",
    "`.gif`, `.avif`, `.jp2`, `.jfif`, `.apng`, `.ico`, `.tga`, `.pbm`",
    "`.heic`, `.jxl`, `.svg`, `.pdf`, raw files, videos",
    "hidden: `.x.jpg`, `._x.jpg`, `__MACOSX/`",
}


def test_every_row_of_the_page_has_its_test():
    text = (ROOT / "docs/images.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)[1:]
    assert set(rows) == {*KINDS, *ELSEWHERE}


@pytest.mark.parametrize(
    ("name", "number"), [(name, i) for name, cases in KINDS.items() for i in range(len(cases))]
)
def test_what_becomes_of_a_picture_here_and_by_torchvision(name: str, number: int, tmp_path: Path):
    make, expected, relation = KINDS[name][number]
    suffix, data = make()
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(data)
    with warnings.catch_warnings(action="ignore"):  # torchvision's loader warns of palettes with alpha
        theirs = np.array(default_loader(path))
    if expected is None:
        refused(ImageError, lambda: decode_image(path), "does not decode", "of no known range", str(path))
        return
    found = decode_image(path).permute(1, 2, 0).numpy()
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() <= (
        3 if name == "YCbCr in a TIFF" else 0
    )  # which is a JPEG
    assert (found.shape == theirs.shape and bool((found == theirs).all())) == (relation == SAME)


def test_a_panorama_is_decoded_without_a_word_and_leaves_the_limit_of_pillow_as_it_was(tmp_path: Path):
    path = tmp_path / "panorama.png"
    with Image.new("L", (40_000, 4_500), 7) as image:  # 180 million
        image.save(path, compress_level=1)
    with pytest.raises(Image.DecompressionBombError):
        default_loader(path)
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(action="error"):
        assert decoding.read_picture(path, lambda file: file.size) == (40_000, 4_500)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("times", [1.5, 3])
def test_pictures_beyond_the_limit_of_pillow_decode_without_a_word(
    times: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path / "large.png")
    limit = int(34 * 21 / times)
    monkeypatch.setattr(decoding, "PILLOW_PIXELS", limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings(action="error"):
        assert (decode_image(path).permute(1, 2, 0).numpy() == smooth()).all()
    assert limit == Image.MAX_IMAGE_PIXELS


def test_pictures_beyond_ours_or_a_limit_of_the_users_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(ImageError, lambda: decode_image(path), str(path), "MAX_IMAGE_PIXELS has been set so")
    monkeypatch.setattr(decoding, "PILLOW_PIXELS", 100)
    monkeypatch.setattr(decoding, "MOST_PIXELS", 700)
    refused(ImageError, lambda: decode_image(path), str(path), "more than 700 pixels; make it smaller")
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_header_that_says_more_pixels_than_its_bytes_can_hold_is_refused_at_once(tmp_path: Path):
    path = tmp_path / "damaged.ppm"
    path.write_bytes(b"P6 30000 30000 255\n" + bytes(3000))
    refused(
        ImageError,
        lambda: decode_image(path),
        str(path),
        "30,000 × 30,000 pixels, which 3,019 bytes cannot hold",
    )


@pytest.mark.parametrize("data", [b"", b"no picture", saved(RGB, ".bmp")[1][:900]])
def test_what_does_not_decode_is_refused_here_and_raises_there(data: bytes, tmp_path: Path):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    refused(ImageError, lambda: decode_image(path), "does not decode", str(path))
    with pytest.raises((OSError, SyntaxError)):
        default_loader(path)


LATER = {
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".apng": "PNG",
    ".ico": "ICO",
    ".tga": "TGA",
    ".pbm": "PPM",
    ".pnm": "PPM",
}
LATER |= {".dib": "DIB"}
LATER |= {".jp2": "JPEG2000"} if features.check("jpg_2000") else {}
LATER |= {".avif": "AVIF"} if "avif" in features.modules and features.check("avif") else {}


@pytest.mark.parametrize("suffix", LATER)
def test_files_that_torchvision_leaves_out_are_taken(suffix: str, tmp_path: Path):
    root = image_folder(tmp_path)
    image = RGB.convert("1") if suffix in (".pbm", ".pnm") else RGB
    image.save(root / "train" / "ant" / f"9{suffix.upper()}", LATER[suffix])
    images = open_images(f"imagefolder:{root}")
    assert len(images) == 10
    assert images.image(3).shape[0] == 3
    assert images.note == ""
    assert len(ImageFolder(root / "train")) == 9


@pytest.mark.parametrize("name", ["IMG.HEIC", "a.jxl", "x.svg", "scan.pdf", "DSC.NEF", "IMG.MOV"])
def test_what_looks_like_a_picture_and_is_not_read_is_told(name: str, tmp_path: Path):
    root = image_folder(tmp_path)
    for place in ("ant", "bee"):
        (root / "train" / place / name).write_bytes(b"whatever")
    images = open_images(f"imagefolder:{root}")
    assert len(images) == len(ImageFolder(root / "train")) == 9
    suffix = Path(name).suffix.lower()
    first = root / "train" / "ant" / name
    assert (
        images.note
        == f"left out, as they are not read here: 2 {suffix}, first {first}; save them as JPEG or PNG"
    )


def test_hidden_files_are_left_out_here_and_taken_there(tmp_path: Path):
    root = image_folder(tmp_path)
    for name in (".x.png", "._x.png"):
        write(root / "train" / "ant" / name)
    images = open_images(f"imagefolder:{root}")
    assert (len(images), len(ImageFolder(root / "train"))) == (9, 11)
    assert str(root / "train" / "ant" / "._x.png") in images.note


@pytest.mark.parametrize("name", ["loose.png", "loose.JFIF"])
def test_pictures_beside_the_class_folders_are_told(name: str, tmp_path: Path):
    root = image_folder(tmp_path)
    shutil.copy(root / "train" / "ant" / "0.png", root / "train" / name)
    assert open_images(f"imagefolder:{root}").note.endswith(f"in no class folder: {root / 'train' / name}")
