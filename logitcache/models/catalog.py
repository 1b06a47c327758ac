"""What is known of a model before it is built: its name, how to make it, its input, who published weights of it."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import nn

from logitcache.errors import OptionError, UnknownNameError, WeightsError
from logitcache.format.identity import AdapterSpec
from logitcache.models.nets import GRAY_NETS, GRAY_SIDES, NETS
from logitcache.models.weights import WITH_AUXILIARY_HEADS, StateDict, download_weights, first_line
from logitcache.plugins import load_callable

SHORT_NAMES = {
    "vit_b": "vit_b_16",
    "vit_l": "vit_l_16",
    "vit_h": "vit_h_14",
    **{f"convnext_{size[0]}": f"convnext_{size}" for size in ("tiny", "small", "base", "large")},
    **{f"effnet_b{i}": f"efficientnet_b{i}" for i in range(8)},
    **{f"effnet_v2_{size}": f"efficientnet_v2_{size}" for size in "sml"},
    "mobilenet_v3_s": "mobilenet_v3_small",
    "mobilenet_v3_l": "mobilenet_v3_large",
    "shufflenet_v2": "shufflenet_v2_x1_0",
}

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def list_models() -> list[str]:
    """List the names that `build_model` knows: torchvision's classifiers and `logitcache.models.nets`, sorted."""
    import torchvision.models

    return sorted({*torchvision.models.list_models(torchvision.models), *NETS})


class Pretrained(NamedTuple):
    """Published weights. `read` returns None where the module already holds them."""

    classes: int
    adapter: AdapterSpec
    read: Callable[[], StateDict | None]
    file: str = ""


@dataclass(frozen=True)
class ModelEntry:
    """How to build one model.

    Attributes:
        name: canonical name.
        make: builds the module, from the class count and the input adapter.
        fitted: how it wants its input where the size that it was trained at is not known.
        pretrained: published weights by name, the default ones first.
    """

    name: str
    make: Callable[[int, AdapterSpec], nn.Module]
    fitted: AdapterSpec
    pretrained: Mapping[str, Pretrained] = field(default_factory=dict)

    @property
    def default(self) -> Pretrained | None:
        """The weights that "default" stands for, if there are any."""
        return next(iter(self.pretrained.values()), None)


def find_model(name: str, num_classes: int, view_size: int, seed: int) -> ModelEntry:
    """Look a model up by name; your own function is called here.

    Raises:
        UnknownNameError, OptionError, NotFoundError: as `build.build_model`.
    """
    if name.startswith("timm:"):
        return _timm_entry(name, view_size)
    if ":" in name:
        return _own_entry(name, num_classes, view_size, seed)
    plain = canonical_name(name)
    require_known_model(name)
    return _net_entry(plain) if plain in NETS else _torchvision_entry(plain, view_size)


def require_known_model(name: str) -> None:
    """Refuse a name that is no model's; timm's and your own are not looked up yet.

    Raises:
        UnknownNameError: there is none.
        OptionError: it is a path, or several names.
    """
    if ":" in name or canonical_name(name) in (known := list_models()):
        return
    if os.path.exists(name):
        raise OptionError(
            f"a model goes by its name, such as resnet18, found the path {name}; its weights are named with --weights"
        )
    if "," in name:
        raise OptionError(f"one model at a time, found {name!r}; name each by an option of its own")
    hint = "(timm:NAME and your own module:function work too; `logitcache.models.catalog.list_models()` lists all)"
    raise UnknownNameError("model", name, [*known, *SHORT_NAMES], hint)


def canonical_name(name: str) -> str:
    """Return the full name of a model: "vit_l_16" for "ViT-L"."""
    plain = name.lower().replace("-", "_")
    return name if ":" in name else SHORT_NAMES.get(plain, plain)


def _net_entry(name: str) -> ModelEntry:
    adapter = AdapterSpec(3, 32, *_CIFAR)
    if name in GRAY_NETS:
        adapter = AdapterSpec(1, GRAY_SIDES[name.partition("_")[0]], (0.5,), (0.5,))
    return ModelEntry(name, lambda num_classes, _: NETS[name](num_classes), adapter)


