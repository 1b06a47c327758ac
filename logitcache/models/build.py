"""Teachers and students by name: build the module, give it weights, and say how it wants its input.

A name is torchvision's (``resnet18``, ``vit_l_16``), a short form of one (``vit_l``), one of
`logitcache.models.nets` (``wrn_16_2``, ``digits_tiny``), ``timm:NAME``, or your own ``module:function``. Weights are
pretrained, from a file, or random from a seed. `InputAdapter` turns uint8 views into what the module takes.
"""

import hashlib
import math
import os
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

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
from logitcache.format.identity import AdapterSpec, RecipeSpec
from logitcache.models.answers import has_other_logits, take_logits
from logitcache.models.catalog import ModelEntry, find_model, seeded
from logitcache.models.nets import TwoHeads, double_head
from logitcache.models.weights import (
    StateDict,
    WeightsHeader,
    count_parameters,
    describe_head_mismatch,
    first_line,
    load_weights,
    read_header,
    read_weights,
    write_weights,
)
from logitcache.paths import expand_home, find_near_paths, suggest

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, what Pillow's "L" uses
NEW_HEAD = " with a new head"  # how `Model.weights` ends where the head is not from these weights


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
        class_names: of the classes, in order; empty where they have none.
        evaluation: recipe of the views that it is to be shown, once trained; None where nobody said.
        training: recipe of the views that it was trained on; likewise.
    """

    name: str
    module: nn.Module
    adapter: AdapterSpec
    num_classes: int
    weights: str
    class_names: tuple[str, ...] = ()
    evaluation: RecipeSpec | None = None
    training: RecipeSpec | None = None

    def describe_resizing(self, side: int, input_size: int = 0) -> str | None:
        """Say that it sees views of `side` pixels at another size, and how to choose one unless that was done."""
        if self.adapter.size == side:
            return None
        choice = "" if input_size else "; --input-size gives it another size"
        return f"{self.name} sees views of {side} pixels resized to {self.adapter.size}{choice}"

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
        with seeded(seed):
            doubled = replace(self, module=double_head(self.module, self.num_classes))
        _check_forward(doubled)
        return doubled

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over the module's state dict: names in order, dtypes, shapes and bytes, as they are now."""
        digest = hashlib.sha256()
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def build_model(
    name: str,
    *,
    num_classes: int,
    view_size: int | None,
    weights: str = "auto",
    seed: int = 0,
    heads: int = 1,
    input_size: int = 0,
    new_head: bool = False,
) -> Model:
    """Build the model `name` for `num_classes` classes.

    `weights` is "random" (from `seed`, whatever the global RNG; the input size is fitted to `view_size`, the
    side of the views in pixels), "default" (the pretrained ones), the name of pretrained ones such as
    "IMAGENET1K_V2", a file (safetensors, or a state dict as `torch.save` writes it), or "auto": pretrained
    where the class counts agree, else random. With 2 `heads` the last layer is doubled, after its weights are
    loaded; a file of two heads gives two in any case.

    Views are resized to `input_size` pixels; 0 takes the size that the weights were trained at, where it is known:
    of published ones, of files that `save_weights` wrote, of a ViT's position embedding. Of any other file it is
    taken to be that of the views, as of random weights; where there are no views (None), it must be given.

    Weights with a head for other classes are refused, or with `new_head` taken but for the head, which is random
    then; the model's `weights` say so.

    Raises:
        UnknownNameError: no such model, or no pretrained weights of that name.
        OptionError: the input size is not known, a class count below 2, no layer to double, timm is not installed,
            or your function fails.
        NotFoundError: the weights file, or the module of your function, is not there.
        WeightsError: the weights cannot be had or read, or are those of another model or class count.
    """
    if num_classes < 2 or (view_size is not None and view_size < 1):
        raise OptionError(f"need 2 classes and 1 pixel at least, found {num_classes} and {view_size}")
    entry = find_model(name, num_classes, view_size or 224, seed)
    if weights == "auto":
        weights = "default" if entry.default and entry.default.classes == num_classes else "random"
    if weights == "random":
        source = _Source(f"random:{seed}", entry.fitted, None)
    elif weights == "default" or weights in entry.pretrained:
        source = _find_pretrained(entry, weights, num_classes, new_head)
    else:
        source = _read_file(entry, weights, num_classes, new_head)
    size_unknown = view_size is None and not input_size and source.adapter is entry.fitted
    if size_unknown and entry.fitted.size != find_model(name, num_classes, 1, seed).fitted.size:
        advice = "give --input-size, such as that of the views it was trained on"
        raise OptionError(f"{weights} does not say at what size {entry.name} sees images; {advice}")
    if input_size:
        source = source._replace(adapter=replace(source.adapter, size=input_size))
    with seeded(seed):
        try:
            module = entry.make(num_classes, source.adapter)
        except (AssertionError, ValueError) as error:
            if not input_size:
                raise
            raise OptionError(f"{name} does not take {input_size} pixels: {first_line(error)}") from error
        module = double_head(module, num_classes) if source.heads == 2 else module
    if source.state is not None:
        where = source.label.removeprefix("file:")
        if load_weights(entry.name, module, source.state, where, num_classes, new_head=new_head):
            source = source._replace(label=source.label + NEW_HEAD, class_names=())
    model = Model(
        entry.name, module, source.adapter, num_classes, source.label, source.class_names, source.evaluation,
        source.training,
    )  # fmt: skip
    if ":" in model.name or input_size:
        _check_forward(model)
    return model.with_two_heads(seed) if heads == 2 else model


