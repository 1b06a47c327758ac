"""The report: a page that parses, asks nobody for anything, and says what the files say."""

import contextlib
import dataclasses
import json
import math
import re
import shutil
import string
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import browser
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from small import few_digits
from test_cli import fails, logitcache, succeeds
from test_dump import RECIPE, a_teacher, picture_folder

from logitcache.datasets import ArrayImages, digits, open_images
from logitcache.dump import DumpConfig, dump
from logitcache.models import build
from logitcache.report.caches import read_cache
from logitcache.report.charts import LEAST, Axis, Scale, thinned
from logitcache.report.page import POLICY, report
from logitcache.report.runs import grouped, read_run
from logitcache.sparse import SparseTeacher
from logitcache.spool import decode
from logitcache.store import CacheReader
from logitcache.views import recipe_named

EVIL = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;\x00\ud800"
EVIL_CLASS = "<i onclick=alert(3)>'\"&amp;"  # as a folder may be called
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """A page as a parser sees it: elements with their attributes, text, and tables by name."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.source = file.read_text()
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows: list[list[str]] = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            name = [a for t, a in self.elements if t == "div" and a.get("role") == "region"][-1]["aria-label"]
            self.tables[str(name)] = self.rows

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        self.text[where] = self.text.get(where, "") + data + "\n"
        if {"td", "th"} & set(self.open) and "title" not in self.open:
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def a_run(
    folder: Path, rows: Sequence[dict[str, float]], student: str = "net", seed: int = 0, **settings: Any
) -> Path:
    folder.mkdir(parents=True)
    config = {
        "config": {"lr": 0.1, "seed": seed, **settings},
        "objective": {"expression": "kd:1.0", "ce_weight": 1.0},
        "student": {"name": student, "weights": f"random:{seed}"},
        "command": ["logitcache", "train", "--out", str(folder)],
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = {"w": torch.zeros(3, 5), "bn.running_mean": torch.zeros(5)}
    save_file(state, folder / "last.safetensors")
    return folder


def rows_of(epochs: int, level: float = 0.5) -> list[dict[str, float]]:
    return [
        {"epoch": e, "loss": 2.0 / (e + 1), "kd": 1.0 / (e + 1), "lr": 0.1, "seconds": 1.5}
        | {"views_per_second": 100.0, "top1": level + e / 1000, "top5": 0.9, "nll": 1.0, "ece": 0.05}
        for e in range(epochs)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five runs of two kinds, and a cache of 300 digits."""
    folder = tmp_path_factory.mktemp("report")
    for seed in range(3):
        a_run(folder / "runs" / f"slow-{seed}", rows_of(6, 0.5 + seed / 50), seed=seed)
    for seed in range(2):
        rows = [{**row, "agreement": 0.8, "kl": 0.3 + row["epoch"]} for row in rows_of(4, 0.7)]
        a_run(folder / "runs" / f"fast-{seed}", rows, seed=seed, lr=0.4)
    config = DumpConfig(seeds=(0, 1, 5), top_k=4, workers=0, precision="float32", shard_samples=64)
    dump(
        folder / "c.zarr",
        digits("train"),
        RECIPE,
        a_teacher(),
        dataclasses.replace(config, shard_samples=512),
    )
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    report(folder / "r.html", [*sorted((folder / "runs").iterdir()), folder / "c.zarr"])
    return folder / "r.html"


# The page -------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_needs_nothing_else(page: Path) -> None:
    found = Page(page)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in found.elements}
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            if name in attributes:
                target = str(attributes[name])
                assert target.startswith("data:image/") if tag == "img" else target[1:] in ids
    assert not re.search(r"url\(|@import|https?:", found.text["style"])
    (policy,) = (a["content"] for a in found.all("meta") if "http-equiv" in a)
    assert str(policy).startswith("default-src 'none'")


