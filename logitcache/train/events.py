"""What `train` reports while it runs: images decoded, that it begins, a step, an epoch, an odd or failed student."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.errors import LogitCacheError


@dataclass(frozen=True)
class ImagesDecoded:
    """Before training: images were decoded once, to find those that do not decode.

    Attributes:
        done: how many by now.
        total: of how many.
    """

    done: int
    total: int


@dataclass(frozen=True)
class TrainingBegun:
    """All that can be refused has been; the first step comes next.

    Attributes:
        epoch: the first to train, from 0.
        epochs: the most that any student is trained for.
    """

    epoch: int
    epochs: int


@dataclass(frozen=True)
class StepDone:
    """Every student that still trains took a step.

    Attributes:
        epoch: from 0.
        epochs: the most that any student is trained for.
        step: steps taken of the epoch, this one included.
        steps: steps of the epoch.
        views_per_second: of all ranks together, since the epoch began or was resumed.
        losses: mean of each loss of the first student, when it was last read from the device, in this epoch or the
            one before; empty before the first time.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    views_per_second: float
    losses: Mapping[str, float]


@dataclass(frozen=True)
class EpochDone:
    """One student completed an epoch, and its run folder holds it.

    Attributes:
        run: run folder.
        epochs: that this student is trained for.
        row: the line that metrics.jsonl got: numbers by name, "epoch" and "loss" among them.
    """

    run: Path
    epochs: int
    row: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        """Which epoch it is, from 0."""
        epoch: int = self.row["epoch"]
        return epoch


@dataclass(frozen=True)
class StudentFailed:
    """One student of several ended early; the others go on.

    Attributes:
        run: run folder.
        error: why.
    """

    run: Path
    error: LogitCacheError


@dataclass(frozen=True)
class StudentNoted:
    """What a user may not expect of a student, before its first step.

    Attributes:
        run: run folder.
        note: a line for people.
    """

    run: Path
    note: str


TrainEvent = ImagesDecoded | TrainingBegun | StepDone | EpochDone | StudentFailed | StudentNoted
OnTrainEvent = Callable[[TrainEvent], None]
