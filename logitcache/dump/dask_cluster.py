"""A dump on dask.distributed: a task per shard, the teacher loaded once per worker, a few bytes of report per shard.

The client holds the locks of the seeds for as long as the dump takes. Workers are its helpers: each proves, before it
gets a task, that it would write what the client would. Logits never pass through the scheduler, and tasks may be
lost, retried or run twice: a shard that is committed stays as it is.
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
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from logitcache.dump.calibration import CALIBRATION_SEED, Calibrated, calibrate_by
from logitcache.dump.defaults import adopt_defaults
from logitcache.dump.filler import OnViewsDone, ShardReport, ShardTask, ViewsDone, count_views
from logitcache.dump.helper import DumpIdentity, Helper
from logitcache.dump.inputs import DumpInputs
from logitcache.dump.job import DumpReport, cache_spec, open_seeds
from logitcache.dump.pipeline import load_pipeline
from logitcache.dump.settings import DumpConfig
from logitcache.errors import ClusterError, LogitCacheError, MismatchError, OptionError
from logitcache.format.schema import CacheSpec
from logitcache.models.forward import choose_device, choose_precision
from logitcache.paths import expand_home
from logitcache.store import CacheWriter
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.shared_memory import why_no_workers

try:
    from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, get_worker, wait
except ImportError as error:
    raise OptionError("--dask needs dask.distributed: pip install 'logitcache[cluster]'") from error

CONNECT_SECONDS = 10.0  # that a scheduler has to answer
WORKER_SECONDS = 60.0  # that the first worker has to come, and that all may be gone
TASKS_PER_WORKER = 2  # that the scheduler holds at once
RETRIES = 2  # of a task that fails for a reason that is not logitcache's own

_Result = list[ShardReport] | LogitCacheError  # of a task


def dump_on_dask(
    address: str,
    out: str | Path,
    inputs: DumpInputs,
    config: DumpConfig,
    on_progress: OnViewsDone | None = None,
    on_note: Callable[[str], None] | None = None,
) -> DumpReport:
    """Dump on a dask.distributed cluster; the cache is array for array that of `dump`.

    Args:
        address: "local:N" for N processes of this machine (and its GPUs in turn), or a scheduler's address.
        out: path or URL of the cache, which client and workers see.
        inputs: teacher, data and recipe by name, which client and workers can open.
        config: as `dump` takes it; "auto" means what fits a worker.
        on_progress: called as shards are committed.
        on_note: called with a line that may interest the user.

    Raises:
        MismatchError: there is another cache at `out`; or a worker's teacher, data or libraries are others.
        ClusterError: no scheduler, no workers, or a shard that every worker dies of. Committed shards stay.
        OptionError: `address` is not one of these; or workers differ in what precision fits them.
        LogitCacheError: whatever else `dump` raises, here or on a worker, in the same words.
    """
    with _connect(address, on_note) as client:
        cache = CacheWriter.find(out)
        inputs, config = adopt_defaults(cache, inputs, config, on_note)
        if config.precision == "auto":
            config = dataclasses.replace(config, precision=_precision_of_workers(client, config.device))
        images, recipe, teacher = inputs.open(on_note)
        local = address.startswith("local:")
        views = KeyedViews(images, recipe, config.on_bad_image)
        calibrate = partial(_calibrate_on_worker, client, inputs, config, views, local)
        with open_seeds(
            out, cache, images, recipe, teacher, config, on_note=on_note, calibrate=calibrate
        ) as job:
            del teacher
            spec, name = job.writer.spec, f"logitcache-{uuid.uuid4().hex}"
            seen_by_workers = out if "://" in str(out) else expand_home(out).absolute()
            plugin = HelperPlugin(
                seen_by_workers,
                inputs,
                config.with_defaults_of(spec),
                DumpIdentity.of(job),
                local=local,
            )
            try:
                client.register_plugin(plugin, name=name)
                return job.report(_run_tasks(client, name, spec, job.tasks, on_progress))
            finally:
                if not plugin.local:  # else all end with the client
                    with suppress(OSError):  # of a worker that is gone: the scheduler has forgotten us before
                        client.unregister_worker_plugin(name)


class HelperPlugin(WorkerPlugin):
    """Makes a worker a helper of the dump: teacher and data are opened there, from their names, once."""

    helper: Helper | None = None

    def __init__(
        self, out: str | Path, inputs: DumpInputs, config: DumpConfig, identity: DumpIdentity, *, local: bool
    ) -> None:
        self.out, self.inputs, self.config, self.identity, self.local = out, inputs, config, identity, local

    async def setup(self, worker: Worker) -> None:
        """Join the dump, on a thread of its own: the worker has to answer its scheduler meanwhile."""
        config = _fit_worker(self.config, worker, local=self.local)
        try:
            self.helper = await asyncio.to_thread(Helper.join, self.out, self.inputs, config, self.identity)
        except LogitCacheError as error:
            raise error.with_prefix(f"worker {worker.address}") from error

    def teardown(self, worker: Worker) -> None:
        """Let teacher and data go."""
        self.helper = None


def _fit_worker(config: DumpConfig, worker: Worker, *, local: bool) -> DumpConfig:
    """Make a worker able to load views in processes of its own; return its settings, with a local one's own GPU."""
    multiprocessing.current_process().daemon = False  # a daemon may have no processes that make views
    multiprocessing.set_forkserver_preload(["logitcache.views.loader"])  # these begin anew with every shard
    config = dataclasses.replace(config, start_method=config.start_method or "forkserver")
    if local and config.device == "auto" and (gpus := torch.cuda.device_count()):
        config = dataclasses.replace(config, device=f"cuda:{int(worker.name) % gpus}")
    return config


