"""Curves of runs for TensorBoard, beside metrics.jsonl."""

import threading
from collections.abc import Mapping
from typing import Any

from logitcache.errors import OptionError, StorageError
from logitcache.train.events import EpochDone, OnTrainEvent, TrainEvent


class CurveWriter:
    """Writes every number of a run's epoch into the run's folder; an `on_progress` of `train`.

    Args:
        on_progress: called with each event afterwards.

    Raises:
        OptionError: TensorBoard is not installed.
    """

    def __init__(self, on_progress: OnTrainEvent) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise OptionError("curves need TensorBoard; pip install 'logitcache[tensorboard]'") from None
        self._open, self._on_progress = SummaryWriter, on_progress
        self._writers: dict[str, Any] = {}

    def __call__(self, event: TrainEvent) -> None:
        """Write an event that ends an epoch, at once; pass every event on.

        Raises:
            StorageError: the disk said no.
        """
        if isinstance(event, EpochDone):
            self._write(str(event.run), event.epoch, event.row)
        self._on_progress(event)

    def _write(self, run: str, epoch: int, row: Mapping[str, Any]) -> None:
        hook, threading.excepthook = threading.excepthook, lambda _: None  # its thread's error is raised here
        try:
            if run not in self._writers:  # purges what an earlier session wrote of this epoch and later ones
                self._writers[run] = self._open(run, purge_step=epoch)
            for name, value in row.items():
                if isinstance(value, float):
                    self._writers[run].add_scalar(name, value, epoch)
            self._writers[run].flush()
        except OSError as error:
            raise StorageError(
                f"cannot write curves into {run}: {error.strerror or error}; what was saved before is intact, make "
                "room and run again with --resume"
            ) from error
        finally:
            threading.excepthook = hook
