"""A small cache to read, or to damage."""

import os
import shutil
from pathlib import Path

import pytest
from small_caches import SMALL, fill


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