def _torchvision_entry(name: str, view_size: int) -> ModelEntry:
    import torchvision.models

    enum = torchvision.models.get_model_weights(name)
    pretrained = {}
    for member in sorted(enum, key=lambda member: member is not enum.DEFAULT):
        file, preset = Path(urlparse(member.url).path).name, member.transforms()
        # Published weights of these renormalise inside (transform_input): the same as this mean and std.
        mean, std = _HALF if name in WITH_AUXILIARY_HEADS else (tuple(preset.mean), tuple(preset.std))
        adapter = AdapterSpec(3, preset.crop_size[0], mean, std, preset.interpolation.value)
        read = partial(download_weights, member.url, file)
        pretrained[member.name] = Pretrained(len(member.meta["categories"]), adapter, read, file)
    adapter = pretrained[enum.DEFAULT.name].adapter
    smallest = max(enum.DEFAULT.meta["min_size"])
    if name == "maxvit_t":  # its windows fit 224 pixels and nothing near
        size = adapter.size
    elif name == "vit_h_14":
        size = _fit_size(view_size, adapter.size, unit=14, smallest=28)
    else:  # a smallest size of 224 is that of the weights, not of the architecture
        size = _fit_size(view_size, adapter.size, smallest=smallest if smallest < 224 else 32)
    return ModelEntry(name, partial(_build_torchvision, name), replace(adapter, size=size), pretrained)


def _build_torchvision(name: str, num_classes: int, adapter: AdapterSpec) -> nn.Module:
    import torchvision.models

    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options = {"image_size": adapter.size}
    elif name == "maxvit_t":
        options = {"input_size": (adapter.size, adapter.size)}
    elif name in WITH_AUXILIARY_HEADS:
        options = {"aux_logits": False, "init_weights": True}
    module: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return module


def _timm_entry(name: str, view_size: int) -> ModelEntry:
    try:
        import timm
    except ImportError:
        raise OptionError(f"{name} needs timm; pip install 'logitcache[timm]'") from None
    plain = name.removeprefix("timm:")
    if not timm.is_model(plain):
        raise UnknownNameError("timm model", plain, timm.list_models(), "(`timm.list_models()` lists all)")
    config: Any = timm.get_pretrained_cfg(plain)
    channels, height, _ = config.input_size
    mean, std = tuple(config.mean), tuple(config.std)
    bicubic = config.interpolation == "bicubic"
    adapter = AdapterSpec(channels, height, mean, std, "bicubic" if bicubic else "bilinear")
    size = height if config.fixed_input_size else _fit_size(view_size, height)

    def make(num_classes: int, _: AdapterSpec) -> nn.Module:
        module: nn.Module = timm.create_model(plain, pretrained=False, num_classes=num_classes)
        return module

    def read() -> StateDict:
        try:
            state: StateDict = timm.create_model(plain, pretrained=True).state_dict()
        except Exception as error:  # the hub has errors of its own for each way of not being there
            advice = "give the weights with --weights FILE, or --weights random"
            raise WeightsError(f"cannot get the weights of {name}: {first_line(error)}; {advice}") from error
        return state

    tag = config.tag or "default"
    published = {tag: Pretrained(config.num_classes, adapter, read)} if config.has_weights else {}
    return ModelEntry(name, make, replace(adapter, size=size), published)


def _own_entry(name: str, num_classes: int, view_size: int, seed: int) -> ModelEntry:
    function = load_callable(name)
    try:
        with seeded(seed):
            built = function(num_classes=num_classes)
    except Exception as error:
        raise OptionError(f"{name}(num_classes={num_classes}) failed: {first_line(error)}") from error
    match built:
        case nn.Module():
            module, adapter = built, AdapterSpec(3, _fit_size(view_size, 224), *_IMAGENET)
        case (nn.Module(), AdapterSpec()):
            module, adapter = built
        case _:
            found = type(built).__name__
            raise OptionError(f"{name} must return an nn.Module or (nn.Module, AdapterSpec), found {found}")
    own = {"own": Pretrained(num_classes, adapter, lambda: None)}
    return ModelEntry(name, lambda *_: module, adapter, own)


def _fit_size(view_size: int, largest: int, *, unit: int = 32, smallest: int = 32) -> int:
    return min(largest, -(-max(view_size, smallest) // unit) * unit)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's generator for a block of code, and restore its state afterwards.

    Raises:
        OptionError: torch takes no such seed.
    """
    if not 0 <= seed < 2**63:
        raise OptionError(f"a seed must be 0 to 2^63 - 1, found {seed}")
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
