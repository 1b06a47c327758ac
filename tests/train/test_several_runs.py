"""Several runs of one command: each has a folder of its own, all of them begin or none, and all go on together."""

import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from command import fails, logitcache, succeeds
from dumping import RECIPE, dump_digits
from pictures import picture_folder
from small import few_digits

from logitcache.distributed import ALONE
from logitcache.errors import OptionError, StoppedError
from logitcache.losses import Objective
from logitcache.models.build import build_model
from logitcache.stream.batch import StreamConfig
from logitcache.stream.stream import Stream
from logitcache.stream.stream_inputs import StreamInputs
from logitcache.train.config import TrainConfig
from logitcache.train.events import TrainEvent, TrainingBegun
from logitcache.train.launch import TrainJob
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.train.run_folder import RunFolder, claim_folders
from logitcache.train.variants import VariantInputs

CONFIG = TrainConfig(epochs=2, lr=0.1)


def two(folder: Path, **second: Any) -> list[Run]:
    models = [
        build_model("digits_tiny", num_classes=10, view_size=8, weights="random", seed=s) for s in (0, 1)
    ]
    configs = CONFIG, CONFIG.replace(second)
    return [
        Run(folder / name, model, Objective.parse("ce"), config)
        for name, model, config in zip("ab", models, configs, strict=True)
    ]


def a_stream() -> Stream:
    return Stream.plain(few_digits(), RECIPE, seeds=(0, 1), batch_size=60, workers=0)


def test_of_runs_that_cannot_all_begin_none_leaves_anything(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="sync-batch-norm needs GPUs"):
        train(two(tmp_path, sync_batch_norm=True), a_stream())
    assert list(tmp_path.iterdir()) == []
    assert len(train(two(tmp_path), a_stream())) == 2


def test_a_run_that_had_not_begun_begins_when_the_others_go_on(tmp_path: Path) -> None:
    train(two(tmp_path), a_stream())
    whole = {name: (tmp_path / name / "last.safetensors").read_bytes() for name in "ab"}
    shutil.rmtree(tmp_path / "b")
    train(two(tmp_path), a_stream(), resume=True)
    assert {name: (tmp_path / name / "last.safetensors").read_bytes() for name in "ab"} == whole


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["rows", "json"])
def test_where_no_student_comes_to_its_end_that_is_said_in_one_line(form: list[str], tmp_path: Path) -> None:
    words = ("train", "--student", "digits_tiny", "--loss", "ce", "--epochs", 2, "--warmup-epochs", 0)
    variants = ("--variant", "lr=1e30", "--variant", "lr=1e31", "--workers", 0, *form)
    ended = logitcache(*words, *variants, cwd=tmp_path)
    assert ended.exit_code == 1, ended.exception
    assert isinstance(ended.exception, SystemExit)
    assert ended.stderr.splitlines()[-1].startswith("logitcache: 2 of 2 students ended early: ")
    assert "".join(ended.stdout.split()) == ('{"runs":[]}' if form else "")


def test_one_folder_is_not_two_runs(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    with pytest.raises(OptionError, match=r"two runs would share the folder .*a; name each"):
        train([one, Run(one.out, other.student, other.objective, other.config)], a_stream())
    words = ("train", "--loss", "ce", "--student", "digits_tiny", "--student", "digits_tiny", "--epochs", "1")
    assert "digits_tiny-ce would be trained twice" in fails(*words, cwd=tmp_path)
    assert list((tmp_path / "runs").iterdir() if (tmp_path / "runs").exists() else ()) == []


def test_who_claims_a_folder_has_it_alone_and_what_stays_empty_is_gone(tmp_path: Path) -> None:
    found: list[Path] = []
    all_there = threading.Barrier(8)

    def claim() -> None:
        with claim_folders(tmp_path, ["x", "y"]) as folders:
            found.extend(folders)
            all_there.wait(30)
            (folders[0] / "config.json").touch()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in found) == sorted(f"{n}-{i}" for n in "xy" for i in range(8))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"x-{i}" for i in range(8)]


