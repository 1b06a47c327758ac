"""One student in training: its network, optimiser, average and run folder, from step to step."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from logitcache.distributed import World
from logitcache.errors import DeviceMemoryError, OptionError, StorageError
from logitcache.losses import Objective
from logitcache.models.build import Model
from logitcache.models.forward import ViewModel, choose_precision
from logitcache.models.nets import TwoHeads
from logitcache.stream.stream import Batch, Stream
from logitcache.train.calibration import Reliability
from logitcache.train.config import TrainConfig
from logitcache.train.epoch_meter import Ledger
from logitcache.train.optim import MovingAverage, optimizer_for, rate
from logitcache.train.run_folder import RunFolder, Stateful
from logitcache.train.validation import Validation
from logitcache.views.keys import key

CHECK_EVERY = 50  # steps between looks at the losses, each of which waits for the device


@dataclass(frozen=True, eq=False)
class Run:
    """One student to train.

    Attributes:
        out: run folder.
        student: trained in place; grows a second head where the objective has two.
        objective: what it minimises. One that mixes two heads at evaluation (`dho`) chooses how on `held_out`
            images, which that run, and no other beside it, does not train on.
        config: its settings.
    """

    out: Path
    student: Model
    objective: Objective
    config: TrainConfig = field(default_factory=TrainConfig)


class Learner:
    """A student with all that changes while it trains.

    Attributes:
        student: what is kept: the trained network, or the average of it.
        kept: the same, taking views.
        ledger: how far it is.
        steps: of the epoch at hand.
        recent: mean losses, when they were last looked at.
    """

    def __init__(self, run: Run, stream: Stream) -> None:
        run.config.check()
        self.run, self.stream, self.device = run, stream, stream.device
        self.steps = stream.steps(0)
        self.world = stream.config.world
        precision = choose_precision(run.config.precision, self.device)
        self.student = _prepared(run, self.device)
        self.model = ViewModel(self.student, precision, run.config.channels_last).on(self.device)
        self.optimizer = optimizer_for(self.model, run.config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self.ledger = Ledger(0, self.device)
        self.recent: dict[str, float] = {}
        self._parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "ledger": self.ledger,
        }
        self.kept = self.model
        self._average = MovingAverage(self.model, run.config.ema) if run.config.ema is not None else None
        if self._average:
            self._parts["average"] = self._average
            self.kept = self._average.module
            self.student = dataclasses.replace(self.student, module=self.kept.module)
        if run.config.compile:
            self.model.compile()
        self._network: nn.Module = self.model
        self._validation = _validation(run, stream, self.world)
        self._precision, self._since = precision, time.perf_counter()
        self.folder = RunFolder(run.out)

    def open(self, *, resume: bool) -> None:
        """Begin the run folder, or go on with it.

        Raises:
            OptionError: it holds a run, and `resume` is off.
            MismatchError: it holds a run of another configuration.
            FormatError, NotFoundError: what there is to go on from is damaged, or gone.
            StorageError: the disk said no.
        """
        if self.world.rank == 0:
            self.folder.begin(self._record(), resume=resume)
        if resume:
            self.folder.load(self._parts)
            if self.world.rank == 0:
                self.folder.rewind(self.ledger.epoch)
            else:
                self.ledger.without_sums()

    def _record(self) -> dict[str, Any]:
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
        """Share gradients with the same student of other ranks, if there are any; they must join at once."""
        if self.world.size > 1:
            self._network = DistributedDataParallel(self.model)

    def begin_epoch(self) -> None:
        """Make ready for the epoch that comes next, or the rest of it; its time counts from here."""
        self.steps, self._since = self.stream.steps(self.ledger.epoch), time.perf_counter()

    def step(self, batch: Batch) -> None:
        """Take one step on a batch.

        Raises:
            NonFiniteError: a loss or a weight became NaN or infinite, not long ago.
            DeviceMemoryError: the batch does not fit the device's memory.
            OptionError: it is too small for batch norm.
        """
        config, epoch, step = self.run.config, self.ledger.epoch, self.ledger.step
        done = epoch * self.steps + step  # as if all epochs were as long as this one
        rank = () if self.world.rank == 0 else (self.world.rank,)
        # Dropout's numbers; views have their own.
        _draw_from(key(config.seed, epoch, step, *rank) >> 1, self.device)
        if self._validation:
            batch = self._validation.without(batch)
        if not self._validation or len(batch.views) > 1:  # else too few for batch norm
            for group in self.optimizer.param_groups:
                group["lr"] = rate(config, done, self.steps)
            try:
                self._update(batch, done / (config.epochs * self.steps))
            except torch.OutOfMemoryError as error:
                self.optimizer.zero_grad(set_to_none=True)  # room for who trains beside
                raise DeviceMemoryError(
                    f"a batch of {len(batch.views)} views does not fit the memory of {self.device}; "
                    f"run it in pieces with --accumulate {2 * config.accumulate}, or try --precision bfloat16"
                ) from error
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise OptionError(
                    "batch norm cannot train on a batch of one view; choose a larger --batch-size, or more samples"
                ) from error
        self.ledger.step += 1
        now = time.perf_counter()
        self.ledger.seconds += now - self._since
        self._since = now
        if self.ledger.step % CHECK_EVERY == 0:
            self.require_finite()

    def _update(self, batch: Batch, progress: float) -> None:
        config = self.run.config
        if not self.model.training:
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        *others, last = batch.pieces(config.accumulate)
        with self._gradients_kept_here():
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
        logits = self._network(piece.views)
        loss, terms = self.run.objective(logits, piece.teacher, piece.target, progress=progress)
        self.scaler.scale(loss * share).backward()
        self.ledger.add({"loss": loss.detach(), **terms}, len(piece.views))

    def _gradients_kept_here(self) -> AbstractContextManager[None]:
        network = self._network
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def mix_heads(self) -> None:
        """Choose how two heads answer together, where the objective asks for it, on the held-out images."""
        if self._validation:
            self._validation.choose(self.kept)

    def save(self) -> None:
        """Write a checkpoint of the step at hand.

        Raises:
            NonFiniteError: a loss or a weight became NaN or infinite; the checkpoint before is kept.
            StorageError: the disk said no; likewise.
        """
        parts = {**self._parts, "ledger": self.require_finite()}
        self._write(lambda: self.folder.save(parts))

    def end(self, scores: dict[str, float], reliability: Reliability | None) -> dict[str, Any]:
        """Keep the epoch in the run folder; returns its row of metrics.jsonl.

        Args:
            scores: of the student on the test set, for the row.
            reliability: likewise; None where it was not evaluated.

        Raises:
            OptionError: no batch of the epoch could be trained on.
            NonFiniteError, StorageError: as `save` does.
        """
        whole = self.require_finite()
        if not whole.views:
            raise OptionError(
                f"no batch of epoch {whole.epoch + 1} leaves two views to train on; choose a larger --batch-size"
            )
        rate = self.optimizer.param_groups[0]["lr"]
        pace = {"views_per_second": whole.views / whole.seconds, "seconds": whole.seconds}
        row = {"epoch": whole.epoch, **whole.means(), "lr": rate, **pace, **scores}
        self.ledger = self._parts["ledger"] = Ledger(whole.epoch + 1, self.device)
        self._write(lambda: self.folder.keep(row, reliability, self._parts, self.student))
        return row

    def require_finite(self) -> Ledger:
        """Insist on finite losses and weights; waits for the device, and for all ranks.

        Returns:
            The ledger of all ranks.

        Raises:
            NonFiniteError: one became NaN or infinite.
        """
        weights = [w for w in self.model.state_dict().values() if w.is_floating_point()]
        finite = torch.stack([weight.isfinite().all() for weight in weights]).all()
        (spoilt,) = self.world.all_reduce_any(not finite)
        whole = self.ledger.of_all(self.world)
        whole.require_finite(weights_finite=not spoilt)
        self.recent = whole.means()
        return whole

    def _write(self, write: Callable[[], None]) -> None:
        """Let rank 0 write; what fails there fails on all."""
        failed: StorageError | None = None
        if self.world.rank == 0:
            try:
                write()
            except StorageError as error:
                failed = error
        said = self.world.broadcast(str(failed) if failed else None)
        if failed or said:
            raise failed or StorageError(said)


def _draw_from(seed: int, device: torch.device) -> None:
    """Seed the generators in use; `torch.manual_seed` keeps a stack trace for each kind of device that is not."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