def save_weights(path: str | os.PathLike[str], model: Model) -> None:
    """Write the weights as safetensors, with what a `WeightsHeader` says in the header; atomic and durable.

    `build_model(model.name, weights=path, …)` gives the same model again.

    Raises:
        StorageError: the file cannot be written.
    """
    header = WeightsHeader(
        model.name,
        model.num_classes,
        model.adapter,
        model.heads,
        model.class_names,
        model.evaluation,
        count_parameters(model.module),
        model.training,
    )
    write_weights(expand_home(path), model.module.state_dict(), header)


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


# Weights --------------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """Weights about to go into a module, and the adapter they were trained with; the rest is as in `Model`."""

    label: str
    adapter: AdapterSpec
    state: StateDict | None
    heads: int = 1
    class_names: tuple[str, ...] = ()
    evaluation: RecipeSpec | None = None
    training: RecipeSpec | None = None


def _find_pretrained(entry: ModelEntry, weights: str, num_classes: int, new_head: bool) -> _Source:
    if not entry.pretrained:
        advice = "use random, or a file: --weights FILE"
        raise WeightsError(f"there are no pretrained weights for {entry.name}; {advice}")
    label = weights if weights in entry.pretrained else next(iter(entry.pretrained))
    published = entry.pretrained[label]
    if published.classes != num_classes and not new_head:
        expected = f"expected {num_classes} classes, weights {label} of {entry.name} have {published.classes}"
        raise WeightsError(f"{expected}; train it on your data and give --weights FILE, or --weights random")
    return _Source(label, published.adapter, published.read())


def _suggest_file(path: Path) -> str:
    """Say which file of weights may be meant by a run folder, a folder of such, or a path that is not there."""
    if not path.is_dir():
        near = find_near_paths(path)
        return suggest([one for one in near if one.is_file()]) or "".join(map(_suggest_file, near[:1]))
    ways = ("best.safetensors", "last.safetensors", "*/best.safetensors")
    found = (sorted(path.glob(way)) for way in ways)
    return suggest(next((files for files in found if files), [])[:3])


def _read_file(entry: ModelEntry, weights: str, num_classes: int, new_head: bool) -> _Source:
    path = expand_home(weights)
    if not path.is_file():
        if re.fullmatch(r"[A-Z0-9_]+", weights):
            raise UnknownNameError(f"weights of {entry.name}", weights, entry.pretrained)
        if meant := _suggest_file(path):
            raise NotFoundError(f"no weights file {path}{meant}")
        choices = ", ".join(["auto", "random", *entry.pretrained])
        raise NotFoundError(f"no weights file {path}; give a file, or one of {choices}")
    label = f"file:{path.name}"
    header, state = read_header(path), read_weights(path)
    if header is not None:
        if header.name != entry.name:
            raise WeightsError(f"{path} holds the weights of {header.name}, not of {entry.name}")
        if header.num_classes != num_classes and not new_head:
            raise WeightsError(describe_head_mismatch(path.name, header.num_classes, num_classes))
        return _Source(
            label, header.adapter, state, header.heads, header.class_names, header.evaluation, header.training
        )
    adapter = next((p.adapter for p in entry.pretrained.values() if p.file == path.name), entry.fitted)
    if entry.name.startswith("vit_") and {"conv_proj.weight", "encoder.pos_embedding"} <= state.keys():
        side = math.isqrt(state["encoder.pos_embedding"].shape[1] - 1)  # patches a side; 1 is the class token
        adapter = replace(adapter, size=side * state["conv_proj.weight"].shape[-1])
    return _Source(label, adapter, state)


def _check_forward(model: Model) -> None:
    """Run one black image through a module that is not ours: its logits must be (1, num_classes)."""
    shape = (1, model.adapter.channels, model.adapter.size, model.adapter.size)
    modes = [(part, part.training) for part in model.module.modules()]
    try:
        with seeded(0), torch.no_grad():
            answer = model.module.eval()(torch.zeros(shape))
    except Exception as error:
        raise OptionError(f"{model.name} fails on a {shape} float image: {first_line(error)}") from error
    finally:
        for part, training in modes:
            part.training = training
    take_logits(answer, 1, model.num_classes, model.name)
    if has_other_logits(answer, model.num_classes):
        warnings.warn(
            f"{model.name} answers with several tensors of the shape of logits; the first is taken",
            stacklevel=2,
        )
