"""Help, and how the application is loaded."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import logitcache, succeeds
from typer.main import get_command

from logitcache_cli.main import app

COMMANDS: list[str] = list(get_command(app).commands)  # type: ignore[attr-defined]


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


@pytest.mark.parametrize("command", COMMANDS)
def test_what_matters_is_in_the_first_ten_and_every_line_fits(command: str, tmp_path: Path) -> None:
    text = succeeds(command, "--help", cwd=tmp_path)
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"<(int|str|float|bool|list)|\[default", text)
    first = text.split("\nOptions\n")[1].split("\n\n")[0]
    flags = re.findall(r"^  (?:-h, )?(--\S+)", first, re.MULTILINE)
    assert len(flags) <= 10 + len({"--json", "--help"})
    known = {option for one in get_command(app).commands[command].params for option in one.opts}  # type: ignore[attr-defined]
    assert {flag for flag in known if flag.startswith("--")} <= {
        flag.replace("[no-]", "") for flag in re.findall(r"--[a-z\[][\w\[\]-]*", text)
    }


def test_what_follows_the_protocol_does_not_show_another_ones(tmp_path: Path) -> None:
    text = " ".join(succeeds("train", "--help", cwd=tmp_path).split())
    assert "--lr X Peak learning rate. (default: by the protocol)" in text
    assert "--protocol digits" not in text


def test_without_a_word_all_commands_are_shown(tmp_path: Path) -> None:
    ended = logitcache(cwd=tmp_path)
    assert ended.exit_code == 2
    assert all(re.search(rf"^  {command} ", ended.stdout, re.MULTILINE) for command in COMMANDS)
