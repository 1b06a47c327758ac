"""What is drawn, and the facts behind it: lines keep their extremes, text stays text, repeats are told apart."""

import json
import shutil
import string
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from dumping import RECIPE, a_teacher
from hypothesis import given
from hypothesis import strategies as st
from reports import Page, a_run, rows_of
from small import few_digits

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.format.identity import AdapterSpec
from logitcache.losses import Objective
from logitcache.models.build import Model
from logitcache.models.forward import ViewModel
from logitcache.models.weights import count_weights
from logitcache.report.cache_facts import read_cache
from logitcache.report.charts import LEAST, Axis, Scale, thin_out
from logitcache.report.page import report
from logitcache.report.run_facts import group_runs, read_run
from logitcache.store import CacheReader, seed_list
from logitcache.stream.stream import Stream
from logitcache.teacher.cached import CachedTeacher
from logitcache.teacher.completion import Completion, fit_statistics
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import decode_shard
from logitcache.train.config import TrainConfig
from logitcache.train.evaluation import Evaluation, evaluate
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.views.datasets import load_digits
from logitcache.views.recipes import recipe_named

# What is drawn --------------------------------------------------------------------------------------------


FINITE = st.floats(-1e140, 1e140)


@given(st.lists(FINITE, min_size=1, max_size=300), st.integers(8, 60))
def test_thinned_lines_keep_their_ends_and_extremes(values: list[float], most: int) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    kept = thin_out(points, most)
    assert len(kept) <= max(most, 2)
    assert list(kept) == [point for point in points if point in set(kept)]
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert (min(values), max(values)) == (min(y for _, y in kept), max(y for _, y in kept))


@given(st.lists(FINITE, min_size=1, max_size=20), st.booleans(), st.booleans(), st.booleans())
def test_marks_lie_on_the_axis_in_order(values: list[float], log: bool, percent: bool, whole: bool) -> None:
    scale = Scale(Axis("x", log=log, percent=percent, whole=whole), values, 0, 100)
    shown = [value for value in values if value > LEAST or not log]
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in shown)
    ticks = scale.ticks()
    assert ticks == sorted(ticks)
    assert len(ticks) <= 14
    assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in ticks)
    assert len({scale.text(tick) for tick in ticks}) == len(ticks)


@given(st.text(string.printable, max_size=30), st.text(max_size=30))
def test_text_in_text_out(text: str, attribute: str) -> None:
    from logitcache.report.html import tag, to_html

    page = HTMLParser()
    seen: list[Any] = []
    page.handle_data = seen.append  # type: ignore[method-assign]
    page.handle_starttag = lambda name, attributes: seen.append((name, attributes))  # type: ignore[method-assign]
    page.feed(to_html(tag("b", text, title=attribute)))
    page.close()
    assert [one for one in seen if isinstance(one, tuple)] == [("b", [("title", attribute)])]
    assert "".join(one for one in seen if isinstance(one, str)).strip("\n") == text.strip("\n")


# Facts ----------------------------------------------------------------------------------------------------


def test_repeats_are_those_that_differ_in_random_numbers_alone(folder: Path) -> None:
    runs = [read_run(path) for path in sorted((folder / "runs").iterdir())]
    groups = group_runs(runs)
    assert [[Path(run.path).name for run in group.runs] for group in groups] == [
        ["fast-0", "fast-1"],
        ["slow-0", "slow-1", "slow-2"],
    ]
    slow = groups[1]
    assert slow.mean("top1")[-1] == (6.0, pytest.approx(0.525))
    assert slow.spread("top1") == (pytest.approx(0.525), pytest.approx(0.02))
    assert slow.spread("nonsense") is None
    assert [group.name for group in group_runs(runs[1:3])] == ["net · kd · lr 0.4", "net · kd · lr 0.1"]


def test_an_unfinished_run_is_no_repeat_and_never_the_highest(tmp_path: Path) -> None:
    for seed, (epochs, level) in enumerate([(4, 0.5), (4, 0.6), (1, 0.9), (1, 0.8)]):
        a_run(tmp_path / f"r{seed}", rows_of(epochs, level), seed=seed, epochs=4)
    facts = report(tmp_path / "r.html", sorted(tmp_path.glob("r?")))
    whole, *parts = facts.groups
    assert [Path(run.path).name for run in whole.runs] == ["r0", "r1"]
    assert whole.spread("top1") == (pytest.approx(0.553), pytest.approx(0.1 / 2**0.5))
    assert whole.name == "net · kd"
    name = "net · kd, unfinished: 1 of 4 epochs"
    assert [group.name for group in parts] == [f"{name} · r2", f"{name} · r3"]
    page = Page(tmp_path / "r.html")
    assert "Highest top-1 after the last epoch: net · kd, 55.3 ± 7.1 % over 2 runs." in page.text["p"]
    head, *rows = page.tables["Figures of the students"]
    assert [row[head.index("runs")] for row in rows] == ["2", "1", "1"]
    assert [row[head.index("epochs")] for row in rows] == ["4", "1 of 4", "1 of 4"]
    report(tmp_path / "r.html", [tmp_path / "r2"])
    page = Page(tmp_path / "r.html")
    assert "No run has come to its end yet." in page.text["p"]
    assert "Highest" not in page.text["p"]


