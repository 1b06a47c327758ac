"""Files of weights: read without unpickling an object, written atomically, refused in one clear line.

Safetensors, or a state dict as `torch.save` writes it, perhaps nested in a checkpoint.
"""

import argparse
import json
import math
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from logitcache.errors import FormatError, WeightsError, without_advice
from logitcache.files import writing
from logitcache.format.identity import AdapterSpec, RecipeSpec
from logitcache.format.spec import Spec, require
from logitcache.paths import read_variable, user_cache_folder

StateDict = Mapping[str, Tensor]
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class WeightsHeader(Spec):
    """What a file written by `write_weights` says of itself.

    Attributes:
        name: of the model.
        num_classes: C.
        adapter: how it wants its input.
        heads: 1 or 2.
        class_names: of the classes, in order; empty where they have none.
        evaluation: recipe of the views that it is to be shown; None where nobody said.
        parameters: their number, by `count_parameters`; None in files of earlier versions.
        training: recipe of the views that it was trained on; None where nobody said.
    """

    name: str
    num_classes: int
    adapter: AdapterSpec
    heads: int = 1
    class_names: tuple[str, ...] = ()
    evaluation: RecipeSpec | None = None
    parameters: int | None = None
    training: RecipeSpec | None = None

    def __post_init__(self) -> None:
        require((self.parameters or 0) >= 0, f"parameters must be 0 or more, found {self.parameters}")
        require(
            len(self.class_names) in (0, self.num_classes),
            f"class_names must be of {self.num_classes} classes, or of none; found {len(self.class_names)}",
        )


def count_parameters(module: nn.Module) -> int:
    """Count the numbers that a network learns or could: frozen ones too, and weights that layers share once."""
    return sum(parameter.numel() for parameter in module.parameters())


def read_header(path: Path) -> WeightsHeader | None:
    """Read the header of a file of weights; None where `write_weights` did not write it.

    Raises:
        WeightsError: the file, or its header, is damaged.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("logitcache")
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error
    try:
        return None if text is None else WeightsHeader.from_dict(json.loads(text))
    except (ValueError, RecursionError, FormatError) as error:
        raise WeightsError(f"{path} has a damaged logitcache header: {first_line(error)}") from error


def count_weights(path: Path) -> int:
    """Return how many parameters a safetensors file holds, by its header.

    Where that does not tell, it is the numbers in the file but for the running statistics of batch norms: shared
    weights are counted as often as they are used.

    Raises:
        WeightsError: the file is damaged.
    """
    header = read_header(path)
    if header is not None and header.parameters is not None:
        return header.parameters
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.endswith(_RUNNING)]  # noqa: SIM118
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_weights(path: Path) -> StateDict:
    """Read a state dict.

    Raises:
        WeightsError: the file is damaged, or holds something else.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def write_weights(path: Path, state: StateDict, header: WeightsHeader) -> None:
    """Write a state dict as safetensors with a header; atomic and durable.

    Raises:
        StorageError: the file cannot be written.
    """
    state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    content = safetensors.torch.save(state, {"logitcache": json.dumps(header.to_dict())})
    with writing(path) as temporary:  # safetensors' own writer would leave other files when it is killed
        temporary.write_bytes(content)


def download_weights(url: str, file: str) -> StateDict:
    """Read published weights, downloaded into torch's hub folder unless they are there.

    Raises:
        WeightsError: they cannot be had; it says where to put the file.
    """
    path = _find_hub() / "checkpoints" / file
    if not path.exists():
        checksum = re.search(r"-([0-9a-f]{8,})\.", file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                url, str(path), checksum and checksum[1], progress=sys.stderr.isatty()
            )
        except (OSError, RuntimeError) as error:
            advice = f"put it into {path.parent} yourself, or give --weights FILE"
            raise WeightsError(f"cannot download {file} ({first_line(error)}); {advice}") from error
    return _read_torch(path)


def _find_hub() -> Path:
    """Return torch's hub folder; torch itself would make one here where $TORCH_HOME or $XDG_CACHE_HOME is empty."""
    folder = Path(torch.hub.get_dir())
    return (
        folder
        if folder.is_absolute() or read_variable("TORCH_HOME")
        else user_cache_folder() / "torch" / "hub"
    )


