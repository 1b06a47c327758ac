"""The networks: published sizes, one shape law for all, and no name that hides one of torchvision's."""

import pytest
import torch
import torchvision.models

from logitcache.models.nets import CIFAR_NETS, GRAY_NETS, NETS

# Million parameters for the 100 classes of CIFAR-100, as the papers print them.
PUBLISHED = {
    "resnet8": 0.084,
    "resnet14": 0.181,
    "resnet20": 0.278,
    "resnet32": 0.473,
    "resnet44": 0.667,
    "resnet56": 0.862,
    "resnet110": 1.737,
    "resnet8x4": 1.234,
    "resnet32x4": 7.434,
    "wrn_16_1": 0.181,
    "wrn_16_2": 0.703,
    "wrn_40_1": 0.570,
    "wrn_40_2": 2.255,
    "vgg8": 3.965,
    "vgg11_cifar": 9.277,
    "vgg13_cifar": 9.462,
    "vgg16_cifar": 14.774,
    "vgg19_cifar": 20.087,
    "mobilenet_v2_half": 0.813,
}


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", sorted(CIFAR_NETS))
def test_cifar_nets_have_the_published_number_of_parameters(name):
    assert round(parameters(NETS[name](100)) / 1e6, 3) == PUBLISHED[name]


def test_digits_nets_leave_a_gap_between_student_and_teacher():
    tiny, small, teacher = (
        parameters(GRAY_NETS[f"digits_{size}"](10)) for size in ("tiny", "small", "teacher")
    )
    assert 800 <= tiny <= 1_000
    assert 2_000 <= small <= 5_000
    assert 100_000 <= teacher <= 400_000


@pytest.mark.parametrize("name", sorted(NETS))
def test_logits_are_one_row_per_image_and_each_image_stands_alone(name):
    torch.manual_seed(0)
    net = NETS[name](7).eval()
    images = torch.randn(3, 1, 8, 8) if name in GRAY_NETS else torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits = net(images)
        alone = net(images[1:2])
    assert logits.shape == (3, 7)
    assert logits.std() > 0
    torch.testing.assert_close(logits[1:2], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenet_v2_half", "digits_tiny"])
def test_every_parameter_learns(name):
    torch.manual_seed(0)
    net = NETS[name](5)
    shape = (8, 1, 8, 8) if name in GRAY_NETS else (8, 3, 32, 32)
    torch.nn.functional.cross_entropy(net(torch.randn(shape)), torch.arange(8) % 5).backward()
    # A bias in front of a batch norm is the exception: the norm takes it away again.
    idle = {n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9}
    assert all(n.endswith(".bias") and name == "vgg8" for n in idle)


def test_no_name_hides_one_of_torchvision():
    assert not set(NETS) & set(torchvision.models.list_models())
