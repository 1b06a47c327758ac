"""The README runs: every console line and every Python block, in order, in one folder; numbers may differ."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from logitcache_cli.main import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(console|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
# The big teacher of the first lines sees fewer images in a test, by the file that `logitcache init` is for.
SMALLER = '[dump]\ndata = "few:digits"\n\n[train]\nepochs = 1\n'
FEW = """
from logitcache.datasets import ArrayImages, digits as all_of_them

def digits(split):
    images = all_of_them(split)
    return ArrayImages("few", split, images.images[:40], images.labels[:40], 10, "digits")
"""


def steps(block: str) -> list[tuple[str, str]]:
    """Split a console block into (command, expected output)."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts]


def shape(text: str) -> list[str]:
    """Words of an output with every number the same: what must agree with the README."""
    without_bars = re.sub(r"[─━│┃┏┓┗┛┡┩└┘├┤┬┴┼╇┳┻╋╭╮╰╯]+", " ", text)
    return re.sub(r"\d[\d,.]*(e-?\d+)?", "#", without_bars).split()


def without_progress(output: str) -> str:
    """Leave out the lines that say now and then how far long work is."""
    return "\n".join(
        line for line in output.splitlines() if not re.match(r"(dump|train)\b.*: [\d,]+ of ", line)
    )


@pytest.mark.timeout(1200)  # every command of it, and the demo, one after another
def test_the_readme_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "few.py").write_text(FEW)
    commands = 0
    for kind, block in BLOCKS:
        if kind == "python":
            subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True, env={**os.environ})
            continue
        for command, expected in steps(block):
            words = shlex.split(command)
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
                continue
            assert words[0] == "logitcache", command
            big = "vit_l" in command or "resnet18" in command
            (tmp_path / "logitcache.toml").write_text(SMALLER if big else "")
            with contextlib.chdir(tmp_path):
                ended = CliRunner().invoke(app, words[1:])
            assert ended.exit_code == 0, (command, ended.output, ended.exception)
            commands += 1
            if not big:
                assert shape(without_progress(ended.output)) == shape(expected), command
    assert commands >= 6
