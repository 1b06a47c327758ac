"""Items of a map-style data set: one read with care, and the labels of all as the items say them."""

import struct
import traceback
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import ConcatDataset, Subset, TensorDataset

from logitcache.errors import DataError, ImageError, LogitCacheError

DECODERS = ("PIL.", "torchvision.io.", "cv2", "imageio.", "skimage.io.")
UNREAD = -1  # label of an item that could not be read


class Item(NamedTuple):
    """An image, whatever kind the data set gives, and its label; a whole number is an int."""

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
        DataError: the data set raises something else, or an item is no pair; the message says where and what.
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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImageError(f"{where} does not decode ({reason}); mend or remove it") from error
    try:
        return Item(item[0], _to_number(item[1]))
    except (TypeError, LookupError) as error:
        found = f"a dict of {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
        raise DataError(f"{where}: expected an (image, label) pair, found {found}") from error


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
    listed = _list_labels(data)
    if listed is not None and len(listed) != len(data):
        if hasattr(data, "targets"):
            return listed  # to be refused: which of them are meant?
        listed = None
    if listed is not None and all(_is_same(listed[sample], label) for sample, label in shown.items()):
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
    transform = getattr(data, "target_transform", None)
    try:
        labels = listed.tolist() if hasattr(listed, "tolist") else list(listed)
        return [_to_number(transform(label) if callable(transform) else label) for label in labels]
    except Exception:  # it is the user's code, on what it may not be meant for: the items say what is right
        return None


def find_file(data: Any, sample: int) -> Any:
    """Return the file of an item, where a data set lists (file, label) pairs as torchvision's do; else None."""
    if isinstance(data, Subset):
        return find_file(data.dataset, data.indices[sample])
    if isinstance(data, ConcatDataset):
        part = bisect_right(data.cumulative_sizes, sample)
        return find_file(data.datasets[part], sample - (data.cumulative_sizes[part - 1] if part else 0))
    files = getattr(data, "samples", None)
    pair = files[sample] if isinstance(files, list) and len(files) == len(data) else None
    return pair[0] if isinstance(pair, tuple) and pair and isinstance(pair[0], str | Path) else None


def is_renumbered(data: Any, labels: list[Any]) -> bool:
    """Tell whether labels are other numbers than the data set's own list, so that its class names are not theirs."""
    try:
        listed = [int(target) for target in _targets(data)]
    except (TypeError, ValueError, RuntimeError):  # there are none, or no numbers
        return False
    return len(listed) == len(labels) and not _is_same(listed, labels)


def _targets(data: Any) -> Any:
    targets = getattr(data, "targets", None)
    return getattr(data, "labels", None) if targets is None else targets


def _to_number(label: Any) -> Any:
    """Return a whole number of any library as an int, and whatever else as it is."""
    value = label.item() if hasattr(label, "item") and getattr(label, "ndim", 1) == 0 else label
    return int(value) if isinstance(value, bool) else value


def _is_same(label: Any, other: Any) -> bool:
    try:
        return bool(label == other)
    except (TypeError, ValueError, RuntimeError):  # arrays, say
        return False


def describe_own_error(error: BaseException) -> str:
    """Say in one line what code of the user's own raised, and where."""
    words = (str(error).strip() or "no reason given").splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {words}{place}"


def _comes_from_decoder(error: Exception) -> bool:
    if isinstance(error, OSError | SyntaxError | EOFError | struct.error | zlib.error):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    names = (type(error).__module__, *(frame.f_globals.get("__name__", "") for frame, _ in frames))
    return any(f"{name}.".startswith(DECODERS) for name in names)
