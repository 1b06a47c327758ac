"""Many processes, one cache: array for array that of one process, whoever dies, comes twice or differs."""

import dataclasses
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np
import pytest
import torchvision
from dumping import arrays_of, assert_same
from in_ranks import free_port
from pictures import picture_folder
from small_teachers import FLAG
from statistics_numbers import numbers_of

from logitcache.distributed import World
from logitcache.dump.calibration import CALIBRATION_SEED, calibrate_by
from logitcache.dump.dask_cluster import calibrate_here, dump_on_dask
from logitcache.dump.filler import ShardTask, ViewsDone
from logitcache.dump.helper import DumpIdentity, Helper
from logitcache.dump.inputs import DumpInputs
from logitcache.dump.job import DumpReport, cache_spec, dump, open_seeds
from logitcache.dump.pipeline import load_pipeline
from logitcache.dump.settings import DumpConfig
from logitcache.dump.torchrun import dump_under_torchrun
from logitcache.errors import (
    ClusterError,
    DataError,
    LogitCacheError,
    MismatchError,
    NonFiniteError,
    OptionError,
)
from logitcache.store import CacheReader, CacheWriter
from logitcache.views.keyed_views import KeyedViews

CONFIG = DumpConfig(seeds=(0, 1), top_k=4, shard_samples=256, batch_size=64, workers=0)
INPUTS = DumpInputs("digits_small", weights="random")
SHARDS = 12


def alone(out: Path, inputs: DumpInputs = INPUTS, config: DumpConfig = CONFIG) -> DumpReport:
    images, recipe, teacher = inputs.open()
    return dump(out, images, recipe, teacher, config)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "c.zarr"
    alone(out)
    return out


# dask -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[distributed.LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FLAG, str(tmp_path_factory.mktemp("flag") / "killed"))
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
            distributed.LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",
                silence_logs=60,
                memory_limit=0,
            ) as cluster,
        ):
            yield cluster


def test_a_worker_killed_at_its_work_changes_nothing(
    cluster: distributed.LocalCluster, tmp_path: Path
) -> None:
    inputs = dataclasses.replace(INPUTS, teacher="small_teachers:fatal", data="digits")
    seen: list[ViewsDone] = []
    report = dump_on_dask(cluster.scheduler_address, tmp_path / "c.zarr", inputs, CONFIG, seen.append)
    assert Path(os.environ[FLAG]).exists()  # it did kill one
    assert (report.views, report.views_in_cache, report.shards_written) == (2874, 2874, SHARDS)
    assert seen[-1] == ViewsDone(2874, 2874)
    assert [views.done for views in seen] == sorted({views.done for views in seen})
    alone(tmp_path / "one.zarr", inputs)
    assert_same(tmp_path / "c.zarr", tmp_path / "one.zarr")
    again = dump_on_dask(cluster.scheduler_address, tmp_path / "c.zarr", inputs, CONFIG)
    assert (again.views, again.views_in_cache) == (0, 2874)


def test_a_worker_has_processes_that_make_the_views_of_several_seeds(
    cluster: distributed.LocalCluster, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, shard_samples=2048, seeds_per_pass=2)
    alone(tmp_path / "one.zarr", config=config)
    report = dump_on_dask(
        cluster.scheduler_address, tmp_path / "c.zarr", INPUTS, dataclasses.replace(config, workers=1)
    )
    assert report.shards_written == 2
    assert_same(tmp_path / "c.zarr", tmp_path / "one.zarr")


