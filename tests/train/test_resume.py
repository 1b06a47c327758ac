"""Wherever a training is interrupted, going on ends where it would have ended, bit for bit."""

import contextlib
import errno
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from command import fails, logitcache, succeeds
from dumping import RECIPE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import few_digits
from torch import nn
from torch.utils.data import get_worker_info
from training import outcome

from logitcache.errors import (
    FormatError,
    MismatchError,
    NonFiniteError,
    NotFoundError,
    OptionError,
    StoppedError,
    StorageError,
)
from logitcache.format.identity import AdapterSpec
from logitcache.losses import Objective
from logitcache.models.build import Model
from logitcache.report.run_facts import read_run
from logitcache.stream.stream import Stream
from logitcache.train.config import TrainConfig
from logitcache.train.evaluation import Evaluation
from logitcache.train.events import StepDone, TrainEvent
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.train.run_folder import RunFolder
from logitcache.views.datasets import ArrayImages
from logitcache.views.recipes import recipe_named
from logitcache_cli.exit_codes import catch_stop_signals

EPOCHS, STEPS = 2, 5
SETTINGS = {
    "plain": TrainConfig(EPOCHS, lr=0.1),
    "rich": TrainConfig(EPOCHS, "adamw", lr=0.01, ema=0.8, clip_norm=1.0, accumulate=2),
    "scaled": TrainConfig(EPOCHS, lr=0.1, precision="float16"),
}


def with_dropout() -> Model:
    """A student whose every step draws random numbers, and whose batch norm remembers."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.Dropout(0.3), nn.Linear(24, 10)
        return Model("net", nn.Sequential(*layers), AdapterSpec(1, 8, (0.5,), (0.5,)), 10, "own")


def trained(out: Path, config: TrainConfig, loss: str = "ce", **options: Any) -> None:
    stream = Stream.plain(few_digits(), RECIPE, seeds=(0, 1), batch_size=60, workers=0)
    evaluation = Evaluation(few_digits(60, "test"), recipe_named("identity"))
    options = {"resume": (out / "config.json").exists(), **options}
    train([Run(out, with_dropout(), Objective.parse(loss), config)], stream, evaluation, **options)


def after(steps: int) -> Callable[[], bool]:
    """Say so when asked for so many times."""
    left = iter(range(steps - 1))
    return lambda: next(left, None) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    """What each setting comes to without interruption."""
    found = {}
    for name, config in SETTINGS.items():
        out = tmp_path_factory.mktemp(name) / "run"
        trained(out, config)
        found[name] = outcome(out)
    return found


@pytest.mark.parametrize("name", SETTINGS)
@given(stops=st.lists(st.integers(1, STEPS + 1), min_size=1, max_size=3))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stopped_and_resumed_is_uninterrupted(
    name: str, stops: list[int], whole: dict[str, tuple[Any, ...]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.rmtree(out, ignore_errors=True)
    for steps in stops:
        with suppress(StoppedError):  # or it comes to its end before
            trained(out, SETTINGS[name], should_stop=after(steps))
    trained(out, SETTINGS[name])
    assert outcome(out) == whole[name]


class Gated(ArrayImages):
    """Digits of which one doesn't come from a worker while a file is there."""

    gate = Path()

    @classmethod
    def by(cls, gate: Path, few: ArrayImages) -> "Gated":
        images = cls(few.name, few.split, few.images, few.labels, 10, "digits")
        images.gate = gate
        return images

    def image(self, sample: int) -> torch.Tensor:
        while sample == 17 and get_worker_info() and self.gate.exists():
            time.sleep(0.05)
        return super().image(sample)


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_a_wish_to_stop_is_granted_while_no_batch_comes(
    where: str, whole: dict[str, tuple[Any, ...]], tmp_path: Path
) -> None:
    (gate := tmp_path / "gate").touch()
    images, tests, workers = few_digits(), few_digits(60, "test"), {where: 1}
    if where == "training":
        images = Gated.by(gate, images)
    else:
        tests = Gated.by(gate, tests)
    stream = Stream.plain(images, RECIPE, seeds=(0, 1), batch_size=60, workers=workers.get("training", 0))
    evaluation = Evaluation(tests, recipe_named("identity"), workers=workers.get("evaluation", 0))
    run = Run(tmp_path / "run", with_dropout(), Objective.parse("ce"), SETTINGS["plain"])
    wish = threading.Event()
    (timer := threading.Timer(1.0, wish.set)).start()
    with pytest.raises(StoppedError, match=r"stopped after step \d of epoch 1, as asked"):
        train([run], stream, evaluation, should_stop=wish.is_set)
    timer.join()
    gate.unlink()
    trained(tmp_path / "run", SETTINGS["plain"])
    assert outcome(tmp_path / "run") == whole["plain"]


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_and_resumed_is_uninterrupted(
    seed: int, whole: dict[str, tuple[Any, ...]], tmp_path: Path
) -> None:
    dice, out = random.Random(seed), tmp_path / "run"
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                trained(out, SETTINGS["rich"], checkpoint_every=0.0)
            finally:
                os._exit(0)
        until = time.monotonic() + 60
        seen: set[int] = set()
        wanted = dice.randint(1, 4)
        while len(seen) < wanted and time.monotonic() < until and os.waitpid(child, os.WNOHANG)[0] == 0:
            if (out / "checkpoint.pt").exists():
                seen.add((out / "checkpoint.pt").stat().st_mtime_ns)
        time.sleep(dice.random() * 0.01)
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            break  # it had come to its end
    trained(out, SETTINGS["rich"])
    assert outcome(out) == whole["rich"]


