"""Data sets of the user's own: whatever they return becomes images, or an error that says what was found."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

from logitcache.errors import DataError, ImageError, NotFoundError, UnknownNameError
from logitcache.views.datasets import open_images
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.own_images import wrap_images
from logitcache.views.recipes import recipe_named

OWN = """
import numpy as np, torch
from PIL import Image
from logitcache.views.datasets import ArrayImages
from logitcache.views.folders import FolderImages

PIXELS = np.arange(6 * 8 * 8 * 3).reshape(6, 8, 8, 3).astype(np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]

class Pairs:
    def __init__(self, make, labels=LABELS, **attributes):
        self.make, self.labels = make, labels
        vars(self).update(attributes)
    def __len__(self):
        return len(self.labels)
    def __getitem__(self, i):
        return self.make(i), self.labels[i]

def tensor(i): return torch.from_numpy(PIXELS[i]).permute(2, 0, 1)
def pil(i): return Image.fromarray(PIXELS[i])
def bad_third(i):
    if i == 3: raise OSError("image file is truncated")
    return pil(i)

def images(split):
    return ArrayImages("x", "x", torch.stack([tensor(i) for i in range(6)]), np.array(LABELS), 3, "x")
def tensors(split): return Pairs(tensor)
def pils(split): return Pairs(pil)
def gray(split): return Pairs(lambda i: pil(i).getchannel(0))
def palette(split): return Pairs(lambda i: pil(i).quantize(8))
def rgba(split): return Pairs(lambda i: pil(i).convert("RGBA"))
def bits(split): return Pairs(lambda i: Image.fromarray(PIXELS[i, :, :, 0] > 99))
def sixteen(split): return Pairs(lambda i: Image.fromarray(PIXELS[i, :, :, 0].astype(np.uint16) << 8))
def classes(split): return Pairs(tensor, classes=list("abcdefg"), targets=torch.tensor(LABELS))
def one_bad(split): return Pairs(bad_third, targets=LABELS)
def none_labelled(split): return Pairs(tensor, [-1] * 6)
def by_split(split): return Pairs(tensor, LABELS if split == "train" else LABELS[:3])

def bool_labels(split): return Pairs(tensor, [i > 2 for i in range(6)])
def tensor_labels(split): return Pairs(tensor, [torch.tensor(i) for i in LABELS])
def numpy_labels(split): return Pairs(tensor, list(np.array(LABELS, dtype=np.uint8)))
class Named(Pairs):  # whose `labels` are the names of the classes
    def __init__(self):
        super().__init__(tensor, ["a", "b", "c"], classes=["a", "b", "c"])
    def __len__(self): return 6
    def __getitem__(self, i): return self.make(i), LABELS[i]
def named_labels(split): return Named()
def some_gray(split): return Pairs(lambda i: pil(i).getchannel(0) if i in (0, 4) else pil(i))
def gray_tensors(split): return Pairs(lambda i: tensor(i)[:1] if i % 2 else tensor(i))
def broken_code(split): return Pairs(lambda i: pil(i).no_such_thing if i == 4 else pil(i), targets=LABELS)
def raises(split): raise RuntimeError("no such disk")

def gives_none(split): return None
def gives_function(split): return lambda: 1
def gives_numbers(split): return [1, 2, 3]
def gives_nothing(split): return []
def gives_floats(split): return Pairs(lambda i: tensor(i) / 255)
def gives_arrays(split): return Pairs(lambda i: PIXELS[i] / 255)
def gives_four_channels(split): return Pairs(lambda i: torch.zeros(4, 8, 8, dtype=torch.uint8))
def gives_text_labels(split): return Pairs(tensor, list("abcabc"))
def gives_float_labels(split): return Pairs(tensor, [0.5] * 6)
def gives_short_targets(split): return Pairs(tensor, targets=[0, 1])
def gives_one_hot(split): return Pairs(tensor, [np.eye(3)[i] for i in LABELS])
def gives_ragged(split): return Pairs(tensor, [[1], [1, 2]] * 3)
def gives_dicts(split): return [{"image": tensor(0), "label": 0}] * 6
def gives_hwc(split): return Pairs(lambda i: torch.from_numpy(PIXELS[i]))
def gives_pixels(split): return Pairs(lambda i: PIXELS[i])
def gives_one_class(split): return Pairs(tensor, [0] * 6)
def gives_empty_images(split): return Pairs(lambda i: torch.zeros(3, 0, 8, dtype=torch.uint8))
def gives_large_labels(split): return Pairs(tensor, classes=["a", "b"])
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "images_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "images_of_mine", raising=False)
    import images_of_mine

    return images_of_mine


@pytest.mark.parametrize("function", ["images", "tensors", "pils"])
def test_own_images_come_as_images_as_tensors_or_as_pillows(own: Any, function: str):
    images = open_images(f"images_of_mine:{function}", "test")
    assert isinstance(images, Images)
    assert (images.name, images.split) == (f"images_of_mine:{function}", "test")
    assert images.labels.tolist() == own.LABELS
    assert images.num_classes == 3
    assert all((images.image(i).permute(1, 2, 0).numpy() == own.PIXELS[i]).all() for i in range(6))
    assert "sample 2" in images.describe(2)