def _validation(run: Run, stream: Stream, world: World) -> Validation | None:
    if not run.objective.mixes_heads:
        return None
    if world.size > 1:
        raise OptionError("an objective that mixes two heads (dho) holds images out; train it in one process")
    return Validation(stream)


def _prepared(run: Run, device: torch.device) -> Model:
    """Return the student as objective and settings want it."""
    student, heads = run.student, run.objective.heads
    if student.heads > heads:
        raise OptionError(f"{student.name} ({student.weights}) has two heads; train it with dho or dhkd")
    if heads == 2:
        student = student.with_two_heads(run.config.seed)
    if run.config.grad_checkpointing:
        _recompute_activations(student)
    if run.config.sync_batch_norm:
        student = _with_common_batch_norm(student, device)
    return student


def _recompute_activations(student: Model) -> None:
    network = student.module.body if isinstance(student.module, TwoHeads) else student.module
    switch = getattr(network, "set_grad_checkpointing", None)
    if not callable(switch):
        raise OptionError(
            f"{student.name} cannot compute activations again in the backward pass (timm's models can); "
            "leave out --grad-checkpointing"
        )
    switch(True)


def _with_common_batch_norm(student: Model, device: torch.device) -> Model:
    if device.type != "cuda":
        raise OptionError("--sync-batch-norm needs GPUs; leave it out, or train a network without batch norm")
    module: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(student.module)  # type: ignore[no-untyped-call]
    return dataclasses.replace(student, module=module)
