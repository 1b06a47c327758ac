"""docs/terminal.md: exit codes, completion, colours."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import logitcache
from console import ROOT

PAGE = (ROOT / "docs" / "terminal.md").read_text(encoding="utf-8")


def script(*words: str, **environment: str) -> str:
    """Run the command in a process of its own; returns what it printed."""
    command = [sys.executable, "-m", "logitcache_cli", *words]
    where = {**os.environ, **environment}
    return subprocess.run(command, env=where, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, ["--version"]),
        (0, ["dump", "--help"]),
        (1, ["info", "none.zarr"]),
        (1, ["dump", "--teacher", "nobody"]),
        (1, ["verify", "none.zarr"]),
        (2, []),
        (2, ["dumb"]),
        (2, ["dump"]),
        (2, ["dump", "--teacher", "digits_tiny", "--top-k", "many"]),
        (2, ["dump", "--teacher", "digits_tiny", "--topk", "4"]),
    ],
)
def test_exit_codes_are_those_of_the_page(code: int, words: list[str], tmp_path: Path) -> None:
    assert logitcache(*words, cwd=tmp_path).exit_code == code
    assert f"\n| {code} |" in PAGE


def test_what_is_terminated_says_so_and_ends_as_the_shell_expects(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "logitcache_cli",
        "dump",
        "--teacher",
        "digits_teacher",
        "--seeds",
        "0-99",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "loading" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == -signal.SIGTERM
    assert said.splitlines()[-1] == "logitcache: terminated; run the same command again to go on"
    assert "Traceback" not in said


def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    asked = {"_LOGITCACHE_COMPLETE": "complete_bash", "COMP_CWORD": "1", "COMP_WORDS": "logitcache e"}
    code = "from logitcache_cli.main import app; app(prog_name='logitcache')"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["evaluate", "export"]


@pytest.mark.parametrize(("name", "coloured"), [("FORCE_COLOR", True), ("NO_COLOR", False)])
def test_no_color_takes_the_colours_away(name: str, coloured: bool) -> None:
    text = script("--help", **{"FORCE_COLOR": "1", name: "1"})
    assert bool(re.search(r"\x1b\[[\d;]*3[0-7]", text)) == coloured
