"""A file of any kind is RGB, upright, its first frame; or an error that names the file and says why."""

import errno
import os
import resource
import struct
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import GRAY, GRAY_RGB, SIXTEEN_BITS, smooth, tiff
from PIL import Image, ImageOps
from refusals import refused

from logitcache.errors import DataError, ImageError
from logitcache.views.decoding import decode_image, explain_undecoded, pillow_to_tensor, printable_path
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.own_images import wrap_images
from logitcache.views.picture_files import IMAGE_SUFFIXES
from logitcache.views.recipes import recipe_named

PALETTE = Image.fromarray(smooth()).quantize(16)
PALETTE_RGB = np.array(PALETTE.convert("RGB"))
RGBA = Image.fromarray(np.dstack([smooth(), GRAY]))
FILES: dict[str, tuple[Image.Image, dict[str, Any], np.ndarray, float]] = {
    # file: (image, how to save it, the pixels that must come back, by how much they may differ on average)
    "rgb.jpg": (Image.fromarray(smooth()), {"quality": 95}, smooth(), 1.5),
    "upper.JPEG": (Image.fromarray(smooth()), {"quality": 95}, smooth(), 1.5),
    "gray.jpg": (Image.fromarray(GRAY), {"quality": 95}, GRAY_RGB, 1.5),
    "cmyk.jpg": (Image.fromarray(smooth()).convert("CMYK"), {"quality": 95}, smooth(), 2.5),
    "rgb.png": (Image.fromarray(smooth()), {}, smooth(), 0),
    "gray.png": (Image.fromarray(GRAY), {}, GRAY_RGB, 0),
    "bits.png": (Image.fromarray(GRAY > 99), {}, (GRAY_RGB > 99) * 255, 0),
    "gray-alpha.png": (Image.fromarray(GRAY).convert("LA"), {}, GRAY_RGB, 0),
    "rgba.png": (RGBA, {}, smooth(), 0),
    "palette.png": (PALETTE, {}, PALETTE_RGB, 0),
    "palette-clear.png": (PALETTE, {"transparency": 3}, PALETTE_RGB, 0),
    "palette-veiled.png": (PALETTE, {"transparency": bytes(range(16))}, PALETTE_RGB, 0),
    "sixteen.png": (Image.fromarray(SIXTEEN_BITS), {}, GRAY_RGB, 0),
    "sixteen.tiff": (Image.fromarray(SIXTEEN_BITS), {}, GRAY_RGB, 0),
    "sixteen.pgm": (Image.fromarray(SIXTEEN_BITS), {}, GRAY_RGB, 0),
    "rgb.tif": (Image.fromarray(smooth()), {}, smooth(), 0),
    "cmyk.tif": (Image.fromarray(smooth()).convert("CMYK"), {}, smooth(), 0),
    "rgb.bmp": (Image.fromarray(smooth()), {}, smooth(), 0),
    "palette.BMP": (PALETTE, {}, PALETTE_RGB, 0),
    "rgb.ppm": (Image.fromarray(smooth()), {}, smooth(), 0),
    "gray.pgm": (Image.fromarray(GRAY), {}, GRAY_RGB, 0),
    "rgb.webp": (Image.fromarray(smooth()), {"lossless": True}, smooth(), 0),
    "rgba.webp": (RGBA, {"lossless": True, "exact": True}, smooth(), 0),
    "still.gif": (PALETTE, {}, PALETTE_RGB, 0),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_kind_decodes_to_rgb(name: str, tmp_path: Path):
    image, options, expected, tolerance = FILES[name]
    image.save(tmp_path / name, **options)
    found = decode_image(tmp_path / name)
    assert found.dtype == torch.uint8
    assert found.shape == (3, *expected.shape[:2])
    error = np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected)
    assert error.mean() <= tolerance


def test_every_suffix_that_is_listed_is_decoded():
    assert {Path(name).suffix.lower() for name in FILES} == set(IMAGE_SUFFIXES)


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp"])
def test_an_animation_is_its_first_frame(name: str, tmp_path: Path):
    other = Image.fromarray(smooth(flip=True)).quantize(16)
    lossless = {"lossless": True} if name.endswith("webp") else {}
    PALETTE.save(tmp_path / name, save_all=True, append_images=[other, PALETTE], **lossless)
    assert (decode_image(tmp_path / name).permute(1, 2, 0).numpy() == PALETTE_RGB).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_picture_is_turned_as_its_exif_says(suffix: str, orientation: int, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(suffix, {})
    Image.fromarray(smooth()).save(path, exif=exif, **options)
    upright = Image.fromarray(smooth())
    upright.getexif()[0x0112] = orientation
    expected = np.array(ImageOps.exif_transpose(upright)).astype(int)
    found = decode_image(path).permute(1, 2, 0).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < (1.5 if suffix == "jpg" else 1e-9)


def packed_12_bits(values: np.ndarray) -> np.ndarray:
    pairs = values.reshape(-1, 2).astype(np.uint16)
    a, b = pairs[:, 0], pairs[:, 1]
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=1).astype(np.uint8)


