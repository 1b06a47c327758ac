"""A small cache to read, or to damage."""

import os
import shutil
from pathlib import Path

import pytest
from small_caches import (
    SMALL,
    calibrate,
    fill,
    spec_of,
    statistics_of,
)


@pytest.fixture
def fast(monkeypatch):
    """Skip the waits for the disk where power cuts are not the matter."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Two complete seeds of SMALL; copy before you damage."""
    return fill(tmp_path_factory.mktemp("written") / "c.zarr", SMALL, seeds=(1, 2))


@pytest.fixture
def cache(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "c.zarr"))


@pytest.fixture(params=[spec_of(), spec_of(calibrated=True)], ids=["version 1", "version 2"])
def held(request, tmp_path: Path) -> Path:
    """A cache with class statistics: given to it later, or begun with."""
    path = fill(tmp_path / "held.zarr", request.param)
    if not request.param.calibrated:
        calibrate(path, statistics_of(request.param))
    return path
