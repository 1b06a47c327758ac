"""Several students in one pass: variants, and what becomes of the others when one student fails."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
from command import fails, logitcache
from dumping import RECIPE
from hypothesis import given
from hypothesis import strategies as st
from small import few_digits
from training import a_run, assert_same_weights
from typer.testing import CliRunner

from logitcache.errors import NonFiniteError, OptionError, StudentsError, UnknownNameError
from logitcache.stream.stream import Stream
from logitcache.train.config import TrainConfig
from logitcache.train.events import EpochDone, StepDone, StudentFailed, TrainEvent
from logitcache.train.loop import train
from logitcache.train.variants import Variant, VariantInputs
from logitcache_cli.main import app

CONFIG = TrainConfig(epochs=2, lr=0.1, seed=5)
WILD = dataclasses.replace(CONFIG, lr=1e30, warmup_epochs=0.0)


def plain_stream() -> Stream:
    return Stream.plain(few_digits(), RECIPE, seeds=(0, 1), batch_size=60, workers=0)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("model", "student"), ("los", "loss"), ("hard-weight", "ce_weight"), ("smoothing", "label_smoothing")],
)
def test_another_word_of_a_variant_is_understood(word: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"did you mean {meant}\?"):
        Variant("kd", TrainConfig()).replace(f"{word}=1,lr=1")


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


# Pairs of students and variants -----------------------------------------------------------------------------


def pairs_of(students: tuple[str, ...], *texts: str) -> list[tuple[str, str, float]]:
    pairs = VariantInputs("cmkd", texts=texts).pair(students, TrainConfig())
    return [(student, variant.name, variant.config.lr) for student, variant in pairs]


def test_a_variant_for_one_student_leaves_the_others_as_they_are() -> None:
    two = ("resnet18", "mobilenet_v2")
    assert pairs_of(two) == [("resnet18", "cmkd", 0.05), ("mobilenet_v2", "cmkd", 0.05)]
    alone = pairs_of(two, "student=mobilenet_v2,lr=0.01")
    assert alone == [("resnet18", "cmkd", 0.05), ("mobilenet_v2", "lr=0.01", 0.01)]
    assert pairs_of(two, "student=MobileNet-V2, lr=0.01") == alone
    assert pairs_of(two, "lr=0.01,student=mobilenet_v2") == alone
    assert pairs_of(two, "student=mobilenet_v2,loss=kd")[1] == ("mobilenet_v2", "kd", 0.05)
    assert pairs_of(two, "loss=kd", "student=resnet18", "student=resnet18,loss=ce,lr=0.2") == [
        ("resnet18", "kd", 0.05),
        ("resnet18", "cmkd", 0.05),
        ("resnet18", "loss=ce,lr=0.2", 0.2),
        ("mobilenet_v2", "kd", 0.05),
    ]


@given(
    students=st.lists(st.sampled_from("abcd"), min_size=1, unique=True),
    owners=st.lists(st.sampled_from(["", *"abcd"]), max_size=6),
)
def test_every_student_is_trained_by_its_variants_and_those_of_all(
    students: list[str], owners: list[str]
) -> None:
    texts = tuple(f"student={o},lr={n + 1}" if o else f"lr={n + 1}" for n, o in enumerate(owners))
    inputs = VariantInputs("ce", texts=texts)
    if set(owners) - {"", *students}:
        with pytest.raises(OptionError, match=r"--variant student=.* but trained are .*--student too"):
            inputs.pair(students, TrainConfig())
        return
    found = [(student, variant.config.lr) for student, variant in inputs.pair(students, TrainConfig())]
    expected = [
        (student, lr)
        for student in students
        for lr in [n + 1 for n, o in enumerate(owners) if o in ("", student)] or [0.05]
    ]
    assert found == expected


def test_whether_a_teacher_and_the_common_loss_are_needed_goes_by_the_pairs() -> None:
    inputs = VariantInputs("cmkd", texts=("student=a,loss=ce",))
    assert inputs.needs_teacher(("a", "b"))
    assert not inputs.needs_teacher(("a",))
    assert inputs.uses_loss(("a", "b"))
    assert not inputs.uses_loss(("a",))


def test_settings_by_student_on_the_command_line(tmp_path: Path) -> None:
    words = ["train", "--student", "digits_tiny", "--student", "digits_small", "--loss", "ce"]
    words += ["--data", "small:dozen", "--workers", "0", "--batch-size", "4", "--out", "runs"]
    own = ["--variant", "student=digits_tiny,lr=0.2,epochs=2"]
    done = logitcache(*words, *own, "--epochs", "1", cwd=tmp_path)
    assert done.exit_code == 0, done.output
    assert "sgd, lr 0.05 cosine, 1 epoch of" in done.stderr
    assert "sgd, lr 0.2 cosine, 2 epochs" in done.stderr
    configs = {
        folder.name: json.loads((folder / "config.json").read_text())["config"]
        for folder in (tmp_path / "runs").iterdir()
    }
    assert {name: (config["lr"], config["epochs"]) for name, config in configs.items()} == {
        "digits_tiny-lr=0.2_epochs=2": (0.2, 2),
        "digits_small-ce": (0.05, 1),
    }
    assert all(shlex.quote(name) == name for name in configs)
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("last.safetensors")}
    again = logitcache("train", "--out", "runs", "--resume", cwd=tmp_path)
    assert again.exit_code == 0, again.output
    assert {path: path.read_bytes() for path in before} == before
    said = fails(*words, "--variant", "student=resnet18,lr=1", cwd=tmp_path)
    assert (
        "--variant student=resnet18,lr=1 is for resnet18, but trained are digits_tiny, digits_small" in said
    )


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("lr=0.2", "lr=0.20"), "digits_tiny-lr=0.2 and digits_tiny-lr=0.20 are the same run"),
        (("lr=0.2", "student=digits_tiny,lr=0.2"), "digits_tiny-lr=0.2 would be trained twice"),
        (("student=digits_tiny", "lr=0.05"), "digits_tiny-ce and digits_tiny-lr=0.05 are the same run"),
        (("loss=ce:1", "loss=ce"), "are the same run; leave one --variant out"),
    ],
)
def test_variants_that_come_to_the_same_run_are_refused(
    texts: tuple[str, str], said: str, tmp_path: Path
) -> None:
    words = ("train", "--student", "digits_tiny", "--data", "small:dozen", "--epochs", 1)
    loss = () if all("loss" in text for text in texts) else ("--loss", "ce")
    options = [word for text in texts for word in ("--variant", text)]
    assert said in fails(*words, *loss, *options, cwd=tmp_path)


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