def test_runs_of_one_seed_are_no_repeats_of_each_other(tmp_path: Path) -> None:
    for number, (seed, level) in enumerate([(0, 0.5), (0, 0.5), (0, 0.52), (1, 0.6)]):
        a_run(tmp_path / f"r{number}", rows_of(2, level), seed=seed, epochs=2)
    paths = sorted(tmp_path.glob("r?"))
    (group,) = report(tmp_path / "r.html", paths).groups
    assert [Path(run.path).name for run in group.runs] == ["r0", "r3"]
    assert [Path(run.path).name for run in group.copies] == ["r1", "r2"]
    assert group.spread("top1") == (pytest.approx(0.551), pytest.approx(0.1 / 2**0.5))
    page = Page(tmp_path / "r.html")
    head, row = page.tables["Figures of the students"]
    assert row[head.index("runs")] == "2 of 4"
    assert len(page.tables["Each run"]) == 5
    report(tmp_path / "r.html", paths[:3])
    page = Page(tmp_path / "r.html")
    assert "net · kd, 50.10 % (3 runs of the same seed)." in page.text["p"]
    assert "±" not in str(page.tables)


def test_a_tie_is_called_one_and_caches_of_one_teacher_are_told_apart(folder: Path, tmp_path: Path) -> None:
    runs = [a_run(tmp_path / f"lr-{lr}", rows_of(2), lr=lr) for lr in (0.1, 0.2)]
    copy = shutil.copytree(folder / "c.zarr", tmp_path / "copy.zarr")
    report(tmp_path / "r.html", [*runs, folder / "c.zarr", copy])
    page = Page(tmp_path / "r.html")
    assert (
        "Highest top-1 after the last epoch: net · kd · lr 0.1, 50.10 %, a tie with net · kd · lr 0.2."
        in (page.text["p"])
    )
    titles = [line for line in page.text["h2"].splitlines() if line.startswith("Cache: ")]
    assert [Path(title.rpartition(", ")[2]).name for title in titles] == ["c.zarr", "copy.zarr"]
    report(tmp_path / "r.html", [runs[0], folder / "c.zarr"])
    assert "a tie with" not in Page(tmp_path / "r.html").text["p"]


def test_the_teacher_stands_beside_students_judged_on_what_its_cache_answers(tmp_path: Path) -> None:
    images, recipe, teacher = load_digits("test"), recipe_named("center@8"), a_teacher()
    config = DumpConfig(seeds=(0,), top_k=6, workers=0, precision="float32")
    dump(tmp_path / "test.zarr", images, recipe, teacher, config)
    spec = CacheReader(tmp_path / "test.zarr").spec
    taught = {
        "data": {"name": "digits", "num_classes": 10},
        "recipe": {"evaluation": "center@8"},
        "teacher": spec.teacher.to_dict(),
    }
    answers = CachedTeacher(CacheReader(tmp_path / "test.zarr")).take(torch.arange(len(images)), 0)
    right = answers.ids == torch.from_numpy(images.labels)[:, None]
    top1, top5 = (f"{100 * right[:, :k].any(1).double().mean():.2f} %" for k in (1, 5))

    def standings(**other: object) -> tuple[list[list[str]], Page]:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        record = json.loads((a_run(folder, rows_of(2)) / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**record, "stream": {**taught, **other}}))
        report(tmp_path / "r.html", [folder, tmp_path / "test.zarr"])
        page = Page(tmp_path / "r.html")
        return page.tables["Figures of the students"], page

    (head, row, _), page = standings()
    assert row[: head.index("NLL")] == [f"teacher {spec.teacher.name}", top1, top5]
    assert f"Teacher {spec.teacher.name}: {top1}." in page.text["p"].replace("\N{NO-BREAK SPACE}", " ")
    for other in (
        {"data": {"name": "cifar10", "num_classes": 10}},
        {"recipe": {"evaluation": "center@32"}},
        {"teacher": {**spec.teacher.to_dict(), "weights": "random:9"}},
    ):
        rows, page = standings(**other)
        assert len(rows) == 2
        told = page.text["dd"].replace("\N{NO-BREAK SPACE}", " ")
        assert f"top-1 {top1}, top-5 {top5} on the test images" in told


