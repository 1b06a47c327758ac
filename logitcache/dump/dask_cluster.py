"""Stage one on dask.distributed: a task per shard, the teacher loaded once per worker, receipts of a few bytes back.

The client owns the seeds for as long as the dump takes. Workers are its guests: each proves, before it gets a task,
that it would write what the client would. Logits never pass through the scheduler, and tasks may be lost, retried or
run twice: a shard that is committed stays as it is.
"""

import asyncio
import dataclasses
import logging
import multiprocessing
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import torch

from logitcache.dump.defaults import adopted
from logitcache.dump.filler import Progress, Receipt, Work, views_of
from logitcache.dump.helper import Guest, Terms
from logitcache.dump.inputs import Sources
from logitcache.dump.job import DumpConfig, DumpReport, owned
from logitcache.errors import ClusterError, LogitCacheError, OptionError
from logitcache.format.schema import CacheSpec
from logitcache.models.forward import choose_device, choose_precision

try:
    from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, get_worker, wait
except ImportError as error:
    raise OptionError("--dask needs dask.distributed: pip install 'logitcache[cluster]'") from error

CONNECTING = 10.0  # seconds that a scheduler has to answer
JOINING = 60.0  # seconds that the first worker has to come, and that all may be gone
AHEAD = 2  # tasks per worker that the scheduler holds at once
RETRIES = 2  # of a task that fails for a reason that is not logitcache's own

Note = Callable[[str], None]
_Said = list[Receipt] | LogitCacheError


def dump_on_dask(
    where: str,
    out: str | Path,
    sources: Sources,
    config: DumpConfig,
    on_progress: Progress | None = None,
    on_note: Note | None = None,
) -> DumpReport:
    """Dump on a dask.distributed cluster; the cache is array for array that of `dump`.

    Args:
        where: "local:N" for N processes of this machine (and its GPUs in turn), or a scheduler's address.
        out: path or URL of the cache, which client and workers see.
        sources: teacher, data and recipe by name, which client and workers can open.
        config: as `dump` takes it; "auto" means what fits a worker.
        on_progress: called with (views done, views to do) as shards are committed.
        on_note: called with a line that may interest the user.

    Raises:
        MismatchError: there is another cache at `out`; or a worker's teacher, data or libraries are others.
        ClusterError: no scheduler, no workers, or a shard that every worker dies of. Committed shards stay.
        OptionError: `where` is not one of these; or workers differ in what precision fits them.
        LogitCacheError: whatever else `dump` raises, here or on a worker, in the same words.
    """
    with _connected(where, on_note) as client:
        sources, config = adopted(out, sources, config, on_note)
        if config.precision == "auto":
            config = dataclasses.replace(config, precision=_precision(client, config.device))
        images, recipe, teacher = sources.open(on_note)
        with owned(out, images, recipe, teacher, config, on_note=on_note) as job:
            del teacher
            name = f"logitcache-{uuid.uuid4().hex}"
            seen = out if "://" in str(out) else Path(out).absolute()
            settled = config.as_in(job.writer.spec)
            joining = Joining(seen, sources, settled, Terms.of(job), local=where.startswith("local:"))
            try:
                client.register_plugin(joining, name=name)
                return job.report(_gathered(client, name, job.writer.spec, job.work, on_progress))
            finally:
                if not joining.local:  # else all end with the client
                    with suppress(OSError):  # of a worker that is gone: the scheduler has forgotten us before
                        client.unregister_worker_plugin(name)


class Joining(WorkerPlugin):
    """Makes a worker a guest of the dump: teacher and data are opened there, from their names, once."""

    guest: Guest | None = None

    def __init__(
        self, out: str | Path, sources: Sources, config: DumpConfig, terms: Terms, *, local: bool
    ) -> None:
        self.out, self.sources, self.config, self.terms, self.local = out, sources, config, terms, local

    async def setup(self, worker: Worker) -> None:
        """Join, on a thread of its own: the worker has to answer its scheduler meanwhile."""
        multiprocessing.current_process().daemon = False  # a daemon may have no processes that make views
        multiprocessing.set_forkserver_preload(
            ["logitcache.views.loader"]
        )  # which begin anew with every shard
        config = dataclasses.replace(self.config, start_method=self.config.start_method or "forkserver")
        if self.local and config.device == "auto" and (gpus := torch.cuda.device_count()):
            config = dataclasses.replace(config, device=f"cuda:{int(worker.name) % gpus}")
        try:
            self.guest = await asyncio.to_thread(Guest.join, self.out, self.sources, config, self.terms)
        except LogitCacheError as error:
            raise error.said_by(f"worker {worker.address}") from error

    def teardown(self, worker: Worker) -> None:
        """Let teacher and data go."""
        self.guest = None


