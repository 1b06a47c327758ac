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
from console import ROOT, without_progress
from dumping import dump_digits
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from logitcache_cli import terminal
from logitcache_cli.main import app
from logitcache_cli.terminal import IN_ASCII, forget_notes, open_output, say, wrap

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


@pytest.mark.skipif(sys.platform == "win32", reason="pipes there have no such signal")
@pytest.mark.parametrize("words", [["train", "--help"], ["info", "c.zarr"], ["verify", "c.zarr", "--json"]])
def test_a_reader_that_goes_ends_a_command_quietly(words: list[str], tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", n=64, seeds=(0,))
    for unbuffered in ("", "1"):
        reads, writes = os.pipe()
        os.close(reads)
        command = [sys.executable, "-m", "logitcache_cli", *words]
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=writes, stderr=subprocess.PIPE, text=True
        )
        os.close(writes)
        assert ended.returncode == 128 + signal.SIGPIPE, ended.stderr
        assert without_progress(ended.stderr) == ""
    assert "\n| 141 |" in PAGE


def test_work_goes_on_where_the_reader_of_stderr_goes(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    words = ["train", "--student", "digits_tiny", "--loss", "ce", "--epochs", "1", "--fraction", "0.1"]
    command = [sys.executable, "-m", "logitcache_cli", *words]
    ended = subprocess.run(command, cwd=tmp_path, stderr=writes, stdout=subprocess.PIPE, text=True)
    os.close(writes)
    assert (ended.returncode, ended.stdout.split()[0]) == (0, "run")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_head_takes_the_first_line(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", n=64, seeds=(0,))
    script = f"{sys.executable} -m logitcache_cli info c.zarr | head -1"
    ended = subprocess.run(script, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout.startswith("cache ")
    assert (len(ended.stdout.splitlines()), ended.stderr) == (1, "")


WORDS = st.lists(st.from_regex(r"[\w/.-]{1,30}|`[\w /.-]{1,30}`", fullmatch=True).map(str.strip), max_size=20)


@given(WORDS, st.integers(1, 60))
def test_lines_are_broken_between_words_alone(words: list[str], width: int) -> None:
    line = " ".join(" ".join(words).split())
    lines = wrap(line, width).split("\n")
    assert " ".join(lines) == line
    assert all(len(one) <= width or " " not in one for one in lines)
    fitting = [command for command in re.findall(r"`[^`]+`", line) if len(command) <= width // 2]
    assert all(any(command in one for one in lines) for command in fitting if line.count("`") % 2 == 0)


def test_a_note_is_said_once_in_a_command_and_not_wrapped_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_notes()
    note = f"note: {'long ' * 40}".strip()
    for text in (note, "another", note, "another"):
        say(text)
    assert capsys.readouterr().err.splitlines() == [note, "another", "another"]
    forget_notes()
    say(note)
    assert capsys.readouterr().err.splitlines() == [note]


def test_two_students_do_not_repeat_a_note(tmp_path: Path) -> None:
    for _ in range(2):  # nor does one command keep another from saying it
        words = ("--student", "digits_tiny", "--variant", "lr=0.1", "--variant", "lr=0.2")
        ended = logitcache("train", *words, "--loss", "ce", "--epochs", 1, "--fraction", 0.2, cwd=tmp_path)
        assert ended.exit_code == 0, ended.output
        notes = [line for line in ended.stderr.splitlines() if line.startswith("note: ")]
        assert len(notes) == len(set(notes)) >= 1


def test_a_note_is_wrapped_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = io.StringIO()
    monkeypatch.setattr(
        terminal, "stderr", Console(file=taken, force_terminal=True, width=40, color_system=None)
    )
    forget_notes()
    path = "/a/path/of/a/folder"
    say(f"note: what is said at some length of {path} and `logitcache info c.zarr` too")
    assert taken.getvalue().splitlines() == [
        "note: what is said at some length of",
        f"{path} and",
        "`logitcache info c.zarr` too",
    ]


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
