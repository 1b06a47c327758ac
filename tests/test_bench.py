"""Benchmarks: their shape, not their figures; the contest of losses tunes on one set and scores on another."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from logitcache.bench.digits import ContestConfig, Entry, Standing, _split, contest, table
from logitcache.datasets import digits
from logitcache_cli.main import app


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
    compared = {(row["name"], row["against"], row["classes"]) for row in found["rows"]}
    assert {("kd", "dense kd", 30), ("cmkd", "dense kd", 21841), ("laplace", "blondel", 30)} <= compared
    assert all(0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in found["rows"])
    text = CliRunner().invoke(app, words, env={"COLUMNS": "80"}).stdout
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_bench_views_compares_the_ways_to_make_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import logitcache.bench.views as views

    monkeypatch.setattr(views, "AT_ONCE", 64)
    monkeypatch.setattr(views, "ONE_BY_ONE", 2)
    words = ["bench", "views", "--rounds", "2"]
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert (found["suite"], found["threads"]) == ("views", 1)
    compared = {(row["recipe"], row["name"], row["against"]) for row in found["rows"]}
    assert {("cifar", "batched", "keyed"), ("digits", "batched", "unkeyed")} <= compared
    assert ("imagenet", "keyed", "unkeyed") in compared
    assert all(0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in found["rows"])
    text = CliRunner().invoke(app, words, env={"COLUMNS": "80"}).stdout
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_contest_tunes_on_held_out_training_digits_and_scores_on_test_digits(tmp_path: Path) -> None:
    config = ContestConfig(
        losses=("kd", "dho"),
        weights=(1.0,),
        rates=(0.2, 0.4),
        epochs=1,
        teacher_epochs=1,
        cached=1,
        heat_seeds=1,
        finalists=1,
        tuning_seeds=2,
        seeds=2,
    )
    standings, teacher = contest(tmp_path, config)
    assert 0 < teacher <= 1
    assert [s.entry.loss for s in standings] == ["ce", "kd", "dho"]
    assert all(len(s.test) == 2 and 0 <= s.validation <= 1 for s in standings)
    assert all(x * 360 == pytest.approx(round(x * 360)) for s in standings for x in s.test)
    fit, held = _split(digits("train"))
    assert (len(fit), len(held)) == (1149, 288)
    pixels = {image.numpy().tobytes() for image in digits("test").images}
    assert not pixels & {image.numpy().tobytes() for image in held.images}


def test_a_student_whose_loss_explodes_scores_nothing_and_stops_no_other(tmp_path: Path) -> None:
    from logitcache.bench.digits import Contest

    config = ContestConfig(epochs=1, teacher_epochs=1, cached=1)
    held = _split(digits("train"))[1]
    entries = [Entry("ce", 0.0, 0.2), Entry("mse", 1e30, 1e30), Entry("kd", 1.0, 0.2)]
    scores = Contest(tmp_path, held, held, config).top1(entries, 0)
    assert scores[1] == 0.0
    assert min(scores[0], scores[2]) > 0.05


def test_the_table_compares_seed_by_seed() -> None:
    standings = [
        Standing(Entry("ce", 0.0, 0.8), 0.9, (0.90, 0.92)),
        Standing(Entry("kd", 1.0, 0.4), 0.93, (0.91, 0.95)),
    ]
    lines = table(standings).splitlines()
    assert lines[2] == "| `kd` | 1 | 0.4 | 93.0 | 93.0 ± 2.8 | +2.0 ± 1.0 | – |"
    assert lines[3] == "| `ce` | – | 0.8 | 90.0 | 91.0 ± 1.4 | – | -2.0 ± 1.0 |"
