"""Small networks that torchvision does not have, under the names the distillation papers use.

`CIFAR_NETS` take (B, 3, 32, 32) float images: the family of the CRD benchmark ("Contrastive Representation
Distillation", arXiv 1910.10699), which later papers compare on. `GRAY_NETS` take (B, 1, H, W): teachers and
students for the digits and the letters that ship with logitcache. Each entry maps a class count to a fresh
module whose output is (B, num_classes) logits.

Three blocks come first, then the networks made of them, the two tables, and a second head for any network.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from logitcache.errors import OptionError
from logitcache.models.answers import take_logits

# Blocks -------------------------------------------------------------------------------------------------


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs))


def _head(features: int, num_classes: int) -> nn.Sequential:
    """Average over the image, then one linear layer: (B, features, H, W) -> (B, num_classes)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, num_classes))


class _ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, activation after the sum (ResNet, arXiv 1512.03385, section 3)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and inputs == outputs
        self.first = _conv_bn(inputs, outputs, stride=stride)
        self.second = _conv_bn(outputs, outputs)
        self.shortcut = nn.Identity() if same else _conv_bn(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(F.relu(self.first(x)))
        return F.relu(out + self.shortcut(x))


class _PreActivationBlock(nn.Module):
    """Activation before each convolution (Wide ResNet, arXiv 1605.07146, figure 1b)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and inputs == outputs
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, stride=stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        self.shortcut = None if same else _conv(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        # Where the shape changes, the shortcut starts from the activated input too.
        return out + (x if self.shortcut is None else self.shortcut(active))


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project (MobileNetV2, arXiv 1801.04381, section 3.3)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.same = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            _conv_bn(inputs, hidden, kernel=1),
            nn.ReLU(),
            _conv_bn(hidden, hidden, stride=stride, groups=hidden),
            nn.ReLU(),
            _conv_bn(hidden, outputs, kernel=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.same else out


def _initialised(net: nn.Module) -> nn.Module:
    """He initialisation of the convolutions (arXiv 1502.01852); the other layers keep PyTorch's."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


# Networks -----------------------------------------------------------------------------------------------


def cifar_resnet(num_classes: int, *, depth: int, widths: Sequence[int] = (16, 16, 32, 64)) -> nn.Module:
    """ResNet for 32x32 images with (depth - 2) / 6 blocks a stage (arXiv 1512.03385, section 4.2).

    `widths` are the channels of the stem and the three stages; "x4" names take (32, 64, 128, 256).
    """
    layers = [_conv_bn(3, widths[0]), nn.ReLU()]
    layers += _stages(_ResidualBlock, widths, blocks=(depth - 2) // 6)
    return _initialised(nn.Sequential(*layers, _head(widths[3], num_classes)))


def wide_resnet(num_classes: int, *, depth: int, factor: int) -> nn.Module:
    """Wide ResNet for 32x32 images with (depth - 4) / 6 blocks a stage (arXiv 1605.07146, table 1)."""
    widths = (16, 16 * factor, 32 * factor, 64 * factor)
    stages = _stages(_PreActivationBlock, widths, blocks=(depth - 4) // 6)
    last = [nn.BatchNorm2d(widths[3]), nn.ReLU()]
    return _initialised(nn.Sequential(_conv(3, widths[0]), *stages, *last, _head(widths[3], num_classes)))


def _stages(
    block: Callable[[int, int, int], nn.Module], widths: Sequence[int], blocks: int
) -> list[nn.Module]:
    layers = []
    for stage in range(3):
        strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
        inputs = [widths[stage]] + [widths[stage + 1]] * (blocks - 1)
        layers += [block(i, widths[stage + 1], s) for i, s in zip(inputs, strides, strict=True)]
    return layers


def cifar_vgg(num_classes: int, *, convs: Sequence[int]) -> nn.Module:
    """VGG with batch norm for 32x32 images (arXiv 1409.1556; one linear layer as in arXiv 1910.10699).

    `convs` counts the convolutions in each of the five stages; the image is halved after the first three.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for stage, (count, width) in enumerate(zip(convs, (64, 128, 256, 512, 512), strict=True)):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        if stage < 3:
            layers.append(nn.MaxPool2d(2))
    return _initialised(nn.Sequential(*layers, _head(inputs, num_classes)))


def cifar_mobilenet_v2(num_classes: int, *, width: float) -> nn.Module:
    """MobileNetV2 for 32x32 images, `width` times the channels (arXiv 1801.04381, table 2).

    As in arXiv 1910.10699, the image is halved at the stem and before the 32, 64 and 160 channel stages.
    """
    stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
    inputs = int(32 * width)
    layers: list[nn.Module] = [_conv_bn(3, inputs, stride=2), nn.ReLU()]
    for expand, channels, blocks, stride in (*stages, (6, 320, 1, 1)):
        for block in range(blocks):
            layers.append(_InvertedResidual(inputs, int(channels * width), 1 if block else stride, expand))
            inputs = int(channels * width)
    layers += [_conv_bn(inputs, 1280, kernel=1), nn.ReLU()]
    return _initialised(nn.Sequential(*layers, _head(1280, num_classes)))


def plain_net(
    num_classes: int, *, stages: Sequence[Sequence[int]], stride: int = 1, channels: int = 1
) -> nn.Module:
    """Plain convnet for small images, (B, channels, H, W), ours: one convolution per width in `stages`.

    The first convolution takes every `stride`-th pixel; each stage but the first halves the image before.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for stage, widths in enumerate(stages):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for width in widths:
            layers += [_conv_bn(inputs, width, stride=1 if layers else stride), nn.ReLU()]
            inputs = width
    return _initialised(nn.Sequential(*layers, _head(inputs, num_classes)))


# Tables -------------------------------------------------------------------------------------------------

_FOUR_TIMES = (32, 64, 128, 256)

CIFAR_NETS: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{d}": partial(cifar_resnet, depth=d) for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": partial(cifar_resnet, depth=d, widths=_FOUR_TIMES) for d in (8, 32)},
    **{f"wrn_{d}_{f}": partial(wide_resnet, depth=d, factor=f) for d in (16, 40) for f in (1, 2)},
    "vgg8": partial(cifar_vgg, convs=(1, 1, 1, 1, 1)),
    # torchvision's vgg11 … vgg19 keep the plain names.
    "vgg11_cifar": partial(cifar_vgg, convs=(1, 1, 2, 2, 2)),
    "vgg13_cifar": partial(cifar_vgg, convs=(2, 2, 2, 2, 2)),
    "vgg16_cifar": partial(cifar_vgg, convs=(2, 2, 3, 3, 3)),
    "vgg19_cifar": partial(cifar_vgg, convs=(2, 2, 4, 4, 4)),
    "mobilenet_v2_half": partial(cifar_mobilenet_v2, width=0.5),
}

_GRAY_SMALL, _GRAY_TEACHER, _GRAY_LARGE = ((12,), (24,)), ((48, 48), (96, 96)), ((96, 96), (192, 192))

GRAY_NETS: dict[str, Callable[[int], nn.Module]] = {
    "digits_tiny": partial(plain_net, stages=((6,), (12,))),
    "digits_small": partial(plain_net, stages=_GRAY_SMALL),
    "digits_teacher": partial(plain_net, stages=_GRAY_TEACHER),
    "digits_large": partial(plain_net, stages=_GRAY_LARGE),
    "letters_small": partial(plain_net, stages=_GRAY_SMALL, stride=2),
    "letters_teacher": partial(plain_net, stages=_GRAY_TEACHER, stride=2),
    "letters_large": partial(plain_net, stages=_GRAY_LARGE, stride=2),
}
GRAY_SIDES = {"digits": 8, "letters": 20}  # pixels of the images that a network is named after

NETS: dict[str, Callable[[int], nn.Module]] = {**CIFAR_NETS, **GRAY_NETS}


# Two heads ----------------------------------------------------------------------------------------------


class HeadMixing(NamedTuple):
    """How two heads become one answer: α · softmax(z₀) + (1 − α) · softmax(z₁ / β); even by default."""

    alpha: float = 0.5
    beta: float = 0.5


HEAD_0 = HeadMixing(1.0, 1.0)


def mix_heads(logits: Tensor, mixing: HeadMixing) -> Tensor:
    """(B, C) log-probabilities of both heads together: log [α · softmax(z₀) + (1 − α) · softmax(z₁ / β)].

    Args:
        logits: (B, 2, C) float; half precision is computed in float32.
        mixing: α in [0, 1], β > 0; the authors evaluate with ½ and ½.

    Source: Kang et al. 2025 (arXiv 2505.07675), section 3.
    """
    first, second = logits.to(torch.promote_types(logits.dtype, torch.float32)).unbind(1)
    p = mixing.alpha * first.softmax(1) + (1 - mixing.alpha) * (second / mixing.beta).softmax(1)
    return p.clamp(min=1e-30).log()


def choose_head_mixing(logits: Tensor, target: Tensor) -> HeadMixing:
    """Choose α and β by accuracy on a validation split (never on test), the even mixing first among equals.

    Args:
        logits: (N, 2, C) float.
        target: (N,) int64.
    """
    grid = [HeadMixing(a / 10, b) for a in range(11) for b in (0.25, 0.5, 1.0, 2.0)]
    grid.sort(key=lambda m: abs(m.alpha - 0.5) + abs(m.beta - 0.5))
    correct = [int((mix_heads(logits, m).argmax(1) == target).sum()) for m in grid]
    return grid[correct.index(max(correct))]


class TwoHeads(nn.Module):
    """A network whose last layer gives two classes' worth of logits: head 0 for labels, head 1 for a teacher.

    In training mode the output is (B, 2, C), both heads' logits; in evaluation mode (B, C), log-probabilities of
    both as `mixing` says, so that whoever evaluates or dumps it need not know. The mixing is kept with the weights.
    """

    mixture: Tensor

    def __init__(self, body: nn.Module, outputs: int) -> None:
        super().__init__()
        self.body, self.outputs = body, outputs
        self.register_buffer("mixture", torch.tensor(HEAD_0))

    @property
    def mixing(self) -> HeadMixing:
        """How the heads are mixed in evaluation mode; head 0 alone unless set."""
        return HeadMixing(*self.mixture.tolist())

    @mixing.setter
    def mixing(self, mixing: HeadMixing) -> None:
        self.mixture.copy_(torch.tensor(mixing))

    def apart(self, x: Tensor) -> Tensor:
        """Both heads' logits, (B, 2, C), in either mode."""
        both = take_logits(self.body(x), x.shape[0], self.outputs, type(self.body).__name__)
        return both.reshape(-1, 2, both.shape[1] // 2)  # of any batch size, in an exported graph too

    def forward(self, x: Tensor) -> Tensor:
        """Both heads' logits in training, their mixture in evaluation."""
        return self.apart(x) if self.training else mix_heads(self.apart(x), self.mixing)


def double_head(module: nn.Module, num_classes: int) -> TwoHeads:
    """Double a network's last linear layer; what it had is head 0, and head 1 is drawn from the global RNG.

    Raises:
        OptionError: there is no linear layer, or 1x1 convolution, with `num_classes` outputs.
    """
    name = ""
    last: nn.Linear | nn.Conv2d | None = None
    for path, layer in module.named_modules():
        if _outputs(layer) == num_classes:
            name, last = path, layer
    if last is None:
        raise OptionError(
            f"{type(module).__name__} has no last linear layer of {num_classes} outputs to double"
        )
    doubled, fresh = copy.deepcopy(last), copy.deepcopy(last)
    fresh.reset_parameters()
    with torch.no_grad():
        doubled.weight = nn.Parameter(torch.cat([last.weight, fresh.weight]))
        if last.bias is not None and fresh.bias is not None:
            doubled.bias = nn.Parameter(torch.cat([last.bias, fresh.bias]))
    setattr(doubled, "out_features" if isinstance(doubled, nn.Linear) else "out_channels", 2 * num_classes)
    if not name:
        return TwoHeads(doubled, 2 * num_classes)
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, doubled)
    return TwoHeads(module, 2 * num_classes)


def _outputs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) else None
