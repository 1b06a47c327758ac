"""Benchmarks: their shape, not their figures."""

import dataclasses
import importlib.util
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from logitcache.bench import fixtures, memory, scale, speeds
from logitcache.bench.baselines import FilePerSample, Lookup, installed_lookups
from logitcache.bench.compare import Comparison, time_interleaved
from logitcache.bench.divergence import kl_divergence, log_probs_of, merge_tail, spread_log_probs
from logitcache.bench.memory import TASKS, measure_shared_spool, memory_is_known, peak_of
from logitcache.bench.scale import ScaleReport
from logitcache.bench.store import StoreReport
from logitcache.bench.synthetic import open_logits
from logitcache.errors import DataError, NotFoundError
from logitcache.losses.objective import LOSSES
from logitcache.store import CacheReader
from logitcache.teacher.sparse import SparseTeacher
from logitcache_cli.bench import _table
from logitcache_cli.main import app
from logitcache_cli.terminal import console


def fits(text: str) -> bool:
    """Do the tables fit 80 columns? Names and values below them are not wrapped where there is no terminal."""
    return all(len(line) <= 80 or line.startswith("versions") for line in text.splitlines())


def test_bench_losses_prints_ratios_that_fit_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import logitcache.bench.losses as losses

    real = losses.measure
    monkeypatch.setattr(losses, "measure", lambda **o: real(classes=(30, 21841), ks=(4,), ranked=30, **o))
    words = ["bench", "losses", "--rounds", "2", "--batch", "4", "--threads", "1"]
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert (found["suite"], found["threads"]) == ("losses", 1)
    assert {"torch", "logitcache"} <= set(found["versions"])
    compared = {(row["of"]["loss"], row["against"], row["of"]["C"]) for row in found["rows"]}
    assert {(name, "dense kd", "30") for name in LOSSES} <= compared
    assert {("cmkd", "dense kd", "21841"), ("laplace", "blondel", "30")} <= compared
    assert ("sinkd", "dense kd", "21841") not in compared
    assert ("logits at k = 4", "dense kd", "21841") in compared
    text = CliRunner().invoke(app, words, env={"COLUMNS": "80"}).stdout
    assert "…" not in text
    assert fits(text)


def test_bench_views_compares_the_ways_to_make_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import logitcache.bench.views as views

    monkeypatch.setattr(views, "AT_ONCE", 64)
    monkeypatch.setattr(views, "ONE_BY_ONE", 2)
    monkeypatch.setattr(views, "TURNS", 2)
    monkeypatch.setattr(views, "MEGAPIXELS", 0.1)
    monkeypatch.setattr(views, "SIZES", dict.fromkeys(views.SIZES, (40, 60)))
    words = ["bench", "views", "--rounds", "2"]
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert (found["suite"], found["threads"]) == ("views", 1)
    compared = {(row["of"]["recipe"], row["of"]["made"], row["against"]) for row in found["rows"]}
    assert {("cifar", "batched", "keyed"), ("digits", "batched", "unkeyed")} <= compared
    assert ("imagenet", "keyed", "unkeyed") in compared
    files = [(row["of"]["file"], row["of"]["size"], row["against"]) for row in found["files"]]
    assert {file[0] for file in files} == {*views.KINDS}
    assert {file[1] for file in files} == {*views.SIZES}
    assert len({*files}) == len(files) == 2 * len(views.FILES)
    text = CliRunner().invoke(app, words, env={"COLUMNS": "80"}).stdout
    assert "…" not in text
    assert fits(text)


@pytest.mark.parametrize("ways", ["ab", "abc", "abcd"])
def test_ways_take_every_place_in_a_round_equally_often_and_are_timed_once_a_round(ways: str) -> None:
    turns: dict[int, list[str]] = {}
    rounds = 2 * len(ways)

    def way(name: str) -> Callable[[int], None]:
        return lambda number: turns.setdefault(number, []).append(name)

    times = time_interleaved({name: way(name) for name in ways}, rounds, time.perf_counter)
    assert sorted(turns) == list(range(rounds + 1))  # the first is not counted
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys(ways, rounds)
    places = [Counter(turns[number][place] for number in range(rounds)) for place in range(len(ways))]
    assert places == [dict.fromkeys(ways, 2)] * len(ways)
    again = Counter(
        turns[number][0] for number in range(1, rounds + 1) if turns[number][0] == turns[number - 1][-1]
    )
    assert again == dict.fromkeys(ways, 1)