def test_students_that_were_saved_at_different_steps_meet_again(tmp_path: Path) -> None:
    def both(folder: Path, **options: Any) -> None:
        stream = Stream.plain(few_digits(), RECIPE, seeds=(0, 1), batch_size=60, workers=0)
        objective = Objective.parse("ce")
        runs = [Run(folder / name, with_dropout(), objective, SETTINGS["plain"]) for name in ("a", "b")]
        train(runs, stream, **options)

    both(tmp_path / "whole")
    broken = tmp_path / "broken"
    for resume, steps, student in ((False, 2, "a"), (True, 1, "b"), (True, 4, "a")):
        kept = broken / student / "checkpoint.pt"
        before = kept.read_bytes() if kept.exists() else None
        with pytest.raises(StoppedError):
            both(broken, resume=resume, should_stop=after(steps))
        if before:  # as if the kill had come before this one was saved
            kept.write_bytes(before)
    both(broken, resume=True)
    for name in ("a", "b"):
        assert outcome(broken / name) == outcome(tmp_path / "whole" / name)


def test_no_checkpoint_holds_what_is_not_a_number(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"run: .* became .* in epoch \d, step \d; any checkpoint"):
        trained(tmp_path / "run", TrainConfig(EPOCHS, lr=1e30, warmup_epochs=0.0), checkpoint_every=0.0)
    file = tmp_path / "run" / "checkpoint.pt"
    assert not file.exists() or all(
        value.isfinite().all() for value in torch.load(file, weights_only=True)["model"].values()
    )


