"""The command line, loaded as the console script loads it: each command over one library call."""

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from command import fails, logitcache, on_terminal, succeeds
from console import without_progress
from dumping import dump_digits
from pictures import image_folder, picture_folder
from typer.main import get_command

from logitcache_cli import progress
from logitcache_cli.main import app

SCRIPT = Path(sys.executable).with_name("logitcache")
PLAIN = ("train", "--student", "digits_tiny", "--loss", "ce")
COMMANDS: list[str] = list(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small cache, caches/digits_small-digits.zarr."""
    folder = tmp_path_factory.mktemp("cli")
    succeeds("dump", "--teacher", "digits_small", "--seeds", "0-1", "--top-k", 4, cwd=folder)
    return folder


def test_the_script_is_declared_where_it_is_loaded_from() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="logitcache")
    assert script.value == "logitcache_cli.main:run"
    assert callable(script.load())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_an_example(command: str, tmp_path: Path) -> None:
    text = succeeds(command, "--help", cwd=tmp_path)
    assert f"Example: logitcache {command}" in " ".join(text.split())


def test_help_imports_neither_torch_nor_zarr(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom logitcache_cli.main import app\n"
        f"for command in {COMMANDS}:\n    assert CliRunner().invoke(app, [command, '--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'torchvision', 'zarr', 'numpy', 'PIL') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout == "[]\n", ended.stderr


def test_a_cluster_that_is_none_or_needs_a_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("dump", "--teacher", "digits_small", "--dask")
    assert "local:N or a scheduler's address" in fails(*words, "here", cwd=tmp_path)
    monkeypatch.delitem(sys.modules, "logitcache.dump.dask_cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'logitcache[cluster]'" in fails(*words, "local:2", cwd=tmp_path)


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


CE = ("--loss", "ce", "--fraction", 0.1)


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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--protocol", "nonsense"), "unknown protocol 'nonsense'"),
        (("--variant", "lrr=0.1"), "unknown setting 'lrr'"),
        (("--variant", "lr=much"), "lr"),
        (("--precision", "float17"), "precision must be"),
        (("--device", "gpu"), "no device 'gpu'"),
        (("--schedule", "multistep", "--milestones", "9,3"), "milestones must rise"),
    ],
)
def test_a_wrong_name_is_told_before_data_is_opened(
    words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    assert told in fails(*PLAIN, "--data", "imagefolder:/none", *words, cwd=tmp_path)


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


def test_init_writes_a_file_that_reads_back(tmp_path: Path) -> None:
    succeeds("init", cwd=tmp_path)
    file = tmp_path / "logitcache.toml"
    assert tomllib.loads(file.read_text()) == {command: {} for command in COMMANDS if command != "init"}
    assert "is there already" in fails("init", cwd=tmp_path)
    lines = [line.removeprefix("# ") if " = " in line else line for line in file.read_text().splitlines()]
    every = tomllib.loads("\n".join(lines))
    assert every["dump"]["top-k"] == 8
    assert every["train"]["lr"] == 0.05


def test_the_file_gives_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "logitcache.toml"
    file.write_text('[dump]\nteacher = "digits_tiny"\nseeds = "3"\ntop-k = 2\nout = "mine.zarr"\n')
    succeeds("dump", "--top-k", 5, cwd=tmp_path)
    found = json.loads(succeeds("info", "mine.zarr", "--json", cwd=tmp_path))
    assert (found["teacher"]["name"], found["k"], found["seeds"][0]["seed"]) == ("digits_tiny", 5, 3)
    file.write_text(
        '[train]\nstudent = "digits_tiny"\nloss = "ce"\nepochs = 1\nout = "run"\nexport = "torchscript"\n'
    )
    succeeds("train", cwd=tmp_path)  # one word for a list of one
    assert (tmp_path / "run" / "best.torchscript").exists()
    file.write_text("[dump]\ntopk = 2\n")
    assert "did you mean top-k" in fails("dump", cwd=tmp_path)
    file.write_text("[dumb]\n")
    assert "did you mean dump" in fails("dump", cwd=tmp_path)
    file.write_text("dump = [\n")
    assert "not TOML" in fails("dump", cwd=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dump", "--teacher", "resnet81"), "unknown model 'resnet81'; did you mean"),
        (("dump", "--teacher", "resnet18", "--weights", "default"), "expected 10 classes"),
        (("dump", "--teacher", "resnet18", "--weights", "no.pt"), "no weights file no.pt"),
        (("dump", "--teacher", "digits_tiny", "--data", "digit"), "did you mean digits"),
        (
            ("dump", "--teacher", "digits_tiny", "--data", "imagefolder:nowhere"),
            "nowhere does not exist",
        ),
        (("dump", "--teacher", "digits_tiny", "--seeds", "3-1"), "seeds read like 0-3,7"),
        (("dump", "--teacher", "digits_tiny", "--seeds", "5,0-999999999"), "more than 100,000 seeds"),
        (("plan", "--teacher", "digits_tiny", "--seeds", "4,x"), "seeds read like 0-3,7; found '4,x'"),
        (
            ("plan", "--teacher", "digits_tiny", "--top-k", "4,x"),
            "numbers of logits read like 4,8,16; found '4,x'",
        ),
        (
            ("plan", "--teacher", "digits_tiny", "--top-k", "1-999999"),
            "1-999999 are more than 100,000 numbers of logits",
        ),
        (("plan", "--teacher", "digits_tiny", "--budget", "4,x"), "a size reads like 20GB or 500MiB"),
        (("train", "--student", "digits_tiny", "--spool-limit", "4,x"), "a size reads like 20GB or 500MiB"),
        (
            ("train", "--student", "digits_tiny", "--mix-weights", "4,x"),
            "weights of an ensemble read like 2,1; found '4,x'",
        ),
        ((*PLAIN, "--betas", "4,x"), "betas: expected two numbers such as 0.9,0.999, found '4,x'"),
        ((*PLAIN, "--milestones", "4,x"), "milestones: expected numbers such as 150,180,210, found '4,x'"),
        ((*PLAIN, "--variant", "4,x"), "a variant reads NAME=VALUE,NAME=VALUE"),
        ((*PLAIN, "--seed", 10**23), "a seed must be 0 to 2^63 - 1, found 1000"),
        ((*PLAIN, "--checkpoint-every", "nan"), "must be 0 seconds or more, found nan"),
        (("dump", "--teacher", "digits_tiny", "--recipe", "digit"), "did you mean digits"),
        (
            ("train", "--student", "digits_tiny", "--recipe", "identity"),
            "made by its own recipe, found --recipe",
        ),
        (("train", "--student", "nets:seven:v[2]"), "nets:seven:v[2]"),
        (("dump", "--teacher", "digits_tiny", "--profile", "tiny"), "unknown profile 'tiny'"),
        (("dump", "--teacher", "digits_tiny", "--top-k", "0"), "top-k must be at least 1"),
        (("dump", "--teacher", "digits_tiny", "--device", "cuda:99"), "device 'cuda:99' is not there"),
        (("dump", "--teacher", "digits_tiny", "--out", "https://x/c.zarr"), "https is for reading"),
        (("train", "--student", "digits_tiny", "--cache", "no.zarr"), "no cache at no.zarr"),
        (("train", "--student", "digits_tiny", "--loss", "kkd"), "unknown loss 'kkd'; did you mean kd"),
        (("train", "--student", "digits_tiny", "--seeds", "0-7"), "lacks seeds 2-7; complete: seeds 0-1"),
        (("train", "--student", "digits_tiny", "--data", "t:f"), "cannot import 't'"),
        (("train", "--student", "digits_tiny", "--lr", "0"), "lr must be above 0"),
        (("info", "caches"), "no cache at caches"),
        (("info", "runs"), "no cache at runs"),
    ],
)
def test_bad_input_is_one_clear_line(folder: Path, words: tuple[str, ...], message: str) -> None:
    if words[:2] == ("train", "--student") and "--cache" not in words:
        words = (*words, "--cache", "caches/digits_small-digits.zarr")
    assert message in fails(*words, cwd=folder)


def test_train_says_which_caches_there_are(folder: Path, tmp_path: Path) -> None:
    assert "no cache in ./caches" in fails("train", "--student", "digits_tiny", cwd=tmp_path)
    (tmp_path / "caches" / "a.zarr").mkdir(parents=True)
    (tmp_path / "caches" / "b.zarr").mkdir()
    line = fails("train", "--student", "digits_tiny", cwd=tmp_path)
    assert "several caches in ./caches: caches/a.zarr, caches/b.zarr" in line


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


def test_progress_elsewhere_is_a_plain_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.progress("dump [/x]", "views") as advance:
        for done in (1000, 3000):
            time.sleep(0.01)
            advance(done, 4000)
        advance(4000, 4000, "loss 0.5")
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "dump [/x]: 1,000 of 4,000 views"
    assert re.fullmatch(r"dump \[/x\]: 3,000 of 4,000 views, [\d,]+ views/s, 0\.\d s left", told[1])
    assert told[2].startswith("dump [/x]: 4,000 of 4,000 views, loss 0.5, ")


def test_what_begins_is_said_at_once_unless_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("stats", "seeds") as advance:
        advance(1, 1)
    with progress.progress("dump", "views") as advance:
        advance(64, 4000)
        advance(128, 4000)
    assert capsys.readouterr().err == "dump: 64 of 4,000 views\n"


def test_what_comes_before_the_first_batch_is_said_before_it(tmp_path: Path) -> None:
    told = logitcache("dump", "--teacher", "digits_tiny", "--seeds", 0, cwd=tmp_path).stderr.splitlines()
    assert told[0] == "dump digits_tiny: loading images and teacher …"
    assert "dump digits_tiny: 0 of 1,437 views" in told
    again = logitcache("dump", "--teacher", "digits_tiny", "--seeds", 0, cwd=tmp_path).stderr
    assert " of 1,437" not in again


def test_progress_on_a_terminal_is_a_bar_with_rate_and_time_left_without_colour_where_none_is_wanted() -> (
    None
):
    code = (
        "import time\nfrom logitcache_cli.progress import progress\n"
        "with progress('dump [/x]', 'views') as advance:\n"
        "    for done in (1, 2, 3):\n        advance(done, 4)\n        time.sleep(0.2)\n"
    )
    ours, theirs = os.openpty()
    env = {**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # its end closes the terminal
            while part := os.read(ours, 1 << 16):
                shown += part
        assert process.wait() == 0
    os.close(ours)
    last = shown.decode().split("dump [/x]")[-1]
    assert re.search(r"3/4 views \S+ views/s 0:00:0\d", last)
    assert not re.search(rb"\x1b\[[0-9;]*3\d", shown)


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dump", "--teacher", "digits_small", "--out", "https://x.invalid/c.zarr"), "https is for reading"),
        (("copy", "s3://bucket/none.zarr", "d.zarr"), "no cache at s3://bucket/none.zarr"),
        (("train", "--student", "digits_tiny", "--cache", "gopher://hole/c.zarr"), "no file system opens"),
    ],
)
def test_urls_that_cannot_be_used_end_in_one_line(
    words: tuple[str, ...], message: str, s3: str, tmp_path: Path
) -> None:
    assert message in fails(*words, cwd=tmp_path)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2,
    reason="needs two cores, and a choice of them",
)
def test_threads_fit_the_cores_that_may_be_used() -> None:
    code = "import os; from logitcache_cli.threads import fit_threads; fit_threads('train')"
    code += "; import torch; print(os.environ.get('OMP_NUM_THREADS'), torch.get_num_threads())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def say(**options: Any) -> str:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, **options
        ).stdout

    assert (
        say(env=environment, preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}))
        == "1 1\n"
    )
    assert say(env={**environment, "OMP_NUM_THREADS": "2"}) == "2 2\n"  # as it is asked for