def calibrate_here(
    inputs: DumpInputs, config: DumpConfig, identity: DumpIdentity, count: int, *, local: bool
) -> Calibrated | LogitCacheError:
    """Calibrate a new cache on the worker that runs this, which first proves to be as the client is.

    An error of ours is returned, as by `fill_shard`.
    """
    worker = get_worker()
    try:
        config = _fit_worker(config, worker, local=local)
        images, recipe, teacher = inputs.open()
        spec, views = (
            cache_spec(images, recipe, teacher, config),
            KeyedViews(images, recipe, config.on_bad_image),
        )
        try:
            identity.require_libraries()
            identity.require(spec, views)
        except MismatchError as error:
            return error.with_prefix(f"worker {worker.address}")
        return calibrate_by(load_pipeline(views, teacher, spec.teacher.precision, config), count, spec)
    except LogitCacheError as error:
        return error


def fill_shard(name: str, task: ShardTask) -> _Result:
    """Fill one shard on the worker that runs this, a helper by the plugin of that name.

    An error of ours is returned: it is the same on every worker, so nothing is gained by retrying.
    """
    plugin = get_worker().plugins[name]
    assert isinstance(plugin, HelperPlugin)
    assert plugin.helper is not None
    try:
        return plugin.helper.fill([task])
    except LogitCacheError as error:
        return error


# The cluster ----------------------------------------------------------------------------------------------


@contextmanager
def _connect(address: str, on_note: Callable[[str], None] | None) -> Iterator[Client]:
    """Reach a cluster, or start one here, and wait for its first worker."""
    local = re.fullmatch(r"local:(\d+)", address)
    if not (local and int(local[1])) and not re.fullmatch(r"(tcp|tls|ucx|wss?)://.+", address):
        raise OptionError(
            f"--dask takes local:N or a scheduler's address, tcp://HOST:PORT; found {address!r}"
        )
    with _name_failures(address):
        if not local:
            with _reach(address) as client, client.as_current():
                yield _wait_for_workers(client, address, on_note)
            return
        count = int(local[1])
        if reason := why_no_workers(multiprocessing.get_context("spawn"), count):
            raise ClusterError(
                f"{address}: no processes can be started here, for want of shared memory ({reason}); leave out "
                "--dask, or in a container give --shm-size=1g"
            )
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
            yield _wait_for_workers(client, address, on_note)


