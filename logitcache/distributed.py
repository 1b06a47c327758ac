"""Several processes that work as one under torchrun: which of them this is, and how they speak with each other."""

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

LONGEST = datetime.timedelta(days=30)  # that ranks wait for each other; one that dies is noticed at once


@dataclass(frozen=True)
class World:
    """Which of how many ranks this process is; alone it is the only one, and speaks with nobody."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> Self:
        """Return what torchrun says in the environment.

        Raises:
            OptionError: it says something else than which of how many ranks this is.
        """
        said = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        if not all(said.values()):
            return cls()
        here = cls(*(int(word) if word.isdecimal() else -1 for word in said.values()))
        if not (0 <= here.rank < here.size and here.local_rank >= 0):
            told = " ".join(f"{name}={word}" for name, word in said.items())
            raise OptionError(
                f"expected ranks from 0 as torchrun sets them, found {told}; unset them, or use torchrun"
            )
        return here

    def device(self, asked: str) -> str:
        """Return the device to take: the GPU of the local rank where "auto" is asked for."""
        if asked == "auto" and self.size > 1 and torch.cuda.is_available():
            return f"cuda:{self.local_rank}"
        return asked

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Open the lines between ranks: gloo, and NCCL for what is on GPUs."""
        if self.size == 1:
            yield
            return
        if self.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(self.local_rank)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=LONGEST)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def require_meeting(self) -> None:
        """Insist that the lines are open, to as many ranks as these are.

        Raises:
            OptionError: they are not.
        """
        found = dist.get_world_size() if dist.is_initialized() else 0
        if self.size > 1 and found != self.size:
            raise OptionError(
                f"a stream dealt to {self.size} ranks needs a process group of as many, found {found}; start with "
                "torchrun and call torch.distributed.init_process_group"
            )

    def all_say(self, word: object) -> list[Any]:
        """Let every rank say a word, a JSON value, and hear all, in the order of ranks.

        Raises:
            ClusterError: a rank has ended.
        """
        if self.size == 1:
            return [word]
        mine = torch.frombuffer(bytearray(json.dumps(word).encode()), dtype=torch.uint8)
        with lost_ranks_named():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(mine)]))
            longest = int(max(lengths))
            words = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
            dist.all_gather(words, torch.nn.functional.pad(mine, (0, longest - len(mine))))
        return [
            json.loads(bytes(text[: int(length)].numpy()))
            for text, length in zip(words, lengths, strict=True)
        ]

    def any_says(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any rank has it.

        Raises:
            ClusterError: a rank has ended.
        """
        if self.size == 1:
            return list(flags)
        said = torch.tensor(flags, dtype=torch.uint8)
        with lost_ranks_named():
            dist.all_reduce(said, dist.ReduceOp.MAX)
        return said.bool().tolist()

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Give every rank rank 0's buffers, such as a batch norm's running statistics, of the same modules.

        Raises:
            ClusterError: a rank has ended.
        """
        if self.size > 1:
            with lost_ranks_named():
                for buffer in (buffer for module in modules for buffer in module.buffers()):
                    dist.broadcast(buffer, 0)

    def summed(self, numbers: Tensor) -> Tensor:
        """Return the sum over all ranks.

        Raises:
            ClusterError: a rank has ended.
        """
        if self.size > 1:
            numbers = numbers.clone()
            with lost_ranks_named():
                dist.all_reduce(numbers)
        return numbers


@contextmanager
def lost_ranks_named() -> Iterator[None]:
    """Say in one line of ours that another rank has ended.

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
