"""Stage two: train students on a stream, evaluate them each epoch, save what is needed to resume.

Several students share one pass over the data: each batch is decoded, viewed and looked up once. The order of the
data is a function of (order key, epoch) and a student's random numbers of (run seed, epoch, step), so a student
comes out the same whoever trains beside it, and a resumed run is the uninterrupted one.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from logitcache.distributed import ALONE, World, name_lost_ranks
from logitcache.errors import (
    ClusterError,
    LogitCacheError,
    NonFiniteError,
    NotFoundError,
    OptionError,
    StoppedError,
    StorageError,
    StudentsError,
)
from logitcache.format.spec import Spec
from logitcache.models.weights import count_parameters
from logitcache.stream.batch import Batch
from logitcache.stream.stream import Stream
from logitcache.train.evaluation import Evaluation
from logitcache.train.events import (
    EpochDone,
    OnTrainEvent,
    StepDone,
    StudentFailed,
    StudentNoted,
    TrainEvent,
    TrainingBegun,
)
from logitcache.train.learner import Learner, Run
from logitcache.train.run_folder import RunFolder
from logitcache.train.score_meter import ScoreMeter
from logitcache.train.trained import advise_resume
from logitcache.views.bad_images import BadImage
from logitcache.views.loader import report_worker_deaths


@dataclass(frozen=True)
class RunReport(Spec):
    """The result of a run.

    Attributes:
        out: run folder.
        student: architecture.
        parameters: their number.
        epochs: that the run folder holds.
        loss: of the last epoch.
        top1, top5: of the last epoch, in [0, 1]; None without a test set.
        best_top1: the highest of any epoch.
        seconds: of the whole pass, evaluation included.
        views_per_second: over the training of all epochs.
        exported: files that the best weights were exported to.
        left_out: training images that do not decode.
    """

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
    exported: tuple[str, ...] = ()
    left_out: tuple[BadImage, ...] = ()


@report_worker_deaths()
def train(
    runs: Sequence[Run],
    stream: Stream,
    evaluation: Evaluation | None = None,
    *,
    resume: bool = False,
    checkpoint_every: float = 300.0,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: OnTrainEvent | None = None,
) -> list[RunReport]:
    """Train students side by side on one stream, each into its run folder.

    Args:
        runs: what to train.
        stream: batches of views, labels and the teacher's answers, on the device to train on.
        evaluation: the test set, evaluated after each epoch; None trains without. Ranks that all have one share
            the work; where some have none, rank 0 does it alone.
        resume: go on from the folders' checkpoints, with the step after; it ends as an uninterrupted run would.
        checkpoint_every: seconds between checkpoints within an epoch; each epoch ends with one.
        should_stop: asked after every step, and of one rank alone while it waits for a batch; when it says so,
            checkpoints are written and training stops.
        on_progress: called with a `StepDone` after every step, an `EpochDone` after every epoch of every student,
            a `StudentFailed` when one of several ends early, and a `StudentNoted` first for what may not be expected.

    Returns:
        A report per run. Of several ranks (`StreamConfig.world`) only rank 0 writes, calls `on_progress` and
        reports; the others return nothing, also when something ends all of them, which rank 0 raises.

    Raises:
        OptionError: options that cannot be trained with, or a folder holds a run and `resume` is off.
        MismatchError: a folder holds a run of another configuration.
        NonFiniteError: a loss became NaN or infinite; the checkpoint before it stays.
        StorageError: the disk said no; the checkpoint before it stays.
        DataError: an image does not decode. Where it is a test image, the epoch is kept, and evaluated on resuming.
        StoppedError: `should_stop` said so.
        ClusterError: another rank has ended, or could not begin.
        StudentsError: of several students some failed; the others came to their end.
    """
    _require_own_folders([run.out for run in runs])
    if not checkpoint_every >= 0:
        raise OptionError(f"checkpoint_every must be 0 seconds or more, found {checkpoint_every}")
    world = stream.config.world
    world.require_process_group()
    with name_lost_ranks(), ExitStack() as held:
        shared = all(world.all_gather(evaluation is not None))
        cohort = _Cohort(_open_learners(runs, stream, world, resume, held), world, on_progress)
        cohort.emit_notes()
        checkpoints = _Checkpoints(cohort, checkpoint_every, should_stop)
        started = time.perf_counter()
        cohort.emit(TrainingBegun(cohort.epochs.start, cohort.epochs.stop))
        for epoch in cohort.epochs:
            try:
                active = _train_epoch(epoch, stream, cohort, checkpoints)
                if checkpoints.stopped:
                    break
                _end_epoch(active, cohort, evaluation, shared, checkpoints.stop_waiting)
            except StoppedError:  # while it waited for a batch
                checkpoints.stop(epoch)
                break
        seconds = time.perf_counter() - started
    if world.rank:
        return []
    if checkpoints.stopped:
        at = checkpoints.stopped
        raise StoppedError(f"stopped after step {at.step} of epoch {at.epoch + 1}, as asked")
    reports = [_report(learner, seconds) for learner in cohort.learners if learner not in cohort.failed]
    cohort.require_success(reports)
    return reports


def _train_epoch(epoch: int, stream: Stream, cohort: "_Cohort", checkpoints: "_Checkpoints") -> list[Learner]:
    """Take the steps of an epoch, or the rest of it; returns the students that took all of them."""
    active = cohort.each(cohort.at(epoch), Learner.begin_epoch)
    start = min((learner.meter.step for learner in active), default=0)
    began, seen = time.perf_counter(), 0
    batches = stream.epoch(epoch, start, checkpoints.stop_waiting) if active else ()
    for step, batch in enumerate(batches, start):
        active = cohort.each(active, partial(_take_step, step, batch))
        if not active:
            break
        seen += len(batch.views) * cohort.world.size
        rate = seen / (time.perf_counter() - began)
        first = active[0]
        done = StepDone(epoch, cohort.epochs.stop, step + 1, first.steps, rate, first.recent)
        cohort.emit(done)
        active = checkpoints.save_if_due(active, done)
        if checkpoints.stopped:
            break
    return active


def _take_step(step: int, batch: Batch, learner: Learner) -> None:
    if learner.meter.step == step:  # one whose checkpoint is of a later step waits
        learner.step(batch)


def _end_epoch(
    active: list[Learner],
    cohort: "_Cohort",
    evaluation: Evaluation | None,
    shared: bool,
    should_stop: Callable[[], bool],
) -> None:
    """Evaluate the students and save their epoch; `shared` by all ranks, or on rank 0 alone."""
    active = cohort.each(active, Learner.mix_heads)
    meters = _evaluate(active, cohort, evaluation, shared, should_stop)
    for learner, meter in zip(active, meters, strict=True):
        cohort.end_epoch(learner, meter)


def _evaluate(
    active: list[Learner],
    cohort: "_Cohort",
    evaluation: Evaluation | None,
    shared: bool,
    should_stop: Callable[[], bool],
) -> Sequence[ScoreMeter | None]:
    """Evaluate the students; where that fails on a rank, all of them save what is trained, and raise."""
    meters: Sequence[ScoreMeter | None] = [None for _ in active]
    failed: Exception | None = None
    if evaluation and active and (shared or cohort.world.rank == 0):
        models = [learner.eval_model for learner in active]
        try:
            meters = evaluation.run(models, cohort.world if shared else ALONE, should_stop)
        except ClusterError:
            raise
        except Exception as error:  # whatever it is, the epoch is trained
            failed = error
    if any(cohort.world.all_gather(failed is not None)):
        cohort.each(active, Learner.save_checkpoint)
        raise failed or LogitCacheError("another rank could not evaluate")
    return meters


class _Cohort:
    """Students side by side: one that raises a `LogitCacheError` leaves, and the others go on.

    Attributes:
        epochs: those that any of them has before it.
        failed: who left, and why.
    """

    def __init__(self, learners: list[Learner], world: World, on_progress: OnTrainEvent | None) -> None:
        self.learners, self.world = learners, world
        first = min((learner.meter.epoch for learner in learners), default=0)
        self.epochs = range(first, max((learner.run.config.epochs for learner in learners), default=0))
        self.failed: dict[Learner, LogitCacheError] = {}
        self._on_progress = on_progress if world.rank == 0 else None

    def emit(self, event: TrainEvent) -> None:
        """Pass an event on; on rank 0 alone."""
        if self._on_progress:
            self._on_progress(event)

    def emit_notes(self) -> None:
        """Report what may not be expected of students."""
        for learner in self.learners:
            if learner.note:
                self.emit(StudentNoted(learner.run.out, learner.note))

    def at(self, epoch: int) -> list[Learner]:
        """List those whose next epoch this is."""
        going = [x for x in self.learners if x not in self.failed]
        return [x for x in going if x.meter.epoch == epoch < x.run.config.epochs]

    def each(self, learners: list[Learner], do: Callable[[Learner], None]) -> list[Learner]:
        """Call a function with each of some learners; returns those for which it did not raise."""
        for learner in learners:
            try:
                do(learner)
            except LogitCacheError as error:
                if self.world.size > 1 and not isinstance(error, NonFiniteError | StorageError):
                    raise  # it failed on this rank alone, and the others would wait for it
                self.failed[learner] = error.with_prefix(str(learner.run.out))
                if len(self.learners) > 1:
                    self.emit(StudentFailed(learner.run.out, error))
        return [learner for learner in learners if learner not in self.failed]

    def end_epoch(self, learner: Learner, meter: ScoreMeter | None) -> None:
        """Save a student's epoch with its scores, and report it."""
        rows: list[dict[str, Any]] = []

        def end(learner: Learner) -> None:
            scores, reliability = (meter.scores(), meter.reliability()) if meter else ({}, None)
            if meter and meter.left_out:
                scores["left_out"] = meter.left_out
            rows.append(learner.end_epoch(scores, reliability))

        self.each([learner], end)
        for row in rows:  # outside `each`: what the handler raises on rank 0 ends all ranks
            self.emit(EpochDone(learner.run.out, learner.run.config.epochs, row))

    def require_success(self, reports: list[RunReport]) -> None:
        """Insist that none has failed.

        Raises:
            LogitCacheError: the only one has.
            StudentsError: some of several have.
        """
        if len(self.learners) == 1 and self.failed:
            raise next(iter(self.failed.values()))
        if self.failed:
            raise StudentsError({str(x.run.out): error for x, error in self.failed.items()}, reports)


