"""logitcache.toml, and `init`, which writes it."""

import json
import tomllib
from pathlib import Path

from command import fails, succeeds
from typer.main import get_command

from logitcache_cli.main import app

COMMANDS: list[str] = list(get_command(app).commands)  # type: ignore[attr-defined]


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
