"""Stage two: train students on a stream, evaluate them each epoch, keep what is needed to go on.

Several students share one pass over the data: each batch is decoded, viewed and looked up once. The order of the
data is a function of (order key, epoch) and a student's random numbers of (run seed, epoch, step), so a student
comes out the same whoever trains beside it, and a resumed run is the uninterrupted one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from logitcache.distributed import World, name_lost_ranks
from logitcache.errors import (
    LogitCacheError,
    NonFiniteError,
    NotFoundError,
    OptionError,
    StoppedError,
    StorageError,
    StudentsError,
)
from logitcache.format.spec import Spec
from logitcache.stream.stream import Batch, Stream
from logitcache.train.evaluation import Evaluation, Tally
from logitcache.train.learner import Learner, Run
from logitcache.train.run_folder import RunFolder
from logitcache.views.loader import deaths_named


@dataclass(frozen=True)
class TrainReport(Spec):
    """What a run came to; accuracies in [0, 1], None without a test set. Seconds are of the whole pass.

    `exported` are the files that the best weights were written to besides.
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
        evaluation: the test set, evaluated after each epoch; None trains without. Ranks that all have one share
            the work; where some have none, rank 0 does it alone.
        resume: go on from the folders' checkpoints, with the step after; what comes of it is what would have come.
        checkpoint_every: seconds between checkpoints within an epoch; each epoch ends with one.
        should_stop: asked after every step; when it says so, checkpoints are written and training stops.
        on_progress: called after every step with {"epoch", "epochs", "step", "steps", "views_per_second", "losses"}
            (epochs of the pass; losses of the first student, of this epoch or the one before, when last looked at),
            after every epoch with {"run", "epochs" of that run, and what its metrics.jsonl gets}, and when a
            student ends early with {"run", "error"}.

    Returns:
        A report per run. Of several ranks (`StreamConfig.world`) only rank 0 writes, tells and
        reports; the others return nothing, also when something ends all of them, which rank 0 raises.

    Raises:
        OptionError: options that cannot be trained with, or a folder holds a run and `resume` is off.
        MismatchError: a folder holds a run of another configuration.
        NonFiniteError: a loss became NaN or infinite; the checkpoint before is kept.
        StorageError: the disk said no; the checkpoint before is kept.
        StoppedError: `should_stop` said so.
        ClusterError: another rank has ended.
        StudentsError: of several students some ended by an error of ours; the others came to their end.
    """
    _require_own_folders([run.out for run in runs])
    if not checkpoint_every >= 0:
        raise OptionError(f"checkpoint_every must be 0 seconds or more, found {checkpoint_every}")
    world = stream.config.world
    world.require_process_group()
    tell = on_progress if on_progress and world.rank == 0 else _silent
    with name_lost_ranks():
        shared = all(world.all_gather(evaluation is not None))
        group = Group(_learners(runs, stream, world, resume), tell, world)
        started, views, saved = time.perf_counter(), 0, time.monotonic()
        epochs = group.epochs()
        for epoch in epochs:
            active = group.each(group.at(epoch), Learner.begin_epoch)
            began, seen = time.perf_counter(), 0
            start = min((learner.ledger.step for learner in active), default=0)
            for step, batch in enumerate(stream.epoch(epoch, start) if active else (), start):
                active = group.each(active, partial(_take, step, batch))
                if not active:
                    break
                seen += len(batch.views) * world.size
                rate = seen / (time.perf_counter() - began)
                first = active[0]
                done = {"epoch": epoch, "epochs": epochs.stop, "step": step + 1, "steps": first.steps}
                tell({**done, "views_per_second": rate, "losses": first.recent})
                late = world.rank == 0 and time.monotonic() - saved >= checkpoint_every
                stop, due = world.all_reduce_any(should_stop(), late)
                if stop or due:
                    active = group.each(active, Learner.save)
                    saved = time.monotonic()
                if stop and active:
                    return _stopped(world, [run.out for run in runs], epoch, step)
            views += seen
            active = group.each(active, Learner.mix_heads)
            tallies: list[Tally | None] = [None for _ in active]
            if evaluation and active and (shared or world.rank == 0):
                tallies = [*evaluation.of([x.kept for x in active], world if shared else World())]
            for learner, tally in zip(active, tallies, strict=True):
                group.end(learner, tally)
        seconds = time.perf_counter() - started
    if world.rank:
        return []
    reports = [_report(x, seconds, views / seconds) for x in group.learners if x not in group.failed]
    group.require_success(reports)
    return reports


def _silent(event: dict[str, Any]) -> None:
    pass


def _require_own_folders(folders: Sequence[Path]) -> None:
    if not folders:
        raise OptionError("train needs at least one run")
    if doubled := [folder for number, folder in enumerate(folders) if folder in folders[:number]]:
        raise OptionError(f"two runs would share the folder {doubled[0]}; name each student and variant once")


def _require_free_or_begun(folders: Sequence[RunFolder], resume: bool) -> None:
    """Insist that no folder holds a run or, to go on with, that some do; the others are begun then."""
    if not resume:
        for folder in folders:
            folder.require_free()
    elif not any(folder.holds(folder.path) for folder in folders):
        raise NotFoundError(
            f"no run to resume in {folders[0].path}: config.json is not there; leave out --resume"
        )


def _learners(runs: Sequence[Run], stream: Stream, world: World, resume: bool) -> list[Learner]:
    """Make ready on all ranks; where one cannot, it alone says why, and there are none."""
    failed: LogitCacheError | None = None
    try:
        learners = [Learner(run, stream) for run in runs]
        if world.rank == 0:  # all of them, before anything is written into one
            _require_free_or_begun([learner.folder for learner in learners], resume)
        for learner in learners:
            learner.open(resume=resume)
    except LogitCacheError as error:
        failed = error
    ready = world.all_gather(failed is None)
    if not all(ready):
        if failed and ready.index(False) == world.rank:
            raise failed
        return []
    for learner in learners:
        learner.join_ranks()
    return learners


def _stopped(world: World, folders: Sequence[Path], epoch: int, step: int) -> list[TrainReport]:
    if world.rank:
        return []
    shared = {folder.parent for folder in folders} if len(folders) > 1 else set(folders)
    out = f"--out {shared.pop()} and " if len(shared) == 1 else ""
    raise StoppedError(
        f"stopped after step {step + 1} of epoch {epoch + 1}, as asked; "
        f"the same command with {out}--resume goes on from there"
    )


class Group:
    """Learners side by side: who fails by an error of ours leaves, and the others go on."""

    def __init__(self, learners: list[Learner], tell: Progress, world: World) -> None:
        self.learners, self.tell, self.world = learners, tell, world
        self.failed: dict[Learner, LogitCacheError] = {}

    def epochs(self) -> range:
        """The epochs that any of them has before it."""
        first = min((learner.ledger.epoch for learner in self.learners), default=0)
        return range(first, max((learner.run.config.epochs for learner in self.learners), default=0))

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
                if self.world.size > 1 and not isinstance(error, NonFiniteError | StorageError):
                    raise  # this rank's alone, while the others go on: the end of all
                self.failed[learner] = error.said_by(str(learner.run.out))
                if len(self.learners) > 1:
                    self.tell({"run": str(learner.run.out), "error": str(error)})
        return [learner for learner in learners if learner not in self.failed]

    def end(self, learner: Learner, tally: Tally | None) -> None:
        """Let one end its epoch, and tell of it."""
        rows: list[dict[str, Any]] = []
        self.each([learner], lambda one: rows.append(_ended(one, tally)))
        for row in rows:  # whom it is told may fail on rank 0 alone, which ends all
            self.tell({"run": str(learner.run.out), "epochs": learner.run.config.epochs, **row})

    def require_success(self, reports: list[TrainReport]) -> None:
        """Insist that none has failed.

        Raises:
            LogitCacheError: the only one has.
            StudentsError: some of several have.
        """
        if len(self.learners) == 1 and self.failed:
            raise next(iter(self.failed.values()))
        if self.failed:
            raise StudentsError({str(x.run.out): error for x, error in self.failed.items()}, reports)


def _take(step: int, batch: Batch, learner: Learner) -> None:
    if learner.ledger.step == step:  # else it has come further, before all were interrupted
        learner.step(batch)


def _ended(learner: Learner, tally: Tally | None) -> dict[str, Any]:
    return learner.end(tally.scores(), tally.reliability()) if tally else learner.end({}, None)


def _report(learner: Learner, seconds: float, views_per_second: float) -> TrainReport:
    rows, student = learner.folder.metrics(), learner.student
    trained = sum(row["seconds"] for row in rows)
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
        views_per_second=sum(row["views_per_second"] * row["seconds"] for row in rows) / trained,
    )
