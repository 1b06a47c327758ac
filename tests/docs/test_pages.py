"""Every command that a page shows is run: as printed, or on small things that lie as the page says."""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import typer
from command import succeeds
from console import FENCED, PAGES, ROOT, SLOW, blocks, prepare, printed, shape, shown, steps
from distributed import LocalCluster
from distributed.cli import dask_scheduler, dask_worker
from in_ranks import commanded
from pictures import write_cifar
from PIL import Image
from serving import QuietHandler, serving
from small_caches import FORK
from torch.distributed.run import parse_args

from logitcache_cli.main import app

TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
OUTPUTS = [page for page, text in TEXTS.items() if any(steps(block) for _, block in blocks(text))]
PYTHON = [page for page, text in TEXTS.items() if "```python" in text and page not in OUTPUTS]

# What commands do less of in a test than on their page.
LESS = {"demo": "--repeats 2 --student-epochs 1 --teacher-epochs 4", "train": "--epochs 2"}
LEAST = {
    "train": "--epochs 1 --milestones 0.5 --batch-size 4 --workers 0",
    "dump": "--workers 0",
    "plan": "--images 4 --workers 0",
    "bench": "--rounds 1 --batch 8",
}
# Names that pages use, and what bears them in a test.
HERE = {
    r"imagefolder:/data/imagenet": "imagefolder:imagenet --recipe imagenet@32",
    r"imagenet-mixup": "imagenet-mixup@32",
    r"/shared/": "",
    r"\bvit_l\b": "resnet20",
    r"\b0-\d+\b": "0-1",
    r"--nproc-per-node \d+": "--nproc-per-node 2",
    r"\blocal:\d+": "local:1",
    r"\bRUN\b": "runs/one",
    r"\bSRC DST\b|\bBIG SMALL\b|exact.zarr small.zarr": "exact.zarr other.zarr",
    r"--seed S --only KIND --number N": "--seed 5 --only flip --number 0",
    r"\bSUITE\b": "all",
    r"dump …|dump --teacher …": "dump --teacher digits_tiny --weights random --data small:dozen",
    r"dump --grow": "dump --grow --teacher digits_small --data small:dozen --profile exact --out exact.zarr",
    r"train …": "train --student digits_tiny --cache exact.zarr --batch-size 4 --workers 0",
    r"calibrate CACHE": "calibrate even.zarr --workers 0",
    r"verify --repair$": "verify --repair exact.zarr",
}
NAME = re.compile(r"logitcache (\w+|--[\w-]+)")
# Commands that are not run, and why; their command line is read all the same.
NOT_RUN = {
    "logitcache bench all": "takes minutes; tests/bench run every suite on less",
    "logitcache bench dump": "likewise",
    "logitcache bench scale": "likewise",
    "python -m logitcache.bench.contest": "takes an hour; tests/bench run a contest of one epoch",
    "python -m logitcache.bench.anchors": "takes minutes",
    "python -m logitcache.bench.truncation": "takes minutes; tests/bench measure the same on less",
    "python -m logitcache.bench.closeness": "takes half an hour; tests/bench measure one cache",
    "logitcache train --out RUN --resume": "goes on in the folder of the run; tests/train goes on with several",
    "make": "sets up an environment of its own",
    "pip install": "downloads",
    "dask": "serves until it is stopped; the test has a scheduler and a worker of its own",
    "tensorboard": "serves until it is stopped",
}

# Pages for those who change the code, which have nothing to run.
OF_THE_CODE = ("docs/design.md", "docs/decisions.md")
# Options of other programs that pages name.
OF_OTHERS = {
    "--shm-size",
    "--constraint",
    "--nproc-per-node",
    "--only",
    "--number",
    "--logdir",
    "--nthreads",
    "--help",
}


def run_here(block: str, folder: Path) -> None:
    """Run a Python block in a folder, in this process, to which it is the main program."""
    os.chdir(folder)
    sys.path.insert(0, "")
    exec(compile(block, "block", "exec"), {"__name__": "__main__"})


def run_python(block: str, folder: Path) -> None:
    """Run a Python block in a folder, in a process of its own."""
    child = FORK.Process(target=run_here, args=(block, folder))
    child.start()
    child.join()
    assert child.exitcode == 0, block


