"""Teachers and students by name: build the module, give it weights, and say how it wants its input.

A name is torchvision's (``resnet18``, ``vit_l_16``), a short form people say (``vit_l``), one of
`logitcache.nets` (``wrn_16_2``, ``digits_tiny``), ``timm:NAME``, or your own ``module:function``. Weights are
pretrained, from a file, or random from a seed. `InputAdapter` turns uint8 views into what the module takes.
"""

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from logitcache.errors import (
    DataError,
    NotFoundError,
    OptionError,
    UnknownNameError,
    WeightsError,
)
from logitcache.nets import DIGITS_NETS, NETS, TwoHeads, two_heads
from logitcache.plugin import load_callable
from logitcache.schema import AdapterSpec
from logitcache.weights import (
    WITH_AUXILIARY_HEADS,
    Header,
    State,
    downloaded,
    first_line,
    load_weights,
    other_head,
    read_header,
    read_weights,
    write_weights,
)

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
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, what Pillow's "L" uses


@dataclass(frozen=True, eq=False)
class Model:
    """A built network with its input adapter and the origin of its weights.

    Attributes:
        name: canonical name ("vit_l_16" for "vit_l").
        module: (B, channels, size, size) float images, adapted -> (B, num_classes) logits; in training mode,
            as every freshly built module.
        adapter: how `module` wants its input.
        num_classes: C.
        weights: where the weights came from: "IMAGENET1K_V1", "file:x.safetensors", "random:0", or "own".
        heads: 1, or 2 for a `nets.TwoHeads`, which gives (B, 2, num_classes) in training mode.
    """

    name: str
    module: nn.Module
    adapter: AdapterSpec
    num_classes: int
    weights: str

    @property
    def heads(self) -> int:
        """How many heads the module has: 1 or 2."""
        return 2 if isinstance(self.module, TwoHeads) else 1

    def with_two_heads(self, seed: int = 0) -> Self:
        """Return this model with a second head, drawn from `seed`; the modules below the head are the same.

        Raises:
            OptionError: the module does not end in a linear layer of `num_classes` outputs.
        """
        if self.heads == 2:
            return self
        with _seeded(seed):
            grown = replace(self, module=two_heads(self.module, self.num_classes))
        _check_forward(grown)
        return grown

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over the module's state dict: names in order, dtypes, shapes and bytes, as they are now."""
        digest = hashlib.sha256()
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def names() -> list[str]:
    """List the names that `build` knows: torchvision's classifiers and `logitcache.nets`, sorted."""
    import torchvision.models

    return sorted({*torchvision.models.list_models(torchvision.models), *NETS})


def build(
    name: str, *, num_classes: int, view_size: int, weights: str = "auto", seed: int = 0, heads: int = 1
) -> Model:
    """Build the model `name` for `num_classes` classes.

    `weights` is "random" (from `seed`, whatever the global RNG; the input size is fitted to `view_size`, the
    side of the views in pixels), "default" (the pretrained ones), the name of pretrained ones such as
    "IMAGENET1K_V2", a file (safetensors, or a state dict as `torch.save` writes it), or "auto": pretrained
    where the class counts agree, else random. With 2 `heads` the last layer is doubled, after its weights are
    loaded; a file of two heads gives two in any case.

    Raises:
        UnknownNameError: no such model, or no pretrained weights of that name.
        OptionError: a class count below 2, no layer to double, timm is not installed, or your function fails.
        NotFoundError: the weights file, or the module of your function, is not there.
        WeightsError: the weights cannot be had or read, or are those of another model or class count.
    """
    if num_classes < 2 or view_size < 1:
        raise OptionError(f"need 2 classes and 1 pixel at least, found {num_classes} and {view_size}")
    plan = _plan(name, num_classes, view_size, seed)
    if weights == "auto":
        weights = "default" if plan.default and plan.default.classes == num_classes else "random"
    if weights == "random":
        source = _Source(f"random:{seed}", plan.fitted, None)
    elif weights == "default" or weights in plan.pretrained:
        source = _pretrained(plan, weights, num_classes)
    else:
        source = _from_file(plan, weights, num_classes)
    with _seeded(seed):
        module = plan.make(num_classes, source.adapter)
        module = two_heads(module, num_classes) if source.heads == 2 else module
    if source.state is not None:
        load_weights(plan.name, module, source.state, source.label.removeprefix("file:"), num_classes)
    model = Model(plan.name, module, source.adapter, num_classes, source.label)
    if ":" in model.name:
        _check_forward(model)
    return model.with_two_heads(seed) if heads == 2 else model


def save_weights(path: str | os.PathLike[str], model: Model) -> None:
    """Write the weights as safetensors with name, class count, heads and adapter in the header; atomic and durable.

    `build(model.name, weights=path, …)` gives the same model again.

    Raises:
        StorageError: the file cannot be written.
    """
    header = Header(model.name, model.num_classes, model.adapter, model.heads)
    write_weights(Path(path), model.module.state_dict(), header)


