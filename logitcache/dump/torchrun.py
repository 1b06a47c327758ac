"""A dump under torchrun: rank 0 holds the locks of the seeds, and every rank fills its share of the missing shards.

Ranks speak twice, over gloo and in JSON. Rank 0 sends the tasks once the cache is open, the seeds are locked and the
views are proved; at the end every rank sends what it did. A rank that fails ends, and torchrun then ends the others.
"""

import dataclasses
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from logitcache.distributed import World
from logitcache.dump.defaults import adopt_defaults
from logitcache.dump.filler import Filler, OnViewsDone, ShardReport, ShardTask
from logitcache.dump.helper import DumpIdentity, Helper
from logitcache.dump.inputs import DumpInputs
from logitcache.dump.job import DumpReport, open_seeds
from logitcache.dump.settings import DumpConfig
from logitcache.errors import LogitCacheError
from logitcache.format.spec import Spec
from logitcache.store import CacheWriter


@dataclass(frozen=True)
class RankTasks(Spec):
    """What rank 0 sends: its settings and identity, and the tasks of all ranks."""

    config: DumpConfig
    identity: DumpIdentity
    tasks: tuple[ShardTask, ...]


@dataclass(frozen=True)
class RankReport(Spec):
    """What every rank sends at the end: the shards that it filled."""

    shards: tuple[ShardReport, ...]


def dump_under_torchrun(
    world: World,
    out: str | Path,
    inputs: DumpInputs,
    config: DumpConfig,
    on_progress: OnViewsDone | None = None,
    on_note: Callable[[str], None] | None = None,
) -> DumpReport | None:
    """Dump with all ranks that torchrun started, or alone; what the cache then holds does not depend on their number.

    Each rank runs on the GPU of its local rank where `config.device` is "auto". Rank 0 loads everything first,
    so that weights are downloaded once.

    Args:
        world: this process among the others.
        out: path or URL of the cache, which all ranks see.
        inputs: teacher, data and recipe by name.
        config: as `dump` takes it.
        on_progress: called by rank 0 with the progress of its own share.
        on_note: called by rank 0 with a line that may interest the user.

    Returns:
        Rank 0's report on all ranks; None from the others.

    Raises:
        MismatchError: this rank's teacher, data or libraries are others than rank 0's.
        ClusterError: another rank ended; it has said why.
        LogitCacheError: whatever else `dump` raises.
    """
    config = dataclasses.replace(config, device=world.choose_device(config.device))
    with world.process_group():
        if world.rank == 0:
            return _dump_as_rank_0(world, out, inputs, config, on_progress, on_note)
        _help_rank_0(world, out, inputs, config)
    return None


def _dump_as_rank_0(
    world: World,
    out: str | Path,
    inputs: DumpInputs,
    config: DumpConfig,
    on_progress: OnViewsDone | None,
    on_note: Callable[[str], None] | None,
) -> DumpReport:
    with ExitStack() as stack:
        try:
            cache = CacheWriter.find(out)
            inputs, config = adopt_defaults(cache, inputs, config, on_note)
            images, recipe, teacher = inputs.open(on_note)
            job = stack.enter_context(
                open_seeds(out, cache, images, recipe, teacher, config, on_note=on_note)
            )
        except BaseException:
            world.broadcast(None)  # the others end without a word
            raise
        spec = job.writer.spec
        config = config.with_defaults_of(spec)
        if world.size > 1:
            world.broadcast(RankTasks(config, DumpIdentity.of(job), tuple(job.tasks)).to_dict())
        filler = Filler.load(spec, job.views, teacher, config, on_note)
        shards = filler.fill(job.seed_writers, job.tasks[:: world.size], on_progress)
        gathered = world.all_gather(RankReport(tuple(shards)).to_dict())
        return job.report([shard for report in gathered for shard in RankReport.from_dict(report).shards])


def _help_rank_0(world: World, out: str | Path, inputs: DumpInputs, config: DumpConfig) -> None:
    message = world.broadcast()
    if message is None:  # rank 0 failed, and says why
        return
    sent = RankTasks.from_dict(message)
    config = dataclasses.replace(sent.config, device=config.device)
    try:
        helper = Helper.join(out, inputs, config, sent.identity)
    except LogitCacheError as error:
        raise error.with_prefix(f"rank {world.rank} on {socket.gethostname()}") from error
    shards = helper.fill(sent.tasks[world.rank :: world.size])
    world.all_gather(RankReport(tuple(shards)).to_dict())
