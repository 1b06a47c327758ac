"""Models that torchvision lacks: of timm, of the user's own code, and with a second head."""

import sys

import pytest
import torch
import torch.nn.functional as F
from building import logits, refused, tiny

from logitcache.errors import NotFoundError, OptionError, UnknownNameError, WeightsError
from logitcache.format.identity import AdapterSpec
from logitcache.models.build import InputAdapter, save_weights
from logitcache.models.nets import HeadMixing, choose_head_mixing, double_head

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
import torch.nn.functional as F
from logitcache.format.identity import AdapterSpec

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
    net.register_forward_hook(lambda module, inputs, output: {"out": output})
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
        ("stubborn", WeightsError, "expected logits (B, 10), found (1, 7)"),
        ("dictionary", WeightsError, "found a dict of out: (1, 10); let it return the logits alone"),
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
        model.module.mixing = HeadMixing(0.25, 2.0)
        expected = 0.25 * both[:, 0].softmax(1) + 0.75 * (both[:, 1] / 2).softmax(1)
        torch.testing.assert_close(model.module(adapted), expected.log())
    assert model.module.train()(adapted).shape == (2, 2, 10)


def test_mixing_is_chosen_by_accuracy():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(5, (200,), generator=generator)
    right, wrong = F.one_hot(y, 5) * 3.0, torch.randn(200, 5, generator=generator) * 3
    assert choose_head_mixing(torch.stack([right, wrong], 1), y).alpha > 0.5
    assert choose_head_mixing(torch.stack([wrong, right], 1), y).alpha < 0.5
    assert choose_head_mixing(torch.stack([right, right], 1), y) == HeadMixing(0.5, 0.5)


def test_weights_of_two_heads_build_two_heads(tmp_path):
    model = tiny(seed=3, heads=2)
    model.module.mixing = HeadMixing(0.3, 2.0)
    save_weights(tmp_path / "two.safetensors", model)
    again = tiny(str(tmp_path / "two.safetensors"))
    assert again.weights_sha256 == model.weights_sha256
    assert again.module.mixing == pytest.approx(HeadMixing(0.3, 2.0))
    assert again.with_two_heads() is again
    save_weights(tmp_path / "one.safetensors", tiny(seed=3))
    grown = tiny(str(tmp_path / "one.safetensors"), seed=3, heads=2)
    assert grown.weights_sha256 == tiny(seed=3, heads=2).weights_sha256


def test_a_network_without_a_linear_layer_has_no_second_head(own):
    with pytest.raises(OptionError, match="no last linear layer of 10 outputs"):
        double_head(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU()), 10)
    assert tiny("auto", name=f"{own}:plain", heads=2).heads == 2
