"""Several processes that work as one under torchrun: which rank this process is, and what ranks exchange.

`World` is one process among the others. Alone it is the only one: then its collectives return at once what they are
given, and no process group is needed.
"""

import datetime
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from logitcache.errors import ClusterError, OptionError

TIMEOUT = datetime.timedelta(days=30)  # of a collective; a rank that dies is noticed at once


@dataclass(frozen=True)
class World:
    """This process among those that work together; by default the only one.

    Attributes:
        rank: of this process, from 0.
        size: number of ranks.
        local_rank: rank among the processes of this node.

    Raises:
        OptionError: there is no such rank among so many.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise OptionError(f"rank must be 0 to {self.size - 1} of {self.size}, found {self.rank}")

    @classmethod
    def from_environment(cls) -> Self:
        """Return what torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; without all three, a world of one.

        Raises:
            OptionError: they do not say which of how many ranks this is.
        """
        texts = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        if not all(texts.values()):
            return cls()
        rank, size, local_rank = (int(text) if text.isdecimal() else -1 for text in texts.values())
        if not (0 <= rank < size and local_rank >= 0):
            found = " ".join(f"{name}={text}" for name, text in texts.items())
            raise OptionError(
                f"expected ranks from 0 as torchrun sets them, found {found}; unset them, or use torchrun"
            )
        return cls(rank, size, local_rank)

    @classmethod
    def from_process_group(cls) -> Self:
        """Return rank and size in torch's process group; without one, a world of one."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def choose_device(self, device: str) -> str:
        """Return the device to use: for "auto" the GPU of the local rank, where there are several ranks and GPUs."""
        if device == "auto" and self.size > 1 and torch.cuda.is_available():
            return f"cuda:{self.local_rank}"
        return device

    @contextmanager
    def process_group(self) -> Iterator[None]:
        """Initialise torch's process group, and destroy it afterwards: gloo, and NCCL for tensors on GPUs."""
        if self.size == 1:
            yield
            return
        if self.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(self.local_rank)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def require_process_group(self) -> None:
        """Insist on a process group of as many ranks as these are.

        Raises:
            OptionError: there is none.
        """
        found = dist.get_world_size() if dist.is_initialized() else 0
        if self.size > 1 and found != self.size:
            raise OptionError(
                f"a stream dealt to {self.size} ranks needs a process group of as many, found {found}; start with "
                "torchrun and call torch.distributed.init_process_group"
            )

    def all_gather(self, value: object) -> list[Any]:
        """All-gather a JSON value: return every rank's, in the order of ranks.

        Raises:
            ClusterError: a rank has ended.
        """
        if self.size == 1:
            return [value]
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with name_lost_ranks():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(mine)]))
            longest = int(max(lengths))
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
            dist.all_gather(texts, torch.nn.functional.pad(mine, (0, longest - len(mine))))
        return [
            json.loads(bytes(text[: int(length)].numpy()))
            for text, length in zip(texts, lengths, strict=True)
        ]

    def broadcast(self, value: object = None) -> Any:
        """Return rank 0's JSON value on every rank; what the others give is ignored.

        Raises:
            ClusterError: a rank has ended.
        """
        return self.all_gather(value)[0]

    def all_reduce_any(self, *flags: bool) -> list[bool]:
        """All-reduce flags: return for each whether it is set on any rank.

        Raises:
            ClusterError: a rank has ended.
        """
        if self.size == 1:
            return list(flags)
        reduced = torch.tensor(flags, dtype=torch.uint8)
        with name_lost_ranks():
            dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return reduced.bool().tolist()

    def all_reduce_sum(self, numbers: Tensor) -> Tensor:
        """All-reduce a tensor: return its sum over all ranks, and leave the one given as it is.

        Raises:
            ClusterError: a rank has ended.
        """
        if self.size > 1:
            numbers = numbers.clone()
            with name_lost_ranks():
                dist.all_reduce(numbers)
        return numbers

    def broadcast_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Give the same modules of every rank rank 0's buffers, such as a batch norm's running statistics.

        Raises:
            ClusterError: a rank has ended.
        """
        if self.size > 1:
            with name_lost_ranks():
                for buffer in (buffer for module in modules for buffer in module.buffers()):
                    dist.broadcast(buffer, 0)


ALONE = World()


@contextmanager
def name_lost_ranks() -> Iterator[None]:
    """Raise one line of ours in place of torch's errors where another rank has ended.

    Raises:
        ClusterError: one has.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise ClusterError(
            "another rank ended before all was done; it, or torchrun, says why; what was committed or saved is safe, "
            "start all again to go on"
        ) from error
