"""Accuracy by confidence: kept beside a run, added up over its repeats, drawn in the report."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from command import fails
from dumping import dump_digits
from hypothesis import given
from hypothesis import strategies as st
from reports import Page, a_run, rows_of
from small import few_digits
from training import CONFIG

from logitcache.losses import Objective
from logitcache.models.build import build_model
from logitcache.models.forward import ViewModel
from logitcache.report.page import report
from logitcache.stream.stream import Stream
from logitcache.train.confidence import BINS, Reliability
from logitcache.train.evaluation import Evaluation
from logitcache.train.loop import Run, train
from logitcache.train.run_folder import RunFolder
from logitcache.views.recipes import recipe_named


def drawn(seed: int) -> Reliability:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 50, BINS) * rng.integers(0, 2, BINS)
    right, confidence = rng.integers(0, images + 1), rng.random(BINS) * images
    return Reliability(*(tuple(column.tolist()) for column in (images, right, confidence)))


@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_it_round_trips_and_adds_up_as_if_counted_together(first: int, second: int) -> None:
    one, other = drawn(first), drawn(second)
    assert Reliability.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    both = one + other
    assert both == other + one
    assert sum(both.images) == sum(one.images) + sum(other.images)
    for number in range(BINS):
        assert both.right[number] == one.right[number] + other.right[number]
        assert both.confidence[number] == one.confidence[number] + other.confidence[number]
    whole = sum(both.images) * both.ece
    assert whole <= sum(one.images) * one.ece + sum(other.images) * other.ece + 1e-9  # over- and underrate


def test_a_run_keeps_that_of_its_last_epoch(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", n=64)
    stream = Stream.from_cache(tmp_path / "c.zarr", few_digits(64), batch_size=32, workers=0)
    student = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    evaluation = Evaluation(few_digits(50, "test"), recipe_named("identity"))
    run = Run(tmp_path / "run", student, Objective.parse("kd"), dataclasses.replace(CONFIG, epochs=2))
    train([run], stream, evaluation)
    kept = RunFolder(tmp_path / "run").read_reliability()
    assert kept == evaluation.run([ViewModel(student)])[0].reliability()
    assert kept is not None
    assert kept.ece == RunFolder(tmp_path / "run").read_metrics()[-1]["ece"]


def test_a_report_draws_repeats_together(tmp_path: Path) -> None:
    none = [0] * (BINS - 2)
    for seed in range(2):
        run = a_run(tmp_path / f"run-{seed}", rows_of(2), seed=seed)
        told = {"images": [*none, 10, 30], "right": [*none, 4, 20 + seed], "confidence": [*none, 9, 29.4]}
        (run / "reliability.json").write_text(json.dumps(told))
    report(tmp_path / "r.html", [tmp_path / "run-0", tmp_path / "run-1"])
    head, *rows = Page(tmp_path / "r.html").tables["Numbers of: Accuracy by confidence"]
    assert head == ["student", "confidence", "accuracy", "images"]
    assert [row[1:] for row in rows] == [["90.00 %", "40.00 %", "20"], ["98.00 %", "68.33 %", "60"]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is damaged"),
        ('{"images": [1], "right": [1], "confidence": [0.5]}', "expected 15 bins"),
        (json.dumps({"images": [1] * 15, "right": [2] * 15, "confidence": [0.5] * 15}), "no more right"),
        (json.dumps({"images": [1] * 15, "right": [1] * 15, "confidence": [float("nan")] * 15}), "finite"),
    ],
)
def test_a_damaged_file_gets_one_line(text: str, problem: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", rows_of(2))
    (run / "reliability.json").write_text(text)
    said = fails("report", str(run), "--out", "r.html", cwd=tmp_path)
    assert problem in said
    assert "reliability.json" in said
