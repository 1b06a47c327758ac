"""Stage one by torchrun: rank 0 owns the seeds, and every rank fills its share of the missing shards.

Ranks speak twice, over gloo and in JSON: rank 0 says what is to be done once the cache is open, the seeds are owned
and the views are proved; and at the end all say what they did. Who fails ends, and torchrun then ends the others.
"""

import dataclasses
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from logitcache.distributed import World
from logitcache.dump.defaults import adopted
from logitcache.dump.filler import Progress, Receipt, Work
from logitcache.dump.helper import Guest, Terms
from logitcache.dump.inputs import Sources
from logitcache.dump.job import DumpConfig, DumpReport, dump, filler, owned
from logitcache.errors import LogitCacheError
from logitcache.format.spec import Spec


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
    config = dataclasses.replace(config, device=world.choose_device(config.device))
    if world.size == 1:
        sources, config = adopted(out, sources, config, on_note)
        images, recipe, teacher = sources.open(on_note)
        return dump(out, images, recipe, teacher, config, on_progress, on_note=on_note)
    with world.process_group():
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
            sources, config = adopted(out, sources, config, on_note)
            images, recipe, teacher = sources.open(on_note)
            job = stack.enter_context(owned(out, images, recipe, teacher, config, on_note=on_note))
        except BaseException:
            world.broadcast(None)  # the others need not say so too
            raise
        spec = job.writer.spec
        config = config.as_in(spec)
        world.broadcast(Plan(config, Terms.of(job), tuple(job.work)).to_dict())
        share = job.work[0 :: world.size]
        receipts = tuple(
            filler(spec, job.views, teacher, config, on_note).fill(job.seeds, share, on_progress)
        )
        said = world.all_gather(Done(receipts).to_dict())
        return job.report([receipt for done in said for receipt in Done.from_dict(done).receipts])


def _follow(world: World, out: str | Path, sources: Sources, config: DumpConfig) -> None:
    told = world.broadcast()
    if told is None:
        return
    plan = Plan.from_dict(told)
    config = dataclasses.replace(plan.config, device=config.device)
    try:
        guest = Guest.join(out, sources, config, plan.terms)
    except LogitCacheError as error:
        raise error.said_by(f"rank {world.rank} on {socket.gethostname()}") from error
    receipts = guest.fill(plan.work[world.rank :: world.size])
    world.all_gather(Done(tuple(receipts)).to_dict())
