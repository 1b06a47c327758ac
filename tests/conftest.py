"""What several tests share: a trained teacher's worth of digits, made once, and a quiet machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # many small networks: threads only get in each other's way

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def spools_go_to_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITCACHE_SPOOL", str(tmp_path / "spool"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
