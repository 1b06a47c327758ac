"""A run folder: the files of a training run.

config.json         everything that made the run: settings, objective, student, cache, versions, command line
metrics.jsonl       one line per epoch
reliability.json    accuracy on the test images by confidence bin, after the last epoch
best.safetensors    the student at its best top-1, and
last.safetensors    after the last epoch
checkpoint.pt       all that changes in training, after some step, to resume from

Each file is written as a temporary file, NAME.part, and then renamed, so that a crash leaves the one before.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from logitcache.errors import FormatError, NotFoundError, OptionError, StorageError
from logitcache.files import replacing, require_folder
from logitcache.format.spec import jsonable
from logitcache.locks import HeldError, lock
from logitcache.models.build import Model, save_weights
from logitcache.models.weights import first_line
from logitcache.train.confidence import Reliability
from logitcache.train.same_run import require_same
from logitcache.units import count as count_of
from logitcache.versions import library_versions

LOCK = ".lock"  # in a folder that is being trained in


class Stateful(Protocol):
    """What a checkpoint can hold: a module, an optimiser, a gradient scaler."""

    def state_dict(self) -> Any:
        """Return the state as tensors and plain values."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Load what `state_dict` returned."""


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def has_run(self) -> bool:
        """Is there a run in it?"""
        return (self.path / "config.json").exists()

    def has_progress(self) -> bool:
        """Is there anything in it that training has made: a checkpoint, weights, an epoch's row?"""
        results = ("checkpoint.pt", "last.safetensors", "best.safetensors")
        rows = self.path / "metrics.jsonl"
        return any((self.path / name).exists() for name in results) or (
            rows.exists() and rows.stat().st_size > 0
        )

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes from training in it meanwhile.

        Raises:
            OptionError: one does.
            StorageError: the disk said no.
        """
        file = self.path / LOCK
        with ExitStack() as stack:
            stack.callback(self._remove_if_empty)
            try:
                with _storage_errors(self.path):
                    self.path.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(lock(file))
            except HeldError as error:
                advice = error.how or "wait for its end, or choose another --out"
                raise OptionError(f"{self.path} is being trained by {error.who}; {advice}") from error
            stack.callback(_remove_lock, file)
            yield

    def _remove_if_empty(self) -> None:
        """Remove the folder of a run that did not begin."""
        with suppress(OSError):
            self.path.rmdir()

    def require_no_run(self) -> None:
        """Insist that files can be written into it, and that there is neither a cache in it nor a run to lose.

        A run that ended before its first checkpoint has nothing to lose.

        Raises:
            OptionError: it is a file, or there is either.
            StorageError: it cannot be written or made.
        """
        require_folder(self.path)
        if (self.path / "zarr.json").exists():
            raise OptionError(f"{self.path} is a cache; choose another --out, or leave it out")
        if self.has_run() and self.has_progress():
            raise OptionError(f"{self.path} holds a run already; --resume it, or choose another --out")

    def begin(
        self,
        config: Mapping[str, Any],
        beside: Mapping[str, Any],
        *,
        resume: bool,
    ) -> None:
        """Write config.json, or compare with that of a run which has got anywhere.

        Args:
            config: all that makes the run.
            beside: what to keep besides of a run that is begun, such as the command that began it.
            resume: whether there may be a run.

        Raises:
            OptionError: there is one, and `resume` is off.
            MismatchError: it is of another configuration.
            FormatError: it is damaged.
            StorageError: the disk said no.
        """
        if not resume:
            self.require_no_run()
        if self.has_run() and self.has_progress():
            require_same(self.path, self.read_config(), config)
            return
        text = json.dumps(jsonable({**config, "versions": library_versions(), **beside}), indent=2) + "\n"
        with _storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            _write_text(self.path / "config.json", text)

    def read_config(self) -> dict[str, Any]:
        """Read config.json.

        Raises:
            NotFoundError: there is none.
            FormatError: it is damaged.
        """
        if not self.has_run():
            raise NotFoundError(f"no run in {self.path}: config.json is not there")
        return _read_json(self.path / "config.json")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the rows of metrics.jsonl; none where there is no such file.

        Raises:
            FormatError: a line of it is damaged, or one is missing.
        """
        file = self.path / "metrics.jsonl"
        lines = _read(file).splitlines() if file.exists() else []
        return [_parse_row(file, epoch, line) for epoch, line in enumerate(lines)]

    def read_reliability(self) -> Reliability | None:
        """Read reliability.json, of the last epoch; None where the student was not evaluated on labels.

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

    def save_epoch(
        self,
        row: dict[str, Any],
        reliability: Reliability | None,
        parts: Mapping[str, Stateful],
        student: Model,
    ) -> None:
        """Write the weights after an epoch, its row, and last the checkpoint, by which the epoch counts.

        Args:
            row: for metrics.jsonl; "epoch" and "loss" at least.
            reliability: for reliability.json; None deletes that of an earlier epoch.
            parts: for the checkpoint, by their names there.
            student: what is written as last, and, where no earlier top-1 is higher, as best.

        Raises:
            StorageError: the disk said no.
        """
        rows = [*self.read_metrics(), row]
        best = max((r["top1"] for r in rows[:-1] if "top1" in r), default=-1.0)
        with _storage_errors(self.path):
            save_weights(self.path / "last.safetensors", student)
            if row.get("top1", math.inf) >= best:  # of equals the later, which has learnt more
                save_weights(self.path / "best.safetensors", student)
            if reliability is None:
                (self.path / "reliability.json").unlink(missing_ok=True)
            else:
                _write_text(self.path / "reliability.json", json.dumps(reliability.to_dict()) + "\n")
            self._write_metrics(rows)
        self.save_checkpoint(parts)

    def save_checkpoint(self, parts: Mapping[str, Stateful]) -> None:
        """Replace the checkpoint.

        Raises:
            StorageError: the disk said no; the checkpoint before stays.
        """
        with _storage_errors(self.path), replacing(self.path / "checkpoint.pt") as temporary:
            _save_states({name: part.state_dict() for name, part in parts.items()}, temporary)

    def load_checkpoint(self, parts: Mapping[str, Stateful]) -> None:
        """Load the checkpoint, if there is one, into parts of the names under which they were saved.

        Raises:
            FormatError: the checkpoint is damaged.
            NotFoundError: it is gone.
            StorageError: the disk did not let it be read.
        """
        file = self.path / "checkpoint.pt"
        if not file.exists():
            epochs = len(self.read_metrics())
            if epochs > 1:  # the first epoch's row is written before its checkpoint
                raise NotFoundError(
                    f"{self.path} is {epochs} epochs far, but has no checkpoint.pt to go on from; restore it, or "
                    "train again into another --out"
                )
            return
        try:
            saved = torch.load(
                file, map_location="cpu", weights_only=True
            )  # each part moves it to its device
            for name, part in parts.items():
                part.load_state_dict(saved[name])
        except OSError as error:
            raise StorageError(f"cannot read {file}: {error.strerror or error}") from error
        except Exception as error:  # a damaged file surfaces as any of zip's, pickle's or torch's exceptions
            raise FormatError(
                f"{file} is damaged ({first_line(error)}); delete {self.path} and train again"
            ) from error

    def rewind(self, epoch: int) -> None:
        """Drop the rows of an epoch and those after it, and temporary files that a crash left.

        Raises:
            FormatError: rows of epochs before it are missing.
            StorageError: the disk said no.
        """
        rows = self.read_metrics()[:epoch]
        if len(rows) < epoch:
            raise FormatError(
                f"{self.path}/metrics.jsonl: expected the rows of {count_of(epoch, 'epoch')}, which checkpoint.pt "
                f"has behind it, found {len(rows)}; restore it, or train again into another --out"
            )
        with _storage_errors(self.path):
            for temporary in self.path.glob("*.part"):
                temporary.unlink()
            self._write_metrics(rows)

    def _write_metrics(self, rows: list[dict[str, Any]]) -> None:
        _write_text(self.path / "metrics.jsonl", "".join(json.dumps(jsonable(row)) + "\n" for row in rows))


def _remove_lock(file: Path) -> None:
    with suppress(OSError):
        file.unlink()


@contextmanager
def claim_folders(parent: Path, names: Sequence[str]) -> Iterator[list[Path]]:
    """Make parent/NAME-N of each name, N the first that is free, and yield them; at the end empty ones are removed.

    No two processes get the same folder.

    Raises:
        StorageError: the disk said no.
    """
    claimed: list[Path] = []
    try:
        for name in names:
            candidates = (parent / f"{name}-{number}" for number in count())
            with _storage_errors(parent):
                claimed.append(next(filter(_make_folder, candidates)))
        yield claimed
    finally:
        for folder in claimed:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


def _make_folder(folder: Path) -> bool:
    """Make a folder; returns whether there was none."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _parse_row(file: Path, epoch: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        found = error
    if (
        not isinstance(found, dict)
        or found.get("epoch") != epoch
        or "loss" not in found
        or not all(value is None or type(value) in (int, float) for value in found.values())
    ):
        raise FormatError(
            f"{file}, line {epoch + 1}: expected numbers by name in a JSON object, epoch {epoch} and a loss among "
            f"them, found {line[:40]!r}; mend the line, or train again into another --out"
        )
    return {name: math.nan if value is None else value for name, value in found.items()}  # JSON has no NaN


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


def _save_states(states: dict[str, Any], file: Path) -> None:
    """Save as `torch.save` does; what the disk refuses is raised as the `OSError` that it is."""
    with file.open("wb") as out:
        keeper: Any = _ErrorKeeper(out)
        torch.save(states, keeper)
    if keeper.error:
        raise keeper.error


class _ErrorKeeper:
    """A file that keeps the error of the disk from torch's writer, which makes another of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, unless a write has failed."""
        if not self.error:
            try:
                return self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Leave it to the file's end."""


def _write_text(file: Path, text: str) -> None:
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """Raise what the disk refuses as a `StorageError` that says how to go on."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        message = str(error) if isinstance(error, StorageError) else f"cannot write {folder}: {reason}"
        resume = "what was saved before is intact, make room and run again with --resume"
        advice = resume if RunFolder(folder).has_run() else "make room, or choose another --out"
        raise StorageError(f"{message}; {advice}") from error
