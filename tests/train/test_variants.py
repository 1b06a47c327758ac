"""Several students in one pass: variants, and what becomes of the others when one student fails."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from command import fails
from dumping import RECIPE
from small import few_digits
from training import a_run, assert_same_weights
from typer.testing import CliRunner

from logitcache.errors import NonFiniteError, OptionError, StudentsError, UnknownNameError
from logitcache.stream.stream import Stream
from logitcache.train.config import TrainConfig
from logitcache.train.events import EpochDone, StepDone, StudentFailed, TrainEvent
from logitcache.train.loop import train
from logitcache.train.variants import Variant
from logitcache_cli.main import app

CONFIG = TrainConfig(epochs=2, lr=0.1, seed=5)
WILD = dataclasses.replace(CONFIG, lr=1e30, warmup_epochs=0.0)


def plain_stream() -> Stream:
    return Stream.plain(few_digits(), RECIPE, seeds=(0, 1), batch_size=60, workers=0)


def test_a_variant_changes_what_it_names() -> None:
    base = Variant("cmkd", TrainConfig(), ce_weight=0.5)
    variant = base.replace("loss=dkd(alpha=1.0, beta=4.0):0.5, lr=0.3,milestones=[2,5],ce-weight=2")
    assert variant.loss == "dkd(alpha=1.0, beta=4.0):0.5"
    assert variant.config == TrainConfig(lr=0.3, milestones=(2.0, 5.0))
    assert variant.build_objective().ce_weight == 2.0
    assert base.replace("seed=3") == Variant("cmkd", TrainConfig(seed=3), 0.5, label="seed=3")
    names = {base.replace(text).name for text in ("loss=kd", "loss=kd,lr=0.1", "lr=0.1", "loss=kd:0.5")}
    assert names == {
        "kd",
        "loss=kd,lr=0.1",
        "lr=0.1",
        "kd:0.5",
    }  # a loss alone is called as without a variant


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("kd", OptionError, "NAME=VALUE"),
        ("lr=", OptionError, "NAME=VALUE"),
        ("lr=0.1,lr=0.2", OptionError, "each name once"),
        ("", OptionError, "NAME=VALUE"),
        ("loss=kdd", UnknownNameError, "kd"),
        ("rate=0.1", UnknownNameError, "setting"),
        ("batch_size=3", UnknownNameError, "setting"),
        ("lr=fast", OptionError, "lr: expected float"),
        ("lr=Infinity", OptionError, "lr: expected finite float, found inf"),
        ("ce_weight=much", OptionError, "ce_weight must be a number"),
        ("ce_weight=-1", OptionError, "ce_weight must be 0 or more"),
        ("epochs=0", OptionError, "epochs must be at least 1"),
    ],
)
def test_a_variant_that_cannot_be_read(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Variant("ce", TrainConfig()).replace(text)


def test_the_failure_of_one_student_does_not_stop_the_others(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name, "ce", WILD if name == "b" else CONFIG) for name in "abc"]
    events: list[TrainEvent] = []
    with pytest.raises(StudentsError, match=r"1 of 3 students ended early: .*b: .* became") as failure:
        train(runs, plain_stream(), on_progress=events.append)
    assert [type(error) for error in failure.value.errors.values()] == [NonFiniteError]
    assert [Path(report.out).name for report in failure.value.reports] == ["a", "c"]
    assert [event.run.name for event in events if isinstance(event, StudentFailed)] == ["b"]
    train([a_run(tmp_path / "alone", "ce", CONFIG)], plain_stream())
    for name in "ac":
        assert_same_weights(tmp_path / name, tmp_path / "alone")
    assert not (tmp_path / "b" / "metrics.jsonl").exists()


def test_when_all_fail_the_pass_ends(tmp_path: Path) -> None:
    events: list[TrainEvent] = []
    many = dataclasses.replace(WILD, epochs=50)
    with pytest.raises(StudentsError, match="2 of 2 students"):
        train(
            [a_run(tmp_path / name, "ce", many) for name in "ab"], plain_stream(), on_progress=events.append
        )
    assert max(event.epoch for event in events if isinstance(event, StepDone)) < 2
    assert not any(isinstance(event, EpochDone) for event in events)


def test_variants_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "train",
        "--student",
        "digits_tiny",
        "--student",
        "digits_small",
        "--loss",
        "ce",
        "--epochs",
        "1",
    ]
    words += ["--variant", "lr=0.2", "--variant", "seed=1,epochs=2", "--out", "runs", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    reports = json.loads(done.stdout)["runs"]
    assert [Path(report["out"]).name for report in reports] == [
        "digits_tiny-lr=0.2",
        "digits_tiny-seed=1_epochs=2",
        "digits_small-lr=0.2",
        "digits_small-seed=1_epochs=2",
    ]
    assert [report["epochs"] for report in reports] == [1, 2, 1, 2]
    assert [re.findall(rf"/{Path(r['out']).name}: epoch (. of .)", done.stderr) for r in reports] == 2 * [
        ["1 of 1"],
        ["1 of 2", "2 of 2"],
    ]
    config = json.loads((tmp_path / "runs" / "digits_tiny-lr=0.2" / "config.json").read_text())
    assert config["config"]["lr"] == 0.2


def test_a_failed_variant_ends_in_exit_code_1_and_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--student", "digits_tiny", "--loss", "ce", "--epochs", "2", "--out", "runs"]
    words += ["--warmup-epochs", "0", "--variant", "lr=0.2", "--variant", "lr=1e30"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "lr=1e30: ended early:" in done.stderr
    assert "lr=0.2: epoch 2 of 2" in done.stderr
    assert "logitcache: 1 of 2 students ended early: " in done.stderr
    assert "top-1" in done.stdout


def test_progress_tells_the_losses_last_looked_at(tmp_path: Path) -> None:
    events: list[TrainEvent] = []
    train([a_run(tmp_path, "ce", CONFIG)], plain_stream(), on_progress=events.append)
    row = next(event.row for event in events if isinstance(event, EpochDone))
    for event in events:
        if isinstance(event, StepDone):
            assert event.losses == ({} if event.epoch == 0 else {k: row[k] for k in ("loss", "ce")})


def test_a_loss_that_every_variant_replaces_is_refused(tmp_path: Path) -> None:
    words = ("train", "--student", "digits_tiny", "--loss", "cmkd", "--variant", "loss=kd")
    said = fails(*words, "--variant", "loss=ce", cwd=tmp_path)
    assert "--loss cmkd would train nobody" in said
    said = fails(*words, "--variant", "lr=0.1", cwd=tmp_path)
    assert "no cache in ./caches" in said