class _Checkpoints:
    """Saves between epochs' ends: every so many seconds by rank 0's clock, and when any rank is asked to stop.

    Attributes:
        stopped: the step after which training stopped, if it did.
    """

    def __init__(self, cohort: _Cohort, every: float, should_stop: Callable[[], bool]) -> None:
        self.cohort, self.every, self.should_stop = cohort, every, should_stop
        self.saved = time.monotonic()
        self.stopped: StepDone | None = None

    def stop_waiting(self) -> bool:
        """Is it time to stop waiting for a batch? Not in ranks, of which others would wait for this one."""
        return self.cohort.world.size == 1 and self.should_stop()

    def stop(self, epoch: int) -> None:
        """Save all that take part in an epoch, after the step that they took last."""
        if active := self.cohort.each(self.cohort.at(epoch), Learner.save_checkpoint):
            first = active[0]
            step = first.meter.step
            self.stopped = StepDone(epoch, self.cohort.epochs.stop, step, first.steps, 0.0, first.recent)

    def save_if_due(self, active: list[Learner], done: StepDone) -> list[Learner]:
        """Save what has taken a step, where it is time to; returns the students that could be saved."""
        world = self.cohort.world
        late = world.rank == 0 and time.monotonic() - self.saved >= self.every
        stop, due = world.all_reduce_any(self.should_stop(), late)
        if stop or due:
            active = self.cohort.each(active, Learner.save_checkpoint)
            self.saved = time.monotonic()
        if stop and active:
            self.stopped = done
        return active