def test_it_can_be_read_without_eyes_and_without_a_mouse(page: Path) -> None:
    found = Page(page)
    ids = {str(attributes["id"]) for _, attributes in found.elements if "id" in attributes}
    assert found.all("html")[0]["lang"] == "en"
    assert len(found.all("h1")) == len(found.all("main")) == len(found.all("nav")) == 1
    headings = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert all(section["aria-labelledby"] in ids for section in found.all("section"))
    regions = [str(a["aria-label"]) for a in found.all("div") if a.get("role") == "region"]
    assert len({*regions, *found.text["h2"].splitlines()}) == len(regions) + len(found.all("section"))
    charts = [a for a in found.all("svg") if a.get("role") == "img"]
    assert len(charts) == len(found.all("figure")) >= 12
    for chart in charts:
        assert {chart["aria-labelledby"], chart["aria-describedby"]} <= ids
    assert all("role" in a or a.get("aria-hidden") == "true" for a in found.all("svg"))
    assert all(image["alt"] for image in found.all("img"))
    assert len(found.all("img")) > 12
    assert sum(name.startswith("Numbers of: ") for name in found.tables) == len(charts)
    assert all(a.get("tabindex") == "0" for a in found.all("div") if a.get("role") == "region")


def test_tables_hold_what_the_runs_measured(folder: Path, page: Path) -> None:
    tables = Page(page).tables
    head, *rows = tables["Numbers of: Top-1 accuracy"]
    assert head == ["epoch", "fast-0", "fast-1", "slow-0", "slow-1", "slow-2"]
    for column, name in enumerate(head[1:], 1):
        lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
        values = [f"{100 * json.loads(line)['top1']:.2f} %" for line in lines]
        assert [row[column] for row in rows] == values + ["–"] * (6 - len(values))
    assert [row[0] for row in rows] == [str(epoch) for epoch in range(1, 7)]
    for title in (
        "Top-5 accuracy",
        "Loss",
        "kd",
        "Learning rate",
        "Negative log-likelihood",
        "Accuracy against training time",
    ):
        assert f"Numbers of: {title}" in tables
    assert tables["Numbers of: Agreement with the teacher"][1] == ["1", "80.00 %", "80.00 %"]
    assert [row[1] for row in tables["Numbers of: KL from the teacher"]] == [
        "fast-0",
        "0.3",
        "1.3",
        "2.3",
        "3.3",
    ]
    head, *rows = tables["Figures of the students"]
    told = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert told["net · kd · lr 0.1"]["top-1"] == "52.5 ± 2.0 %"
    assert told["net · kd · lr 0.1"]["runs"] == "3"
    assert told["net · kd · lr 0.4"]["parameters"] == "15"
    assert (told["net · kd · lr 0.1"]["agreement"], told["net · kd · lr 0.1"]["KL"]) == ("–", "–")
    assert told["net · kd · lr 0.4"]["time"] == "6.0 s"
    differing = {row[0]: row[1:] for row in tables["Settings that differ"]}
    assert differing["config.lr"] == ["0.4", "0.1"]
    assert not [name for name in differing if "seed" in name or "command" in name]


def test_names_from_runs_stay_text(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "loss": 1.0, "top1": 0.5, "<b>": 2.0}]
    a_run(tmp_path / '<i>"&', rows, student=EVIL, note=EVIL)
    a_run(tmp_path / "other", rows, student="net")
    report(tmp_path / "r.html", [tmp_path / '<i>"&', tmp_path / "other"])
    found = Page(tmp_path / "r.html")
    assert not {"script", "img", "i"} & {tag for tag, _ in found.elements}
    assert "Numbers of: <b>" in found.tables
    assert '<i>"&' in found.tables["Numbers of: Loss"][0]
    assert any("<script>alert(1)</script>" in cell for cell in found.tables["Settings that differ"][0])


