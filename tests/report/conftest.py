"""Runs of two kinds and a cache, and the page of them."""

from pathlib import Path

import pytest
from dumping import RECIPE, a_teacher
from reports import a_run, rows_of

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.report.page import report
from logitcache.views.datasets import load_digits


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five runs of two kinds, and a cache of the digits."""
    folder = tmp_path_factory.mktemp("report")
    for seed in range(3):
        a_run(folder / "runs" / f"slow-{seed}", rows_of(6, 0.5 + seed / 50), seed=seed)
    for seed in range(2):
        rows = [{**row, "agreement": 0.8, "kl": 0.3 + row["epoch"]} for row in rows_of(4, 0.7)]
        a_run(folder / "runs" / f"fast-{seed}", rows, seed=seed, lr=0.4)
    config = DumpConfig(seeds=(0, 1, 5), top_k=4, workers=0, precision="float32", shard_samples=512)
    dump(folder / "c.zarr", load_digits("train"), RECIPE, a_teacher(), config)
    return folder


@pytest.fixture(scope="session")
def page(folder: Path) -> Path:
    report(folder / "r.html", [*sorted((folder / "runs").iterdir()), folder / "c.zarr"])
    return folder / "r.html"
