"""Shared memory of worker processes: where it is short, as in a container, batches come through the pipe instead.

Torch moves a tensor that leaves a process into shared memory, and a batch for which there is no room is lost without
a word. `share_as_fits` has such tensors pickled with their bytes. Where not even a semaphore can be had, there can be
no workers: `why_no_workers` says so.
"""

import shutil
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data import get_worker_info

FOLDER = "/dev/shm"  # of Linux; other systems have no folder for it, and no such limit
KEPT_FREE = 4  # of the whole a quarter is left to semaphores, and to other programs


def share_as_fits() -> None:
    """Have tensors that go to another process take shared memory only where there is room; in workers as well."""
    ForkingPickler.register(Tensor, _reduce)
    collation = getattr(getattr(torch.utils.data, "_utils", None), "collate", None)  # where torch has it now
    known: dict[Any, Any] = getattr(collation, "default_collate_fn_map", {})
    by_torch = getattr(collation, "collate_tensor_fn", None)
    if known.get(Tensor, known) is by_torch:  # not yet ours, nor the user's
        known[Tensor] = partial(_collate, known[Tensor])


def has_room(size: int) -> bool:
    """Is there room for so many bytes of shared memory?"""
    try:
        disk = shutil.disk_usage(FOLDER)
    except OSError:
        return not sys.platform.startswith("linux")
    return not disk.total or disk.free - size >= disk.total // KEPT_FREE


def why_no_workers(context: BaseContext, workers: int) -> str:
    """Return why no so many workers can be started; "" where they can."""
    try:
        for lock in [context.Lock() for _ in range(8 + 3 * workers)]:  # what a DataLoader takes
            del lock
    except (OSError, ImportError) as error:  # ImportError: where the platform has no semaphores at all
        return getattr(error, "strerror", None) or str(error)
    return ""


def _reduce(tensor: Tensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Reduce a tensor to pickle as torch does, or to its bytes."""
    by_torch: Callable[[Tensor], tuple[Callable[..., Any], tuple[Any, ...]]] = reduce_tensor
    if not _is_plain(tensor) or tensor.is_shared():  # type: ignore[no-untyped-call]
        return by_torch(tensor)
    if has_room(tensor.untyped_storage().nbytes()):
        try:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError:  # another process was quicker
            pass
        else:
            return by_torch(tensor)
    array = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return _rebuild, (array, tensor.dtype, tensor.shape)


def _rebuild(array: np.ndarray[Any, np.dtype[np.uint8]], dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return torch.from_numpy(array).view(dtype).reshape(shape)


def _is_plain(tensor: Tensor) -> bool:
    """Is all that a tensor is in its bytes?"""
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_complex() or tensor.is_neg())
        and not tensor.is_nested
    )


def _collate(by_torch: Callable[..., Tensor], batch: list[Tensor], *, collate_fn_map: Any = None) -> Tensor:
    """Stack tensors as torch's default collation does, which in a worker does so in shared memory."""
    if get_worker_info() is not None and all(map(_is_plain, batch)):
        if not has_room(sum(tensor.nbytes for tensor in batch)):
            return torch.stack(batch)
        try:
            return by_torch(batch, collate_fn_map=collate_fn_map)
        except RuntimeError:  # another process was quicker; or they do not stack, which is said again
            return torch.stack(batch)
    return by_torch(batch, collate_fn_map=collate_fn_map)
