"""One student in training: its network, optimiser, average and run folder, from step to step."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from logitcache.errors import OptionError
from logitcache.forward import ViewModel, choose_precision
from logitcache.holdout import Validation
from logitcache.ledger import Ledger
from logitcache.losses import Objective
from logitcache.models import Model
from logitcache.nets import TwoHeads
from logitcache.optim import MovingAverage, optimizer_for, rate
from logitcache.protocols import TrainConfig
from logitcache.runs import RunFolder, Stateful
from logitcache.stream import Batch, Stream
from logitcache.views import key

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
    """A student with all that changes while it trains."""

    def __init__(self, run: Run, stream: Stream, *, resume: bool = False) -> None:
        run.config.check()
        self.run, self.steps = run, stream.steps(0)
        self.device = stream.device
        precision = choose_precision(run.config.precision, self.device)
        student = _with_heads(run.student, run.objective.heads, run.config.seed)
        if run.config.grad_checkpointing:
            _recompute_activations(student)
        self.model = ViewModel(student, precision, run.config.channels_last).on(self.device)
        self.optimizer = optimizer_for(self.model, run.config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self._parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "ledger": (ledger := Ledger(0, self.device)),
        }
        self.ledger = ledger
        self.kept, self.student = self.model, student
        self._average = MovingAverage(self.model, run.config.ema) if run.config.ema is not None else None
        if self._average:
            self._parts["average"] = self._average
            self.kept = self._average.module
            self.student = dataclasses.replace(student, module=self.kept.module)
        if run.config.compile:
            self.model.compile()
        self._validation = Validation(stream) if run.objective.mixes_heads else None
        self.folder = RunFolder(run.out)
        self.folder.begin(
            {
                "config": run.config.to_dict(),
                "objective": run.objective.spec(),
                "student": {"name": run.student.name, "weights": run.student.weights},
                "stream": stream.about(),
            },
            resume=resume,
        )
        if resume:
            self.folder.restore(self._parts, self.device)

    def step(self, batch: Batch) -> None:
        """Take one step on a batch.

        Raises:
            NonFiniteError: a loss or a weight became NaN or infinite, not long ago.
        """
        config, done = self.run.config, self.ledger.epoch * self.steps + self.ledger.step
        torch.manual_seed(key(config.seed, done) >> 1)  # dropout's numbers; views have keys of their own
        if self._validation:
            batch = self._validation.without(batch)
        if not self._validation or len(batch.views) > 1:  # else too few for batch norm
            for group in self.optimizer.param_groups:
                group["lr"] = rate(config, done, self.steps)
            self._update(batch, done / (config.epochs * self.steps))
        self.ledger.step += 1
        if self.ledger.step % CHECK_EVERY == 0:
            self.require_finite()

    def _update(self, batch: Batch, progress: float) -> None:
        config = self.run.config
        if not self.model.training:
            self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for piece in batch.pieces(config.accumulate):
            self._backward(piece, len(piece.views) / len(batch.views), progress)
        if config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._average:
            self._average.update_parameters(self.model)

    def _backward(self, piece: Batch, share: float, progress: float) -> None:
        """Add a piece's gradients and losses, weighted by its share of the batch."""
        logits = self.model(piece.views)
        loss, terms = self.run.objective(logits, piece.teacher, piece.target, progress=progress)
        self.scaler.scale(loss * share).backward()
        self.ledger.add({"loss": loss.detach(), **terms}, len(piece.views))

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
        self.require_finite()
        self.folder.save(self._parts)

    def end(self, measured: dict[str, float]) -> dict[str, Any]:
        """Keep the epoch in the run folder; returns its row of metrics.jsonl.

        Raises:
            NonFiniteError, StorageError: as `save` does.
        """
        self.require_finite()
        rate = self.optimizer.param_groups[0]["lr"]
        row = {"epoch": self.ledger.epoch, **self.ledger.means(), "lr": rate, **measured}
        self.ledger = self._parts["ledger"] = Ledger(self.ledger.epoch + 1, self.device)
        self.folder.keep(row, self._parts, self.student)
        return row

    def require_finite(self) -> None:
        """Insist on finite losses and weights; waits for the device.

        Raises:
            NonFiniteError: one became NaN or infinite.
        """
        self.ledger.require_finite(self.model.state_dict().values())


def _with_heads(student: Model, heads: int, seed: int) -> Model:
    if student.heads > heads:
        raise OptionError(f"{student.name} ({student.weights}) has two heads; train it with dho or dhkd")
    return student.with_two_heads(seed) if heads == 2 else student


def _recompute_activations(student: Model) -> None:
    network = student.module.body if isinstance(student.module, TwoHeads) else student.module
    switch = getattr(network, "set_grad_checkpointing", None)
    if not callable(switch):
        raise OptionError(
            f"{student.name} cannot compute activations again in the backward pass (timm's models can); "
            "leave out --grad-checkpointing"
        )
    switch(True)
