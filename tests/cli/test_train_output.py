"""What `train` ends with: a block for one student, a table for several, the same JSON for both."""

import json
from pathlib import Path

from command import logitcache, on_terminal, succeeds

TRAIN = ("train", "--student", "digits_tiny", "--loss", "ce", "--epochs", 1, "--fraction", 0.1)


def test_several_students_are_a_table_of_what_differs(tmp_path: Path) -> None:
    words = (*TRAIN, "--variant", "lr=0.1", "--variant", "lr=0.2,ema=0.99", "--export", "torchscript")
    head, first, second, *exported = succeeds(*words, cwd=tmp_path).splitlines()
    assert head.split() == ["student", "loss", "lr", "ema", "top-1", "best", "epochs", "seconds", "run"]
    assert first.split()[:4] == ["digits_tiny", "ce", "0.1", "–"]
    assert second.split()[:4] == ["digits_tiny", "ce", "0.2", "0.99"]
    assert [line.split()[-1] for line in (first, second)] == [
        "runs/digits_tiny-lr=0.1-0",
        "runs/digits_tiny-lr=0.2_ema=0.99-0",
    ]
    assert {line.index("runs/") for line in (first, second)} == {head.index("run")}
    assert [line.split()[0] for line in exported] == ["export", "export"]
    runs = json.loads(succeeds(*words, "--json", cwd=tmp_path))["runs"]
    assert [run["student"] for run in runs] == ["digits_tiny", "digits_tiny"]


def test_a_table_fits_a_terminal(tmp_path: Path) -> None:
    words = (*TRAIN, "--variant", "lr=0.1", "--variant", "lr=0.2,weight_decay=0.1,momentum=0.5")
    shown = on_terminal(*words, cwd=tmp_path)
    assert max(map(len, shown)) <= 80
    assert "0.2" in "".join(shown)


def test_losses_are_told_apart_by_their_options(tmp_path: Path) -> None:
    losses = ("loss=kd(temperature=1.0)", "loss=kd(temperature=4.0)")
    succeeds("dump", "--teacher", "digits_small", "--seeds", 0, cwd=tmp_path)
    words = [word for loss in losses for word in ("--variant", loss)]
    _, *rows = succeeds(*TRAIN[:3], *TRAIN[5:], *words, cwd=tmp_path).splitlines()
    assert ["temperature=4.0" in row.split()[1] for row in rows] == [False, True]


def test_one_student_is_a_block_of_its_own(tmp_path: Path) -> None:
    ended = logitcache(*TRAIN, cwd=tmp_path)
    assert [line.split()[0] for line in ended.stdout.splitlines()] == ["run", "student", "result", "time"]
