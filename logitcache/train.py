"""Stage two: train students on a stream, evaluate them each epoch, keep what is needed to go on.

Several students share one pass over the data: each batch is decoded, viewed and looked up once. The order of the
data is a function of (order key, epoch) and a student's random numbers of (run seed, epoch, step), so a student
comes out the same whoever trains beside it, and a resumed run is the uninterrupted one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from logitcache.errors import OptionError, StoppedError
from logitcache.evaluation import Evaluation
from logitcache.learner import Learner, Run
from logitcache.loader import deaths_named
from logitcache.spec import Spec
from logitcache.stream import Stream


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
CHECK_EVERY = 50  # steps between looks at the losses, each of which waits for the device


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
        on_progress: called after every step with {"epoch", "step", "steps", "views_per_second"} and after
            every epoch with {"run", and what the run's metrics.jsonl gets}.

    Returns:
        A report per run.

    Raises:
        OptionError: options that cannot be trained with, or a folder holds a run and `resume` is off.
        MismatchError: a folder holds a run of another configuration.
        NonFiniteError: a loss became NaN or infinite; the checkpoint before is kept.
        StorageError: the disk said no; the checkpoint before is kept.
        StoppedError: `should_stop` said so.
    """
    if not runs or len({run.out for run in runs}) < len(runs):
        raise OptionError("train needs at least one run, each with a folder of its own")
    learners = [Learner(run, stream, resume=resume) for run in runs]
    started, views, saved = time.perf_counter(), 0, time.monotonic()
    first = min(learner.tally.epoch for learner in learners)
    for epoch in range(first, max(run.config.epochs for run in runs)):
        active = [x for x in learners if x.tally.epoch == epoch < x.run.config.epochs]
        began, seen = time.perf_counter(), 0
        for learner in active:
            learner.begin()
        start = min(learner.tally.step for learner in active)
        for step, batch in enumerate(stream.epoch(epoch, start), start):
            for learner in active:
                if learner.tally.step == step:  # else it has come further, before it was interrupted
                    learner.step(batch)
                    if (step + 1) % CHECK_EVERY == 0:
                        learner.require_finite()
            seen += len(batch.views)
            if on_progress:
                rate = seen / (time.perf_counter() - began)
                on_progress(
                    {"epoch": epoch, "step": step + 1, "steps": learners[0].steps, "views_per_second": rate}
                )
            stop = should_stop()
            if stop or time.monotonic() - saved >= checkpoint_every:
                for learner in active:
                    learner.save()
                saved = time.monotonic()
            if stop:
                raise StoppedError(
                    f"stopped after step {step + 1} of epoch {epoch + 1}, as asked; --resume goes on from there"
                )
        seconds = time.perf_counter() - began
        views += seen
        for learner in active:
            learner.mix_heads()
        scores = evaluation.of([x.kept for x in active]) if evaluation else [{} for _ in active]
        for learner, score in zip(active, scores, strict=True):
            row = learner.end({"views_per_second": seen / seconds, "seconds": seconds, **score})
            if on_progress:
                on_progress({"run": str(learner.run.out), **row})
    seconds = time.perf_counter() - started
    return [_report(learner, seconds, views / seconds) for learner in learners]


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
