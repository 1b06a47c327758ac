"""Stage two: train students on a stream, evaluate them each epoch, keep what is needed to go on.

Several students share one pass over the data: each batch is decoded, viewed and looked up once. The order of the
data is a function of (order key, epoch) and a student's random numbers of (run seed, epoch, step), so a student
comes out the same whoever trains beside it, and a resumed run is the uninterrupted one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from logitcache.errors import LogitCacheError, OptionError, StoppedError, StudentsError
from logitcache.evaluation import Evaluation
from logitcache.learner import Learner, Run
from logitcache.loader import deaths_named
from logitcache.spec import Spec
from logitcache.stream import Batch, Stream


@dataclass(frozen=True)
class TrainReport(Spec):
    """What a run came to; accuracies in [0, 1], None without a test set. Seconds are of the whole pass."""

    out: str
    student: str
    parameters: int
    epochs: int
    loss: float
    top1: float | None
    top5: float | None
    best_top1: float | None
    seconds: float
    views_per_second: float


Progress = Callable[[dict[str, Any]], None]


@deaths_named()
def train(
    runs: Sequence[Run],
    stream: Stream,
    evaluation: Evaluation | None = None,
    *,
    resume: bool = False,
    checkpoint_every: float = 300.0,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Progress | None = None,
) -> list[TrainReport]:
    """Train students side by side on one stream, each into its run folder.

    Args:
        runs: what to train.
        stream: batches of views, labels and the teacher's answers, on the device to train on.
        evaluation: the test set, evaluated after each epoch; None trains without.
        resume: go on from the folders' checkpoints, with the step after; what comes of it is what would have come.
        checkpoint_every: seconds between checkpoints within an epoch; each epoch ends with one.
        should_stop: asked after every step; when it says so, checkpoints are written and training stops.
        on_progress: called after every step with {"epoch", "step", "steps", "views_per_second"}, after every epoch
            with {"run", and what the run's metrics.jsonl gets}, and when a student ends early with {"run", "error"}.

    Returns:
        A report per run.

    Raises:
        OptionError: options that cannot be trained with, or a folder holds a run and `resume` is off.
        MismatchError: a folder holds a run of another configuration.
        NonFiniteError: a loss became NaN or infinite; the checkpoint before is kept.
        StorageError: the disk said no; the checkpoint before is kept.
        StoppedError: `should_stop` said so.
        StudentsError: of several students some ended by an error of ours; the others came to their end.
    """
    if not runs or len({run.out for run in runs}) < len(runs):
        raise OptionError("train needs at least one run, each with a folder of its own")
    tell = on_progress or (lambda event: None)
    group = Group([Learner(run, stream, resume=resume) for run in runs], tell)
    started, views, saved = time.perf_counter(), 0, time.monotonic()
    for epoch in group.epochs():
        active = group.at(epoch)
        began, seen = time.perf_counter(), 0
        start = min((learner.ledger.step for learner in active), default=0)
        for step, batch in enumerate(stream.epoch(epoch, start) if active else (), start):
            active = group.each(active, partial(_take, step, batch))
            if not active:
                break
            seen += len(batch.views)
            rate = seen / (time.perf_counter() - began)
            tell({"epoch": epoch, "step": step + 1, "steps": active[0].steps, "views_per_second": rate})
            stop = should_stop()
            if stop or time.monotonic() - saved >= checkpoint_every:
                active = group.each(active, Learner.save)
                saved = time.monotonic()
            if stop:
                raise StoppedError(
                    f"stopped after step {step + 1} of epoch {epoch + 1}, as asked; --resume goes on from there"
                )
        seconds = time.perf_counter() - began
        views += seen
        active = group.each(active, Learner.mix_heads)
        scores = evaluation.of([x.kept for x in active]) if evaluation and active else [{} for _ in active]
        for learner, score in zip(active, scores, strict=True):
            measured = {"views_per_second": seen / seconds, "seconds": seconds, **score}
            group.each([learner], partial(_end, measured, tell))
    seconds = time.perf_counter() - started
    reports = [_report(x, seconds, views / seconds) for x in group.learners if x not in group.failed]
    if group.failed:
        raise StudentsError({str(x.run.out): error for x, error in group.failed.items()}, reports)
    return reports


class Group:
    """Learners side by side: who fails by an error of ours leaves, and the others go on. One alone just fails."""

    def __init__(self, learners: list[Learner], tell: Progress) -> None:
        self.learners, self.tell = learners, tell
        self.failed: dict[Learner, LogitCacheError] = {}

    def epochs(self) -> range:
        """The epochs that any of them has before it."""
        first = min(learner.ledger.epoch for learner in self.learners)
        return range(first, max(learner.run.config.epochs for learner in self.learners))

    def at(self, epoch: int) -> list[Learner]:
        """Those whose next epoch this is."""
        going = [x for x in self.learners if x not in self.failed]
        return [x for x in going if x.ledger.epoch == epoch < x.run.config.epochs]

    def each(self, learners: list[Learner], do: Callable[[Learner], None]) -> list[Learner]:
        """Let each do it; returns those who did."""
        for learner in learners:
            try:
                do(learner)
            except LogitCacheError as error:
                if len(self.learners) == 1:
                    raise error.said_by(str(learner.run.out)) from error
                self.failed[learner] = error.said_by(str(learner.run.out))
                self.tell({"run": str(learner.run.out), "error": str(error)})
        return [learner for learner in learners if learner not in self.failed]


def _take(step: int, batch: Batch, learner: Learner) -> None:
    if learner.ledger.step == step:  # else it has come further, before all were interrupted
        learner.step(batch)


def _end(measured: dict[str, float], tell: Progress, learner: Learner) -> None:
    tell({"run": str(learner.run.out), **learner.end(measured)})


def _report(learner: Learner, seconds: float, views_per_second: float) -> TrainReport:
    rows, student = learner.folder.metrics(), learner.student
    return TrainReport(
        out=str(learner.run.out),
        student=student.name,
        parameters=sum(p.numel() for p in student.module.parameters()),
        epochs=len(rows),
        loss=rows[-1]["loss"],
        top1=rows[-1].get("top1"),
        top5=rows[-1].get("top5"),
        best_top1=max((row["top1"] for row in rows if "top1" in row), default=None),
        seconds=seconds,
        views_per_second=views_per_second,
    )
