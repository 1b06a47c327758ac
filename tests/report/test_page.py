"""The report: a page that parses, asks nobody for anything, and says what the files say."""

import json
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from command import fails, succeeds
from reports import EVIL, Page, a_run, rows_of

from logitcache.report.page import report

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