def test_what_is_not_a_number_is_said_though_a_stop_was_asked(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        trained(tmp_path, TrainConfig(lr=1e30, warmup_epochs=0.0), should_stop=after(3))


@pytest.mark.parametrize("size", [0, 100, 1000, 5000, 12_000])
def test_a_full_disk_leaves_the_checkpoint_before(
    size: int, whole: dict[str, tuple[Any, ...]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event: TrainEvent) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            assert size < (out / "checkpoint.pt").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    try:
        with pytest.raises(
            StorageError, match=r"cannot write .*: File too large; what was saved before is intact"
        ):
            trained(out, SETTINGS["plain"], checkpoint_every=0.0, on_progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name for p in out.iterdir()} == {"config.json", "checkpoint.pt"}
    assert torch.load(out / "checkpoint.pt", weights_only=True)["ledger"]["step"] == 2
    trained(out, SETTINGS["plain"])
    assert outcome(out) == whole["plain"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_a_checkpoint_and_a_line(sent: signal.Signals, tmp_path: Path) -> None:
    words = ["train", "--student", "digits_tiny", "--loss", "ce", "--epochs", "400", "--out", "run"]
    command = [sys.executable, "-m", "logitcache_cli", *words, "--workers", "1"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        assert any("epoch 1 of 400" in line for line in process.stderr)
        os.killpg(process.pid, sent)  # as a terminal and a cluster do: to all its processes
        said = process.stderr.read()
    assert process.returncode == 128 + sent
    last = said.splitlines()[-1]
    assert "logitcache: stopped after step" in last
    assert last.endswith("; the same command with --out run and --resume goes on from there")
    assert "Traceback" not in said
    ledger = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["ledger"]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == ledger["epoch"]
    assert f"step {ledger['step']} of epoch {ledger['epoch'] + 1}" in said


@pytest.mark.parametrize("begun", [False, True])
def test_a_first_signal_is_a_wish_once_training_has_begun(begun: bool) -> None:
    with catch_stop_signals(lambda: begun) as stop:
        for at_once in (False, True) if begun else (True,):
            with pytest.raises(KeyboardInterrupt) if at_once else contextlib.nullcontext():
                os.kill(os.getpid(), signal.SIGINT)
        assert stop() is begun


def test_going_on_needs_a_folder(tmp_path: Path) -> None:
    said = fails("train", "--student", "digits_tiny", "--loss", "ce", "--resume", cwd=tmp_path)
    assert said.endswith("--resume goes on with a run; name its folder with --out")


def test_a_signal_to_another_rank_ends_likewise() -> None:
    with pytest.raises(typer.Exit) as ended, catch_stop_signals():
        raise StoppedError("stopped after step 3 of epoch 1")
    assert ended.value.exit_code == 128 + signal.SIGTERM


def test_a_run_without_its_checkpoint_is_left_as_it_is(tmp_path: Path) -> None:
    trained(tmp_path, SETTINGS["plain"])
    (tmp_path / "checkpoint.pt").unlink()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(NotFoundError, match=r"2 epochs far, but has no checkpoint\.pt"):
        trained(tmp_path, SETTINGS["plain"])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.json", "metrics.jsonl"])
def test_what_the_disk_refuses_is_not_taken_for_damage(name: str, tmp_path: Path) -> None:
    trained(tmp_path, SETTINGS["plain"])
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()  # as a missing permission does
    with pytest.raises(StorageError, match=rf"cannot read .*{name}"):
        trained(tmp_path, SETTINGS["plain"])


def test_what_a_crash_left_and_the_disk_keeps_is_one_line(tmp_path: Path) -> None:
    trained(tmp_path, SETTINGS["plain"])
    (tmp_path / "checkpoint.pt.part").mkdir()  # as a folder without permission does
    with pytest.raises(StorageError, match="cannot write"):
        trained(tmp_path, SETTINGS["plain"])


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_strangers_run_may_nest_as_deeply_as_it_likes(name: str, tmp_path: Path) -> None:
    trained(tmp_path, SETTINGS["plain"])
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(FormatError, match=name):
        read_run(tmp_path)


def test_time_spent_before_a_stop_counts(tmp_path: Path) -> None:
    asked = iter(range(STEPS))

    def long_after_the_first_step() -> bool:
        time.sleep(0.3 if (number := next(asked)) == 0 else 0.0)
        return number == 2

    with pytest.raises(StoppedError):
        trained(tmp_path, SETTINGS["plain"], should_stop=long_after_the_first_step)
    trained(tmp_path, SETTINGS["plain"])
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["seconds"] >= 0.3
    for row in (first, second):
        assert row["views_per_second"] * row["seconds"] == pytest.approx(300)


def test_a_run_of_a_time_that_kept_less_says_so(tmp_path: Path) -> None:
    trained(tmp_path, SETTINGS["plain"])
    record = json.loads((tmp_path / "config.json").read_text())
    del record["student"]["input_size"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(MismatchError, match=r"did not keep student\.input_size"):
        trained(tmp_path, SETTINGS["plain"])


@pytest.mark.parametrize("left", [0, 1, 1000])
def test_a_checkpoint_cut_short_is_named(left: int, tmp_path: Path) -> None:
    trained(tmp_path, SETTINGS["plain"])
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(FormatError, match=r"checkpoint\.pt is damaged"):
        trained(tmp_path, SETTINGS["plain"])


@pytest.mark.parametrize("count", ["no", -1, 2.0, None])
def test_a_checkpoint_that_counts_otherwise_is_damaged(count: object, tmp_path: Path) -> None:
    trained(tmp_path, SETTINGS["plain"])
    file = tmp_path / "checkpoint.pt"
    saved = torch.load(file, weights_only=True)
    saved["ledger"]["epoch"] = count
    torch.save(saved, file)
    with pytest.raises(FormatError, match=r"checkpoint\.pt is damaged"):
        trained(tmp_path, SETTINGS["plain"])


def test_a_batch_of_one_view_is_refused_by_name(tmp_path: Path) -> None:
    stream = Stream.plain(few_digits(), RECIPE, seeds=(0,), batch_size=1, workers=0)
    with pytest.raises(OptionError, match="batch norm cannot train on a batch of one view"):
        train([Run(tmp_path / "run", with_dropout(), Objective.parse("ce"), SETTINGS["plain"])], stream)


def test_an_epoch_can_begin_anywhere() -> None:
    stream = Stream.plain(few_digits(), RECIPE, seeds=(0, 1), batch_size=64, workers=0)
    batches = list(stream.epoch(1))
    for start in range(len(batches) + 1):
        for mine, theirs in zip(stream.epoch(1, start), batches[start:], strict=True):
            assert torch.equal(mine.views, theirs.views)
            assert torch.equal(mine.samples, theirs.samples)


def test_a_folder_that_is_being_trained_in_is_nobody_elses(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    with folder.hold():
        said = fails(
            "train", "--student", "digits_tiny", "--loss", "ce", "--epochs", 1, "--out", "r", cwd=tmp_path
        )
        assert f"r is being trained by process {os.getpid()}" in said
        assert "wait for its end, or choose another --out" in said
        assert [file.name for file in folder.path.iterdir()] == [".lock"]
    assert not folder.path.exists()  # nothing was begun in it
    words = ("train", "--student", "digits_tiny", "--loss", "ce", "--epochs", 1, "--out", "r")
    succeeds(*words, cwd=tmp_path)
    assert not (folder.path / ".lock").exists()
    before = {file.name: file.read_bytes() for file in folder.path.iterdir()}
    with folder.hold():
        again = logitcache("train", "--out", "r", "--resume", cwd=tmp_path)
        assert (again.exit_code, "is being trained by" in again.stderr.splitlines()[-1]) == (1, True)
    assert {file.name: file.read_bytes() for file in folder.path.iterdir()} == before


def test_where_a_disk_has_no_flock_a_folder_is_held_all_the_same_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = RunFolder(tmp_path / "r")
    with folder.hold(), pytest.raises(OptionError, match="is being trained by process"), folder.hold():
        pass
    assert not folder.path.exists()
    folder.path.mkdir()
    (folder.path / ".lock.soft").write_text("7\npod-7\n")
    with pytest.raises(
        OptionError, match=r"by process 7 on pod-7 since .*; no flock tells .* delete .*lock.soft"
    ):
        folder.hold().__enter__()
    assert (folder.path / ".lock.soft").exists()


def test_a_folder_that_cannot_be_locked_is_a_line_with_advice(tmp_path: Path) -> None:
    (tmp_path / "r").symlink_to(tmp_path / "gone" / "away")
    said = fails(
        "train", "--student", "digits_tiny", "--loss", "ce", "--epochs", 1, "--out", "r", cwd=tmp_path
    )
    assert "cannot write r: File exists; make room, or choose another --out" in said
