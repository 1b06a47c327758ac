"""docs/terminal.md: exit codes, completion, colours; outputs that don't take what is printed."""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import logitcache
from console import ROOT
from dumping import dump_digits

from logitcache_cli.main import app
from logitcache_cli.terminal import IN_ASCII, open_output, say

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


# Outputs --------------------------------------------------------------------------------------------------


def printed(encoding: str, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Print a text on a stdout of this encoding."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer := io.BytesIO(), encoding=encoding))
    with open_output():
        print(text, end="")
    return buffer.getvalue().decode(encoding)


def test_letters_that_an_output_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "1,797 × 8 − 3 … ≥ ½, ▁▄█ in Straße 漢"
    assert printed("utf-8", text, monkeypatch) == text
    assert printed("cp1252", text, monkeypatch) == "1,797 × 8 - 3 … >= ½, _=# in Straße \\u6f22"
    assert printed("ascii", text, monkeypatch) == r"1,797 x 8 - 3 ... >= \xbd, _=# in Stra\xdfe \u6f22"
    for encoding in ("cp437", "gbk", "latin-1", "ascii"):
        printed(encoding, "".join(IN_ASCII), monkeypatch)
    assert "".join(IN_ASCII.values()).isascii()


def test_a_command_prints_into_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump_digits(tmp_path / "c.zarr", n=64, seeds=(0,))
    shown = logitcache("info", "c.zarr", cwd=tmp_path).stdout
    assert not shown.isascii()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer := io.BytesIO(), encoding="ascii"))
    with pytest.raises(SystemExit) as ended, open_output():
        app(["info", "c.zarr"])
    assert not ended.value.code
    assert len(buffer.getvalue().decode("ascii").splitlines()) == len(shown.splitlines())


@pytest.mark.skipif("not os.path.exists('/dev/full')")
def test_a_full_stdout_is_one_line_and_a_full_stderr_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "logitcache_cli", "--version"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert (ended.returncode, ended.stderr) == (
            1,
            "logitcache: cannot write the output: No space left on device\n",
        )
        ended = subprocess.run(
            [*command[:-1], "info", "nope"], stderr=full, stdout=subprocess.PIPE, text=True
        )
        assert (ended.returncode, ended.stdout) == (1, "")


def test_an_error_that_is_not_of_stdout_leaves_stdout_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer := io.BytesIO(), encoding="utf-8"))
    with pytest.raises(ConnectionResetError), open_output():
        raise ConnectionResetError(104, "Connection reset by peer")
    assert buffer.getvalue() == b""


@pytest.mark.skipif("not os.path.exists('/dev/full')")
def test_a_full_stdout_that_holds_nothing_back_is_one_line_too() -> None:
    command = [sys.executable, "-u", "-m", "logitcache_cli", "--version"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "logitcache: cannot write the output: No space left on device\n"


class Full(io.StringIO):
    def write(self, text: str) -> Any:
        if text:
            raise OSError(28, "No space left on device")


def test_work_goes_on_where_stderr_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    say("a line that nobody will read")


def test_an_error_of_another_file_is_not_taken_for_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (OSError(28, "No space left on device", "a.bin"), OSError(5, "Input/output error")):
        with pytest.raises(OSError, match=error.strerror), open_output():
            raise error


def test_outputs_that_are_closed_are_nothing_special(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as ended, open_output():
        app(["info", "nope"])
    assert ended.value.code == 1