def test_colours_can_be_told_from_the_paper(page: Path) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = re.findall(r":root \{(.*?)\}", Page(page).text["style"], re.DOTALL)[:2]
    for scheme in (light, dark):
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", scheme))
        for name, colour in colours.items():
            low, high = sorted((luminance(colour), luminance(colours["paper"])))
            ratio = (high + 0.05) / (low + 0.05)
            least = 4.5 if name in ("ink", "muted", "link") else 3.0
            assert ratio >= least or name in ("paper", "rule", "faint"), (name, ratio)
        ink, bar, paper, faint = (luminance(colours[name]) for name in ("ink", "bar", "paper", "faint"))
        for ground in (0.35 * bar + 0.65 * paper, faint):  # behind the teacher's answers
            low, high = sorted((ink, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_many_long_runs_stay_small(tmp_path: Path) -> None:
    rows = rows_of(1200)
    paths = [a_run(tmp_path / f"r{n}", rows, seed=n, lr=n // 5) for n in range(40)]
    report(tmp_path / "r.html", paths)
    assert (tmp_path / "r.html").stat().st_size < 10_000_000
    found = Page(tmp_path / "r.html")
    table = found.tables["Numbers of: Loss"]
    assert (table[1][0], table[-1][0]) == ("1", "1200")
    assert found.tables["Settings that differ"][0] == ["student", "config.lr"]
    assert "metrics.jsonl has all" in found.source


# What is drawn --------------------------------------------------------------------------------------------

FINITE = st.floats(-1e140, 1e140)


@given(st.lists(FINITE, min_size=1, max_size=300), st.integers(8, 60))
def test_thinned_lines_keep_their_ends_and_extremes(values: list[float], most: int) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    kept = thinned(points, most)
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
    from logitcache.report.html import tag, written

    page = HTMLParser()
    seen: list[Any] = []
    page.handle_data = seen.append  # type: ignore[method-assign]
    page.handle_starttag = lambda name, attributes: seen.append((name, attributes))  # type: ignore[method-assign]
    page.feed(written(tag("b", text, title=attribute)))
    page.close()
    assert [one for one in seen if isinstance(one, tuple)] == [("b", [("title", attribute)])]
    assert "".join(one for one in seen if isinstance(one, str)).strip("\n") == text.strip("\n")


# Facts ----------------------------------------------------------------------------------------------------


def test_repeats_are_those_that_differ_in_random_numbers_alone(folder: Path) -> None:
    runs = [read_run(path) for path in sorted((folder / "runs").iterdir())]
    groups = grouped(runs)
    assert [[Path(run.path).name for run in group.runs] for group in groups] == [
        ["fast-0", "fast-1"],
        ["slow-0", "slow-1", "slow-2"],
    ]
    slow = groups[1]
    assert slow.mean("top1")[-1] == (6.0, pytest.approx(0.525))
    assert slow.spread("top1") == (pytest.approx(0.525), pytest.approx(0.02))
    assert slow.spread("nonsense") is None
    assert [group.name for group in grouped(runs[1:3])] == ["net · kd · lr 0.4", "net · kd · lr 0.1"]


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


def test_what_fewer_logits_lose_is_what_dense_arithmetic_says(tmp_path: Path) -> None:
    config = DumpConfig(seeds=(3,), profile="exact", workers=0, precision="float32")
    dump(tmp_path / "c.zarr", few_digits(200), RECIPE, a_teacher(), config)
    reader = CacheReader(tmp_path / "c.zarr")
    facts = read_cache(reader)
    assert [kept.k for kept in facts.kept] == [1, 2, 3, 4, 6, 8, 10]
    assert facts.tried == 200
    teacher = decode(reader, 3, 0).to("cpu", torch.float64)
    logits = torch.zeros(len(teacher), 10, dtype=torch.float64).scatter(1, teacher.ids, teacher.logits)
    for kept in facts.kept:
        for at, temperature in enumerate((1.0, 2.0, 4.0)):
            p = (logits / temperature).softmax(1)
            q = SparseTeacher.from_logits(logits, kept.k).densify(temperature)
            assert kept.kl[at] == pytest.approx(float((p * (p / q).log()).sum(1).mean()), abs=1e-6)
            top = p.sort(1, descending=True).values[:, : kept.k].sum(1).mean()
            assert kept.mass[at] == pytest.approx(float(top), abs=1e-6)
    files = [f for f in (tmp_path / "c.zarr" / "seed-3").glob("*/c/**/*") if f.is_file()]
    assert sum(facts.array_bytes.values()) * 200 == pytest.approx(sum(f.stat().st_size for f in files))


# Whose images -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures in pets/ and secret/, and a cache of each of three kinds of data set."""
    folder = tmp_path_factory.mktemp("gallery")
    config = DumpConfig(seeds=(0, 1), top_k=2, workers=0, precision="float32")
    with contextlib.chdir(folder):
        picture_folder(Path("pets"))
        shutil.copytree(Path("pets") / "train" / "dog", "secret")
        for split in ("train", "val"):
            (Path("pets") / split / "cat").rename(Path("pets") / split / EVIL_CLASS)
        for cache, name, classes in (("pets", "imagefolder:pets", 2), ("secret", "folder:secret", 1000)):
            teacher = build("digits_tiny", num_classes=classes, view_size=8, weights="random")
            dump(f"{cache}.zarr", open_images(name), recipe_named("center@8"), teacher, config)
        images = few_digits(300)
        own = ArrayImages("boom:go", "train", images.images, images.labels, 10, "digits")
        dump("own.zarr", own, RECIPE, a_teacher(), dataclasses.replace(config, top_k=4))
        Path("boom.py").write_text("raise SystemExit('a report must not run what a cache names')\n")
    return folder


@pytest.mark.parametrize(
    ("cache", "named"),
    [("pets.zarr", "imagefolder:pets"), ("secret.zarr", "folder:secret"), ("own.zarr", "boom:go")],
)
def test_a_caches_word_opens_no_images(gallery: Path, tmp_path: Path, cache: str, named: str) -> None:
    ended = logitcache("report", cache, "--out", tmp_path / "r.html", cwd=gallery)
    assert ended.exit_code == 0, ended.output
    found = Page(tmp_path / "r.html")
    assert not found.all("img")
    assert "data:image" not in found.source.replace(POLICY, "")
    assert f"only data sets that you name are opened; the cache says --data {named}" in found.source
    assert f"--data {named}" in ended.stderr
    assert ".jpg" not in found.source
    assert EVIL_CLASS not in found.source


def test_images_are_those_that_the_user_named(gallery: Path, tmp_path: Path) -> None:
    words = ("report", "pets.zarr", "secret.zarr", "--out", tmp_path / "r.html", "--data", "imagefolder:pets")
    found = json.loads(succeeds(*words, "--json", cwd=gallery))
    assert [note.partition(": ")[0] for note in found["notes"]] == ["secret.zarr"]
    first = len(Page(tmp_path / "r.html").all("img"))
    assert first > 8
    assert json.loads(succeeds(*words, "--data", "folder:secret", "--json", cwd=gallery))["notes"] == []
    assert len(Page(tmp_path / "r.html").all("img")) > first
    words = ("report", "pets.zarr", "--out", tmp_path / "r.html", "--data")
    assert (
        "made of other images"
        in json.loads(succeeds(*words, "folder:secret", "--json", cwd=gallery))["notes"][0]
    )
    assert not Page(tmp_path / "r.html").all("img")
    assert "nowhere" in fails(*words, "folder:nowhere", cwd=gallery)


def test_names_from_caches_and_images_stay_text(gallery: Path, tmp_path: Path) -> None:
    with contextlib.chdir(gallery):
        images = open_images("imagefolder:pets")
        images.name = f"folder:{EVIL[:-2]}"
        teacher = build("digits_tiny", num_classes=2, view_size=8, weights="random")
        config = DumpConfig(seeds=(0,), top_k=2, workers=0, precision="float32")
        dump(tmp_path / EVIL_CLASS, images, recipe_named("center@8"), teacher, config)
    words = ("report", tmp_path / EVIL_CLASS, "--out", tmp_path / "r.html")
    for named in ((), ("--data", "imagefolder:pets")):
        succeeds(*words, *named, cwd=gallery)
        found = Page(tmp_path / "r.html")
        assert not {"script", "i"} & {tag for tag, _ in found.elements}
        assert "<script>alert(1)</script>" in found.text["h2"]
        assert all(str(image["src"]).startswith("data:image/") for image in found.all("img"))
    assert any(EVIL_CLASS in str(image["alt"]) for image in found.all("img"))
    assert EVIL_CLASS in {row[0] for row in found.tables["Confused classes"]}


# The command ----------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_tells_the_facts(folder: Path) -> None:
    words = ("report", "runs/slow-0", "runs/fast-0", "c.zarr", "--out", "new/page.html")
    text = succeeds(*words, cwd=folder)
    assert "new/page.html" in text
    found = json.loads(succeeds(*words, "--json", cwd=folder))
    assert [len(group["runs"]) for group in found["groups"]] == [1, 1]
    assert found["groups"][0]["runs"][0]["rows"][5]["top1"] == pytest.approx(0.505)
    assert found["caches"][0]["about"]["k"] == 4
    assert math.isclose(found["caches"][0]["kept"][-1]["kl"][0], 0.0)


def test_bad_input_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    def line(*paths: object) -> str:
        return fails("report", *paths, "--out", tmp_path / "r.html", cwd=folder)

    assert "runs is neither a run folder (config.json) nor a cache; did you mean runs/*?" in line("runs")
    assert "nowhere is neither a run folder" in line("nowhere")
    (tmp_path / "note.txt").write_text("hello")
    assert "note.txt" in line(tmp_path / "note.txt")
    assert ". is a folder; name the file to write" in fails("report", "runs/slow-0", "--out", ".", cwd=folder)
    shutil.copytree(folder / "runs" / "slow-0", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text()
    for damaged in (
        whole[:-20],
        whole + "[]\n",
        whole + '{"epoch": 3, "loss": 1}\n',
        whole + '{"epoch": 6, "loss": "x"}\n',
    ):
        metrics.write_text(damaged)
        assert "metrics.jsonl, line" in line(tmp_path / "run")
    metrics.write_bytes(b"\xff\xfe\n")
    assert "metrics.jsonl, line 1" in line(tmp_path / "run")
    metrics.unlink()
    assert "has no epoch yet" in line(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    assert "config.json is damaged" in line(tmp_path / "run")
    shutil.copytree(folder / "c.zarr", tmp_path / "c.zarr")
    for seed in (0, 1, 5):
        (tmp_path / "c.zarr" / f"seed-{seed}" / "commit" / "c" / "1").unlink()
    assert "has no complete seed (begun: seeds 0-1, 5)" in line(tmp_path / "c.zarr")
    assert not (tmp_path / "r.html").exists()


# In a browser ---------------------------------------------------------------------------------------------

LEAST_CONTRAST = r"""(() => {
  const light = colour => colour.match(/[\d.]+/g).slice(0, 3).map(Number).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, number) => sum + part * [0.2126, 0.7152, 0.0722][number], 0);
  const texts = [...document.querySelectorAll('body *')].filter(element =>
    element.tagName != 'title' && [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim()));
  return Math.min(...texts.map(element => {
    const style = getComputedStyle(element);
    let behind = element;
    while (getComputedStyle(behind).backgroundColor == 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
    const two = [style[element instanceof SVGElement ? 'fill' : 'color'], getComputedStyle(behind).backgroundColor];
    const [low, high] = two.map(light).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }));
})()"""


@pytest.mark.skipif(browser.FOUND is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_shows_it_on_phones_and_desks_in_light_and_dark(page: Path, tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    with browser.chromium(tmp_path / "profile") as tab:
        for width in (400, 1400):
            for scheme in ("light", "dark"):
                tab.open(page, width, scheme)
                assert tab.complaints == []
                assert tab.value("document.documentElement.scrollWidth") == width
                tab.value("document.querySelectorAll('details').forEach(details => details.open = true)")
                assert tab.value("document.documentElement.scrollWidth") == width
                drawn = "[...document.querySelectorAll('.line')].filter(line => line.getTotalLength() > 20).length"
                assert tab.value(drawn) > 20
                assert tab.value("[...document.images].every(image => image.naturalWidth > 0)")
                assert tab.value("getComputedStyle(document.querySelector('.line')).stroke") != "none"
                assert tab.value(LEAST_CONTRAST) >= 4.5
                corner = Image.open(BytesIO(tab.screenshot())).convert("L").getpixel((2, 2))
                assert (corner > 200) == (scheme == "light")
