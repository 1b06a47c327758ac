"""The wheel: all packages, the digits inside, and both stages far from any checkout; what it takes from others."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import logitcache

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "logitcache"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_what_goes_with_them(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listing = ["git", "-C", str(ROOT), "ls-tree", "-r", "--name-only", "HEAD", "logitcache", "cli"]
    kept = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split()
    modules = {re.sub("^cli/", "logitcache_cli/", name) for name in kept if name.endswith(".py")}
    others = {"data/digits.npz", "data/letters.npz", "data/README.md", "py.typed", "report/page.css"}
    assert held == modules | {f"logitcache/{name}" for name in others}


def test_what_is_released_has_one_version() -> None:
    declared = PROJECT["version"]
    assert logitcache.__version__ == declared
    assert f"\nversion: {declared}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == declared


def required(lines: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_constraints_are_one_exact_version_of_everything_that_is_declared() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    exact = {constraint.name: constraint.specifier for constraint in required(lines)}
    assert all(re.fullmatch(r"#.*|[a-z0-9-]+==[\w.]+( ; [\w\s.'<>=!()]+)?", line) for line in lines)
    for declared in required([*PROJECT["dependencies"], *chain.from_iterable(EXTRAS.values())]):
        (version,) = exact[declared.name]
        assert version.version in declared.specifier, declared


def test_the_lowest_versions_are_those_that_the_ranges_begin_with() -> None:
    script = [sys.executable, str(ROOT / ".ci" / "lowest.py")]
    printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    lowest = {constraint.name: str(constraint.specifier) for constraint in required(printed)}
    declared = required([*PROJECT["dependencies"], *EXTRAS["dev"]])
    assert lowest.keys() == {each.name for each in declared}
    for each in declared:
        assert re.fullmatch(r">=[\w.]+", str(each.specifier)), each
        assert lowest[each.name] == str(each.specifier).replace(">", "=")


def test_both_stages_run_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    code = (
        f"import logitcache; assert {str(site)!r} in logitcache.__file__\n"
        "from logitcache_cli.main import app\n"
        "for line in sys.argv[1:]: app(line.split(), standalone_mode=False)"
    )
    commands = (
        "dump --teacher digits_tiny --weights random --split test --out c.zarr --workers 0",
        "train --student digits_tiny --loss ce --epochs 1 --workers 0 --out run",
    )
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}", *commands],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "360 now, 360 in the cache" in ended.stdout
    assert (work / "run" / "best.safetensors").is_file()