def fill_shard(name: str, part: Work) -> _Said:
    """Fill one shard on the worker that runs this, a guest by the plugin of that name.

    An error of ours is returned: it is the same on every worker, so nothing is gained by retrying.
    """
    joined = get_worker().plugins[name]
    assert isinstance(joined, Joining)
    assert joined.guest is not None
    try:
        return joined.guest.fill([part])
    except LogitCacheError as error:
        return error


# The cluster ----------------------------------------------------------------------------------------------


@contextmanager
def _connected(where: str, on_note: Note | None) -> Iterator[Client]:
    """Reach a cluster, or start one here, and wait for its first worker."""
    local = re.fullmatch(r"local:(\d+)", where)
    if not (local and int(local[1])) and not re.fullmatch(r"(tcp|tls|ucx|wss?)://.+", where):
        raise OptionError(f"--dask takes local:N or a scheduler's address, tcp://HOST:PORT; found {where!r}")
    with _named(where):
        if not local:
            with _reached(where) as client, client.as_current():
                yield _with_workers(client, where, on_note)
            return
        count = int(local[1])
        with (
            LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
            client.as_current(),
        ):
            yield _with_workers(client, where, on_note)


def _reached(where: str) -> Client:
    try:
        return Client(where, timeout=CONNECTING, set_as_default=False)
    except OSError as error:
        raise ClusterError(
            f"no scheduler answers at {where} within {CONNECTING:.0f} s; check that the address is the one that "
            "`dask scheduler` printed, that it runs, and that no firewall is between"
        ) from error


def _with_workers(client: Client, where: str, on_note: Note | None) -> Client:
    try:
        client.wait_for_workers(1, timeout=JOINING)
    except TimeoutError as error:
        raise ClusterError(
            f"the scheduler at {where} has no workers after {JOINING:.0f} s; start some with `dask worker {where}`"
        ) from error
    if on_note and client.dashboard_link:
        on_note(f"dask's dashboard: {client.dashboard_link}")
    return client


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Say in one line what went wrong with a cluster."""
    try:
        yield
    except LogitCacheError:
        raise
    except KilledWorker as error:
        raise ClusterError(
            f"{error.allowed_failures + 1} workers died one after another of the same shard, the last being "
            f"{error.last_worker.address}; mostly memory was short: use fewer --workers or a smaller --batch-size, "
            "and start again to go on"
        ) from error
    except (OSError, CancelledError) as error:
        raise ClusterError(
            f"lost touch with the scheduler or a worker of {where} ({_short(error)}); "
            "committed shards are safe, start again to go on"
        ) from error
    except Exception as error:
        raise ClusterError(
            f"a worker of {where} failed ({_short(error)}); its log says more; it needs the same libraries as this "
            "machine; committed shards are safe, start again to go on"
        ) from error


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _precision(client: Client, device: str) -> str:
    """Return the precision that fits the workers."""
    found = client.run(_fitting, device)
    if len(chosen := set(found.values())) > 1:
        rows = ", ".join(f"{worker}: {precision}" for worker, precision in sorted(found.items()))
        raise OptionError(f"workers differ in the precision that fits them ({rows}); choose with --precision")
    return str(chosen.pop())


def _fitting(device: str) -> str:
    return choose_precision("auto", choose_device(device))


# The tasks ------------------------------------------------------------------------------------------------


def _gathered(
    client: Client, name: str, spec: CacheSpec, work: Sequence[Work], on_progress: Progress | None
) -> list[Receipt]:
    """Have all shards filled, a few tasks per worker at a time."""
    total, receipts = views_of(spec, work), list[Receipt]()
    left = iter(work)
    waiting: set[Future[_Said]] = set()
    while True:
        free = AHEAD * max(1, len(client.nthreads())) - len(waiting)
        waiting |= {_submitted(client, name, part) for part in islice(left, max(0, free))}
        if not waiting:
            return receipts
        try:
            ready = wait(waiting, timeout=JOINING, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            if not client.nthreads():
                raise ClusterError(
                    f"all workers are gone, for {JOINING:.0f} s; committed shards are safe, start again to go on"
                ) from None
            continue
        for future in ready:
            said = future.result()
            if isinstance(said, LogitCacheError):
                raise said
            receipts += said
            if on_progress:
                on_progress(sum(r.views for r in receipts), total)
        waiting -= ready


def _submitted(client: Client, name: str, part: Work) -> "Future[_Said]":
    key = (f"dump-{name}", part.seeds, part.shard)
    return client.submit(fill_shard, name, part, key=key, pure=False, retries=RETRIES)