def test_time_and_rate_are_those_of_all_epochs(tmp_path: Path) -> None:
    paces = [(100.0, 1.0), (300.0, 3.0)]
    rows = [
        row | {"views_per_second": rate, "seconds": seconds}
        for row, (rate, seconds) in zip(rows_of(2), paces, strict=True)
    ]
    report(tmp_path / "r.html", [a_run(tmp_path / "run", rows)])
    head, row = Page(tmp_path / "r.html").tables["Figures of the students"]
    told = dict(zip(head, row, strict=True))
    assert (told["time"], told["views/s"]) == ("4.0 s", "250")


def test_of_many_seeds_a_sample_is_measured_and_the_page_says_so(tmp_path: Path) -> None:
    config = DumpConfig(seeds=tuple(range(9)), top_k=2, workers=0, precision="float32")
    dump(tmp_path / "c.zarr", few_digits(40), RECIPE, a_teacher(), config)
    report(tmp_path / "r.html", [tmp_path / "c.zarr"])
    said = Page(tmp_path / "r.html").source
    measured = [seed.seed for seed in read_cache(CacheReader(tmp_path / "c.zarr")).stats.seeds]
    numbers = seed_list(measured).removeprefix("seeds ")
    assert f"Measured on 8 of 9 complete seeds ({numbers}), a sample, to stay quick." in said


def test_what_fewer_logits_lose_is_what_dense_arithmetic_says(tmp_path: Path) -> None:
    config = DumpConfig(seeds=(3,), profile="exact", workers=0, precision="float32")
    dump(tmp_path / "c.zarr", few_digits(200), RECIPE, a_teacher(), config)
    reader = CacheReader(tmp_path / "c.zarr")
    facts = read_cache(reader)
    assert [kept.k for kept in facts.kept] == [1, 2, 3, 4, 6, 8, 10]
    assert facts.tried == 50  # a quarter; the others tell how the classes vary together
    logits = decode_shard(reader, 3, 0).to("cpu", torch.float64).logits
    held_out = torch.arange(200) % 4 == 0
    completion = Completion.of(fit_statistics(logits[~held_out]))
    logits = logits[held_out]

    def kl(k: int, completion: Completion | None) -> list[float]:
        found = []
        for temperature in (1.0, 2.0, 4.0):
            p = (logits / temperature).softmax(1)
            q = SparseTeacher.from_logits(logits, k, completion).at(temperature).probs
            found.append(float((p * (p / q).log()).sum(1).mean()))
        return found

    for kept in facts.kept:
        even, completed = kl(kept.k, None), kl(kept.k, completion)
        nearer = all(a <= b for a, b in zip(completed, even, strict=True))
        assert nearer or kept.k > 4
        assert kept.kl == pytest.approx(completed if nearer else even, rel=0.02, abs=1e-6)
        for at, temperature in enumerate((1.0, 2.0, 4.0)):
            p = (logits / temperature).softmax(1)
            top = p.sort(1, descending=True).values[:, : kept.k].sum(1).mean()
            assert kept.mass[at] == pytest.approx(float(top), abs=1e-6)
    files = [f for f in (tmp_path / "c.zarr" / "seed-3").glob("*/c/**/*") if f.is_file()]
    assert sum(facts.array_bytes.values()) * 200 == pytest.approx(sum(f.stat().st_size for f in files))


# How many -------------------------------------------------------------------------------------------------


class Tied(torch.nn.Module):
    """Two layers of one weight, frozen; complex numbers, and of half precision; buffers, which are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False)
        self.back.weight = self.there.weight
        self.there.requires_grad_(False)
        self.last, self.norm = torch.nn.Linear(64, 10), torch.nn.BatchNorm1d(64)
        self.phase = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.short = torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
        self.register_buffer("grid", torch.zeros(1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.norm(self.back(self.there(x.flatten(1)))))
        return logits + self.phase.abs().sum() + self.short.float().sum()


def test_parameters_are_counted_alike_everywhere(tmp_path):
    expected = 64 * 64 + 650 + 128 + 3 + 5
    student = Model("tied", Tied(), AdapterSpec(1, 8, (0.5,), (0.5,)), 10, "own")
    stream = Stream.plain(few_digits(60), recipe_named("digits"), seeds=(0,), batch_size=30, workers=0)
    evaluation = Evaluation(few_digits(60, "test"), recipe_named("identity"))
    config = TrainConfig(1, ema=0.5)
    (report,) = train([Run(tmp_path / "run", student, Objective.parse("ce"), config)], stream, evaluation)
    found = evaluate(ViewModel(student), evaluation, 10)
    saved = count_weights(tmp_path / "run" / "best.safetensors")
    read = read_run(tmp_path / "run").weights
    assert (report.parameters, found.parameters, saved, read) == (expected,) * 4
