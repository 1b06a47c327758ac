"""The wheel: two packages, the digits inside, and a demo that runs far from any checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "logitcache"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_two_packages_and_the_digits(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"logitcache", "logitcache_cli"}
    assert {"logitcache/data/digits.npz", "logitcache/py.typed", "logitcache/losses/cmkd.py"} <= set(names)


def test_the_demo_runs_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
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
    words = ["demo", "--teacher-epochs", "1", "--student-epochs", "1", "--repeats", "1", "--json"]
    code = (
        f"import logitcache; assert {str(site)!r} in logitcache.__file__\n"
        "from logitcache_cli.main import run; run()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert [result["loss"] for result in report["results"]] == ["ce", "kd", "cmkd"]
    assert report["cached_views"] == 14_370
