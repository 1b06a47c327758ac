"""Stage one by torchrun: rank 0 owns the seeds, and every rank fills its share of the missing shards.

Ranks speak twice, over gloo and in JSON: rank 0 says what is to be done once the cache is open, the seeds are owned
and the views are proved; and at the end all say what they did. Who fails ends, and torchrun then ends the others.
"""

import dataclasses
import datetime
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist

from logitcache.dump import DumpConfig, DumpReport, dump, filler, owned
from logitcache.errors import ClusterError, LogitCacheError
from logitcache.fill import Progress, Receipt, Work
from logitcache.guests import Guest, Terms
from logitcache.schema import Spec
from logitcache.sources import Sources

LONGEST = datetime.timedelta(days=30)  # that ranks wait for each other; one that dies is noticed at once


@dataclass(frozen=True)
class World:
    """Which of how many ranks this process is; alone it is the only one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> Self:
        """Return what torchrun says in the environment."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        return cls(*(int(os.environ[name]) for name in names)) if all(map(os.environ.get, names)) else cls()


@dataclass(frozen=True)
class Plan(Spec):
    """What rank 0 tells the others."""

    config: DumpConfig
    terms: Terms
    work: tuple[Work, ...]


@dataclass(frozen=True)
class Done(Spec):
    """What a rank tells rank 0."""

    receipts: tuple[Receipt, ...]


def dump_in_ranks(
    world: World,
    out: str | Path,
    sources: Sources,
    config: DumpConfig,
    on_progress: Progress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> DumpReport | None:
    """Dump with all ranks of the world; what the cache then holds does not depend on how many they are.

    Each rank runs on the GPU of its local rank where `config.device` is "auto". Rank 0 loads everything first,
    so that weights are downloaded once.

    Args:
        world: this process among the others.
        out: path of the cache, which all ranks see.
        sources: teacher, data and recipe by name.
        config: as `dump` takes it.
        on_progress: called by rank 0 with (views done, views to do) of its own share.
        on_note: called by rank 0 with a line that may interest the user.

    Returns:
        Rank 0's report on all ranks; None from the others.

    Raises:
        MismatchError: this rank's teacher, data or libraries are others than rank 0's.
        ClusterError: another rank ended; it has said why.
        LogitCacheError: whatever else `dump` raises.
    """
    if config.device == "auto" and world.size > 1 and torch.cuda.is_available():
        config = dataclasses.replace(config, device=f"cuda:{world.local_rank}")
    if world.size == 1:
        images, recipe, teacher = sources.open(on_note)
        return dump(out, images, recipe, teacher, config, on_progress, on_note=on_note)
    with _meeting():
        if world.rank == 0:
            return _lead(world, out, sources, config, on_progress, on_note)
        _follow(world, out, sources, config)
    return None


def _lead(
    world: World,
    out: str | Path,
    sources: Sources,
    config: DumpConfig,
    on_progress: Progress | None,
    on_note: Callable[[str], None] | None,
) -> DumpReport:
    with ExitStack() as stack:
        try:
            images, recipe, teacher = sources.open(on_note)
            job = stack.enter_context(owned(out, images, recipe, teacher, config, on_note=on_note))
        except BaseException:
            _all_say(None)  # the others need not say so too
            raise
        spec = job.writer.spec
        config = dataclasses.replace(config, precision=spec.teacher.precision)
        _all_say(Plan(config, Terms.of(job), tuple(job.work)).to_dict())
        share = job.work[0 :: world.size]
        receipts = tuple(
            filler(spec, job.views, teacher, config, on_note).fill(job.seeds, share, on_progress)
        )
        said = _all_say(Done(receipts).to_dict())
        return job.report([receipt for done in said for receipt in Done.from_dict(done).receipts])


def _follow(world: World, out: str | Path, sources: Sources, config: DumpConfig) -> None:
    told = _all_say(None)[0]
    if told is None:
        return
    plan = Plan.from_dict(told)
    config = dataclasses.replace(plan.config, device=config.device)
    try:
        guest = Guest.join(out, sources, config, plan.terms)
    except LogitCacheError as error:
        raise error.said_by(f"rank {world.rank} on {socket.gethostname()}") from error
    receipts = guest.fill(plan.work[world.rank :: world.size])
    _all_say(Done(tuple(receipts)).to_dict())


@contextmanager
def _meeting() -> Iterator[None]:
    dist.init_process_group("gloo", timeout=LONGEST)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _all_say(word: object) -> list[Any]:
    """Let every rank say a word, a JSON value, and hear all, in the order of ranks.

    Raises:
        ClusterError: a rank has ended.
    """
    mine = torch.frombuffer(bytearray(json.dumps(word).encode()), dtype=torch.uint8)
    try:
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(lengths, torch.tensor([len(mine)]))
        longest = int(max(lengths))
        words = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
        dist.all_gather(words, torch.nn.functional.pad(mine, (0, longest - len(mine))))
    except RuntimeError as error:
        raise ClusterError(
            "another rank ended before all was done; it, or torchrun, says why; committed shards are safe"
        ) from error
    return [
        json.loads(bytes(text[: int(length)].numpy())) for text, length in zip(words, lengths, strict=True)
    ]
