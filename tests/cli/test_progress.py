"""The progress of long work."""

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import logitcache

from logitcache_cli import progress


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
