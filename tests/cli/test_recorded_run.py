"""``train --out RUN --resume``: a run goes on by the command that it keeps."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from command import fails, logitcache, succeeds
from dumping import dump_digits
from pictures import image_folder

SCRIPT = Path(sys.executable).with_name("logitcache")


CE = ("--loss", "ce", "--fraction", 0.1)


def test_a_run_goes_on_by_its_own_options(tmp_path: Path) -> None:
    def train(*words: object) -> subprocess.CompletedProcess[str]:
        command = [str(SCRIPT), "train", *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    options = ("--loss", "ce", "--variant", "lr=0.1", "--variant", "lr=0.2", "--epochs", 2, "--fraction", 0.1)
    begun = train("--student", "digits_tiny", *options, "--out", "runs/two")
    assert begun.returncode == 0, begun.stderr
    again = train("--out", "runs/two", "--resume", "--json")
    assert again.returncode == 0, again.stderr
    assert "goes on with: logitcache train --student digits_tiny --loss ce" in again.stderr
    assert [run["epochs"] for run in json.loads(again.stdout)["runs"]] == [2, 2]
    changed = train("--out", "runs/two", "--resume", "--batch-size", 16)
    assert "stream.batch_size: expected 64, found 16" in changed.stderr
    assert "no run in runs/none" in train("--out", "runs/none", "--resume").stderr
    assert "name a network with --student" in train("--out", "runs/two").stderr

    config = tmp_path / "runs" / "two" / "digits_tiny-lr=0.1" / "config.json"
    record = json.loads(config.read_text())
    config.write_text(
        json.dumps({**record, "command": ["logitcache", "train", "--student", "shutil:rmtree"]})
    )
    assert "of the standard library" in train("--out", "runs/two", "--resume").stderr
    config.write_text(json.dumps({**record, "command": ["train.py"]}))
    assert "was not begun by `logitcache train" in train("--out", "runs/two", "--resume").stderr


def test_a_run_goes_on_from_another_folder(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", n=64, seeds=(0,))
    there, here = tmp_path / "runs" / "r", tmp_path / "else" / "where"
    here.mkdir(parents=True)
    words = ("train", "--student", "digits_tiny", "--cache", "c.zarr", "--epochs", 1, "--out", "runs/r")
    succeeds(*words, cwd=tmp_path)
    again = logitcache("train", "--out", "../../runs/r", "--resume", cwd=here)
    assert again.exit_code == 0, again.output
    assert (
        f"goes on in {tmp_path} with: logitcache train --student digits_tiny --cache c.zarr" in again.stderr
    )
    shutil.move(
        tmp_path / "c.zarr", here / "moved.zarr"
    )  # a list given now takes the place of the one before
    succeeds("train", "--out", "../../runs/r", "--resume", "--cache", "moved.zarr", cwd=here)

    record = json.loads((there / "config.json").read_text())
    assert record["folder"] == str(tmp_path)
    stranger = [*record["command"], "--data", "mine:images"]
    (there / "config.json").write_text(json.dumps({**record, "command": stranger}))
    line = fails("train", "--out", "../../runs/r", "--resume", cwd=here)
    assert f"names the code mine:images of {tmp_path}, which is not run because a file says so" in line


def test_a_folder_that_is_begun_on_resuming_keeps_the_whole_command(tmp_path: Path) -> None:
    students = ("--student", "digits_tiny", "--student", "digits_small")
    succeeds("train", *students, *CE, "--epochs", 1, "--out", "two", cwd=tmp_path)
    shutil.rmtree(tmp_path / "two" / "digits_small-ce")
    before = json.loads((tmp_path / "two" / "digits_tiny-ce" / "config.json").read_text())
    for _ in range(2):
        succeeds("train", "--out", "two", "--resume", cwd=tmp_path)
    begun = json.loads((tmp_path / "two" / "digits_small-ce" / "config.json").read_text())
    assert begun["command"] == before["command"]

    for folder in (tmp_path / "two").iterdir():
        nobody = {**json.loads((folder / "config.json").read_text()), "command": ["logitcache", "train"]}
        (folder / "config.json").write_text(json.dumps(nobody))
    assert "names no --student" in fails("train", "--out", "two", "--resume", cwd=tmp_path)


def test_one_run_of_several_goes_on_alone(tmp_path: Path) -> None:
    students = ("--student", "digits_tiny", "--student", "digits_small")
    succeeds("train", *students, *CE, "--epochs", 1, cwd=tmp_path)
    one = json.loads(succeeds("train", "--out", "runs/digits_small-ce-0", "--resume", "--json", cwd=tmp_path))
    assert [(run["out"], run["student"]) for run in one["runs"]] == [
        ("runs/digits_small-ce-0", "digits_small")
    ]
    line = fails("train", "--out", "runs", "--resume", cwd=tmp_path)
    assert "no run in runs; name one with --out, such as runs/digits_small-ce-0, of the 2 there" in line
    (tmp_path / "runs" / "digits_small-ce-0").rename(tmp_path / "renamed")
    line = logitcache("train", "--out", "renamed", "--resume", cwd=tmp_path).stderr
    assert "its name says none of digits_tiny-ce, digits_small-ce" in line


def test_a_run_begun_by_a_config_file_goes_on_without_it(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[train]\nstudent = "digits_tiny"\nloss = "ce"\nfraction = 0.1\n')
    succeeds("--config", "mine.toml", "train", "--epochs", 1, "--out", "r", cwd=tmp_path)
    (tmp_path / "mine.toml").rename(tmp_path / "logitcache.toml")
    (tmp_path / "logitcache.toml").write_text('[train]\nstudent = "digits_small"\n')  # for other runs
    again = json.loads(succeeds("train", "--out", "r", "--resume", "--json", cwd=tmp_path))
    assert [run["student"] for run in again["runs"]] == ["digits_tiny"]


def test_a_run_of_a_time_before_protocols_were_chosen_goes_on_by_its_command(tmp_path: Path) -> None:
    """Then all had the protocol digits; pictures as few as these have another one now."""
    image_folder(tmp_path / "pics")
    words = (
        "train",
        "--student",
        "digits_tiny",
        "--loss",
        "ce",
        "--data",
        "imagefolder:pics",
        "--batch-size",
        4,
    )
    succeeds(*words, "--protocol", "digits", "--out", "r", cwd=tmp_path)
    succeeds(*words, "--out", "r", "--resume", cwd=tmp_path)  # by the name that it keeps
    config = tmp_path / "r" / "config.json"
    record = json.loads(config.read_text())
    assert record.pop("protocol") == "digits"
    config.write_text(json.dumps(record))
    succeeds(*words, "--out", "r", "--resume", cwd=tmp_path)
    line = fails(*words, "--out", "r", "--resume", "--lr", 0.2, cwd=tmp_path)
    assert "another configuration: config.lr: expected 0.05, found 0.2; resume" in line
    line = fails(*words, "--out", "r", "--resume", "--epochs", 300, cwd=tmp_path)
    assert "stream.seeds: expected 0-19, found 0-299; resume" in line
