"""One student in training: its network, optimiser, moving average and run folder, from step to step."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from logitcache.distributed import World
from logitcache.errors import DeviceMemoryError, LogitCacheError, OptionError, StorageError, join_alternatives
from logitcache.losses.objective import Objective
from logitcache.models.build import Model
from logitcache.models.forward import ViewModel, choose_precision
from logitcache.models.nets import TwoHeads
from logitcache.stream.batch import Batch
from logitcache.stream.stream import Stream
from logitcache.train.confidence import Reliability
from logitcache.train.config import TrainConfig
from logitcache.train.epoch_meter import EpochMeter
from logitcache.train.optim import MovingAverage, build_optimizer, learning_rate
from logitcache.train.rehearsal import Rehearsal, rehearse
from logitcache.train.run_folder import RunFolder, Stateful
from logitcache.train.validation import Validation
from logitcache.views.keys import key

CHECK_EVERY = 50  # steps; reading the losses waits for the device


@dataclass(frozen=True, eq=False)
class Run:
    """One student to train.

    Attributes:
        out: run folder.
        student: trained in place; grows a second head where the objective has two.
        objective: what it minimises. One that mixes two heads at evaluation (`dho`) chooses how on images held
            out (`validation.choose_held_out`), which that run, and no other beside it, does not train on.
        config: its settings.
        protocol: name of the protocol that these are after, to keep in a run folder that is begun.
        command: the words to keep there, with the current folder, in which they were said; none: this program's own.
    """

    out: Path
    student: Model
    objective: Objective
    config: TrainConfig = field(default_factory=TrainConfig)
    protocol: str | None = None
    command: Sequence[str] = ()


class Learner:
    """One student in training, with all that changes while it trains.

    `model` and `eval_model` are one network, or two where a moving average is kept.

    Attributes:
        model: the network that takes steps: (B, C, h, w) uint8 views -> logits.
        eval_model: what is evaluated and saved: the moving average of `model` where `TrainConfig.ema` asks for one,
            else `model` itself.
        meter: steps and losses of the epoch at hand.
        steps: of the epoch at hand.
        recent: mean of each loss, when it was last read from the device.
        folder: where it is saved.
    """

    def __init__(self, run: Run, stream: Stream) -> None:
        run.config.check()
        run = dataclasses.replace(run, student=_describe_student(run.student, stream))
        self.run, self.stream, self.device = run, stream, stream.device
        self.steps = stream.steps(0)
        self.world = stream.config.world
        self._precision = choose_precision(run.config.precision, self.device)
        prepared, self._rehearsal = _prepare(run, self.device)
        self.model = ViewModel(prepared, self._precision, run.config.channels_last).on(self.device)
        self.optimizer = build_optimizer(self.model, run.config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self._precision == "float16")
        self._average = MovingAverage(self.model, run.config.ema) if run.config.ema is not None else None
        self.eval_model = self._average.module if self._average else self.model
        if run.config.compile:
            self.model.compile()
        self._ddp: DistributedDataParallel | None = None
        self._validation = _open_validation(run, stream, self.world)
        self.meter = EpochMeter(0, self.device)
        self.recent: dict[str, float] = {}
        self.folder = RunFolder(run.out)
        self._since = time.perf_counter()

    def _parts(self) -> dict[str, Stateful]:
        """All that a checkpoint holds, by its names there."""
        parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "ledger": self.meter,
        }
        return {**parts, "average": self._average} if self._average else parts

    def open(self, *, resume: bool) -> None:
        """Begin the run folder, or go on with it.

        Raises:
            OptionError: it holds a run, and `resume` is off.
            MismatchError: it holds a run of another configuration.
            FormatError, NotFoundError: what there is to go on from is damaged, or gone.
            StorageError: the disk said no.
        """
        if self.world.rank == 0:
            beside = {
                "class_names": self.run.student.class_names,
                "protocol": self.run.protocol,
                "command": list(self.run.command or sys.argv),
                "folder": os.getcwd(),
                "left_out": [image.to_dict() for image in self.stream.bad_images],
            }
            self.folder.begin(self._config(), beside, resume=resume)
        if resume:
            self.folder.load_checkpoint(self._parts())
            if self.world.rank == 0:
                self.folder.rewind(self.meter.epoch)
            else:
                self.meter.drop_sums()

    def _config(self) -> dict[str, Any]:
        """Return what config.json holds of the run."""
        student = self.run.student
        return {
            "config": {**self.run.config.to_dict(), "precision": self._precision},
            "objective": self.run.objective.spec(),
            "student": {
                "name": student.name,
                "weights": student.weights,
                "input_size": student.adapter.size,
            },
            "stream": self.stream.about(),
        }

    def join_ranks(self) -> None:
        """Average gradients with the same student of other ranks, if there are any; all must call it at once."""
        if self.world.size > 1:
            unused = any(self.world.all_gather(bool(self._rehearsal.unused)))
            self._ddp = DistributedDataParallel(self.model, find_unused_parameters=unused)

    @property
    def note(self) -> str:
        """What a user may not expect of the student, or ""."""
        return self._rehearsal.note

    def begin_epoch(self) -> None:
        """Begin the next epoch, or the rest of it; its time counts from here."""
        self.steps, self._since = self.stream.steps(self.meter.epoch), time.perf_counter()

    def step(self, batch: Batch) -> None:
        """Take one step on a batch.

        Raises:
            NonFiniteError: a loss or a weight became NaN or infinite, within the last `CHECK_EVERY` steps.
            DeviceMemoryError: the batch does not fit the device's memory.
            OptionError: it is too small for batch norm.
        """
        config, epoch, step = self.run.config, self.meter.epoch, self.meter.step
        done = epoch * self.steps + step  # as if all epochs were as long as this one
        rank = () if self.world.rank == 0 else (self.world.rank,)
        # Dropout's numbers; views have their own.
        _seed_generators(key(config.seed, epoch, step, *rank) >> 1, self.device)
        if self._validation:
            batch = self._validation.drop_held_out(batch)
        if not self._validation or len(batch.views) > 1:  # else too few for batch norm
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(config, done, self.steps)
            self._update(batch, done / (config.epochs * self.steps))
        self.meter.step += 1
        now = time.perf_counter()
        self.meter.seconds += now - self._since
        self._since = now
        if self.meter.step % CHECK_EVERY == 0:
            self._require_finite()

    def _update(self, batch: Batch, progress: float) -> None:
        """Update the weights by a batch; raises what torch refuses as an error that says what to do."""
        try:
            self._update_weights(batch, progress)
        except torch.OutOfMemoryError as error:
            self.optimizer.zero_grad(set_to_none=True)  # room for the students beside this one
            raise DeviceMemoryError(
                f"a batch of {len(batch.views)} views does not fit the memory of {self.device}; run it in pieces "
                f"with --accumulate {2 * self.run.config.accumulate}"
                f"{', or try --precision bfloat16' if self._precision == 'float32' else ''}"
            ) from error
        except RuntimeError as error:
            if "Expected to have finished reduction" not in str(error):
                raise
            raise OptionError(
                f"{self.run.student.name} takes other layers in some steps than in others, which ranks cannot "
                "average; let each step take all of them, or train in one process"
            ) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise OptionError(
                "batch norm cannot train on a batch of one view; choose a larger --batch-size, or more samples"
            ) from error

    def _update_weights(self, batch: Batch, progress: float) -> None:
        config = self.run.config
        if not self.model.training:
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        *others, last = batch.pieces(config.accumulate)
        with self._ddp.no_sync() if self._ddp else nullcontext():
            for piece in others:
                self._backward(piece, len(piece.views) / len(batch.views), progress)
        self._backward(last, len(last.views) / len(batch.views), progress)
        if config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._average:
            self._average.update_parameters(self.model)

    def _backward(self, piece: Batch, share: float, progress: float) -> None:
        """Add a piece's gradients and losses, weighted by its share of the batch."""
        logits = (self._ddp or self.model)(piece.views)
        loss, terms = self.run.objective(logits, piece.teacher, piece.target, progress=progress)
        self.scaler.scale(loss * share).backward()
        self.meter.add({"loss": loss.detach(), **terms}, len(piece.views))

    def mix_heads(self) -> None:
        """Choose how two heads answer together, where the objective asks for it, on the held-out images."""
        if self._validation:
            self._validation.choose_mixing(self.eval_model)

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the step at hand.

        Raises:
            NonFiniteError: a loss or a weight became NaN or infinite; the checkpoint before stays.
            StorageError: the disk said no; likewise.
        """
        parts = {**self._parts(), "ledger": self._require_finite()}
        self._write(lambda: self.folder.save_checkpoint(parts))

    def end_epoch(self, scores: dict[str, float], reliability: Reliability | None) -> dict[str, Any]:
        """Save the epoch in the run folder; returns its row of metrics.jsonl.

        Args:
            scores: of the student on the test set, for the row.
            reliability: likewise; None where it was not evaluated.

        Raises:
            OptionError: no batch of the epoch could be trained on.
            NonFiniteError, StorageError: as for `save_checkpoint`.
        """
        epoch = self._require_finite()
        if not epoch.views:
            raise OptionError(
                f"no batch of epoch {epoch.epoch + 1} leaves two views to train on; choose a larger --batch-size"
            )
        lr = self.optimizer.param_groups[0]["lr"]
        pace = {"views_per_second": epoch.views / epoch.seconds, "seconds": epoch.seconds}
        row = {"epoch": epoch.epoch, **epoch.means(), "lr": lr, **pace, **scores}
        self.meter = EpochMeter(epoch.epoch + 1, self.device)
        student = dataclasses.replace(self.run.student, module=self.eval_model.module)
        self._write(lambda: self.folder.save_epoch(row, reliability, self._parts(), student))
        return row

    def _require_finite(self) -> EpochMeter:
        """Insist on finite losses and weights; waits for the device, and for all ranks.

        Returns:
            The meter of all ranks together.

        Raises:
            NonFiniteError: one became NaN or infinite.
        """
        weights = [w for w in self.model.state_dict().values() if w.is_floating_point()]
        finite = torch.stack([weight.isfinite().all() for weight in weights]).all()
        (spoilt,) = self.world.all_reduce_any(not finite)
        meter = self.meter.over_ranks(self.world)
        options = ["a smaller --lr"]
        options += ["--clip-norm 1"] if self.run.config.clip_norm is None else []
        half = ["--precision float32"] if self._precision != "float32" else []
        at_once = f"{'try --precision float32, or ' if half else ''}check them, and the cache by `logitcache verify`"
        meter.require_finite(not spoilt, f"try {join_alternatives(options + half)}", at_once)
        self.recent = meter.means()
        return meter

    def _write(self, write: Callable[[], None]) -> None:
        """Write on rank 0; an error there is raised on all ranks."""
        error: StorageError | None = None
        if self.world.rank == 0:
            try:
                write()
            except StorageError as raised:
                error = raised
        message = self.world.broadcast(str(error) if error else None)
        if error or message:
            raise error or StorageError(message)


def _seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators in use; `torch.manual_seed` keeps a stack trace for each kind of device that is not."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


def _open_validation(run: Run, stream: Stream, world: World) -> Validation | None:
    if not run.objective.mixes_heads:
        return None
    if world.size > 1:
        raise OptionError("an objective that mixes two heads (dho) holds images out; train it in one process")
    return Validation(stream)


def _describe_student(student: Model, stream: Stream) -> Model:
    """Have a student say what it learns from: the classes, where they have names, and both recipes."""
    named = (tuple(stream.views.images.class_names), student.class_names)
    names = next((names for names in named if len(names) == student.num_classes), ())
    try:
        evaluation = stream.evaluation
    except LogitCacheError:  # its file, or code, is not there: training goes on without evaluation too
        evaluation = None
    return dataclasses.replace(
        student, class_names=names, evaluation=evaluation, training=stream.views.maker.recipe
    )


def _prepare(run: Run, device: torch.device) -> tuple[Model, Rehearsal]:
    """Give the student the heads that the objective asks for, and what the settings switch on; and try it."""
    student, heads = run.student, run.objective.heads
    if student.heads > heads:
        raise OptionError(f"{student.name} ({student.weights}) has two heads; train it with dho or dhkd")
    if heads == 2:
        student = student.with_two_heads(run.config.seed)
    if run.config.grad_checkpointing:
        _enable_grad_checkpointing(student)
    student.module.to(device)
    rehearsal = rehearse(student)
    if run.config.sync_batch_norm:
        student = _convert_sync_batch_norm(student, device)
    return student, rehearsal


def _enable_grad_checkpointing(student: Model) -> None:
    network = student.module.body if isinstance(student.module, TwoHeads) else student.module
    switch = getattr(network, "set_grad_checkpointing", None)
    if not callable(switch):
        raise OptionError(
            f"{student.name} cannot compute activations again in the backward pass (timm's models can); "
            "leave out --grad-checkpointing"
        )
    switch(True)


def _convert_sync_batch_norm(student: Model, device: torch.device) -> Model:
    if device.type != "cuda":
        raise OptionError("--sync-batch-norm needs GPUs; leave it out, or train a network without batch norm")
    module: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(student.module)  # type: ignore[no-untyped-call]
    return dataclasses.replace(student, module=module)