class InputAdapter(nn.Module):
    """Turn uint8 views into a model's input, on the views' device.

    (B, 1 or 3, H, W) uint8 -> (B, channels, size, size) float32: gray to RGB or back, scaled to [0, 1],
    resized with antialiasing where the size differs, normalised by mean and std.
    """

    scale: Tensor
    shift: Tensor
    luma: Tensor

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__()
        self.spec = spec
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (spec.mean, spec.std))
        self.register_buffer("scale", (1 / std).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)
        self.register_buffer("luma", torch.tensor(_LUMA)[:, None, None], persistent=False)

    def forward(self, views: Tensor) -> Tensor:
        """Adapt one batch.

        Raises:
            DataError: `views` is not uint8 (B, 1 or 3, H, W).
        """
        if views.dtype != torch.uint8 or views.ndim != 4 or views.shape[1] not in (1, 3):
            found = f"{views.dtype} {tuple(views.shape)}"
            raise DataError(f"views must be torch.uint8 (B, 1 or 3, H, W), found {found}")
        spec = self.spec
        x = views.float() / 255
        if x.shape[1] == 3 and spec.channels == 1:
            x = (x * self.luma).sum(dim=1, keepdim=True)
        if x.shape[2:] != (spec.size, spec.size):
            x = F.interpolate(x, (spec.size, spec.size), mode=spec.interpolation, antialias=True)
            if spec.interpolation == "bicubic":
                x = x.clamp(0, 1)  # bicubic overshoots; pixels cannot
        return x * self.scale + self.shift  # (B, 1, …) becomes (B, 3, …) here


# What is known of a model before it is built --------------------------------------------------------------


class _Pretrained(NamedTuple):
    """Weights somebody published. `read` returns None where the module already holds them."""

    classes: int
    adapter: AdapterSpec
    read: Callable[[], State | None]
    file: str = ""


@dataclass(frozen=True)
class _Plan:
    """How to build one model: `adapter` at its own input size, `fitted` at the size for the views."""

    name: str
    make: Callable[[int, AdapterSpec], nn.Module]
    adapter: AdapterSpec
    fitted: AdapterSpec
    pretrained: Mapping[str, _Pretrained] = field(default_factory=dict)  # the default ones first

    @property
    def default(self) -> _Pretrained | None:
        return next(iter(self.pretrained.values()), None)


def _plan(name: str, num_classes: int, view_size: int, seed: int) -> _Plan:
    if name.startswith("timm:"):
        return _timm_plan(name, view_size)
    if ":" in name:
        return _own_plan(name, num_classes, view_size, seed)
    plain = name.lower().replace("-", "_")
    plain = SHORT_NAMES.get(plain, plain)
    if plain in NETS:
        return _net_plan(plain)
    known = names()
    if plain not in known:
        hint = "(timm:NAME and your own module:function work too)"
        raise UnknownNameError("model", name, [*known, *SHORT_NAMES], hint)
    return _torchvision_plan(plain, view_size)


def _net_plan(name: str) -> _Plan:
    digits = name in DIGITS_NETS
    adapter = AdapterSpec(1, 8, (0.5,), (0.5,)) if digits else AdapterSpec(3, 32, *_CIFAR)
    return _Plan(name, lambda num_classes, _: NETS[name](num_classes), adapter, adapter)


def _torchvision_plan(name: str, view_size: int) -> _Plan:
    import torchvision.models

    enum = torchvision.models.get_model_weights(name)
    pretrained = {}
    for member in sorted(enum, key=lambda member: member is not enum.DEFAULT):
        file, made = Path(urlparse(member.url).path).name, member.transforms()
        # Published weights of these renormalise inside (transform_input): the same as this mean and std.
        mean, std = _HALF if name in WITH_AUXILIARY_HEADS else (tuple(made.mean), tuple(made.std))
        adapter = AdapterSpec(3, made.crop_size[0], mean, std, made.interpolation.value)
        read = partial(downloaded, member.url, file)
        pretrained[member.name] = _Pretrained(len(member.meta["categories"]), adapter, read, file)
    adapter = pretrained[enum.DEFAULT.name].adapter
    smallest = max(enum.DEFAULT.meta["min_size"])
    if name == "maxvit_t":  # its windows fit 224 pixels and nothing near
        size = adapter.size
    elif name == "vit_h_14":
        size = _fitted_size(view_size, adapter.size, unit=14, smallest=28)
    else:  # a smallest size of 224 is that of the weights, not of the architecture
        size = _fitted_size(view_size, adapter.size, smallest=smallest if smallest < 224 else 32)
    return _Plan(name, partial(_torchvision_module, name), adapter, replace(adapter, size=size), pretrained)


def _torchvision_module(name: str, num_classes: int, adapter: AdapterSpec) -> nn.Module:
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


