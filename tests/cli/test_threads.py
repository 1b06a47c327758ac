"""Threads fit what the process may use."""

import os
import subprocess
import sys
from typing import Any

import pytest
from typer.main import get_command

from logitcache_cli.main import app
from logitcache_cli.threads import fit_threads


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2,
    reason="needs two cores, and a choice of them",
)
def test_threads_fit_the_cores_that_may_be_used() -> None:
    code = "import os; from logitcache_cli.threads import fit_threads; fit_threads('train')"
    code += "; import torch; print(os.environ.get('OMP_NUM_THREADS'), torch.get_num_threads())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def say(**options: Any) -> str:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, **options
        ).stdout

    assert (
        say(env=environment, preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}))
        == "1 1\n"
    )
    assert say(env={**environment, "OMP_NUM_THREADS": "2"}) == "2 2\n"  # as it is asked for


def test_every_command_that_may_compute_fits_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask.system

    monkeypatch.setattr(dask.system, "cpu_count", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for command in get_command(app).commands:  # type: ignore[attr-defined]
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        fit_threads(command)
        assert os.environ.get("OMP_NUM_THREADS") == (None if command in ("copy", "init") else "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    fit_threads("train")
    assert os.environ["OMP_NUM_THREADS"] == "3"