def test_a_comparison_tells_medians_and_the_quartiles_of_the_ratio_by_round() -> None:
    mine, theirs = np.array([1.0, 2.0, 4.0, 8.0, 16.0]) / 1e3, np.array([8.0, 4.0, 4.0, 4.0, 4.0]) / 1e3
    row = Comparison.between({"loss": "kd"}, "dense", mine, theirs, 0.5)
    assert (row.ratio_low, row.ratio, row.ratio_high) == pytest.approx((0.5, 1, 2))
    assert (row.unit, row.value, row.value_against) == ("ms", pytest.approx(4), pytest.approx(4))
    row = Comparison.between({"loss": "kd"}, "dense", mine, theirs / 2, 0.5, 100)
    assert (row.unit, row.value, row.value_against) == ("views/s", pytest.approx(25e3), pytest.approx(50e3))


def test_what_prepares_a_way_is_not_timed_and_several_clocks_time_at_once() -> None:
    spent, done = np.zeros(2), []

    def prepare(name: str, number: int) -> None:
        spent[:] += 100
        done.append(("before", name, number))

    def way(name: str, seconds: tuple[float, float]) -> Callable[[int], None]:
        def work(number: int) -> None:
            spent[:] += seconds
            done.append(("way", name, number))

        return work

    times = time_interleaved({"a": way("a", (1, 2)), "b": way("b", (3, 4))}, 2, spent.copy, prepare)
    assert {name: seconds.tolist() for name, seconds in times.items()} == {
        "a": [[1, 2]] * 2,
        "b": [[3, 4]] * 2,
    }
    assert [before[1:] for before in done[::2]] == [after[1:] for after in done[1::2]]
    assert {kind for kind, *_ in done[::2]} == {"before"}


def test_bench_dump_compares_stage_one_with_a_bare_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    import logitcache.bench.dump as stage_one

    monkeypatch.setattr(stage_one, "SEEDS_AGAINST_BARE", 2)
    words = ["bench", "dump", "--n", "6", "--rounds", "1"]
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert ended.exit_code == 0, ended.output
    rows = json.loads(ended.stdout)["rows"]
    assert [(row["of"]["dump"], row["against"]) for row in rows] == [
        ("one seed", "bare loop"),
        ("8 seeds", "8 passes"),
    ]
    for row in rows:  # one round: its ratio is that of the rates
        assert row["ratio"] == pytest.approx(row["value_against"] / row["value"], rel=1e-6)


def test_bench_train_compares_with_labels_alone_and_with_a_live_teacher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import logitcache.bench.train as train

    monkeypatch.setattr(train, "LOSSES", ("ce", "kd"))
    monkeypatch.setattr(train, "LOSS_ROUNDS", 1)
    monkeypatch.setattr(train, "STUDENT", "shufflenet_v2_x0_5")
    monkeypatch.setattr(
        train, "memory_is_known", lambda: False
    )  # memory is watched in processes of its own, below
    found = train.measure(pictures=4, rounds=1, batch=4, workers=0, device=torch.device("cpu"))
    compared = [(row.of["stage two"], row.against) for row in found.times]
    assert compared == [
        ("kd, cached", "ce, labels"),
        ("kd, cached", "resnet50 live"),
        ("its loader", "DataLoader"),
        ("4 views an image", "4 passes"),
        ("2 students", "one by one"),
    ]
    assert (found.peaks, found.shared) == ((), ())


@pytest.mark.skipif(not memory_is_known(), reason="needs a system that tells what memory is mapped")
def test_a_spool_is_in_memory_once_for_all_processes(tmp_path: Path) -> None:
    fixtures.write_cache(tmp_path / "c.zarr", 20_000, 4)
    two = measure_shared_spool(2, tmp_path / "c.zarr", tmp_path / "spool")
    assert two.spool_mb > 0.5
    assert two.seen_alone_mb == pytest.approx(two.spool_mb, rel=0.1)
    assert two.in_all_mb == pytest.approx(two.spool_mb, rel=0.1)


# The store ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of few views, few seeds, and no memory watched: that takes processes of their own."""
    monkeypatch.setattr(fixtures, "SHARD_SAMPLES", 1024)
    monkeypatch.setattr(speeds, "SEEDS", 3)
    monkeypatch.setattr(FilePerSample, "max_records", 100)
    monkeypatch.setattr(memory, "TASKS", {})


