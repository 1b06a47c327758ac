"""The command line, loaded as the console script loads it: each command over one library call."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import fails, logitcache, on_terminal, succeeds
from console import without_progress
from pictures import picture_folder

SCRIPT = Path(sys.executable).with_name("logitcache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small cache, caches/digits_small-digits.zarr."""
    folder = tmp_path_factory.mktemp("cli")
    succeeds("dump", "--teacher", "digits_small", "--seeds", "0-1", "--top-k", 4, cwd=folder)
    return folder


def test_info_tells_what_the_cache_holds(folder: Path) -> None:
    found = json.loads(succeeds("info", "caches/digits_small-digits.zarr", "--json", cwd=folder))
    assert {"format_version", "teacher", "dataset", "bytes_on_disk", "bytes_per_sample_view"} <= set(found)
    assert (found["n"], found["num_classes"], found["k"]) == (1437, 10, 4)
    shards = found["seeds"][0]["shards"]
    assert found["seeds"] == [
        {"seed": s, "complete": True, "shards_done": shards, "shards": shards} for s in (0, 1)
    ]
    files = [f for f in (folder / found["path"]).rglob("*") if f.is_file() and not f.name.startswith(".")]
    assert found["bytes_on_disk"] == sum(f.stat().st_size for f in files)
    text = succeeds("info", found["path"], cwd=folder)
    assert "seeds 0-1 complete" in text
    assert found["confidence"]["views"] == 2 * 256
    assert f"mean top-1 probability {100 * found['confidence']['mean_top1_probability']:.1f} %" in text


def test_drift_that_is_allowed_is_said_in_one_line_and_kept_in_the_run(folder: Path, tmp_path: Path) -> None:
    from logitcache.store import CacheReader, CacheWriter

    shutil.copytree(folder / "caches", tmp_path / "caches")
    reader = CacheReader(tmp_path / "caches" / "digits_small-digits.zarr")
    arrays = reader.read(1, 0)
    arrays["canary"] ^= 1
    with CacheWriter(reader.place, reader.spec).seed(1) as own:
        own.delete(0)
        own.write(0, arrays)
    words = ("train", "--student", "digits_tiny", "--epochs", 1, "--out", "run")
    assert "not the views that the teacher saw" in fails(*words, cwd=tmp_path)
    ended = logitcache(*words, "--allow-drift", cwd=tmp_path)
    assert ended.exit_code == 0
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]
    assert "8 of 96 views are not those that the teacher saw: view of sample 0 of digits under seed 1" in line
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["stream"]["drift"]
    assert (kept["differing"], kept["compared"]) == (8, 96)


def test_dump_again_does_nothing_and_train_takes_the_only_cache(folder: Path) -> None:
    again = succeeds(
        "dump", "--teacher", "digits_small", "--seeds", "0-1", "--top-k", 4, "--json", cwd=folder
    )
    assert json.loads(again)["views"] == 0
    words = ("train", "--student", "digits_tiny", "--student", "digits_small", "--epochs", 1, "--json")
    runs: list[dict[str, Any]] = json.loads(succeeds(*words, cwd=folder))["runs"]
    assert [run["out"] for run in runs] == ["runs/digits_tiny-cmkd-0", "runs/digits_small-cmkd-0"]
    for run in runs:
        kept = {f.name for f in (folder / run["out"]).iterdir()}
        expected = {"config.json", "metrics.jsonl", "reliability.json", "checkpoint.pt"}
        expected |= {"best.safetensors", "last.safetensors"}
        assert kept == expected


def test_a_student_of_one_run_is_the_teacher_of_the_next(folder: Path) -> None:
    words = ("--loss", "ce", "--epochs", 1, "--out", "runs/teacher")
    succeeds("train", "--student", "digits_small", *words, cwd=folder)
    weights = ("--weights", "runs/teacher/best.safetensors")
    succeeds("dump", "--teacher", "digits_small", *weights, "--seeds", 0, "--out", "t.zarr", cwd=folder)
    found = json.loads(succeeds("info", "t.zarr", "--json", cwd=folder))
    assert found["teacher"]["weights"] == "file:best.safetensors"


def test_training_resumes_by_command(folder: Path) -> None:
    words = ("train", "--student", "digits_tiny", "--cache", "caches/digits_small-digits.zarr", "--epochs", 2)
    succeeds(*words, "--out", "runs/r", cwd=folder)
    assert "holds a run already" in fails(*words, "--out", "runs/r", cwd=folder)
    succeeds(*words, "--out", "runs/r", "--resume", cwd=folder)
    line = fails(*words, "--out", "runs/r", "--resume", "--lr", 0.2, cwd=folder)
    assert "config.lr: expected 0.05, found 0.2" in line


