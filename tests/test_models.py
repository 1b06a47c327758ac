"""Models by name: seeds decide weights, files round-trip, and what does not fit is said in one line."""

import argparse
import json
import os
import pickle
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision.models
from torchvision.transforms import v2

from logitcache.errors import (
    DataError,
    LogitCacheError,
    NotFoundError,
    OptionError,
    StorageError,
    UnknownNameError,
    WeightsError,
)
from logitcache.models import InputAdapter, Model, build, save_weights
from logitcache.nets import Mixing, two_heads
from logitcache.plans import SHORT_NAMES, names
from logitcache.schema import AdapterSpec


def tiny(
    weights: str = "random", seed: int = 0, num_classes: int = 10, name: str = "digits_tiny", heads: int = 1
) -> Model:
    return build(name, num_classes=num_classes, view_size=8, weights=weights, seed=seed, heads=heads)


def refused(kind: type[LogitCacheError], *words: str, **options: object) -> None:
    """Building with these options is refused in one line that holds these words."""
    settings = {"name": "digits_tiny", "num_classes": 10, "view_size": 8, **options}
    with pytest.raises(kind) as caught:
        build(**settings)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def logits(model: Model, views: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.module.eval()(InputAdapter(model.adapter)(views))


# Names ----------------------------------------------------------------------------------------------------


def test_names_are_sorted_unique_and_hold_every_target_of_a_short_name():
    known = names()
    assert known == sorted(set(known))
    assert {"resnet18", "vit_l_16", "resnet8x4", "digits_teacher"} <= set(known)
    assert set(SHORT_NAMES.values()) <= set(known)
    assert not set(SHORT_NAMES) & set(known)


def test_a_short_name_is_the_long_one():
    short, long = (build(n, num_classes=3, view_size=8) for n in ("mobilenet_v3_s", "mobilenet_v3_small"))
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
    model = build(name, num_classes=4, view_size=view_size)
    assert model.adapter.size == size
    views = torch.randint(0, 256, (2, 1, view_size, view_size), dtype=torch.uint8)
    assert logits(model, views).shape == (2, 4)


def test_without_pretrained_weights_auto_is_random_and_default_is_an_error():
    assert tiny(weights="auto").weights == "random:0"
    assert build("resnet18", num_classes=10, view_size=8).weights == "random:0"
    refused(WeightsError, "no pretrained weights", weights="default")


# Pretrained weights ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A torch hub folder of our own, and no network."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


@pytest.mark.parametrize("weights", ["auto", "default", "IMAGENET1K_V1"])
def test_a_failing_download_says_which_file_goes_where(hub, weights):
    words = ("resnet18-f37072fd.pth", str(hub), "--weights", "no route to host")
    refused(WeightsError, *words, name="resnet18", num_classes=1000, weights=weights)


def test_published_weights_bring_their_adapter_and_their_values(hub):
    hub.mkdir()
    theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), hub / "resnet18-f37072fd.pth")
    model = build("resnet18", num_classes=1000, view_size=8)
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
    model = build("googlenet", num_classes=1000, view_size=8)
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


# Weights from files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_tiny", "resnet8", "vit_b"])
def test_saved_weights_give_the_same_model_again(tmp_path, name):
    model = build(name, num_classes=6, view_size=40, seed=5)
    path = tmp_path / "new" / "w.safetensors"
    save_weights(path, model)
    assert os.listdir(path.parent) == ["w.safetensors"]
    again = build(name, num_classes=6, view_size=8, weights=str(path))
    assert again.weights == "file:w.safetensors"
    assert (again.weights_sha256, again.adapter) == (model.weights_sha256, model.adapter)


def test_saving_replaces_a_file_and_reports_a_disk_that_says_no(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, tiny(seed=1))
    save_weights(path, tiny(seed=2))
    assert tiny(str(path)).weights_sha256 == tiny(seed=2).weights_sha256
    with pytest.raises(StorageError, match="cannot write"):
        save_weights(path / "below-a-file", tiny())


def wrapped(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "dress",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": wrapped(s, "module.")},
        lambda s: {"model_state_dict": wrapped(s, "_orig_mod.module.")},
        lambda s: {"ema": wrapped(s, "module._orig_mod.")},
        lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
)
def test_checkpoints_as_people_save_them_load(tmp_path, dress):
    model = tiny(seed=7)
    path = tmp_path / "checkpoint.pth"
    torch.save(dress(dict(model.module.state_dict())), path)
    assert tiny(str(path)).weights_sha256 == model.weights_sha256


def test_a_torchvision_vit_file_says_its_image_size(tmp_path):
    theirs = torchvision.models.vit_b_32(image_size=96, num_classes=10)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    assert tiny(str(tmp_path / "vit.pth"), name="vit_b_32").adapter.size == 96


