"""JPEG files have Pillow's pixels whichever library decodes them, and what is damaged is as damaged as there."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import smooth
from PIL import Image, ImageOps

from logitcache.errors import ImageError
from logitcache.views.decoding import decode_image
from logitcache.views.jpeg import agrees_with_pillow, decode_jpeg, name_jpeg_decoder

simplejpeg = pytest.importorskip("simplejpeg")

SIZES = [(1, 1), (7, 9), (8, 8), (15, 33), (17, 16), (64, 64), (121, 83)]
OPTIONS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "progressive, 4:4:4": {"progressive": True, "subsampling": 0},
    "optimised": {"optimize": True},
    "restart markers": {"restart_marker_blocks": 1},
    "rough": {"quality": 3},
    "fine": {"quality": 100},
    "Adobe RGB": {"keep_rgb": True},
    "comment": {"comment": b"words\xff\xd9 and markers"},
}
OTHER_SAMPLINGS = ["4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1"]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Make a picture in which edges and noise lie on a slope."""
    noise = np.random.default_rng(seed).integers(-40, 41, (height, width, 3))
    pixels = smooth(height, width) + noise + (np.indices((height, width)).sum(0) % 11 == 0)[..., None] * 90
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def pillows(data: bytes) -> np.ndarray | None:
    """Decode by Pillow alone, (3, H, W); None where it refuses."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            return np.asarray(file.convert("RGB")).transpose(2, 0, 1)
    except Exception:  # whatever it raises of damaged data
        return None


def saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 85, **options})
    return buffer.getvalue()


def check(data: bytes, path: Path, *, fast: bool) -> None:
    path.write_bytes(data)
    assert (decode_image(path).numpy() == pillows(data)).all()
    with Image.open(path) as file:
        assert (decode_jpeg(path, file) is not None) == fast


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_pixels_are_pillows(kind: str, mode: str, size: tuple[int, int], tmp_path: Path):
    check(saved(picture(*size).convert(mode), **OPTIONS[kind]), tmp_path / "a.jpg", fast=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sampling", OTHER_SAMPLINGS)
def test_pixels_are_pillows_however_colours_are_sampled(sampling: str, size: tuple[int, int], tmp_path: Path):
    pixels = np.ascontiguousarray(picture(*size))
    data = simplejpeg.encode_jpeg(pixels, quality=85, colorsubsampling=sampling.replace(":", ""))
    check(data, tmp_path / "a.jpg", fast=True)


def test_cmyk_is_left_to_pillow(tmp_path: Path):
    check(saved(picture(33, 40).convert("CMYK")), tmp_path / "a.jpg", fast=False)


def test_what_is_no_jpeg_is_left_to_pillow_whatever_its_name(tmp_path: Path):
    picture(33, 40).save(tmp_path / "a.jpg", "PNG")
    check((tmp_path / "a.jpg").read_bytes(), tmp_path / "a.jpg", fast=False)


def test_of_several_pictures_in_a_file_it_is_the_first(tmp_path: Path):
    first, second = picture(40, 50), picture(30, 20, seed=1)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    check((tmp_path / "a.jpg").read_bytes(), tmp_path / "a.jpg", fast=True)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_turned_picture_has_pillows_pixels(mode: str, orientation: int, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.jpg").write_bytes(saved(picture(33, 40).convert(mode), exif=exif))
    with Image.open(tmp_path / "a.jpg") as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB")).transpose(2, 0, 1)
    assert (decode_image(tmp_path / "a.jpg").numpy() == expected).all()


@given(
    st.sampled_from([*OPTIONS]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    st.floats(0, 1) | st.none(),
    st.binary(max_size=3),
)
def test_damaged_files_are_as_pillow_takes_them(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    spoilt: list[tuple[float, int]],
    cut: float | None,
    more: bytes,
):
    data = bytearray(saved(picture(40, 56), **OPTIONS[kind]))
    for place, value in spoilt:
        data[int(place * (len(data) - 1))] = value
    data = data[: None if cut is None else int(cut * len(data))] + more
    path = tmp_path_factory.getbasetemp() / "spoilt.jpg"
    path.write_bytes(data)
    expected = pillows(bytes(data))
    try:
        found = decode_image(path)
    except ImageError:
        assert expected is None
    else:
        assert expected is not None
        assert found.shape == expected.shape or found.shape == expected.transpose(0, 2, 1).shape
        assert found.shape != expected.shape or (found.numpy() == expected).all()


def test_a_note_says_what_decodes():
    assert agrees_with_pillow()
    assert name_jpeg_decoder() == f"simplejpeg {simplejpeg.__version__}"


ABSENT = 'sys.modules["simplejpeg"] = None'
BROKEN = """
class Finder:
    def find_spec(self, name, *_):
        if name == "simplejpeg":
            raise ValueError("numpy.dtype size changed")
sys.meta_path.insert(0, Finder())
"""
DECODE = """
import torch
from pathlib import Path
from logitcache.views.decoding import decode_image
from logitcache.views.jpeg import agrees_with_pillow, name_jpeg_decoder
assert not agrees_with_pillow()
assert name_jpeg_decoder().startswith("pillow with libjpeg")
torch.save(decode_image(Path(sys.argv[1])).contiguous(), sys.argv[2])
"""


@pytest.mark.parametrize("without", [ABSENT, BROKEN], ids=["absent", "broken"])
def test_where_it_does_not_import_pillow_decodes_the_same(without: str, tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(saved(picture(121, 83)))
    words = [
        sys.executable,
        "-c",
        f"import sys\n{without}\n{DECODE}",
        str(tmp_path / "a.jpg"),
        str(tmp_path / "a.pt"),
    ]
    subprocess.run(words, check=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "a.pt"), decode_image(tmp_path / "a.jpg"))
