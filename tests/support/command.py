"""The command line as the console script runs it, in this process."""

import contextlib
import re
from pathlib import Path
from typing import Any

from console import without_progress
from typer.testing import CliRunner

from logitcache_cli.main import app


def logitcache(*words: object, cwd: Path) -> Any:
    """Run a command in this process, as the console script would."""
    with contextlib.chdir(cwd):
        return CliRunner().invoke(app, [str(word) for word in words])


def fails(*words: object, cwd: Path) -> str:
    """Run a command that must fail with one clear line and exit code 1; returns the line."""
    ended = logitcache(*words, cwd=cwd)
    assert ended.exit_code == 1, (ended.output, ended.exception)
    told = without_progress(ended.stderr).splitlines()
    lines = [line for line in told if not line.startswith("note: ")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("logitcache: ")
    return lines[0]


def succeeds(*words: object, cwd: Path) -> str:
    ended = logitcache(*words, cwd=cwd)
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return ended.stdout


def on_terminal(*words: object, cwd: Path, **env: str) -> list[str]:
    """Run a command that succeeds on a terminal of 80 columns; returns its lines without bold and colours."""
    with contextlib.chdir(cwd):
        ended = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "80", "FORCE_COLOR": "1", **env})
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return re.sub(r"\x1b\[[0-9;]*m", "", ended.stdout).splitlines()
