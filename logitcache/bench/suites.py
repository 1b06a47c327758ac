"""The suites by name, each as tables to show and as JSON values."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from logitcache.bench import dump, losses, plot, scale, store, train, views
from logitcache.bench.compare import Comparison
from logitcache.bench.table import TableRow
from logitcache.errors import OptionError
from logitcache.models.forward import choose_device
from logitcache.versions import library_versions


@dataclass(frozen=True)
class BenchConfig:
    """What to measure with; 0 is what fits the suite.

    Attributes:
        rounds: how often each ratio is taken.
        batch: rows of a batch.
        n: views (store), pictures (dump, train) or samples of the largest cache (scale).
        threads: on the CPU.
        device: where losses, dump and train run; the others are the CPU's.
        logits: an .npz of real logits (store).
        folder: where to write (store, scale).
        plot: an SVG file to draw (scale).
    """

    rounds: int = 0
    batch: int = 0
    n: int = 0
    threads: int = 0
    device: str = "cpu"
    logits: Path | None = None
    folder: Path | None = None
    plot: Path | None = None


@dataclass(frozen=True)
class SuiteResult:
    """What a suite came to.

    Attributes:
        suite: its name.
        seconds: how long it took.
        tables: rows by title.
        values: the same and more, as JSON values.
        conditions: device, threads, load and versions that it was measured with, as JSON values.
    """

    suite: str
    seconds: float
    tables: Mapping[str, Sequence[TableRow]]
    values: Mapping[str, Any]
    conditions: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "suite": self.suite,
            "seconds": round(self.seconds, 1),
            **self.conditions,
            **self.values,
        }


_Tables = Mapping[str, Sequence[TableRow]]
_TablesAndValues = tuple[_Tables, Mapping[str, Any]]


@dataclass(frozen=True)
class Suite:
    """How a suite is measured, and what to expect of it.

    Attributes:
        measure: gives its tables, and its values as JSON.
        seconds: that it takes on two cores that do nothing else, with the configuration's defaults.
        on_device: it runs on the configuration's device; the others are the CPU's.
        one_thread: it is measured on one thread.
    """

    measure: Callable[[BenchConfig, torch.device], _TablesAndValues]
    seconds: int
    on_device: bool = False
    one_thread: bool = False


def run_suite(name: str, config: BenchConfig = BenchConfig()) -> SuiteResult:
    """Measure a suite.

    Raises:
        OptionError: there is no such suite, device, or size.
        NotFoundError, DataError: `logits` is no such file.
        StorageError: the disk said no.
    """
    if name not in SUITES:
        raise OptionError(f"no suite {name!r}; there are {', '.join(SUITES)}")
    suite = SUITES[name]
    device = choose_device(config.device if suite.on_device else "cpu")
    threads, started = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1 if suite.one_thread else config.threads or threads)
    try:
        conditions = _conditions(device)
        tables, values = suite.measure(config, device)
    finally:
        torch.set_num_threads(threads)
    return SuiteResult(name, time.perf_counter() - started, tables, values, conditions)


def _conditions(device: torch.device) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "versions": library_versions(),
    }


# The suites -----------------------------------------------------------------------------------------------


def _rows(title: str, rows: Sequence[Comparison]) -> _TablesAndValues:
    return {title: rows}, {"rows": [row.to_dict() for row in rows]}


def _losses(config: BenchConfig, device: torch.device) -> _TablesAndValues:
    rows = losses.measure(batch=config.batch or 256, rounds=config.rounds or 10, device=device)
    return _rows("losses, forward and backward", rows)


def _views(config: BenchConfig, device: torch.device) -> _TablesAndValues:
    rows = views.measure(rounds=config.rounds or 10)
    files = views.measure_files(rounds=config.rounds or 6)
    tables: _Tables = {"views": rows, "views of picture files, imagenet@64": files}
    return tables, {"rows": [row.to_dict() for row in rows], "files": [row.to_dict() for row in files]}


def _store(config: BenchConfig, device: torch.device) -> _TablesAndValues:
    batch = config.batch or store.BATCH
    report = store.measure(
        n=config.n or store.VIEWS,
        batch=batch,
        rounds=config.rounds or 8,
        logits=config.logits,
        folder=config.folder,
    )
    tables: _Tables = {
        f"{report.views:,} views of {report.about}; KL at T, over all classes": report.sizes,
        f"speed, {batch:,} views a take": report.speeds,
        "memory": report.peaks,
    }
    return tables, report.to_dict()


def _scale(config: BenchConfig, device: torch.device) -> _TablesAndValues:
    report = scale.measure(n=config.n or scale.MOST, rounds=config.rounds or 2, folder=config.folder)
    if config.plot:
        plot.draw(report, config.plot)
    tables: _Tables = {
        "a view: µs of each step, bytes; ms to open, files, peak MB of memory": report.points,
        "not measured: ImageNet-21k under 300 seeds, k = 8": report.estimates,
    }
    return tables, report.to_dict()


def _dump(config: BenchConfig, device: torch.device) -> _TablesAndValues:
    rows = dump.measure(pictures=config.n or 128, rounds=config.rounds or 3, device=device)
    return _rows("stage one", rows)


def _train(config: BenchConfig, device: torch.device) -> _TablesAndValues:
    report = train.measure(
        pictures=config.n or 256, rounds=config.rounds or 2, batch=config.batch or 64, device=device
    )
    tables: _Tables = {
        "stage two": report.times,
        "memory of an epoch": report.peaks,
        "one spool": report.shared,
    }
    return {title: rows for title, rows in tables.items() if rows}, report.to_dict()


SUITES = {
    "losses": Suite(_losses, seconds=45, on_device=True, one_thread=True),
    "views": Suite(_views, seconds=110, one_thread=True),
    "store": Suite(_store, seconds=80),
    "scale": Suite(_scale, seconds=110),
    "dump": Suite(_dump, seconds=95, on_device=True),
    "train": Suite(_train, seconds=200, on_device=True),
}
