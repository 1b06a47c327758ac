"""A folder that changes after the dump: what each command says, and what a run goes on with."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from command import fails, logitcache, succeeds
from pictures import picture_folder
from training import outcome

from logitcache.distributed import ALONE
from logitcache.errors import StoppedError
from logitcache.stream.batch import StreamConfig
from logitcache.stream.stream_inputs import StreamInputs
from logitcache.train.launch import TrainJob
from logitcache.train.variants import VariantInputs

VIEWS = ("--recipe", "imagenet@32")
TRAIN = (
    "train",
    "--student",
    "resnet8",
    "--cache",
    "c.zarr",
    "--epochs",
    2,
    "--batch-size",
    4,
    "--workers",
    0,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    picture_folder(folder / "pictures")
    data = ("--data", "imagefolder:pictures", *VIEWS)
    succeeds("dump", "--teacher", "resnet8", *data, "--seeds", "0-1", "--out", "c.zarr", cwd=folder)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "here")
    return tmp_path / "here"


def resume_fails(run: str, *words: object, cwd: Path) -> str:
    """Go on with a run, which must fail; returns the line that says why, after the one that says with what."""
    ended = logitcache("train", "--out", run, "--resume", *words, cwd=cwd)
    assert ended.exit_code == 1, (ended.output, ended.exception)
    *_, line = ended.stderr.splitlines()
    assert line.startswith("logitcache: ")
    return line


def test_a_run_without_missing_images_says_so_and_keeps_to_it(copied: Path) -> None:
    picture = copied / "pictures" / "train" / "dog" / "3.jpg"
    picture.rename(copied / "kept.jpg")
    gone = "missing images: expected none, found 1: pictures/train/dog/3.jpg"
    assert gone in fails(*TRAIN, "--out", "run", cwd=copied)
    assert not (copied / "run").exists()
    ended = logitcache(*TRAIN, "--cache", "c.zarr", "--missing", "skip", "--out", "run", cwd=copied)
    assert ended.exit_code == 0, ended.output
    assert ended.stderr.count("are missing and left out") == 1  # not of each cache
    assert "warning: 1 of 16 images of c.zarr are missing and left out: " in ended.stderr
    record = json.loads((copied / "run" / "config.json").read_text())
    assert record["stream"]["missing"]["n"] == 1
    succeeds("train", "--out", "run", "--resume", cwd=copied)
    (copied / "pictures" / "train" / "dog" / "4.jpg").rename(copied / "other.jpg")
    line = resume_fails("run", cwd=copied)
    assert "missing images: expected 1, found 2" in line
    (copied / "other.jpg").rename(copied / "pictures" / "train" / "dog" / "4.jpg")
    (copied / "kept.jpg").rename(picture)
    assert "missing images: expected 1, found none" in resume_fails("run", cwd=copied)


def test_other_commands_name_what_is_missing(copied: Path) -> None:
    (copied / "pictures" / "train" / "dog" / "3.jpg").unlink()
    gone = "missing images: expected none, found 1: pictures/train/dog/3.jpg"
    data = ("--data", "imagefolder:pictures")
    dump = ("dump", "--teacher", "resnet8", *data, *VIEWS, "--seeds", "0-2", "--out", "c.zarr")
    for words in (dump, (*dump, "--grow")):
        line = fails(*words, cwd=copied)
        assert (
            f"no row can be made of an image that is missing: {gone}; dataset.n: expected 16, found 15; "
            in line
        )
        assert "--missing" not in line
    assert gone in fails("stats", "c.zarr", *data, cwd=copied)
    assert gone in fails("report", "c.zarr", *data, "--out", "r.html", cwd=copied)
    succeeds("info", "c.zarr", cwd=copied)
    with pytest.warns(UserWarning, match="1 of 16 images of c.zarr are missing and left out"):
        assert "clean" in succeeds("verify", "c.zarr", "--replay", 32, cwd=copied)


def begin_and_stop(folder: Path, out: str, steps: int) -> None:
    """Begin a run as the command does, and stop it after so many steps."""
    left = iter(range(steps - 1))
    job = TrainJob(
        ("resnet8",),
        VariantInputs("kd", settings={"epochs": 2}, batch_size=4),
        StreamInputs(StreamConfig(4, workers=0), caches=("c.zarr",)),
        Path(out),
        command=("logitcache", *map(str, TRAIN), "--out", out),
    )
    with contextlib.chdir(folder), pytest.raises(StoppedError):
        job.run(ALONE, print, should_stop=lambda: next(left, None) is None)


@pytest.mark.parametrize("steps", [3, 6])  # of four in an epoch
def test_images_are_the_same_by_another_name(steps: int, copied: Path, tmp_path: Path) -> None:
    succeeds(*TRAIN, "--out", "whole", cwd=copied)
    begin_and_stop(copied, "run", steps)
    (copied / "pictures").rename(copied / "images")
    assert "say with --data where the images lie now" in fails(*TRAIN, "--out", "new", cwd=copied)
    assert "say with --data where the images lie now" in resume_fails("run", cwd=copied)
    absolute = f"imagefolder:{copied / 'images'}"
    succeeds("train", "--out", copied / "run", "--resume", "--data", absolute, cwd=tmp_path)
    succeeds(*TRAIN, "--out", "new", "--data", "imagefolder:images", cwd=copied)
    for run in ("run", "new"):
        assert outcome(copied / run) == outcome(copied / "whole")
    found = json.loads(succeeds("report", "new", "whole", "--out", "r.html", "--json", cwd=copied))
    assert len(found["groups"]) == 1


def test_other_settings_are_refused_and_the_advice_works(copied: Path) -> None:
    succeeds(*TRAIN, "--out", "a run", cwd=copied)
    line = resume_fails("a run", "--epochs", 3, "--batch-size", 8, cwd=copied)
    assert "config.epochs: expected 2, found 3; stream.batch_size: expected 4, found 8; " in line
    assert line.endswith("begin another from its weights: --weights 'a run/last.safetensors' --out ANOTHER")
    advised = ("--weights", "a run/last.safetensors", "--out", "ANOTHER", "--epochs", 3, "--batch-size", 8)
    ended = logitcache(*TRAIN, *advised, cwd=copied)
    assert ended.exit_code == 0, ended.output
    assert json.loads((copied / "ANOTHER" / "config.json").read_text())["config"]["epochs"] == 3