DEEP = {
    "twelve.tif": tiff(12, 1, packed_12_bits(GRAY.astype(np.uint16) << 4)),
    "white is 0.tif": tiff(16, 1, 65535 - SIXTEEN_BITS, min_is=0),
    "twelve.pgm": b"P5 34 21 4095\n"
    + (GRAY.astype(np.uint16) * 4095.0 / 255).round().astype(">u2").tobytes(),
    "colour.ppm": b"P6 34 21 65535\n" + (GRAY_RGB.astype(np.uint16) * 257).astype(">u2").tobytes(),
}
RANGELESS = {
    "signed 8.tif": tiff(8, 2, (GRAY.astype(int) - 128).astype(np.int8)),
    "signed.tif": tiff(16, 2, GRAY.astype("<i2")),
    "unsigned 32.tif": tiff(32, 1, GRAY.astype("<u4")),
    "signed 32.tif": tiff(32, 2, GRAY.astype("<i4")),
    "float.tif": tiff(32, 3, GRAY.astype("<f4")),
    "double.tif": tiff(64, 3, GRAY.astype("<f8")),
    "float.ppm": b"Pf\n34 21\n-1.0\n" + GRAY.astype("<f4").tobytes(),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_without_sign_are_scaled(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(DEEP[name])
    assert (decode_image(tmp_path / name).permute(1, 2, 0).numpy() == GRAY_RGB).all()


def test_a_signed_tiff_of_a_data_set_of_your_own_is_refused_too(tmp_path: Path):
    (tmp_path / "signed.tif").write_bytes(RANGELESS["signed 8.tif"])
    with Image.open(tmp_path / "signed.tif") as image, pytest.raises(ValueError, match="signed numbers"):
        pillow_to_tensor(image)


@pytest.mark.parametrize("name", RANGELESS)
def test_pixels_of_no_known_range_are_refused_by_name(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(RANGELESS[name])
    refused(ImageError, lambda: decode_image(tmp_path / name), str(tmp_path / name), "mend or remove it")


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "LA", "RGBa"]
)
def test_an_image_of_any_mode_is_as_pillow_shows_it(mode: str):
    image = Image.fromarray(smooth())
    image = image.convert("RGBA").convert(mode) if mode == "RGBa" else image.convert(mode)
    shown = np.array(image.convert("RGBA" if mode == "RGBa" else "RGB").convert("RGB")).transpose(2, 0, 1)
    found = pillow_to_tensor(image)
    assert len(found) == (1 if mode in ("1", "L", "LA") else 3)
    assert (found.numpy() == shown).all()


@pytest.mark.parametrize("pixels", [GRAY.astype(np.int32), GRAY / np.float32(255), GRAY.astype(np.int16)])
def test_an_image_of_no_known_range_is_refused(pixels: np.ndarray):
    with pytest.raises(ValueError, match="of no known range"):
        pillow_to_tensor(Image.fromarray(pixels))


# Metadata -------------------------------------------------------------------------------------------------


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI4s", tag, kind, count, value)


def directory(*entries: bytes) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)


TURN_6 = entry(0x0112, 3, 1, b"\x06\0\0\0")
SPOILT_EXIF = {
    "blank": b"Exif\0\0",
    "no header": b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03",
    "words": b"Exif\0\0these are words and no metadata",
    "cut": b"Exif\0\0II*\0\x08\0\0\0\x05\0",
    "far": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "text": directory(entry(0x0112, 2, 4, b"6\0\0\0")),
    "zero": directory(entry(0x0112, 3, 1, bytes(4))),
    "far rational": directory(entry(0x0112, 5, 1, b"\xff\xff\0\0")),
    "7 turns": directory(entry(0x0112, 3, 1, b"\x63\0\0\0")),
}
ODD_EXIF = {
    "twice": b"Exif\0\0" + directory(TURN_6),
    "two resolutions": directory(TURN_6, entry(0x011A, 3, 2, b"\x48\0\x48\0")),
    "unknown type": directory(TURN_6, entry(0x011B, 99, 7, b"\x48\0\x48\0")),
    "resolution in words": directory(TURN_6, entry(0x011A, 2, 4, b"abc\0")),
    "place is a number": directory(TURN_6, entry(0x8825, 3, 1, b"\x01\0\0\0")),
    "far directory": directory(TURN_6, entry(0x8769, 4, 1, b"\xff\xff\xff\x0f")),
    "negative width": directory(TURN_6, entry(0x0100, 9, 1, b"\xff\xff\xff\xff")),
    "nothing for one": directory(TURN_6, entry(0x011A, 5, 1, b"\x08\0\0\0")),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("kind", [*SPOILT_EXIF, *ODD_EXIF])
def test_metadata_that_do_not_parse_turn_nothing_and_the_rest_of_it_hinders_no_turn(
    kind: str, suffix: str, tmp_path: Path
):
    path = tmp_path / f"odd.{suffix}"
    Image.fromarray(smooth()).save(path, exif=(SPOILT_EXIF | ODD_EXIF)[kind], lossless=True)
    turned = kind in ODD_EXIF
    assert decode_image(path).shape == (
        (3, 34, 21) if turned else (3, 21, 34)
    )  # pytest makes warnings errors


@pytest.mark.parametrize("exif", [None, b"Exif\0\0no metadata at all"])
def test_an_orientation_in_xmp_turns_a_picture_also_where_its_exif_does_not_parse(exif: Any, tmp_path: Path):
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(smooth()).save(tmp_path / "xmp.jpg", xmp=xmp, **({"exif": exif} if exif else {}))
    assert decode_image(tmp_path / "xmp.jpg").shape == (3, 34, 21)


def test_decoding_lets_python_remember_what_it_has_warned_of(tmp_path: Path):
    Image.fromarray(smooth()).save(tmp_path / "odd.jpg", exif=SPOILT_EXIF["cut"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(4):
            decode_image(tmp_path / "odd.jpg")
            warnings.warn("of mine", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["of mine"]


@pytest.mark.parametrize("name", [n for n in FILES if not n.endswith(".png")] + ["rgb.png"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5])
def test_a_truncated_file_is_named(name: str, part: float, tmp_path: Path):
    image, options, *_ = FILES[name]
    image.save(tmp_path / name, **options)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * part)])
    refused(ImageError, lambda: decode_image(tmp_path / name), str(tmp_path / name), "mend or remove it")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"these are words and no picture\n" * 9])