def _timm_plan(name: str, view_size: int) -> _Plan:
    try:
        import timm
    except ImportError:
        raise OptionError(f"{name} needs timm; pip install 'logitcache[timm]'") from None
    plain = name.removeprefix("timm:")
    if not timm.is_model(plain):
        raise UnknownNameError("timm model", plain, timm.list_models())
    config: Any = timm.get_pretrained_cfg(plain)
    channels, height, _ = config.input_size
    mean, std = tuple(config.mean), tuple(config.std)
    bicubic = config.interpolation == "bicubic"
    adapter = AdapterSpec(channels, height, mean, std, "bicubic" if bicubic else "bilinear")
    size = height if config.fixed_input_size else _fitted_size(view_size, height)

    def make(num_classes: int, _: AdapterSpec) -> nn.Module:
        module: nn.Module = timm.create_model(plain, pretrained=False, num_classes=num_classes)
        return module

    def read() -> State:
        try:
            state: State = timm.create_model(plain, pretrained=True).state_dict()
        except Exception as error:  # the hub has errors of its own for each way of not being there
            advice = "give the weights with --weights FILE, or --weights random"
            raise WeightsError(f"cannot get the weights of {name}: {first_line(error)}; {advice}") from error
        return state

    tag = config.tag or "default"
    published = {tag: _Pretrained(config.num_classes, adapter, read)} if config.has_weights else {}
    return _Plan(name, make, adapter, replace(adapter, size=size), published)


def _own_plan(name: str, num_classes: int, view_size: int, seed: int) -> _Plan:
    function = load_callable(name)
    try:
        with _seeded(seed):
            made = function(num_classes=num_classes)
    except Exception as error:
        raise OptionError(f"{name}(num_classes={num_classes}) failed: {first_line(error)}") from error
    match made:
        case nn.Module():
            module, adapter = made, AdapterSpec(3, _fitted_size(view_size, 224), *_IMAGENET)
        case (nn.Module(), AdapterSpec()):
            module, adapter = made
        case _:
            found = type(made).__name__
            raise OptionError(f"{name} must return an nn.Module or (nn.Module, AdapterSpec), found {found}")
    own = {"own": _Pretrained(num_classes, adapter, lambda: None)}
    return _Plan(name, lambda *_: module, adapter, adapter, own)


def _fitted_size(view_size: int, largest: int, *, unit: int = 32, smallest: int = 32) -> int:
    return min(largest, -(-max(view_size, smallest) // unit) * unit)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Make the CPU's RNG start at `seed`, and be afterwards as if nothing had happened."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


# Weights --------------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """Weights about to go into a module, and the adapter they were trained with."""

    label: str
    adapter: AdapterSpec
    state: State | None
    heads: int = 1


def _pretrained(plan: _Plan, weights: str, num_classes: int) -> _Source:
    if not plan.pretrained:
        advice = "use random, or a file: --weights FILE"
        raise WeightsError(f"there are no pretrained weights for {plan.name}; {advice}")
    label = weights if weights in plan.pretrained else next(iter(plan.pretrained))
    chosen = plan.pretrained[label]
    if chosen.classes != num_classes:
        expected = f"expected {num_classes} classes, weights {label} of {plan.name} have {chosen.classes}"
        raise WeightsError(f"{expected}; train it on your data and give --weights FILE, or --weights random")
    return _Source(label, chosen.adapter, chosen.read())


def _from_file(plan: _Plan, weights: str, num_classes: int) -> _Source:
    path = Path(weights).expanduser()
    if not path.is_file():
        if re.fullmatch(r"[A-Z0-9_]+", weights):
            raise UnknownNameError(f"weights of {plan.name}", weights, plan.pretrained)
        choices = ", ".join(["auto", "random", *plan.pretrained])
        raise NotFoundError(f"no weights file {path}; give a file, or one of {choices}")
    label = f"file:{path.name}"
    header, state = read_header(path), read_weights(path)
    if header is not None:
        if header.name != plan.name:
            raise WeightsError(f"{path} holds the weights of {header.name}, not of {plan.name}")
        if header.num_classes != num_classes:
            raise WeightsError(other_head(path.name, header.num_classes, num_classes))
        return _Source(label, header.adapter, state, header.heads)
    adapter = next((p.adapter for p in plan.pretrained.values() if p.file == path.name), plan.adapter)
    if plan.name.startswith("vit_") and {"conv_proj.weight", "encoder.pos_embedding"} <= state.keys():
        side = math.isqrt(state["encoder.pos_embedding"].shape[1] - 1)  # patches a side; 1 is the class token
        adapter = replace(adapter, size=side * state["conv_proj.weight"].shape[-1])
    return _Source(label, adapter, state)


def _check_forward(model: Model) -> None:
    """Run one black image through a module nobody vouches for: its logits must be (1, num_classes)."""
    shape = (1, model.adapter.channels, model.adapter.size, model.adapter.size)
    modes = [(part, part.training) for part in model.module.modules()]
    try:
        with _seeded(0), torch.no_grad():
            logits = model.module.eval()(torch.zeros(shape))
    except Exception as error:
        raise OptionError(f"{model.name} fails on a {shape} float image: {first_line(error)}") from error
    finally:
        for part, training in modes:
            part.training = training
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (1, model.num_classes):
        expected = f"expected logits (1, {model.num_classes}), found {found}"
        raise WeightsError(f"{model.name}: {expected}; its class count must be the data set's")
