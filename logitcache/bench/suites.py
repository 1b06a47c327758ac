"""The suites by name, each as tables to show and as JSON values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from logitcache.bench import Cells, conditions, dump, losses, store, train, views
from logitcache.errors import OptionError
from logitcache.forward import choose_device


@dataclass(frozen=True)
class BenchConfig:
    """What to measure with; 0 is what fits the suite.

    Attributes:
        rounds: how often each ratio is taken.
        batch: rows of a batch.
        n: views (store) or pictures (dump, train).
        threads: on the CPU.
        device: where losses, dump and train run; the others are the CPU's.
        logits: an .npz of real logits (store).
        folder: where to write (store).
    """

    rounds: int = 0
    batch: int = 0
    n: int = 0
    threads: int = 0
    device: str = "cpu"
    logits: Path | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Measured:
    """What a suite found: rows by title, values for programs, and what it was measured on."""

    suite: str
    tables: Mapping[str, Sequence[Cells]]
    values: Mapping[str, Any]
    conditions: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {"suite": self.suite, **self.conditions, **self.values}


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
    before = torch.get_num_threads()
    torch.set_num_threads(1 if suite == "views" else config.threads or before)
    try:
        made_on = conditions(device)
        tables, values = SUITES[suite](config, device)
    finally:
        torch.set_num_threads(before)
    return Measured(suite, tables, values, made_on)


Found = tuple[dict[str, Sequence[Cells]], dict[str, Any]]


def _losses(config: BenchConfig, device: torch.device) -> Found:
    rows = losses.measure(batch=config.batch or 256, rounds=config.rounds or 20, device=device)
    return {"losses, forward and backward": rows}, {"rows": [row.to_dict() for row in rows]}


def _views(config: BenchConfig, device: torch.device) -> Found:
    rows = views.measure(rounds=config.rounds or 20)
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
    rows = dump.measure(pictures=config.n or 256, rounds=config.rounds or 4, device=device)
    return {"stage one": rows}, {"rows": [row.to_dict() for row in rows]}


def _train(config: BenchConfig, device: torch.device) -> Found:
    found = train.measure(
        pictures=config.n or 256, rounds=config.rounds or 4, batch=config.batch or 64, device=device
    )
    tables: dict[str, Sequence[Cells]] = {
        "stage two": found.times,
        "memory of an epoch": found.peaks,
        "one spool": found.shared,
    }
    return {title: rows for title, rows in tables.items() if rows}, found.to_dict()


SUITES: dict[str, Callable[[BenchConfig, torch.device], Found]] = {
    "losses": _losses,
    "views": _views,
    "store": _store,
    "dump": _dump,
    "train": _train,
}
