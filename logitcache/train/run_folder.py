"""A run folder: what a training run leaves behind, each file replaced whole so that a crash leaves the one before.

config.json         everything that made the run: settings, objective, student, cache, versions, command line
metrics.jsonl       one line per epoch
reliability.json    how sure the student was of the test images, and how often right then, after the last epoch
best.safetensors    the student at its best top-1, and
last.safetensors    after the last epoch
checkpoint.pt       all that changes in training, after some step, to resume from
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch

from logitcache.errors import (
    Difference,
    FormatError,
    MismatchError,
    NotFoundError,
    OptionError,
    StorageError,
)
from logitcache.files import replacing
from logitcache.models.build import Model, save_weights
from logitcache.models.weights import first_line
from logitcache.train.calibration import Reliability
from logitcache.versions import library_versions


class Stateful(Protocol):
    """What a checkpoint can hold: a module, an optimiser, an average, a scaler."""

    def state_dict(self) -> Any:
        """Return the state as tensors and plain values."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take the state on."""


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, record: dict[str, Any], *, resume: bool) -> None:
        """Write config.json, or compare with the one that is there.

        Raises:
            OptionError: there is one, and `resume` is off.
            MismatchError: it tells of another configuration.
            FormatError: it is damaged.
            StorageError: the disk said no.
        """
        file = self.path / "config.json"
        if file.exists():
            if not resume:
                self.require_free()
            found = _read_json(file)
            differing = [k for k in record if _plain(record[k]) != found.get(k)]
            if fields := [d for k in differing for d in _differences(k, found.get(k), _plain(record[k]))]:
                advice = "resume with its own options, or choose another --out"
                kept = [(part, found.get(part, {}), record[part]) for part in ("config", "student")]
                if unknown := [f"{part}.{k}" for part, then, now in kept for k in now if k not in then]:
                    advice = (
                        f"it was begun by a logitcache that did not keep {unknown[0]}: go on with that one, or "
                        "choose another --out"
                    )
                raise MismatchError(f"{self.path} holds a run of another configuration", fields, advice)
            return
        with _saving(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            _replace(
                file,
                json.dumps({**record, "versions": library_versions(), "command": sys.argv}, indent=2) + "\n",
            )

    def require_free(self) -> None:
        """Insist that no run is here yet.

        Raises:
            OptionError: one is.
        """
        if self.holds(self.path):
            raise OptionError(f"{self.path} holds a run already; --resume it, or choose another --out")

    @staticmethod
    def holds(path: Path) -> bool:
        """Is there a run in a folder?"""
        return (path / "config.json").exists()

    def record(self) -> dict[str, Any]:
        """Return what config.json says.

        Raises:
            NotFoundError: there is none.
            FormatError: it is damaged.
        """
        file = self.path / "config.json"
        if not file.exists():
            raise NotFoundError(f"no run in {self.path}: config.json is not there")
        return _read_json(file)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl.

        Raises:
            FormatError: a line of it is damaged, or one is missing.
        """
        file = self.path / "metrics.jsonl"
        lines = _read(file).splitlines() if file.exists() else []
        return [_row(file, epoch, line) for epoch, line in enumerate(lines)]

    def reliability(self) -> Reliability | None:
        """Return that of the last epoch; None where the student was not evaluated on labels.

        Raises:
            FormatError: reliability.json is damaged.
        """
        file = self.path / "reliability.json"
        if not file.exists():
            return None
        try:
            return Reliability.from_dict(_read_json(file))
        except FormatError as error:
            raise FormatError(f"{file} is damaged ({error}); delete it, or train again") from error

    def keep(
        self,
        row: dict[str, Any],
        reliability: Reliability | None,
        parts: Mapping[str, Stateful],
        student: Model,
    ) -> None:
        """Add an epoch's row, its weights, and the checkpoint that stands for all of them."""
        rows = [*self.metrics(), row]
        best = max((r["top1"] for r in rows[:-1] if "top1" in r), default=-1.0)
        with _saving(self.path):
            save_weights(self.path / "last.safetensors", student)
            if row.get("top1", math.inf) >= best:  # of equals the later, which has learnt more
                save_weights(self.path / "best.safetensors", student)
            if reliability is None:
                (self.path / "reliability.json").unlink(missing_ok=True)  # an earlier epoch's
            else:
                _replace(self.path / "reliability.json", json.dumps(reliability.to_dict()) + "\n")
            self._write_metrics(rows)
        self.save(parts)

    def save(self, parts: Mapping[str, Stateful]) -> None:
        """Write a checkpoint; the one before stands until the new one is whole."""
        with _saving(self.path), replacing(self.path / "checkpoint.pt") as aside:
            torch.save({name: part.state_dict() for name, part in parts.items()}, aside)

    def load(self, parts: Mapping[str, Stateful]) -> None:
        """Load the checkpoint, if there is one, into parts as they were saved.

        Raises:
            FormatError: the checkpoint is damaged.
            NotFoundError: it is gone.
            StorageError: the disk did not let it be read.
        """
        file = self.path / "checkpoint.pt"
        if not file.exists():
            if (
                epochs := len(self.metrics())
            ) > 1:  # the row of the first may have come to the disk before it
                raise NotFoundError(
                    f"{self.path} is {epochs} epochs far, but has no checkpoint.pt to go on from; restore it, or "
                    "train again into another --out"
                )
            return
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)  # parts take it where theirs is
            for name, part in parts.items():
                part.load_state_dict(saved[name])
        except OSError as error:
            raise StorageError(f"cannot read {file}: {error.strerror or error}") from error
        except Exception as error:  # a damaged file surfaces as any of zip's, pickle's or torch's exceptions
            raise FormatError(
                f"{file} is damaged ({first_line(error)}); delete {self.path} and train again"
            ) from error

    def rewind(self, epoch: int) -> None:
        """Drop the rows of an epoch and those after it, and files that were half written.

        Raises:
            FormatError: rows of epochs before it are missing.
            StorageError: the disk said no.
        """
        rows = self.metrics()[:epoch]
        if len(rows) < epoch:
            raise FormatError(
                f"{self.path}/metrics.jsonl: expected the rows of {epoch} epochs, which checkpoint.pt has behind it, "
                f"found {len(rows)}; restore it, or train again into another --out"
            )
        with _saving(self.path):
            for left in self.path.glob("*.part"):
                left.unlink()
            self._write_metrics(rows)

    def _write_metrics(self, rows: list[dict[str, Any]]) -> None:
        _replace(self.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))


