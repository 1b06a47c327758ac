"""Items of a map-style data set: one read with care, and the labels of all as the items say them."""

import struct
import traceback
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from logitcache.errors import DataError, ImageError, LogitCacheError, without_advice
from logitcache.views.decoding import explain_undecoded
from logitcache.views.images import are_probabilities

DECODERS = ("PIL.", "torchvision.io.", "cv2", "imageio.", "skimage.io.")
UNREAD = -1  # label of an item that could not be read


class Item(NamedTuple):
    """An image, whatever kind the data set gives, and its label; a whole number is an int, alone in a list too."""

    image: Any
    label: Any


def read_item(data: Any, sample: int, where: str) -> Item:
    """Read one item.

    Args:
        data: with ``[i]``.
        sample: which.
        where: what to call it, for messages.

    Raises:
        ImageError: its image does not decode.
        DataError: the data set raises something else, or for want of memory or open files, or an item is no pair;
            the message says where and what.
    """
    try:
        item = data[sample]
    except LogitCacheError:
        raise
    except Exception as error:
        if str(error).startswith("DataLoader worker (pid"):
            raise  # of another's death, which a signal brought here
        if not _comes_from_decoder(error):
            raise DataError(f"{where}: the data set raised {describe_own_error(error)}") from error
        raise explain_undecoded(where, error) from error
    try:
        if isinstance(item, str | bytes | Tensor) or (isinstance(item, np.ndarray) and item.dtype != object):
            raise TypeError("one thing, although it has parts")
        return Item(item[0], _to_number(item[1]))
    except (TypeError, LookupError) as error:
        raise DataError(
            f"{where}: expected an (image, label) pair, found {_describe_item(item)}; for images without labels "
            "give -1 as label"
        ) from error


def _describe_item(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a dict of {', '.join(map(str, item))}"
    if isinstance(item, Tensor | np.ndarray):
        return f"one {type(item).__name__}, {tuple(item.shape)} {item.dtype}"
    return f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__


def read_labels(data: Any, shown: Mapping[int, Any], describe: Callable[[int], str]) -> list[Any]:
    """Return every item's label, -1 (`UNREAD`) where that cannot be known as the image does not decode.

    Where the data set has a list of labels (`targets`, `labels`; within a `Subset` or `ConcatDataset` too), that is
    taken, by way of its `target_transform`, if it says of each item of `shown` what the item itself says; else every
    item is read.

    Args:
        data: with ``len()`` and ``[i]``.
        shown: labels of some items, as the items say them.
        describe: names an item, for messages.

    Raises:
        DataError: as `read_item`.
    """
    try:
        listed = _list_labels(data)
    except Exception:  # it is the user's code, on what it may not be meant for: the items say what is right
        listed = None
    if listed is not None and len(listed) != len(data):
        if _attribute(data, "targets") is not None:
            return listed  # to be refused: which of them are meant?
        listed = None
    if listed is not None and all(says_class(label, listed[sample]) for sample, label in shown.items()):
        return listed
    return [_read_label(data, sample, describe(sample)) for sample in range(len(data))]


def _read_label(data: Any, sample: int, where: str) -> Any:
    try:
        return read_item(data, sample, where).label
    except ImageError:
        return UNREAD


def _list_labels(data: Any) -> list[Any] | None:
    """List the labels that a data set has beside its items, as its items should say them; None where it has none."""
    if isinstance(data, Subset):
        inner = _list_labels(data.dataset)
        return None if inner is None else [inner[i] for i in data.indices]
    if isinstance(data, ConcatDataset):
        parts = [_list_labels(part) for part in data.datasets]
        return None if None in parts else [label for part in parts for label in part or ()]
    listed = data.tensors[1] if isinstance(data, TensorDataset) and len(data.tensors) > 1 else _targets(data)
    if listed is None:
        return None
    transform = _attribute(data, "target_transform")
    labels = [_to_number(label) for label in (listed.tolist() if hasattr(listed, "tolist") else listed)]
    if not callable(transform):
        return labels
    said = [_to_number(transform(label)) for label in labels]
    return [label if says_class(one, label) else one for one, label in zip(said, labels, strict=True)]


def says_class(label: Any, class_: Any) -> bool:
    """Tell whether an item's label is a class: the same number, or a one-hot label or probabilities of that class."""
    if _is_same(label, class_):
        return True
    try:
        row = np.asarray(label)
        return row.ndim == 1 and are_probabilities(row) and _is_same(int(row.argmax()), class_)
    except (TypeError, ValueError, RuntimeError):  # no numbers
        return False


def find_file(data: Any, sample: int) -> Any:
    """Return the file of an item, where a data set lists (file, label) pairs as torchvision's do; else None."""
    with suppress(Exception):  # what it lists may be anything
        return _find_file(data, sample)


def _find_file(data: Any, sample: int) -> Any:
    if isinstance(data, Subset):
        return _find_file(data.dataset, data.indices[sample])
    if isinstance(data, ConcatDataset):
        part = bisect_right(data.cumulative_sizes, sample)
        return _find_file(data.datasets[part], sample - (data.cumulative_sizes[part - 1] if part else 0))
    files = getattr(data, "samples", None)
    pair = files[sample] if isinstance(files, list) and len(files) == len(data) else None
    return pair[0] if isinstance(pair, tuple) and pair and isinstance(pair[0], str | Path) else None


def is_renumbered(data: Any, labels: list[Any]) -> bool:
    """Tell whether labels are other numbers than the data set's own list, so that its class names are not theirs."""
    try:
        listed = [int(_to_number(target)) for target in _targets(data)]
    except (TypeError, ValueError, RuntimeError):  # there are none, or no numbers
        return False
    return len(listed) == len(labels) and not _is_same(listed, labels)


def read_class_names(data: Any) -> list[str]:
    """List the names in a data set's `classes`; none where that is no list of them."""
    classes = _attribute(data, "classes")
    if isinstance(classes, str | bytes | Set):
        return []
    try:
        return [str(one) for one in classes]
    except Exception:  # None, a number, a method
        return []


def _targets(data: Any) -> Any:
    targets = _attribute(data, "targets")
    return _attribute(data, "labels") if targets is None else targets


def _attribute(data: Any, name: str) -> Any:
    """Return an attribute of a data set; None where it has none, or one that raises."""
    try:
        return getattr(data, name, None)
    except Exception:
        return None


def _to_number(label: Any) -> Any:
    """Return a whole number of any type, alone in a list or an array too, as an int, and whatever else as it is."""
    value = label
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if hasattr(value, "item") and getattr(value, "shape", None) in ((), (1,)):
        value = value.item()
    is_whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
    return int(value) if is_whole else value


def _is_same(label: Any, other: Any) -> bool:
    try:
        return bool(label == other)
    except (TypeError, ValueError, RuntimeError):  # arrays, say
        return False


def describe_own_error(error: BaseException) -> str:
    """Say in one line what code of the user's own raised, and where."""
    words = (without_advice(error) or "no reason given").splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {words}{place}"


def _comes_from_decoder(error: Exception) -> bool:
    if isinstance(error, OSError | SyntaxError | EOFError | struct.error | zlib.error):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    names = (type(error).__module__, *(frame.f_globals.get("__name__", "") for frame, _ in frames))
    return any(f"{name}.".startswith(DECODERS) for name in names)