def _require_own_folders(folders: Sequence[Path]) -> None:
    if not folders:
        raise OptionError("train needs at least one run")
    if doubled := [folder for number, folder in enumerate(folders) if folder in folders[:number]]:
        raise OptionError(f"two runs would share the folder {doubled[0]}; name each student and variant once")


def _require_folders(folders: Sequence[RunFolder], resume: bool) -> None:
    """Insist that no folder holds a run or, to resume, that at least one does; the others begin then."""
    if not resume:
        for folder in folders:
            folder.require_no_run()
    elif not any(folder.has_run() for folder in folders):
        raise NotFoundError(
            f"no run to resume in {folders[0].path}: config.json is not there{advise_resume(folders[0].path)}"
        )


def _open_learners(
    runs: Sequence[Run], stream: Stream, world: World, resume: bool, held: ExitStack
) -> list[Learner]:
    """Set up all students on all ranks, or none: where rank 0 cannot, it raises, and the others have no learners.

    Rank 0 holds their folders until `held` is closed.

    Raises:
        LogitCacheError: this rank cannot.
        ClusterError: another one cannot, and rank 0 could.
    """
    failed: LogitCacheError | None = None
    try:
        learners = [Learner(run, stream) for run in runs]
        if world.rank == 0:  # all of them, before anything is written into one
            _require_folders([learner.folder for learner in learners], resume)
            for learner in learners:
                held.enter_context(learner.folder.hold())
        for learner in learners:
            learner.open(resume=resume)
    except LogitCacheError as error:
        failed = error
    reasons = world.all_gather(failed and str(failed))
    if reasons[0] is not None and world.rank:
        return []
    if failed:
        raise failed
    if other := next((rank for rank, reason in enumerate(reasons) if reason is not None), None):
        raise ClusterError(f"rank {other} could not begin to train: {reasons[other]}")
    for learner in learners:
        learner.join_ranks()
    return learners


def _report(learner: Learner, seconds: float) -> RunReport:
    rows = learner.folder.read_metrics()
    trained = sum(row["seconds"] for row in rows)
    return RunReport(
        out=str(learner.run.out),
        student=learner.run.student.name,
        parameters=count_parameters(learner.eval_model),
        epochs=len(rows),
        loss=rows[-1]["loss"],
        top1=rows[-1].get("top1"),
        top5=rows[-1].get("top5"),
        best_top1=max((row["top1"] for row in rows if "top1" in row), default=None),
        seconds=seconds,
        views_per_second=sum(row["views_per_second"] * row["seconds"] for row in rows) / trained,
        left_out=learner.stream.bad_images,
    )
