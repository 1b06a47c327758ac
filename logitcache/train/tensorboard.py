"""Curves of runs for TensorBoard, beside metrics.jsonl."""

from collections.abc import Callable
from typing import Any

from logitcache.errors import OptionError, StorageError


class Board:
    """Writes every number of a run's epoch, as `train.train` tells it, into the run's folder.

    Args:
        then: what is told next.

    Raises:
        OptionError: TensorBoard is not installed.
    """

    def __init__(self, then: Callable[[dict[str, Any]], None]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise OptionError("curves need TensorBoard; pip install 'logitcache[tensorboard]'") from None
        self._new, self._then = SummaryWriter, then
        self._writers: dict[str, Any] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        """Take an event; those that end an epoch are written, at once, and all are passed on.

        Raises:
            StorageError: the disk said no.
        """
        if "run" in event and "epoch" in event:
            self._write(event["run"], event["epoch"], event)
        self._then(event)

    def _write(self, run: str, epoch: int, row: dict[str, Any]) -> None:
        try:
            if (
                run not in self._writers
            ):  # what an earlier session wrote of this epoch and later is taken back
                self._writers[run] = self._new(run, purge_step=epoch)
            for name, value in row.items():
                if isinstance(value, float):
                    self._writers[run].add_scalar(name, value, epoch)
            self._writers[run].flush()
        except OSError as error:
            raise StorageError(f"cannot write curves into {run}: {error.strerror or error}") from error