@pytest.mark.timeout(600)  # every command of it, one after another
@pytest.mark.parametrize("page", OUTPUTS)
def test_a_page_runs_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    prepare(TEXTS[page], tmp_path, train=4, val=2, epochs=0)
    for kind, block in blocks(TEXTS[page]):
        if kind == "python":
            run_python(block, tmp_path)
        for command, expected in steps(block) if kind == "console" else ():
            if not command.startswith("logitcache "):
                read(shlex.split(command))
            elif command in SLOW:
                small = "--data small:dozen --epochs 1" if "train" in command else "--data small:dozen"
                printed(re.sub("vit_l", "resnet18", command), tmp_path, small)
            else:
                output = printed(command, tmp_path, LESS.get(command.split()[1], ""))
                assert shape(output) == shape(expected), command


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what pages take for granted: CIFAR-100 and ImageNet, a cache, a run; little of each."""
    folder, rng = tmp_path_factory.mktemp("things"), np.random.default_rng(0)
    for split, kind in ((s, k) for s in ("train", "val") for k in ("n01440764", "n01443537", "n01484850")):
        (folder / "imagenet" / split / kind).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "imagenet" / split / kind / f"{kind}_{number}.JPEG")
    shutil.copy(ROOT / "tests" / "support" / "small.py", folder)  # for processes that the commands start
    digits = ("--data", "small:dozen")
    teacher = ("--teacher", "digits_small", "--weights", "random", "--profile", "exact")
    succeeds("dump", *teacher, *digits, "--out", "exact.zarr", cwd=folder)
    student = ("--student", "digits_tiny", "--cache", "exact.zarr", "--epochs", 1)
    succeeds("train", *student, "--out", "runs/one", cwd=folder)
    few = ("--profile", "default", "--top-k", 4, "--out", "cache.zarr")
    succeeds("dump", "--teacher", "digits_small", "--weights", "random", *digits, *few, cwd=folder)
    few = ("--profile", "default", "--top-k", 4, "--calibration", 0, "--out", "even.zarr")
    succeeds("dump", "--teacher", "digits_small", "--weights", "random", *digits, *few, cwd=folder)
    with pytest.MonkeyPatch.context() as patch:
        write_cifar(folder / "data", "cifar100", patch)
        yield folder


def printed_on(page: str) -> set[str]:
    """Return the commands that `test_a_page_runs_as_printed` runs."""
    consoles = [block for kind, block in blocks(TEXTS[page]) if kind == "console" and page in OUTPUTS]
    return {command for block in consoles for command, _ in steps(block)}


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if shown(text)])
def test_what_a_page_shows_is_run(page: str, things: Path, s3: str, tmp_path: Path) -> None:
    folder = shutil.copytree(things, tmp_path / "here")
    with ExitStack() as running, contextlib.chdir(folder):
        places = {"s3://lab": f"s3://bucket/{tmp_path.name}"}
        places["https://caches.example.org"] = running.enter_context(
            serving(partial(QuietHandler, directory="caches"))
        )
        if "tcp://HOST:8786" in TEXTS[page]:
            options = {"protocol": "tcp", "dashboard_address": "127.0.0.1:0", "silence_logs": 60}
            cluster = LocalCluster(1, threads_per_worker=1, processes=False, **options)
            places["tcp://HOST:8786"] = running.enter_context(cluster).scheduler_address
        for command in shown(TEXTS[page]):
            if command in printed_on(page):
                continue
            here = command
            for name, small in (HERE | places).items():
                here = re.sub(name, small, here)
            words = shlex.split(re.sub(r"^([A-Z_]+=\S+ )*", "", here))
            if NAME.fullmatch(command) or any(
                text.startswith(prefix) for prefix in NOT_RUN for text in (command, shlex.join(words))
            ):
                read(words)
            else:
                run(words)


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs(page: str, things: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(things, tmp_path / "here")
    for kind, block in blocks(TEXTS[page]):
        if kind == "python":
            run_python(block, folder)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OF_THE_CODE])
def test_a_page_opens_with_what_it_is_for_and_an_example(page: str) -> None:
    parts = TEXTS[page].split("\n## ", 2)
    start = "\n".join(parts[: 2 if page == "README.md" else 1])
    title, opening, _ = start.split("\n\n", 2)
    assert title.startswith("# ")
    assert re.match(r"\w", opening)
    assert blocks(start) or shown(re.sub(r"`[^`\n]+`", "", start))


def run(words: list[str]) -> None:
    """Run a command in the working directory, on less."""
    match words:
        case ["logitcache", name, *options]:
            digits = name in ("dump", "train") and not {"--data", "--cache"} & set(options)
            few = "--data small:dozen" if digits else ""
            succeeds(name, *options, *f"{LEAST.get(name, '')} {few}".split(), cwd=Path())
        case ["torchrun", *options]:
            mine = parse_args(options).training_script_args
            ended = commanded([*mine, *LEAST.get(mine[0], "").split()], Path())
            assert [code for code, _, _ in ended] == [0, 0], ended
        case ["python", *options]:
            where = {
                "PYTHONPATH": os.pathsep.join(
                    [str(ROOT / "tests"), str(ROOT / "tests" / "support"), *sys.path]
                )
            }
            subprocess.run(
                [sys.executable, *options], check=True, capture_output=True, env=os.environ | where
            )
        case _:
            pytest.fail(f"a page shows {shlex.join(words)}: say here how to try it, or in NOT_RUN why not")


def read(words: list[str]) -> None:
    """Have a command line read by the program that it is for, without running it."""
    match words:
        case ["logitcache", option] if option.startswith("-"):
            assert option in {name for one in typer.main.get_command(app).params for name in one.opts}
        case ["logitcache", *options]:
            group = typer.main.get_command(app)
            name, command, rest = group.resolve_command(group.make_context("logitcache", [*options]), options)
            if rest:
                command.make_context(name, rest)
        case ["make", *targets]:
            subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)
        case ["pip", "install", "--constraint", file, "."]:
            assert (ROOT / file).is_file()
        case ["pip", "install", what]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert what in {".", "bokeh"} | {
                f"{where}[{extra}]" for where in (".", "logitcache") for extra in extras
            }
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module)
        case ["dask", name, *options]:
            {"scheduler": dask_scheduler, "worker": dask_worker}[name].main.make_context(name, options)
        case _:
            assert words == ["tensorboard", "--logdir", "runs"]


def test_nothing_is_left_out_that_no_page_shows() -> None:
    every = {command for text in TEXTS.values() for command in shown(text)}
    for reason in (NOT_RUN, HERE):
        assert all(any(re.search(name, command) for command in every) for name in reason), every


@pytest.mark.parametrize("page", PAGES)
def test_options_that_a_page_names_exist(page: str) -> None:
    group = typer.main.get_command(app)
    params = [one for command in (group, *group.commands.values()) for one in command.params]
    known = {name for one in params for name in (*one.opts, *one.secondary_opts)} | OF_OTHERS
    code = re.findall(r"`([^`]+)`", FENCED.sub("", TEXTS[page]))
    assert {name for one in code for name in re.findall(r"(?<!\S)--[a-z-]+", one)} <= known