def test_an_error_on_a_worker_reads_as_in_one_process(
    cluster: distributed.LocalCluster, tmp_path: Path
) -> None:
    images = f"imagefolder:{picture_folder(tmp_path / 'pets', bad=3)}"
    pets = DumpInputs("resnet20", "random", images, "imagenet@32")
    bad: list[tuple[type[LogitCacheError], DumpInputs]] = [
        (NonFiniteError, dataclasses.replace(INPUTS, teacher="small_teachers:infinite")),
        (DataError, pets),
    ]
    whole = dataclasses.replace(CONFIG, seeds=(0,), shard_samples=2048)  # one task, so one error is first
    infinite = dataclasses.replace(INPUTS, teacher="small_teachers:infinite")
    with pytest.raises(NonFiniteError, match="calibration") as here:
        alone(tmp_path / "one.zarr", infinite, dataclasses.replace(whole, top_k=1))
    with pytest.raises(NonFiniteError) as there:
        dump_on_dask(
            cluster.scheduler_address, tmp_path / "c.zarr", infinite, dataclasses.replace(whole, top_k=1)
        )
    assert str(there.value) == str(here.value)
    assert not (tmp_path / "c.zarr").exists()
    config = dataclasses.replace(whole, calibration=0)
    for kind, inputs in bad:
        with pytest.raises(kind) as here:
            alone(tmp_path / "one.zarr", inputs, config)
        with pytest.raises(kind) as there:
            dump_on_dask(cluster.scheduler_address, tmp_path / "c.zarr", inputs, config)
        assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))
        for name in ("one.zarr", "c.zarr"):
            assert not any(CacheReader(tmp_path / name).commits(0))
            (tmp_path / name).rename(tmp_path / f"{kind.__name__}-{name}")
    skipping = dataclasses.replace(config, on_bad_image="skip")
    assert dump_on_dask(cluster.scheduler_address, tmp_path / "c.zarr", pets, skipping).bad_images == 1


def _call_yourself(version: str) -> str:
    """Be another torchvision, as far as anybody can tell."""
    was, torchvision.__version__ = torchvision.__version__, version
    return str(was)


def test_a_worker_with_another_torchvision_is_refused(
    cluster: distributed.LocalCluster, tmp_path: Path
) -> None:
    with distributed.Client(cluster, set_as_default=False) as client:
        odd = max(client.nthreads())
        (was,) = client.run(_call_yourself, "0.1.0", workers=[odd]).values()
        try:
            versions = rf"torchvision: expected {re.escape(was.split('+')[0])}, found 0\.1\.0"
            refusal = rf"worker {re.escape(odd)}: .*{versions}"
            with pytest.raises(MismatchError, match=refusal) as said:
                dump_on_dask(cluster.scheduler_address, tmp_path / "c.zarr", INPUTS, CONFIG)
            assert "\n" not in str(said.value)
            assert [f.field for f in said.value.fields] == ["torchvision"]
        finally:
            client.run(_call_yourself, was, workers=[odd])
    there = (tmp_path / "c.zarr").exists()  # not if that worker was to calibrate
    assert not there or not any(CacheReader(tmp_path / "c.zarr").commits(0))


def test_a_worker_proves_what_it_has_before_it_calibrates(
    cluster: distributed.LocalCluster, tmp_path: Path
) -> None:
    images, recipe, teacher = INPUTS.open()
    spec = cache_spec(images, recipe, teacher, CONFIG)
    views = KeyedViews(images, recipe)
    identity = DumpIdentity.of_new(spec, views, CALIBRATION_SEED)
    other = dataclasses.replace(identity, cache=dataclasses.replace(spec, k=3))
    drifted = dataclasses.replace(identity, views=(1, *identity.views[1:]))
    with distributed.Client(cluster, set_as_default=False) as client:
        for expected, field in ((other, "k"), (drifted, "view of sample 0 of digits")):
            task = client.submit(calibrate_here, INPUTS, CONFIG, expected, 64, local=False, pure=False)
            refusal = task.result()
            assert isinstance(refusal, MismatchError)
            assert [f.field for f in refusal.fields] == [field]
            assert str(refusal).startswith("worker tcp://")
        task = client.submit(calibrate_here, INPUTS, CONFIG, identity, 64, local=False, pure=False)
        expected = calibrate_by(load_pipeline(views, teacher, "float32", CONFIG), 64, spec)
        assert numbers_of(task.result().statistics) == numbers_of(expected.statistics)


def test_a_shard_that_workers_die_of_ends_in_one_line(
    cluster: distributed.LocalCluster, tmp_path: Path
) -> None:
    cluster.scheduler.allowed_failures = 0
    deadly = dataclasses.replace(INPUTS, teacher="small_teachers:deadly")
    for config, work in (
        (dataclasses.replace(CONFIG, calibration=0), "of the same shard"),
        (CONFIG, "as they calib"),
    ):
        with pytest.raises(ClusterError, match=f"1 workers died one after another {work}") as said:
            dump_on_dask(cluster.scheduler_address, tmp_path / work / "c.zarr", deadly, config)
        assert "\n" not in str(said.value)


