"""A cache of three seeds to audit, and a copy of it to break."""

import os
import shutil
from pathlib import Path

import pytest
from breaking import RECIPE, N, config_of
from dumping import a_teacher, dump_digits
from small import few_digits

from logitcache.dump.job import dump


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of three shards, the last one incomplete."""
    out = tmp_path_factory.mktemp("whole") / "c.zarr"
    dump_digits(out, N, seeds=(0, 1))
    dump(out, few_digits(N), RECIPE, a_teacher(), config_of(seeds=(2,)), only={2: (0, 2)})
    return out


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def cache(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "c.zarr"))
