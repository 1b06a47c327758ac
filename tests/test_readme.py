"""Pages that run: every console line and every Python block, in order, in one folder; numbers may differ."""

import re
from pathlib import Path

import pytest
from console import ROOT, blocks, printed, run_python, shape, steps

# The demo and the big teacher of the README do less in a test, by the file that `logitcache init` writes.
SHORTER = "[demo]\nrepeats = 2\nstudent-epochs = 1\nteacher-epochs = 2\n"
SMALLER = '[dump]\ndata = "few:digits"\nseeds = "0"\n\n[train]\nepochs = 1\n'
FEW = """
from logitcache.datasets import ArrayImages, digits as all_of_them

def digits(split):
    images = all_of_them(split)
    return ArrayImages("few", split, images.images[:12], images.labels[:12], 10, "digits")
"""


@pytest.mark.timeout(600)  # every command of it, one after another
@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_a_page_runs_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "few.py").write_text(FEW)
    commands = 0
    for kind, block in blocks((ROOT / page).read_text()):
        if kind == "python":
            run_python(block, tmp_path)
            continue
        for command, expected in steps(block):
            if command.startswith("make "):
                assert re.search(rf"^{command[5:]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
                continue
            big = page == "README.md" and ("vit_l" in command or "resnet18" in command)
            (tmp_path / "logitcache.toml").write_text(SMALLER if big else SHORTER)
            output = printed(command, tmp_path)
            commands += 1
            assert big or shape(output) == shape(expected), command
    assert commands >= 6