def test_a_plain_file_sees_the_views_as_they_are_or_as_it_is_told(tmp_path):
    theirs = torchvision.models.resnet18(num_classes=10)
    path = tmp_path / "theirs.pth"
    torch.save({"model": theirs.state_dict()}, path)

    def size(view_size, **options):
        made = build("resnet18", num_classes=10, view_size=view_size, weights=str(path), **options)
        return made.adapter.size

    assert (size(64), size(96), size(224)) == (64, 96, 224)
    assert size(64, input_size=160) == 160
    kept = build("resnet18", num_classes=10, view_size=96, weights=str(path))
    save_weights(tmp_path / "kept.safetensors", kept)
    again = build("resnet18", num_classes=10, view_size=64, weights=str(tmp_path / "kept.safetensors"))
    assert again.adapter.size == 96  # its file says what it was made for


def test_an_input_size_that_a_network_cannot_take_is_refused():
    with pytest.raises(OptionError, match="vit_b_32 does not take 50 pixels"):
        build("vit_b_32", num_classes=10, view_size=64, weights="random", input_size=50)


def test_a_checkpoint_without_weights_says_what_it_has(tmp_path):
    torch.save({"net": dict(tiny().module.state_dict()), "epoch": 3}, tmp_path / "net.pth")
    refused(WeightsError, "it has 'net', 'epoch'; save", weights=str(tmp_path / "net.pth"))


def test_densenet_loads_under_its_published_names(tmp_path):
    model = tiny(name="densenet121", seed=2)
    old = {
        k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v
        for k, v in model.module.state_dict().items()
    }
    torch.save(old, tmp_path / "d.pth")
    assert any(".norm.1." in key for key in old)
    assert tiny(str(tmp_path / "d.pth"), name="densenet121").weights_sha256 == model.weights_sha256


def test_a_file_that_is_not_there(tmp_path):
    refused(NotFoundError, "absent.pth", weights=str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(tiny().module.state_dict(), path)
    else:
        save_weights(path, tiny())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    refused(WeightsError, path.name, weights=str(path))


class Intruder:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("intruded"),))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_objects_in_a_pickle_are_never_made(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"state_dict": Intruder()}, tmp_path / "w.pth")
    refused(WeightsError, "w.pth", "state dict alone", weights="w.pth")
    assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, {3: torch.ones(1)}, torch.ones(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "w.pth")
    refused(WeightsError, "no state dict", weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["digits_tiny", "resnet18", "squeezenet1_1"])
def test_another_head_is_said_plainly(tmp_path, name):
    torch.save(tiny(name=name, num_classes=12).module.state_dict(), tmp_path / "w.pth")
    refused(
        WeightsError,
        "w.pth has a head for 12 classes, the data set has 10",
        name=name,
        weights=str(tmp_path / "w.pth"),
    )


def test_keys_that_do_not_fit_are_counted_and_the_first_three_named(tmp_path):
    torch.save(tiny(name="resnet14").module.state_dict(), tmp_path / "w.pth")
    weights = str(tmp_path / "w.pth")
    refused(WeightsError, "does not fit resnet8", "unexpected (", ", …)", name="resnet8", weights=weights)
    refused(WeightsError, "missing (", name="resnet20", weights=weights)
    refused(WeightsError, "of other shape (0.0.weight", name="resnet8x4", weights=str(small_file(tmp_path)))


def small_file(folder: Path) -> Path:
    torch.save(tiny(name="resnet8").module.state_dict(), folder / "small.pth")
    return folder / "small.pth"


def test_nan_is_refused_with_the_name_of_its_tensor(tmp_path):
    model = tiny()
    spoilt = list(dict(model.module.named_parameters()))[-1]
    with torch.no_grad():
        model.module.state_dict()[spoilt][0] = float("nan")
    save_weights(tmp_path / "w.safetensors", model)
    refused(WeightsError, "NaN", spoilt, weights=str(tmp_path / "w.safetensors"))


def test_the_header_guards_name_and_classes(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, tiny(num_classes=12))
    refused(WeightsError, "digits_tiny", "digits_small", name="digits_small", weights=str(path))
    refused(WeightsError, "a head for 12 classes", weights=str(path))


@pytest.mark.parametrize(
    "header", ["{", "[]", "{}", json.dumps({"name": "a", "num_classes": 10, "adapter": {}})]
)
def test_a_damaged_header_is_refused(tmp_path, header):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(tiny().module.state_dict(), path, metadata={"logitcache": header})
    refused(WeightsError, "damaged logitcache header", weights=str(path))


def test_safetensors_of_others_need_no_header(tmp_path):
    model = tiny(seed=3)
    safetensors.torch.save_file(model.module.state_dict(), tmp_path / "w.safetensors")
    assert tiny(str(tmp_path / "w.safetensors")).weights_sha256 == model.weights_sha256


# timm, and your own ---------------------------------------------------------------------------------------


def test_timm_is_used_where_it_is_and_asked_for_where_it_is_not():
    try:
        import timm  # noqa: F401
    except ImportError:
        refused(OptionError, "pip install 'logitcache[timm]'", name="timm:resnet10t")
        return
    first, again = (tiny(name="timm:resnet10t") for _ in range(2))
    assert first.weights_sha256 == again.weights_sha256
    assert logits(first, torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)
    refused(UnknownNameError, "resnet10t", name="timm:resnet10x")