def load_weights(
    name: str, module: nn.Module, state: StateDict, where: str, num_classes: int, *, new_head: bool = False
) -> bool:
    """Load a state dict into a module, or say in one line why it does not fit.

    Returns:
        Whether the module has kept its own head, which `new_head` allows where the state's is for other classes.

    Raises:
        WeightsError: names or shapes differ, the head is for other classes, or a tensor holds NaN.
    """
    state = dict(state)
    if name in WITH_AUXILIARY_HEADS:  # these only help training; ours are built without
        state = {k: v for k, v in state.items() if not k.startswith(("aux", "AuxLogits."))}
    elif name.startswith("densenet"):  # published under the names of an older torchvision
        state = {re.sub(r"(norm|conv)\.([12]\.)", r"\1\2", k): v for k, v in state.items()}
    expected, own_head = module.state_dict(), list[str]()
    # Batch norms older than their step counter do without it.
    state |= {k: v for k, v in expected.items() if k.endswith("num_batches_tracked") and k not in state}
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    differing = [k for k in sorted(expected.keys() & state.keys()) if expected[k].shape != state[k].shape]
    heads = {
        state[k].shape[0]
        if state[k].ndim and (num_classes, *state[k].shape[1:]) == tuple(expected[k].shape)
        else None
        for k in differing
    }
    if len(heads) == 1 and (head := heads.pop()) and not missing | unexpected:
        if not new_head:
            raise WeightsError(describe_head_mismatch(where, head, num_classes))
        own_head, differing = differing, []
        state |= {key: expected[key] for key in own_head}
    shapes = [f"{k} {tuple(state[k].shape)} for {tuple(expected[k].shape)}" for k in differing]
    problems = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of other shape", shapes))
        if keys
    ]
    if problems:
        raise WeightsError(f"{where} does not fit {name}: {'; '.join(problems)}")
    if key := next((k for k, v in state.items() if v.is_floating_point() and v.isnan().any()), None):
        raise WeightsError(f"{where} has NaN in {key}; take an earlier checkpoint")
    with torch.no_grad():
        for key, value in expected.items():
            value.copy_(state[key])
    return bool(own_head)


def describe_head_mismatch(where: str, found: int, num_classes: int) -> str:
    """Return the message for weights with a head for other classes."""
    advice = "give weights trained on this data set"
    return f"{where} has a head for {found} classes, the data set has {num_classes}; {advice}"


def first_line(error: BaseException) -> str:
    """First line of an error, or its type where it says nothing."""
    return without_advice(error).partition("\n")[0][:200] or type(error).__name__


def _read_safetensors(path: Path) -> StateDict:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is no readable safetensors file: {first_line(error)}")


def _no_weights(path: Path, error: Exception) -> WeightsError:
    """Say that torch reads no weights from a file, and why where that helps."""
    if held := re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)):
        advice = "save the state dict alone (other Python objects are never loaded): module.state_dict()"
        return WeightsError(f"{path} holds the Python object {held[1]}; {advice}")
    plain = "weights_only" in str(error) or isinstance(error, EOFError)
    reason = "" if plain else f" ({first_line(error).partition('. ')[0]})"
    expected = "expected safetensors, or a state dict alone, by torch.save"
    return WeightsError(f"{path} is damaged, or no file of weights{reason}; {expected}")


def _read_torch(path: Path) -> StateDict:
    """Read a state dict, perhaps nested in a checkpoint; nothing but tensors, plain data and options is unpickled."""
    try:
        plain = torch.serialization.safe_globals([argparse.Namespace])
        with warnings.catch_warnings(action="ignore", category=UserWarning), plain:
            found: Any = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file can make the unpickler fail in any way
        raise _no_weights(path, error) from error
    for key in ("state_dict", "model", "model_state_dict", "ema"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    entries = found.items() if isinstance(found, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in entries):
        keys = ", ".join(repr(key) for key in list(found)[:5]) if isinstance(found, dict) else ""
        there = f"it has {keys}" if keys else f"it is of type {type(found).__name__}"
        raise WeightsError(
            f"{path} holds no state dict (names and tensors), {there}; save module.state_dict(), alone or as 'model'"
        )
    state = dict(entries)
    prefixes = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
    while prefix := next((p for p in prefixes if state and all(k.startswith(p) for k in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
