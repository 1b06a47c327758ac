"""A cache that grew, beside what it was; and no waits for the disk where they are not the matter."""

import os
import shutil
from pathlib import Path

import pytest
from growing import NEW, OLD, dump_folder, folder_images, paint


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the waits for the disk: power cuts are the matter of tests/store."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pets/, and c.zarr of it, dumped before and grown after new images came between the old."""
    folder = tmp_path_factory.mktemp("grown")
    dump_folder(folder / "c.zarr", folder_images(paint(folder / "pets", OLD)))
    shutil.copytree(folder / "c.zarr", folder / "old.zarr")
    images = folder_images(paint(folder / "pets", NEW))
    dump_folder(folder / "c.zarr", images, grow=True)
    return folder