def test_bench_store_measures_every_profile_and_alternative(small: None) -> None:
    words = ["bench", "store", "--n", "1500", "--rounds", "2", "--batch", "64", "--json"]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output
    values = json.loads(ended.stdout)
    found = StoreReport.from_dict(
        {field.name: values[field.name] for field in dataclasses.fields(StoreReport)}
    )
    assert (found.views, found.k, found.peaks) == (1500, 8, ())
    assert found.statistics_bytes > 0
    *rows, twice, tinyvit_twice = found.sizes
    assert [(row.record, row.k) for row in (twice, tinyvit_twice)] == [("default", 16), ("TinyViT's", 16)]
    sizes = {(row.record, row.order): row for row in rows}
    ours = {(name, order) for name in ("default", "compact", "archive") for order in ("folder", "shuffled")}
    others = {kind.record for kind in installed_lookups()} | {"FKD's"}
    assert set(sizes) == ours | {(record, "folder") for record in others}
    tinyvit = sizes["TinyViT's", "folder"]
    assert tinyvit.bytes_per_view == 4 + 8 * (2 + 2)  # a seed, and per class an id and a probability
    for row in (sizes[one] for one in ours):
        assert row.wanted_rounding is not None
        assert 0 <= row.rounding <= row.wanted_rounding
        assert all(mine < theirs for mine, theirs in zip(row.kl, tinyvit.kl, strict=True))
    assert all(a < b for a, b in zip(twice.kl, sizes["default", "folder"].kl, strict=True))
    assert (rows[-4].record, rows[-4].k, rows[-4].kl) == ("file each", 1000, (0, 0, 0))
    assert sizes["FKD's", "folder"].kl > tinyvit.kl
    for row in sizes.values():
        assert row.blocks_per_view >= 0.9 * row.bytes_per_view > 0
    names = {kind.name for kind in installed_lookups()}
    assert {row.against for row in found.speeds} == {"plain copy", "durable copy", "", *names}


def test_bench_store_by_command_fits_a_terminal(small: None) -> None:
    words = ["bench", "store", "--n", "300", "--rounds", "1", "--batch", "8"]
    text = CliRunner().invoke(app, words, env={"COLUMNS": "80"}).stdout
    assert "300 views of a made-up ViT" in text
    assert "…" not in text
    assert fits(text)


def test_the_made_up_teacher_has_the_means_of_a_vit() -> None:
    teacher = SparseTeacher.from_logits(torch.cat(list(open_logits(4096, "shuffled").blocks())), 16)
    assert 0.65 < teacher.listed_at(1.0).probs[:, 0].mean() < 0.75
    assert 0.05 < teacher.listed_at(1.0).tail_mass.mean() < 0.1
    assert 2 < teacher.gap[:, 1].median() < 3
    assert 6 < teacher.gap[:, -1].mean() < 8