@pytest.mark.parametrize("function", ["gray", "palette", "rgba", "bits", "sixteen"])
def test_own_pillows_of_any_mode_become_gray_or_rgb(own: Any, function: str):
    first = own.PIXELS[0]
    expected = {
        "gray": first[None, ..., 0],
        "palette": np.array(own.pil(0).quantize(8).convert("RGB")).transpose(2, 0, 1),
        "rgba": first.transpose(2, 0, 1),
        "bits": (first[None, ..., 0] > 99) * 255,
        "sixteen": first[None, ..., 0],
    }[function]
    found = open_images(f"images_of_mine:{function}").image(0)
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape
    assert (found.numpy() == expected).all()


def test_own_classes_and_targets_are_taken_from_the_data_set(own: Any):
    images = open_images("images_of_mine:classes")
    assert images.num_classes == 7
    assert images.labels.tolist() == own.LABELS
    assert open_images("images_of_mine:none_labelled").num_classes is None


@pytest.mark.parametrize("function", ["bool_labels", "tensor_labels", "numpy_labels", "named_labels"])
def test_whole_numbers_of_any_kind_are_labels(own: Any, function: str):
    images = open_images(f"images_of_mine:{function}")
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == ([0, 0, 0, 1, 1, 1] if function == "bool_labels" else own.LABELS)
    assert images.class_names == (["a", "b", "c"] if function == "named_labels" else [])


@pytest.mark.parametrize("function", ["some_gray", "gray_tensors"])
def test_gray_images_among_images_in_colour_have_three_channels_too(own: Any, function: str):
    images = open_images(f"images_of_mine:{function}")
    for i in range(6):
        gray = i in (0, 4) if function == "some_gray" else i % 2
        expected = own.tensor(i)[:1].expand(3, -1, -1) if gray else own.tensor(i)
        assert torch.equal(images.image(i), expected)
    batch = KeyedViews(images, recipe_named("identity")).__getitems__([(0, 0), (1, 0), (4, 0)])
    assert batch.views.shape == (3, 3, 8, 8)


def test_a_lone_image_in_colour_among_many_gray_ones_is_named(own: Any):
    colour = own.Pairs(lambda i: own.tensor(i % 6) if i == 301 else own.tensor(0)[:1], [0, 1] * 300)
    images = wrap_images(colour, "mostly")
    assert images.image(300).shape == (1, 8, 8)
    refused(DataError, lambda: images.image(301), "sample 301 of mostly", 'convert("RGB")')


def test_own_function_is_called_with_the_split(own: Any):
    assert [len(open_images("images_of_mine:by_split", split)) for split in ("train", "test")] == [6, 3]


def test_the_fingerprint_of_own_images_changes_with_a_pixel_a_shape_and_a_label(own: Any, monkeypatch):
    before = open_images("images_of_mine:tensors").fingerprint
    assert open_images("images_of_mine:pils").fingerprint == before
    with monkeypatch.context() as patch:
        changed = own.PIXELS.copy()
        changed[5, 7, 7, 2] += 1
        patch.setattr(own, "PIXELS", changed)
        pixel = open_images("images_of_mine:tensors").fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(own, "PIXELS", own.PIXELS.reshape(6, 4, 16, 3))
        shape = open_images("images_of_mine:tensors").fingerprint
    own.LABELS[0] = 1
    label = open_images("images_of_mine:tensors").fingerprint
    assert len({before, pixel, shape, label}) == 4


def test_an_own_image_that_does_not_open_is_an_image_error_and_no_end_of_the_rest(own: Any):
    images = open_images("images_of_mine:one_bad")
    refused(ImageError, lambda: images.image(3), "sample 3 of images_of_mine:one_bad", "truncated")
    assert images.image(4).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        ("gives_none", "NoneType"),
        ("gives_function", "function"),
        ("gives_numbers", "(image, label) pair"),
        ("gives_nothing", "for 0 images"),
        ("gives_floats", "(3, 8, 8) torch.float32; leave ToTensor"),
        ("gives_arrays", "(8, 8, 3) float64"),
        ("gives_four_channels", "(4, 8, 8)"),
        ("gives_text_labels", "<U1 labels"),
        ("gives_float_labels", "float64 labels"),
        ("gives_short_targets", "(2,) for 6 images"),
        ("gives_large_labels", "found 2"),
        ("gives_one_hot", "by .argmax(1)"),
        ("gives_ragged", "one class number per image"),
        ("gives_dicts", "(image, label) pair, found a dict of image, label"),
        ("gives_hwc", "(8, 8, 3) torch.uint8; its channels are to come first"),
        ("gives_pixels", "PIL.Image.fromarray"),
        ("gives_one_class", "found no label but 0; for images without labels give -1"),
        ("gives_empty_images", "(3, 0, 8)"),
        ("raises", "RuntimeError: no such disk ("),
        ("broken_code", "sample 4"),
    ],
)
def test_a_wrong_return_is_named_with_what_was_found(own: Any, function: str, found: str):
    refused(DataError, lambda: open_images(f"images_of_mine:{function}"), f"images_of_mine:{function}", found)


def test_own_code_that_is_not_there_is_refused_by_name(own: Any):
    refused(NotFoundError, lambda: open_images("images_of_nobody:f"), "images_of_nobody")
    refused(UnknownNameError, lambda: open_images("images_of_mine:tensor_s"), "tensors")