def test_a_loss_too_long_for_a_folders_name_is_cut_and_told_apart(tmp_path: Path) -> None:
    long = "+".join(f"kd(temperature={t}.5):0.1" for t in range(1, 16))
    succeeds("train", "--student", "digits_tiny", "--loss", "ce", "--epochs", "1", "--out", "t", cwd=tmp_path)
    cache = ("--teacher", "digits_tiny", "--weights", "t/best.safetensors", "--seeds", "0", "--out", "c.zarr")
    succeeds("dump", *cache, cwd=tmp_path)
    words = ("train", "--student", "digits_tiny", "--cache", "c.zarr", "--epochs", "1", "--fraction", "0.1")
    succeeds(*words, "--variant", f"loss={long}", "--variant", f"loss={long}1", cwd=tmp_path)
    names = [folder.name for folder in (tmp_path / "runs").iterdir()]
    assert len(names) == 2
    assert all(name.endswith("-0") and len(name) <= 102 for name in names)


def test_a_batch_too_small_for_two_heads_is_one_line(tmp_path: Path) -> None:
    teach = ("train", "--student", "digits_tiny", "--loss", "ce", "--epochs", "1", "--out", "t")
    succeeds(*teach, cwd=tmp_path)
    cache = ("--teacher", "digits_tiny", "--weights", "t/best.safetensors", "--seeds", "0", "--out", "c.zarr")
    succeeds("dump", *cache, cwd=tmp_path)
    words = ("--student", "digits_tiny", "--loss", "dho", "--batch-size", "1", "--fraction", "0.02")
    ended = logitcache("train", *words, "--cache", "c.zarr", "--epochs", "1", "--out", "r", cwd=tmp_path)
    assert ended.exit_code == 1
    said = ended.stderr.splitlines()[-1]
    assert "leaves two views to train on; choose a larger --batch-size" in said


def test_training_begins_with_what_it_will_do(tmp_path: Path) -> None:
    words = ("train", "--student", "digits_tiny", "--loss", "ce", "--fraction", "0.1")
    alone = logitcache(*words, "--epochs", "2", cwd=tmp_path).stderr
    assert (
        "protocol digits: sgd, lr 0.05 cosine, 2 epochs of 3 steps of 64, 6 in all; new views every epoch"
        in alone
    )
    several = ("--variant", "lr=0.1", "--variant", "optimizer=adamw,lr=0.002,epochs=1")
    few = ("--protocol", "few", "--epochs", "100", "--seeds", "1,3")
    said = logitcache(*words, *few, *several, cwd=tmp_path).stderr
    assert (
        "few: sgd, lr 0.1 cosine, 100 epochs of 9 steps of 16, 900 in all; seeds 1, 3, few: each view" in said
    )
    assert "few: adamw, lr 0.002 cosine, 1 epoch of 9 steps of 16, 9 in all; new views" in said