@contextmanager
def claimed_folders(parent: Path, names: Sequence[str]) -> Iterator[list[Path]]:
    """Yield parent/name-N for the first N that is free, made, of each name; what stays empty is gone afterwards.

    Raises:
        StorageError: the disk said no.
    """
    made: list[Path] = []
    try:
        for name in names:
            with _saving(parent):
                made.append(next(filter(_made, (parent / f"{name}-{number}" for number in count()))))
        yield made
    finally:
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


def _made(folder: Path) -> bool:
    """Make a folder, unless there is one already."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _row(file: Path, epoch: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        found = error
    if (
        not isinstance(found, dict)
        or found.get("epoch") != epoch
        or "loss" not in found
        or not all(type(value) in (int, float) for value in found.values())
    ):
        raise FormatError(
            f"{file}, line {epoch + 1}: expected numbers by name in a JSON object, epoch {epoch} and a loss among "
            f"them, found {line[:40]!r}; mend the line, or train again into another --out"
        )
    return found


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} is damaged ({error}); train again into another --out") from error
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror or error}") from error


def _plain(value: object) -> Any:
    return json.loads(json.dumps(value))


def _differences(name: str, expected: object, found: object) -> Iterator[Difference]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for k in {**expected, **found}:
            yield from _differences(f"{name}.{k}", expected.get(k), found.get(k))
    elif expected != found:
        yield Difference(name, expected, found)


def _replace(file: Path, text: str) -> None:
    with replacing(file) as aside:
        aside.write_text(text)


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        if "unexpected pos" in reason:  # torch's word for it
            reason = "the disk took a part only (is it full?)"
        said = str(error) if isinstance(error, StorageError) else f"cannot write {folder}: {reason}"
        saved = "what was saved before is intact, make room and run again with --resume"
        advice = saved if RunFolder.holds(folder) else "make room, or choose another --out"
        raise StorageError(f"{said}; {advice}") from error
