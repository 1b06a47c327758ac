"""Documents that run: the console and Python blocks of a Markdown page, in order, in one folder.

    python tests/support/console.py README.md docs/getting-started.md

writes what the commands print now into the pages. What takes minutes (`SLOW`) keeps the output that the page has: to
have it printed again, delete it there.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SLOW = ("logitcache dump --teacher vit_l", "logitcache train --student resnet18")
EPOCH = re.compile(r"\S+: epoch (\d+) of (\d+), .*")
COMMAND = re.compile(r"([A-Z_]+=\S+ )*(logitcache|torchrun|dask|python|make|pip|tensorboard) .")


def blocks(page: str) -> list[tuple[str, str]]:
    """List (kind, text) of the blocks of a page."""
    return [(found[1], found[2]) for found in BLOCK.finditer(page)]


def steps(block: str) -> list[tuple[str, str]]:
    """Split a console block into (command, what it printed)."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts]


def shown(page: str) -> list[str]:
    """List the commands that stand without their output: lines of code blocks, then code within the text."""
    listings = [found[2] for found in FENCED.finditer(page) if found[1] != "python" and not steps(found[2])]
    text = FENCED.sub("", page)
    listings += re.findall(r"^ {4}(.*)", text, re.MULTILINE)
    lines = "\n".join(listings).replace("\\\n", " ").splitlines()
    code = [*(line.partition("  #")[0] for line in lines), *re.findall(r"`([^`]+)`", text)]
    return list(dict.fromkeys(command for one in code if COMMAND.match(command := " ".join(one.split()))))


def shape(text: str) -> list[str]:
    """Rows of an output with every number the same, whatever its unit, each once: what must agree with the page."""
    text = re.sub(r"^…\n", "", text, flags=re.MULTILINE)
    text = re.sub(
        r"^(take|default) +--.*\n|^left out .* that another beats .*\n", "", text, flags=re.MULTILINE
    )  # as the teacher is
    without_bars = re.sub(r"[─━│┃┏┓┗┛┡┩└┘├┤┬┴┼╇┳┻╋╭╮╰╯]+", " ", text)
    without_bars = re.sub(r"^(confused +).*", r"\1", without_bars, flags=re.MULTILINE)  # whatever classes
    without_bars = without_bars.replace(" steps of ", " step of ")  # one epoch of few images has one
    without_bars = re.sub(
        r"^ (\d+) (default|compact|archive|exact) ", r" \1 ", without_bars, flags=re.MULTILINE
    )
    rows = re.sub(
        r"((?<= )[+-])?\d[\d,.]*(e-?\d+)?( (s|min|h|k?B|MB)\b)?", "#", re.sub(r"\n\s+", " ", without_bars)
    ).splitlines()
    return list(dict.fromkeys(" ".join(row.split()) for row in rows))


def without_progress(output: str) -> str:
    """Leave out the lines that say now and then how far long work is."""
    progress = re.compile(r"[a-z]+\b.*: ([\d,]+ of [\d,]+ \w+(, |$)|\w[\w ]+ …$)")
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines() if not progress.match(line))


def shortened(output: str) -> str:
    """Leave out all epochs but the first and the last, with … in their place."""
    lines = []
    for line in output.splitlines():
        epoch = EPOCH.fullmatch(line)
        if not epoch or epoch[1] in ("1", epoch[2]):
            lines.append(line)
        elif lines[-1] != "…":
            lines.append("…")
    return "".join(f"{line}\n" for line in lines)


def printed(command: str, folder: Path, less: str = "") -> str:
    """Run a command of a page in a folder, with options that make less of it; returns what it printed."""
    from typer.testing import CliRunner

    from logitcache_cli.main import app

    words = shlex.split(f"{command} {less}")
    assert words[0] == "logitcache", command
    with contextlib.chdir(folder):
        ended = CliRunner().invoke(app, words[1:])
    assert ended.exit_code == 0, (command, ended.output, ended.exception)
    said = without_progress(ended.output)
    of_less = r"^note: (.* batch norm forgets|batches of .* are more) .*\n"
    return re.sub(of_less, "", said, flags=re.MULTILINE) if less else said


def run_python(block: str, folder: Path) -> None:
    """Run a Python block in a folder, in a process of its own."""
    subprocess.run([sys.executable, "-c", block], cwd=folder, check=True, env={**os.environ})


def prepare(page: str, folder: Path, train: int = 60, val: int = 20, epochs: int = 10) -> None:
    """Put into a folder what a page takes for granted: the README's pictures and teacher."""
    from own_data import draw_pictures, train_teacher

    if "teacher.pth" in page:
        draw_pictures(folder, train, val)
        train_teacher(folder, epochs)


def rewritten(page: str, folder: Path) -> str:
    """Return a page with what its commands print now."""
    prepare(page, folder)

    def lines(block: str) -> Iterator[str]:
        for command, before in steps(block):
            print(f"$ {command}", file=sys.stderr, flush=True)
            keeps = command.startswith("make ") or (command in SLOW and before)
            yield f"$ {command}\n{before if keeps else shortened(printed(command, folder))}"

    def block(found: "re.Match[str]") -> str:
        if found[1] == "python":
            run_python(found[2], folder)
            return found[0]
        return f"```console\n{''.join(lines(found[2]))}```"

    return BLOCK.sub(block, page)


if __name__ == "__main__":
    os.environ["COLUMNS"] = "80"
    for name in sys.argv[1:]:
        file = Path(name)
        with tempfile.TemporaryDirectory() as empty:
            file.write_text(rewritten(file.read_text(), Path(empty)))
