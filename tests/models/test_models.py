"""Models by name: seeds decide weights, published ones bring their adapter, and what is unknown is said."""

from urllib.error import URLError

import pytest
import torch
import torchvision.models
from building import logits, refused, tiny
from torchvision.transforms import v2

from logitcache.errors import DataError, OptionError, UnknownNameError, WeightsError
from logitcache.format.identity import AdapterSpec
from logitcache.models.build import InputAdapter, build_model
from logitcache.models.catalog import SHORT_NAMES, list_models

# Names ----------------------------------------------------------------------------------------------------


def test_names_are_sorted_unique_and_hold_every_target_of_a_short_name():
    known = list_models()
    assert known == sorted(set(known))
    assert {"resnet18", "vit_l_16", "resnet8x4", "digits_teacher"} <= set(known)
    assert set(SHORT_NAMES.values()) <= set(known)
    assert not set(SHORT_NAMES) & set(known)


def test_a_short_name_is_the_long_one():
    short, long = (
        build_model(n, num_classes=3, view_size=8) for n in ("mobilenet_v3_s", "mobilenet_v3_small")
    )
    assert short.name == long.name == "mobilenet_v3_small"
    assert short.weights_sha256 == long.weights_sha256


def test_an_unknown_name_suggests_near_ones():
    refused(UnknownNameError, "'resnet17'", "resnet18", name="resnet17")


def test_too_few_classes_are_refused():
    refused(OptionError, "2 classes", num_classes=1)


# Random weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_tiny", "wrn_16_1", "mobilenet_v3_s"])
def test_the_seed_alone_decides_random_weights(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = tiny(name=name, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = tiny(name=name, seed=3), tiny(name=name, seed=4)
    assert first.weights == "random:3"
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256


def test_the_digest_sees_values_names_shapes_and_dtypes_but_not_memory_format():
    model = tiny(name="resnet8")
    digest = model.weights_sha256
    model.module.to(memory_format=torch.channels_last)
    assert model.weights_sha256 == digest
    with torch.no_grad():
        next(model.module.parameters()).mul_(2)
    changed = model.weights_sha256
    assert changed != digest
    model.module.half()
    assert model.weights_sha256 not in (digest, changed)


@pytest.mark.parametrize(
    ("name", "view_size", "size"),
    [
        ("resnet18", 8, 32),
        ("resnet18", 33, 64),
        ("resnet18", 1000, 224),
        ("alexnet", 8, 64),
        ("vit_b_16", 8, 32),
        ("resnet20", 8, 32),
        ("resnet20", 224, 32),
        ("digits_tiny", 64, 8),
    ],
)
def test_random_models_take_an_input_fitted_to_the_views(name, view_size, size):
    model = build_model(name, num_classes=4, view_size=view_size)
    assert model.adapter.size == size
    views = torch.randint(0, 256, (2, 1, view_size, view_size), dtype=torch.uint8)
    assert logits(model, views).shape == (2, 4)


def test_without_pretrained_weights_auto_is_random_and_default_is_an_error():
    assert tiny(weights="auto").weights == "random:0"
    assert build_model("resnet18", num_classes=10, view_size=8).weights == "random:0"
    refused(WeightsError, "no pretrained weights", weights="default")


# Pretrained weights ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A torch hub folder of our own, and no network."""
    monkeypatch.setattr(
        torch.hub, "_hub_dir", str(tmp_path)
    )  # set_dir(get_dir()) would hold today's folder for good

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("weights", ["auto", "default", "IMAGENET1K_V1"])
def test_a_failing_download_says_which_file_goes_where(hub, weights):
    words = ("resnet18-f37072fd.pth", str(hub), "--weights", "no route to host")
    refused(WeightsError, *words, name="resnet18", num_classes=1000, weights=weights)


def test_published_weights_bring_their_adapter_and_their_values(hub):
    hub.mkdir()
    theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), hub / "resnet18-f37072fd.pth")
    model = build_model("resnet18", num_classes=1000, view_size=8)
    made = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert model.weights == "IMAGENET1K_V1"
    assert model.adapter.size == made.crop_size[0]
    image = torch.randint(0, 256, (1, 3, *made.crop_size * 2), dtype=torch.uint8)
    expected = theirs.eval()(
        v2.functional.normalize(v2.functional.to_dtype(image, scale=True), made.mean, made.std)
    )
    torch.testing.assert_close(logits(model, image), expected.detach(), rtol=1e-4, atol=1e-4)


def test_googlenets_renormalisation_is_in_the_adapter(hub):
    hub.mkdir()
    theirs = torchvision.models.googlenet(weights=None, init_weights=False, transform_input=True)
    torch.save(theirs.state_dict(), hub / "googlenet-1378be20.pth")
    model = build_model("googlenet", num_classes=1000, view_size=8)
    made = torchvision.models.GoogLeNet_Weights.DEFAULT.transforms()
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        pixels = v2.functional.to_dtype(image, scale=True)
        expected = theirs.eval()(v2.functional.normalize(pixels, made.mean, made.std))
    torch.testing.assert_close(logits(model, image), expected, rtol=1e-3, atol=1e-4)


def test_another_class_count_than_the_published_one_is_refused(hub):
    refused(WeightsError, "expected 10 classes", "1000", name="resnet18", weights="default")
    assert not hub.exists()


def test_an_unknown_member_lists_the_known_ones():
    refused(UnknownNameError, "IMAGENET1K_V1", name="resnet18", num_classes=1000, weights="IMAGENET1K_V9")


# InputAdapter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("height", [8, 32, 57])
@pytest.mark.parametrize(("seen", "wanted"), [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_the_adapter_agrees_with_torchvisions_transforms(interpolation, height, seen, wanted):
    generator = torch.Generator().manual_seed(height)
    views = torch.randint(0, 256, (2, seen, height, height + 3), dtype=torch.uint8, generator=generator)
    mean, std = (0.2, 0.4, 0.6)[:wanted], (0.3, 0.2, 0.5)[:wanted]
    steps = [
        v2.ToDtype(torch.float32, scale=True),
        v2.Grayscale(num_output_channels=1) if wanted == 1 else v2.RGB(),
        v2.Resize((32, 32), interpolation=v2.InterpolationMode(interpolation), antialias=True),
        v2.Lambda(lambda x: x.clamp(0, 1)),
        v2.Normalize(mean, std),
    ]
    adapted = InputAdapter(AdapterSpec(wanted, 32, mean, std, interpolation))(views)
    assert adapted.shape == (2, wanted, 32, 32)
    assert adapted.dtype == torch.float32
    # torchvision has 0.2989 where Pillow has 0.299.
    torch.testing.assert_close(
        adapted, v2.Compose(steps)(views), rtol=0, atol=1e-3 if seen > wanted else 1e-5
    )


@pytest.mark.parametrize(
    "views",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 4, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
    ],
)
def test_what_is_not_a_batch_of_views_is_refused(views):
    with pytest.raises(DataError, match="uint8"):
        InputAdapter(AdapterSpec(3, 8, (0.5,) * 3, (0.5,) * 3))(views)


def test_the_adapter_adds_nothing_to_a_state_dict():
    assert not InputAdapter(AdapterSpec(1, 8, (0.5,), (0.5,))).state_dict()