def test_a_dump_interrupted_at_the_keyboard_says_how_to_go_on(tmp_path: Path) -> None:
    command = [str(SCRIPT), "dump", "--teacher", "digits_teacher", "--seeds", "0-99"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore it
    )
    while not list(tmp_path.glob("caches/*/seed-0/commit/c/0")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert error.splitlines()[-1] == "logitcache: interrupted; run the same command again to go on"


def test_pictures_of_your_own_from_dump_to_student(tmp_path: Path) -> None:
    picture_folder(tmp_path / "pets")
    words = ("--data", "imagefolder:pets", "--recipe", "imagenet@32", "--seeds", "0-1")
    succeeds("dump", "--teacher", "resnet18", *words, cwd=tmp_path)
    reports = succeeds("train", "--student", "resnet20", "--epochs", 1, "--json", cwd=tmp_path)
    assert json.loads(reports)["runs"][0]["top1"] is not None


def test_an_unfinished_cache_says_what_is_complete(tmp_path: Path, folder: Path) -> None:
    words = ("dump", "--teacher", "digits_small", "--top-k", 4, "--out", "c.zarr")
    succeeds(*words, "--seeds", 0, cwd=tmp_path)
    commits = tmp_path / "c.zarr" / "seed-0" / "commit" / "c"
    (commits / "2").unlink()
    line = fails("train", "--student", "digits_tiny", "--cache", "c.zarr", cwd=tmp_path)
    assert "no complete seed (begun: seed 0)" in line
    again = json.loads(succeeds(*words, "--seeds", 0, "--json", cwd=tmp_path))
    assert again["shards_written"] == 1


# What people see ------------------------------------------------------------------------------------------

ODD = "[/x] [bold]old[/bold] :smile: \x1b[31m red " + "a_long_name_" * 8


@pytest.mark.parametrize("command", ["info", "verify", "stats"])
def test_whatever_a_cache_is_called_is_shown_as_it_is_in_80_columns(
    folder: Path, tmp_path: Path, command: str
) -> None:
    shutil.copytree(folder / "caches" / "digits_small-digits.zarr", tmp_path / ODD)
    shown = on_terminal(command, ODD, cwd=tmp_path)
    assert max(map(len, shown)) <= 80
    told = ODD.replace("\x1b", "\\x1b").replace(" ", "")
    assert told in "".join(" ".join(shown).split())
    ended = logitcache(command, ODD, cwd=tmp_path)
    assert "\x1b" not in ended.output
    assert told in ended.stdout.splitlines()[0].replace(" ", "")  # a row is a line, however long
    assert without_progress(ended.stderr) == ""


# Caches elsewhere -----------------------------------------------------------------------------------------


def test_a_cache_in_a_bucket_from_dump_to_student(s3: str, tmp_path: Path) -> None:
    url = "s3://bucket/cli.zarr"
    dump = (
        "dump",
        "--teacher",
        "digits_small",
        "--top-k",
        4,
        "--shard-samples",
        1024,
        "--out",
        url,
        "--json",
    )
    assert json.loads(succeeds(*dump, "--seeds", "0", cwd=tmp_path))["views"] == 1437
    assert json.loads(succeeds(*dump, "--seeds", "0-1", cwd=tmp_path))["views"] == 1437  # seed 0 is there
    assert "seeds 0-1 complete" in succeeds("info", url, cwd=tmp_path)
    assert "4 copied" in succeeds("copy", url, "here.zarr", cwd=tmp_path)
    again = json.loads(succeeds("copy", "here.zarr", url, "--seeds", 1, "--json", cwd=tmp_path))
    assert (again["shards_copied"], again["shards_there"]) == (0, 2)
    train = ("train", "--student", "digits_tiny", "--epochs", 2, "--json")
    spool = ("--spool-dir", "spool", "--spool-limit", "50kB")
    near = json.loads(succeeds(*train, "--cache", "here.zarr", "--out", "near", cwd=tmp_path))
    far = json.loads(succeeds(*train, "--cache", url, "--out", "far", *spool, cwd=tmp_path))
    assert far["runs"][0]["loss"] == near["runs"][0]["loss"]
    (kept,) = (tmp_path / "spool").glob("*.spool")  # one of the two: the limit holds no more
    assert kept.stat().st_size < 50_000