OWN = """
import torch
from logitcache.schema import AdapterSpec

class Net(torch.nn.Sequential):
    def __init__(self, pixels, classes):
        super().__init__(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(pixels, classes))

def plain(num_classes): return Net(3 * 32 * 32, num_classes)
def adapted(num_classes): return Net(25, num_classes), AdapterSpec(1, 5, (0.1,), (0.2,), "bicubic")
def stubborn(num_classes): return Net(3 * 32 * 32, 7)
def frozen(num_classes):
    net = plain(num_classes)
    net[1].eval()
    return net
def broken(num_classes): return Net(5, num_classes)
def raising(num_classes): raise RuntimeError("out of luck")
def nothing(num_classes): return None
def dictionary(num_classes):
    net = plain(num_classes)
    net.register_forward_hook(lambda module, inputs, output: {"logits": output})
    return net
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_own_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_own_nets"
    sys.modules.pop("my_own_nets", None)


def test_your_own_function_gives_a_model(own, tmp_path):
    model = tiny("auto", name=f"{own}:plain", seed=1)
    assert (model.weights, model.adapter.channels, model.adapter.size) == ("own", 3, 32)
    assert model.weights_sha256 == tiny("auto", name=f"{own}:plain", seed=1).weights_sha256
    assert model.weights_sha256 != tiny("auto", name=f"{own}:plain", seed=2).weights_sha256
    save_weights(tmp_path / "w.safetensors", model)
    again = tiny(str(tmp_path / "w.safetensors"), name=f"{own}:plain")
    assert again.weights_sha256 == model.weights_sha256


def test_your_own_adapter_is_kept_and_frozen_parts_stay_frozen(own):
    assert tiny("auto", name=f"{own}:adapted").adapter == AdapterSpec(1, 5, (0.1,), (0.2,), "bicubic")
    net = tiny("auto", name=f"{own}:frozen").module
    assert net.training
    assert not net[1].training


@pytest.mark.parametrize(
    ("function", "kind", "word"),
    [
        ("stubborn", WeightsError, "expected logits (1, 10), found (1, 7)"),
        ("dictionary", WeightsError, "found dict"),
        ("broken", OptionError, "fails on a (1, 3, 32, 32)"),
        ("raising", OptionError, "out of luck"),
        ("nothing", OptionError, "NoneType"),
        ("plane", UnknownNameError, "plain"),
    ],
)
def test_a_function_that_does_not_do_its_part_is_refused(own, function, kind, word):
    refused(kind, word, name=f"{own}:{function}")


def test_a_module_that_is_not_there(own):
    refused(NotFoundError, "no_such_module", name="no_such_module:net")


# Two heads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["digits_tiny", "resnet8", "resnet18", "squeezenet1_1", "swin_t", "densenet121"]
)
def test_a_second_head_stands_beside_the_first(name, tmp_path):
    plain = tiny(name=name, seed=4)
    model = tiny(name=name, seed=4, heads=2)
    views = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert (plain.heads, model.heads) == (1, 2)
    adapted = InputAdapter(model.adapter)(views)
    with torch.no_grad():
        both = model.module.eval().apart(adapted)
        torch.testing.assert_close(both[:, 0], plain.module.eval()(adapted))
        assert both.shape == (2, 2, 10)
        assert not torch.allclose(both[:, 0], both[:, 1])
        torch.testing.assert_close(model.module(adapted), both[:, 0].log_softmax(1))
        model.module.mixing = Mixing(0.25, 2.0)
        expected = 0.25 * both[:, 0].softmax(1) + 0.75 * (both[:, 1] / 2).softmax(1)
        torch.testing.assert_close(model.module(adapted), expected.log())
    assert model.module.train()(adapted).shape == (2, 2, 10)


def test_weights_of_two_heads_build_two_heads(tmp_path):
    model = tiny(seed=3, heads=2)
    model.module.mixing = Mixing(0.3, 2.0)
    save_weights(tmp_path / "two.safetensors", model)
    again = tiny(str(tmp_path / "two.safetensors"))
    assert again.weights_sha256 == model.weights_sha256
    assert again.module.mixing == pytest.approx(Mixing(0.3, 2.0))
    assert again.with_two_heads() is again
    save_weights(tmp_path / "one.safetensors", tiny(seed=3))
    grown = tiny(str(tmp_path / "one.safetensors"), seed=3, heads=2)
    assert grown.weights_sha256 == tiny(seed=3, heads=2).weights_sha256


def test_a_network_without_a_linear_layer_has_no_second_head(own):
    with pytest.raises(OptionError, match="no last linear layer of 10 outputs"):
        two_heads(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU()), 10)
    assert tiny("auto", name=f"{own}:plain", heads=2).heads == 2


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
