"""Curves for TensorBoard say what metrics.jsonl says, also of a run that was resumed."""

import json
import resource
import sys
import threading
from pathlib import Path

import pytest
from command import fails, succeeds

from logitcache.errors import StorageError
from logitcache.train.events import EpochDone, StepDone, TrainEvent

ROOT = ("train", "--student", "digits_tiny", "--loss", "ce", "--tensorboard")


def curves(run: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run)).Reload()
    return {name: {e.step: e.value for e in found.Scalars(name)} for name in found.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore")  # of TensorBoard's own
def test_curves_are_the_rows_of_metrics(tmp_path: Path) -> None:
    succeeds(*ROOT, "--epochs", 2, "--out", "run", cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = curves(tmp_path / "run")
    assert {"loss", "ce", "lr", "top1", "nll", "ece"} <= found.keys()
    for name, curve in found.items():
        assert curve == {row["epoch"]: pytest.approx(row[name], rel=1e-6) for row in rows}


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_that_is_told_again_counts_once(tmp_path: Path) -> None:
    from logitcache.train.tensorboard import CurveWriter

    passed_on: list[TrainEvent] = []
    for value in (1.0, 2.0):
        writer = CurveWriter(passed_on.append)
        for epoch in (0, 1) if value == 1.0 else (1,):
            writer(EpochDone(tmp_path, 2, {"epoch": epoch, "loss": value}))
        writer(StepDone(epoch=1, epochs=2, step=3, steps=4, views_per_second=1.0, losses={}))
    assert curves(tmp_path) == {"loss": {0: 1.0, 1: 2.0}}
    assert len(passed_on) == 5


@pytest.mark.filterwarnings("ignore")
def test_curves_on_a_full_disk_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from logitcache.train.tensorboard import CurveWriter

    writer, hook = CurveWriter(lambda _: None), threading.excepthook
    writer(EpochDone(tmp_path, 2, {"epoch": 0, "loss": 1.0}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        for _ in range(2):
            with pytest.raises(
                StorageError, match=r"cannot write curves into .*: File too large; .* --resume"
            ):
                writer(EpochDone(tmp_path, 2, {"epoch": 1, "loss": 1.0}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert threading.excepthook is hook
    assert "Traceback" not in capfd.readouterr().err


def test_tensorboard_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install 'logitcache[tensorboard]'" in fails(
        *ROOT, "--epochs", 1, "--out", "run", cwd=tmp_path
    )