def test_before_training_no_seed_is_decoded_but_the_first_epochs(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", n=64, seeds=range(4))
    decoded: list[int] = []

    def look(event: TrainEvent) -> None:
        if isinstance(event, TrainingBegun):
            decoded.append(len(list((tmp_path / "spool").glob("*.spool"))))

    inputs = StreamInputs(StreamConfig(), (tmp_path / "c.zarr",), spool_folder=tmp_path / "spool")
    variants = VariantInputs("kd", settings={"epochs": 4})
    said: list[str] = []
    TrainJob(("digits_tiny",), variants, inputs, tmp_path / "run").run(ALONE, said.append, on_progress=look)
    assert decoded == [1]
    assert "4 epochs of 1 step of 64, 4 in all; seeds 0-3" in said[-1]


@pytest.mark.parametrize(
    ("students", "out", "told"),
    [
        (("digits_tiny",), None, "with --out runs/digits_tiny-ce-0 and --resume goes on from there"),
        (("digits_tiny", "digits_small"), Path("two"), "with --out two and --resume goes on from there"),
        (
            ("digits_tiny", "digits_small"),
            None,
            "--resume` goes on with each RUN of runs/digits_tiny-ce-0, runs/digits_small-ce-0",
        ),
    ],
)
def test_training_that_is_stopped_says_how_each_run_goes_on(
    students: tuple[str, ...], out: Path | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inputs, variants = StreamInputs(StreamConfig(fraction=0.1, workers=0)), VariantInputs("ce")
    seen: list[TrainEvent] = []
    job = TrainJob(students, variants, inputs, out)
    with pytest.raises(StoppedError, match=f"{re.escape(told)}$"):
        job.run(ALONE, print, on_progress=seen.append, should_stop=lambda: bool(seen))


def test_what_may_surprise_of_a_student_is_said_before_it_trains(tmp_path: Path) -> None:
    words = ("train", "--loss", "ce", "--epochs", "1", "--fraction", "0.1", "--student")
    few = logitcache(*words, "digits_tiny", cwd=tmp_path)
    assert "batch norm forgets one part in 10 a step, so that after 3 steps" in few.stderr
    many = logitcache(*words, "digits_tiny", "--batch-size", "2", cwd=tmp_path)
    assert "batch norm" not in many.stderr
    shown = logitcache(*words, "resnet8", "--data", "digits", cwd=tmp_path)
    assert "resnet8 sees views of 8 pixels resized to 32" in shown.stderr


def test_two_classes_are_taught_by_kd_where_no_loss_is_named(tmp_path: Path) -> None:
    picture_folder(tmp_path / "pets")
    words = (
        "dump",
        "--teacher",
        "resnet20",
        "--data",
        "imagefolder:pets",
        "--recipe",
        "imagenet@32",
        "--seeds",
        "0-1",
    )
    succeeds(*words, "--seeds", "0-1", "--out", "c.zarr", cwd=tmp_path)
    train = (
        "train",
        "--student",
        "resnet8",
        "--cache",
        "c.zarr",
        "--epochs",
        2,
        "--workers",
        0,
        "--out",
        "r",
    )
    done = logitcache(*train, cwd=tmp_path)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("note: trained by kd, as cmkd compares the order of classes") == 1
    assert json.loads((tmp_path / "r" / "config.json").read_text())["objective"]["expression"].startswith(
        "kd"
    )
    assert logitcache("train", "--out", "r", "--resume", cwd=tmp_path).exit_code == 0


def test_of_equal_epochs_the_later_is_kept_as_best(tmp_path: Path) -> None:
    folder, best = RunFolder(tmp_path), tmp_path / "best.safetensors"
    for epoch, (top1, is_best) in enumerate(
        [(0.5, True), (0.5, True), (0.4, False), (0.5, True), (0.6, True)]
    ):
        student = build_model("digits_tiny", num_classes=10, view_size=8, weights="random", seed=epoch)
        folder.save_epoch({"epoch": epoch, "loss": 1.0, "top1": top1}, None, {}, student)
        assert (best.read_bytes() == (tmp_path / "last.safetensors").read_bytes()) == is_best


@pytest.mark.parametrize(("size", "noted"), [(12, False), (13, True)])
def test_a_batch_larger_than_an_epoch_is_noted(size: int, noted: bool, tmp_path: Path) -> None:
    words = ("train", "--student", "digits_tiny", "--loss", "ce", "--data", "small:dozen", "--epochs", 1)
    ended = logitcache(*words, "--batch-size", size, "--workers", 0, cwd=tmp_path)
    assert ended.exit_code == 0, ended.output
    said = f"note: batches of {size} are more than the 12 views of an epoch, which is one smaller step"
    assert (said in ended.stderr) is noted


def test_a_folder_of_runs_is_no_run_and_a_run_no_folder_of_them(tmp_path: Path) -> None:
    one = ("train", "--student", "digits_tiny", "--epochs", 1, "--workers", 0)
    two = (*one, "--loss", "ce", "--variant", "lr=0.1", "--variant", "lr=0.2", "--out", "runs/both")
    succeeds(*two, cwd=tmp_path)
    before = sorted(path.name for path in (tmp_path / "runs" / "both").iterdir())
    for more in ([], ["--resume"]):
        line = fails(*one, "--loss", "ce", "--out", "runs/both", *more, cwd=tmp_path)
        assert "runs/both is a folder of runs (2 runs, such as runs/both/" in line
        assert "`logitcache train --out runs/both --resume` goes on with all" in line
    assert sorted(path.name for path in (tmp_path / "runs" / "both").iterdir()) == before
    succeeds("train", "--out", "runs/both", "--resume", cwd=tmp_path)
    run = f"runs/both/{before[0]}"
    line = fails(*two[:-1], run, cwd=tmp_path)
    assert f"{run} is a run, and 2 students want a folder of runs; choose another --out" in line
    (tmp_path / "models" / "bert").mkdir(parents=True)
    (tmp_path / "models" / "bert" / "config.json").write_text('{"hidden_size": 8}')  # of another tool
    succeeds(*one, "--loss", "ce", "--out", "models", cwd=tmp_path)
    succeeds("report", "runs/both", cwd=tmp_path)
    assert "2 runs" in (tmp_path / "report.html").read_text()