def test_what_is_only_called_an_image_is_named(suffix: str, content: bytes, tmp_path: Path):
    path = tmp_path / f"words{suffix}"
    path.write_bytes(content)
    refused(ImageError, lambda: decode_image(path), str(path))


def test_a_reason_is_given_in_words(tmp_path: Path):
    empty, words = tmp_path / "empty.jpg", tmp_path / "words.jpg"
    empty.touch()
    words.write_text("words")
    refused(ImageError, lambda: decode_image(empty), "(it is empty)")
    refused(ImageError, lambda: decode_image(words), "(it is not an image that Pillow knows)")


def test_a_file_that_claims_ten_thousand_million_pixels_is_an_image_error(tmp_path: Path):
    (tmp_path / "bomb.pgm").write_bytes(b"P5 100000 100000 255\n")
    refused(ImageError, lambda: decode_image(tmp_path / "bomb.pgm"), "bomb.pgm")


def test_a_file_that_is_gone_and_a_folder_are_named(tmp_path: Path):
    (tmp_path / "folder.png").mkdir()
    for name in ("none.png", "folder.png"):
        refused(ImageError, lambda name=name: decode_image(tmp_path / name), name)


@pytest.mark.parametrize(
    "name", ["rgb.jpg", "rgb.png", "rgb.tif", "still.gif", "rgb.webp", "rgb.bmp", "gray.pgm"]
)
def test_damaged_bytes_give_a_picture_or_an_image_error(name: str, tmp_path: Path):
    image, options, *_ = FILES[name]
    path = tmp_path / name
    image.save(path, **options)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 200), 3):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            found = decode_image(path)
        except ImageError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert (found.dtype, found.ndim, len(found)) == (torch.uint8, 3, 3)


def test_a_path_prints_whatever_its_bytes():
    assert printable_path(Path("/a/ü.png")) == "/a/ü.png"
    assert printable_path(Path(os.fsdecode(b"/a/\xff.png"))) == "/a/\\xff.png"
    assert printable_path(Path("/a/\x1b[31m b\n.png")) == "/a/\\x1b[31m b\\n.png"


# A machine that is short of something --------------------------------------------------------------------


def test_an_image_is_not_to_blame_where_no_more_files_can_be_opened(tmp_path: Path):
    Image.fromarray(smooth()).save(tmp_path / "0.png")
    decode_image(tmp_path / "0.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with suppress(OSError):
            while True:
                stack.enter_context(open(os.devnull))
        with pytest.raises(DataError, match=r"0\.png cannot be read here .*ulimit -n") as refusal:
            decode_image(tmp_path / "0.png")
    assert not isinstance(refusal.value, ImageError)


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_a_machine_that_is_short_of_something_has_no_sound_image_left_out(code: int):
    class Short:
        healthy = True

        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            if not self.healthy:
                raise OSError(code, os.strerror(code))
            return Image.fromarray(smooth()), i

    images = wrap_images(data := Short(), "mine")
    views = KeyedViews(images, recipe_named("center@8"), "skip")
    assert not views[0, 0].error
    data.healthy = False
    assert "sample 0 of mine cannot be read here" in views[0, 0].error
    assert explain_undecoded("x", MemoryError()).args[0].startswith("x cannot be read here (MemoryError)")