def test_a_scheduler_without_workers_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitcache.dump.dask_cluster.WORKER_SECONDS", 0.2)
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0", silence_logs=60
        ) as empty,
        pytest.raises(ClusterError, match="has no workers after"),
    ):
        dump_on_dask(empty.scheduler_address, tmp_path / "c.zarr", INPUTS, CONFIG)


def test_a_scheduler_that_nobody_answers_for_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitcache.dump.dask_cluster.CONNECT_SECONDS", 0.5)
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(ClusterError, match=f"no scheduler answers at {address}") as said:
        dump_on_dask(address, tmp_path / "c.zarr", INPUTS, CONFIG)
    assert "\n" not in str(said.value)
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize("where", ["local:0", "local", "local:two", "10.0.0.1:8786", "http://here"])
def test_what_is_no_cluster_is_refused(where: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="local:N or a scheduler's address"):
        dump_on_dask(where, tmp_path / "c.zarr", INPUTS, CONFIG)


# Helpers --------------------------------------------------------------------------------------------------


def _as_helper(out: Path, identity: DumpIdentity, barrier: Any, said: Any) -> None:
    helper = Helper.join(out, INPUTS, CONFIG, identity)
    tasks = [ShardTask(shard, (0, 1)) for shard in range(helper.writer.spec.layout.shards)]
    barrier.wait(60)
    said.put([shard.to_dict() for shard in helper.fill(tasks)])