def _reach(address: str) -> Client:
    try:
        return Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except OSError as error:
        raise ClusterError(
            f"no scheduler answers at {address} within {CONNECT_SECONDS:.0f} s; check that the address is the one "
            "that `dask scheduler` printed, that it runs, and that no firewall is between"
        ) from error


def _wait_for_workers(client: Client, address: str, on_note: Callable[[str], None] | None) -> Client:
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError as error:
        raise ClusterError(
            f"the scheduler at {address} has no workers after {WORKER_SECONDS:.0f} s; "
            f"start some with `dask worker {address}`"
        ) from error
    if on_note and client.dashboard_link:
        on_note(f"dask's dashboard: {client.dashboard_link}")
    return client


@contextmanager
def _name_failures(address: str) -> Iterator[None]:
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
            f"lost touch with the scheduler or a worker of {address} ({_shorten(error)}); "
            "committed shards are safe, start again to go on"
        ) from error
    except Exception as error:
        raise ClusterError(
            f"a worker of {address} failed ({_shorten(error)}); its log says more; it needs the same libraries as "
            "this machine; committed shards are safe, start again to go on"
        ) from error


def _shorten(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _precision_of_workers(client: Client, device: str) -> str:
    """Return the precision that fits the workers."""
    found = client.run(_precision_here, device)
    if len(chosen := set(found.values())) > 1:
        rows = ", ".join(f"{worker}: {precision}" for worker, precision in sorted(found.items()))
        raise OptionError(f"workers differ in the precision that fits them ({rows}); choose with --precision")
    return str(chosen.pop())


def _precision_here(device: str) -> str:
    return choose_precision("auto", choose_device(device))


def _calibrate_on_worker(
    client: Client,
    inputs: DumpInputs,
    config: DumpConfig,
    views: KeyedViews,
    local: bool,
    count: int,
    spec: CacheSpec,
) -> Calibrated:
    """Have one worker calibrate: the client may have no GPU."""
    identity = DumpIdentity.of_new(spec, views, CALIBRATION_SEED)
    task = client.submit(
        calibrate_here, inputs, config, identity, count, local=local, pure=False, retries=RETRIES
    )
    try:
        result: Calibrated | LogitCacheError = task.result()
    except KilledWorker as error:
        raise ClusterError(
            f"{error.allowed_failures + 1} workers died one after another as they calibrated, the last being "
            f"{error.last_worker.address}; mostly memory was short: use fewer --workers or a smaller --batch-size"
        ) from error
    if isinstance(result, LogitCacheError):
        raise result
    return result


# The tasks ------------------------------------------------------------------------------------------------


def _run_tasks(
    client: Client,
    name: str,
    spec: CacheSpec,
    tasks: Sequence[ShardTask],
    on_progress: OnViewsDone | None,
) -> list[ShardReport]:
    """Have all shards filled, a few tasks per worker at a time."""
    total, reports = count_views(spec, tasks), list[ShardReport]()
    left = iter(tasks)
    pending: set[Future[_Result]] = set()
    while True:
        free = TASKS_PER_WORKER * max(1, len(client.nthreads())) - len(pending)
        pending |= {_submit(client, name, task) for task in islice(left, max(0, free))}
        if not pending:
            return reports
        try:
            done = wait(pending, timeout=WORKER_SECONDS, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            if not client.nthreads():
                raise ClusterError(
                    f"all workers are gone, for {WORKER_SECONDS:.0f} s; "
                    "committed shards are safe, start again to go on"
                ) from None
            continue
        for future in done:
            result = future.result()
            if isinstance(result, LogitCacheError):
                raise result
            reports += result
            if on_progress:
                on_progress(ViewsDone(sum(report.views for report in reports), total))
        pending -= done


def _submit(client: Client, name: str, task: ShardTask) -> "Future[_Result]":
    key = (f"dump-{name}", task.seeds, task.shard)
    return client.submit(fill_shard, name, task, key=key, pure=False, retries=RETRIES)