# Growth ---------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small points, and in this process: to start others takes longer than to measure them."""
    sizes = {
        "LEAST": 600,
        "BLOCK": 4096,
        "SEEDS_SAMPLES": 100,
        "K_SAMPLES": 200,
        "SAMPLES_21K": 64,
        "CLASSES_21K": 2000,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(scale, name, value)
    monkeypatch.setattr(scale, "SEEDS", (1, 3))
    monkeypatch.setattr(scale, "KS", (4, 16))
    monkeypatch.setattr(scale, "measure_in_process", scale.measure_row)


def test_bench_scale_measures_caches_of_every_size_and_says_what_it_extrapolates(
    few: None, tmp_path: Path
) -> None:
    words = ["bench", "scale", "--n", "6001", "--rounds", "1", "--plot", str(tmp_path / "scale.svg")]
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert ended.exit_code == 0, ended.output
    values = json.loads(ended.stdout)
    found = ScaleReport.from_dict({name: values[name] for name in ("points", "estimates")})
    assert [point.samples for point in found.along("samples")] == [600, 6000, 6001]
    assert [point.seeds for point in found.along("seeds")] == [1, 3]
    assert [point.k for point in found.along("k")] == [4, 16]
    per_shard = 8  # seven arrays, and the lock of those who write it
    first, *_, last = found.along("samples")
    assert last.files - first.files == per_shard * (last.shards - first.shards)
    one, three = found.along("seeds")
    of_seed = (three.files - one.files) // 2
    estimates = {estimate.of: estimate for estimate in found.estimates}
    assert estimates["files"].value == f"{300 * (of_seed + per_shard * 108):,}"
    assert estimates["views"].value == "4.26 · 10⁹"
    for point in found.points:
        assert min(point.write, point.decode, point.verify, point.open_ms, point.bytes_per_view) > 0
    picture = ElementTree.parse(tmp_path / "scale.svg").getroot()
    assert len(picture.findall("{*}svg")) == 6
    assert sum(path.get("class", "").startswith("line") for path in picture.iter()) == 3 * 3 + 3


def test_bench_scale_fits_a_terminal(few: None, tmp_path: Path) -> None:
    text = (
        CliRunner()
        .invoke(app, ["bench", "scale", "--n", "6000", "--rounds", "1"], env={"COLUMNS": "80"})
        .stdout
    )
    assert "ImageNet-21k" in text
    assert "…" not in text
    assert fits(text)


def test_a_point_of_many_samples_fits_a_terminal() -> None:
    point = scale.Point(
        "samples", 10_000_000, 300, 200, 21_841, 77, 107.0, 43.2, 36.1, 34.0, 469.53, 10**6, 5701, 322.0
    )
    with console.capture() as shown:
        console.print(_table("points", [point.cells()]), width=80)
    assert "…" not in shown.get()


def test_recorded_logits_take_the_place_of_made_up_ones(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (50, 30)).astype(np.float32)
    np.savez(tmp_path / "real.npz", logits=logits)
    recorded = open_logits(7, "folder", tmp_path / "real.npz")
    assert (recorded.n, recorded.num_classes) == (50, 30)
    assert np.array_equal(torch.cat(list(recorded.blocks())).numpy(), logits)
    mixed = torch.cat(list(open_logits(7, "shuffled", tmp_path / "real.npz").blocks())).numpy()
    assert not np.array_equal(mixed, logits)
    assert np.array_equal(np.sort(mixed, 0), np.sort(logits, 0))
    with pytest.raises(NotFoundError, match=r"no file .*none\.npz; expected an \.npz"):
        open_logits(7, "folder", tmp_path / "none.npz")
    np.savez(tmp_path / "wrong.npz", logits=logits[0])
    with pytest.raises(DataError, match=r"found shape \(30,\)"):
        open_logits(7, "folder", tmp_path / "wrong.npz")


@pytest.mark.parametrize("kind", installed_lookups())
def test_an_alternative_returns_the_records_that_it_was_given(kind: type[Lookup], tmp_path: Path) -> None:
    records = fixtures.CacheContents.of(open_logits(300, "shuffled"), 16).records
    records["seed"] = np.arange(300)
    samples = np.array([299, 0, 7, 7, 256])
    with closing(kind(tmp_path / "new", records)) as lookup:
        assert np.array_equal(lookup.take(samples), records[samples])


def test_alternatives_whose_packages_are_missing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("logitcache.bench.baselines.find_spec", lambda name: name != "pyarrow" and real(name))
    assert "Parquet" not in {kind.name for kind in installed_lookups()}
    assert "seek + read" in {kind.name for kind in installed_lookups()}


def test_what_a_record_of_probabilities_lacks_is_spread_evenly() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    p, ids = logits.softmax(1).topk(5)
    for temperature in (1.0, 2.0):
        told = spread_log_probs(ids, p.half(), 50, temperature)
        torch.testing.assert_close(told.exp().sum(1), torch.ones(20).double())
        assert (told.scatter(1, ids, torch.inf).amin(1) == told.amin(1)).all()  # one value for all others
        assert (told.scatter(1, ids, -torch.inf).amax(1) == told.amin(1)).all()
    merged, truth = (
        merge_tail(x, ids) for x in (spread_log_probs(ids, p.half(), 50, 1.0), log_probs_of(logits, 1.0))
    )
    torch.testing.assert_close(truth.exp().sum(1), torch.ones(20).double())
    assert 0 <= float(kl_divergence(truth, merged).mean()) < 1e-5


@pytest.mark.skipif(not memory_is_known(), reason="needs a system that tells anonymous memory")
def test_memory_that_comes_and_goes_is_seen(tmp_path: Path) -> None:
    def come_and_go() -> None:  # past the allocator, which may have room left of tests before
        with mmap(-1, 64_000_000, MAP_PRIVATE | MAP_ANONYMOUS) as held:
            held.write(b"1" * 64_000_000)
            time.sleep(0.1)  # longer than between two looks

    assert peak_of(come_and_go) == pytest.approx(64, rel=0.02)


def test_tasks_whose_memory_is_watched_do_what_they_are_called(tmp_path: Path) -> None:
    for work in TASKS.values():
        work(tmp_path / "c.zarr", 2, 64)
    assert CacheReader(tmp_path / "c.zarr").complete() == [0, 1]


@pytest.mark.parametrize("times", [(0.0000485, 0.0000101), (0.0512, 0.001), (0.3, 0.00022)])
def test_a_comparison_on_a_busy_machine_fits_a_terminal(times: tuple[float, float]) -> None:
    """Whatever other work does to the times: the widest names and numbers of classes that `bench losses` has."""
    mine, theirs = (np.array([seconds, seconds, 4 * seconds]) for seconds in times)
    rows = [
        Comparison.between({"loss": "rank term", "C": 21841, "k": 1000}, "plain laplace", mine, other, 0.25)
        for other in (theirs, theirs[::-1], 30 * theirs)
    ]
    with console.capture() as shown:
        console.print(_table("losses", [row.cells() for row in rows]), width=80)
    assert "…" not in shown.get()