def test_tasks_that_run_twice_at_once_write_each_shard_once(whole: Path, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    barrier, said = fork.Barrier(2), fork.Queue()
    out = tmp_path / "c.zarr"
    images, recipe, teacher = INPUTS.open()
    with open_seeds(out, None, images, recipe, teacher, CONFIG) as job:
        arguments = (out, DumpIdentity.of(job), barrier, said)
        twins = [fork.Process(target=_as_helper, args=arguments) for _ in range(2)]
        for twin in twins:
            twin.start()
        first, second = (said.get(timeout=60) for _ in twins)
        for twin in twins:
            twin.join()

    def order(shard: dict[str, Any]) -> tuple[int, int]:
        return shard["seed"], shard["shard"]

    assert sorted(first, key=order) == sorted(second, key=order)
    assert len(first) == SHARDS
    assert_same(out, whole)
    commits = {(r["seed"], r["shard"]): r["commit"] for r in first}
    assert commits == {(s, j): CacheReader(out).commit(s, j) for s, j in commits}


def test_a_second_writer_waits_for_the_first_and_leaves_its_shard_alone(whole: Path, tmp_path: Path) -> None:
    reader = CacheReader(whole)
    held = reader.read(0, 0)
    writer = CacheWriter.open(tmp_path / "c.zarr", reader.spec, statistics=reader.statistics())
    with writer.seed(0) as owner:
        commits: list[int] = []
        other = {**held, "top": held["top"] + 1}
        late = threading.Thread(target=lambda: commits.append(writer.unlocked(0).write_if_missing(0, other)))
        with owner.place.lock_shard(0):
            late.start()
            late.join(0.2)
            assert late.is_alive()
            first = owner._write(0, held)
        late.join()
    assert commits == [first]
    assert (CacheReader(tmp_path / "c.zarr").read(0, 0)["top"] == held["top"]).all()


def test_on_object_storage_a_shard_written_twice_is_there_all_the_while(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = CacheReader(whole)
    held, out = reader.read(0, 0), "memory://twice.zarr"
    writer = CacheWriter.open(out, reader.spec, statistics=reader.statistics())
    with writer.seed(0) as first:
        commit = first.write_if_missing(0, held)
        late = writer.unlocked(0)
        gone: list[str] = []
        monkeypatch.setattr(type(late.place), "delete", lambda _place, files: gone.extend(files))
        assert late._write(0, held) == commit  # it had looked before the first one's commit was there
        assert late.write_if_missing(0, held) == commit
    there = late.place.files()
    assert there is not None
    assert not there & set(gone)
    np.testing.assert_array_equal(CacheReader(out).read(0, 0)["ids"], held["ids"])


def test_a_helper_that_would_write_something_else_is_refused(whole: Path, tmp_path: Path) -> None:
    images, recipe, teacher = INPUTS.open()
    out = tmp_path / "c.zarr"
    with open_seeds(out, None, images, recipe, teacher, CONFIG) as job:
        identity = DumpIdentity.of(job)
        others = {
            "teacher.name": (dataclasses.replace(INPUTS, teacher="digits_tiny"), identity),
            "recipe_sha256": (dataclasses.replace(INPUTS, recipe="identity"), identity),
            "k": (INPUTS, dataclasses.replace(identity, cache=dataclasses.replace(identity.cache, k=3))),
            "view of sample 0 of digits": (
                INPUTS,
                dataclasses.replace(identity, views=(1, *identity.views[1:])),
            ),
            "pillow": (
                INPUTS,
                dataclasses.replace(identity, versions={**identity.versions, "pillow": "1.0"}),
            ),
        }
        for field, (inputs, expected) in others.items():
            with pytest.raises(MismatchError) as refusal:
                Helper.join(out, inputs, CONFIG, expected)
            assert field in [f.field for f in refusal.value.fields]
        assert DumpIdentity.from_dict(identity.to_dict()) == identity


# Ranks ----------------------------------------------------------------------------------------------------


def _as_rank(
    world: World, port: int, out: Path, inputs: DumpInputs, config: DumpConfig, kill: int, said: Any
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(world.rank), "WORLD_SIZE": str(world.size)}

    def on_progress(views: ViewsDone) -> None:
        if kill and views.done > kill:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        report = dump_under_torchrun(world, out, inputs, config, on_progress)
    except LogitCacheError as error:
        said.put((world.rank, error))
    else:
        said.put((world.rank, report))


def in_ranks(
    size: int, out: Path, inputs: DumpInputs = INPUTS, config: DumpConfig = CONFIG, kill: int = 0
) -> dict[int, Any]:
    """Dump in so many processes; returns what each of them reports or raises."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    said = fork.Queue()
    ranks = [
        fork.Process(target=_as_rank, args=(World(r, size, r), port, out, inputs, config, kill, said))
        for r in range(size)
    ]
    for rank in ranks:
        rank.start()
    heard = dict(said.get(timeout=120) for _ in range(size - bool(kill)))
    for rank in ranks:
        rank.join()
    return heard


def test_two_ranks_fill_what_one_process_fills(whole: Path, tmp_path: Path) -> None:
    heard = in_ranks(2, tmp_path / "c.zarr")
    assert heard[1] is None
    assert (heard[0].views, heard[0].views_in_cache, heard[0].shards_written) == (2874, 2874, SHARDS)
    assert_same(tmp_path / "c.zarr", whole)


def test_a_rank_that_dies_ends_all_and_three_finish(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    heard = in_ranks(2, out, kill=700)
    assert set(heard) == {1}
    assert isinstance(heard[1], ClusterError)
    there = sum(int((CacheReader(out).commits(s) != 0).sum()) for s in (0, 1))
    assert 1 <= there < SHARDS
    heard = in_ranks(3, out)
    assert heard[0].shards_written == SHARDS - there
    assert_same(out, whole)


def test_torchrun_prints_one_report(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    words = ["dump", "--teacher", "digits_small", "--weights", "random", "--seeds", "0-1", "--top-k", "4"]
    words += ["--shard-samples", "256", "--batch-size", "64", "--out", str(out), "--json"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "logitcache_cli"]
    ended = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count('"views_in_cache": 2874') == 1
    assert_same(out, whole)


def test_an_error_of_rank_0_at_the_beginning_is_told_once(whole: Path) -> None:
    before = arrays_of(whole).keys()
    heard = in_ranks(2, whole, config=dataclasses.replace(CONFIG, top_k=3))
    assert heard[1] is None
    assert isinstance(heard[0], MismatchError)
    assert arrays_of(whole).keys() == before
