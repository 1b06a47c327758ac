"""The suites by name, each as tables to show and as JSON values."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from logitcache.bench import Cells, conditions, dump, losses, plot, scale, store, train, views
from logitcache.errors import OptionError
from logitcache.models.forward import choose_device


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
class Measured:
    """What a suite found: rows by title, values for programs, how long that took, and what it was measured on."""

    suite: str
    seconds: float
    tables: Mapping[str, Sequence[Cells]]
    values: Mapping[str, Any]
    conditions: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        about = {"suite": self.suite, "seconds": round(self.seconds, 1)}
        return {**about, **self.conditions, **self.values}


def run(suite: str, config: BenchConfig = BenchConfig()) -> Measured:
    """Measure a suite.

    Raises:
        OptionError: there is no such suite, device, or size.
        NotFoundError, DataError: `logits` is no such file.
        StorageError: the disk said no.
    """
    if suite not in SUITES:
        raise OptionError(f"no suite {suite!r}; there are {', '.join(SUITES)}")
    device = choose_device(config.device if suite in ("losses", "dump", "train") else "cpu")
    before, started = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1 if suite == "views" else config.threads or before)
    try:
        made_on = conditions(device)
        tables, values = SUITES[suite](config, device)
    finally:
        torch.set_num_threads(before)
    return Measured(suite, time.perf_counter() - started, tables, values, made_on)


Found = tuple[dict[str, Sequence[Cells]], dict[str, Any]]


def _losses(config: BenchConfig, device: torch.device) -> Found:
    rows = losses.measure(batch=config.batch or 256, rounds=config.rounds or 10, device=device)
    return {"losses, forward and backward": rows}, {"rows": [row.to_dict() for row in rows]}


def _views(config: BenchConfig, device: torch.device) -> Found:
    rows = views.measure(rounds=config.rounds or 10)
    return {"views": rows}, {"rows": [row.to_dict() for row in rows]}


def _store(config: BenchConfig, device: torch.device) -> Found:
    found = store.measure(
        n=config.n or store.VIEWS,
        batch=config.batch or store.BATCH,
        rounds=config.rounds or 8,
        logits=config.logits,
        folder=config.folder,
    )
    about = f"{found.views:,} views, k = {found.k}, {found.about}"
    speed = f"speed, {config.batch or store.BATCH:,} views a take"
    return {about: found.sizes, speed: found.speeds, "memory": found.peaks}, found.to_dict()


def _dump(config: BenchConfig, device: torch.device) -> Found:
    rows = dump.measure(pictures=config.n or 128, rounds=config.rounds or 3, device=device)
    return {"stage one": rows}, {"rows": [row.to_dict() for row in rows]}


def _train(config: BenchConfig, device: torch.device) -> Found:
    found = train.measure(
        pictures=config.n or 256, rounds=config.rounds or 2, batch=config.batch or 64, device=device
    )
    tables: dict[str, Sequence[Cells]] = {
        "stage two": found.times,
        "memory of an epoch": found.peaks,
        "one spool": found.shared,
    }
    return {title: rows for title, rows in tables.items() if rows}, found.to_dict()


def _scale(config: BenchConfig, device: torch.device) -> Found:
    found = scale.measure(n=config.n or scale.MOST, rounds=config.rounds or 2, folder=config.folder)
    if config.plot:
        plot.draw(found, config.plot)
    tables: dict[str, Sequence[Cells]] = {
        "a view: µs of each step, bytes; ms to open, files, peak MB of memory": found.points,
        "not measured: ImageNet-21k under 300 seeds, k = 16": found.estimates,
    }
    return tables, found.to_dict()


# Seconds on two quiet cores, where nothing is asked for but the suite.
EXPECTED = {"losses": 7, "views": 15, "store": 80, "scale": 110, "dump": 95, "train": 200}

SUITES: dict[str, Callable[[BenchConfig, torch.device], Found]] = {
    "losses": _losses,
    "views": _views,
    "store": _store,
    "scale": _scale,
    "dump": _dump,
    "train": _train,
}
