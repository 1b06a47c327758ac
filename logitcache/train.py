"""Stage two: train students on a stream, evaluate them each epoch, keep what is needed to go on.

Several students share one pass over the data: each batch is decoded, viewed and looked up once. The order of the
data is a function of (order key, epoch) and a student's random numbers of (run seed, epoch, step), so a student
comes out the same whoever trains beside it, and a resumed run is the uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitcache.datasets import Images
from logitcache.errors import NonFiniteError, OptionError
from logitcache.evaluation import Evaluation
from logitcache.forward import ViewModel, choose_precision
from logitcache.loader import KeyedViews, deaths_named, loaded, view_loader
from logitcache.losses import Objective, choose_mixing
from logitcache.models import Model
from logitcache.nets import EVEN, TwoHeads
from logitcache.runs import RunFolder, Stateful
from logitcache.schema import Spec
from logitcache.stream import Batch, Stream
from logitcache.views import key, permutation, recipe_named


@dataclass(frozen=True)
class TrainConfig(Spec):
    """How a student is trained.

    Attributes:
        epochs: passes over the data.
        optimizer: "sgd" (momentum 0.9, Nesterov) or "adamw".
        lr: peak learning rate; it falls to 0 along a cosine.
        weight_decay: on weights of two or more dimensions; biases and norms have none.
        warmup_epochs: epochs of linear warm-up; may be a fraction.
        precision: "auto" (bfloat16 on CUDA), "float32", "bfloat16" or "float16".
        seed: of dropout and whatever else draws while training.
    """

    epochs: int = 20
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    precision: str = "auto"
    seed: int = 0

    def check(self) -> None:
        """Insist on values that can be trained with.

        Raises:
            OptionError: one cannot.
        """
        problems = {
            f"epochs must be at least 1, found {self.epochs}": self.epochs < 1,
            f"lr must be above 0, found {self.lr}": not 0 < self.lr < math.inf,
            f"weight decay must be 0 or more, found {self.weight_decay}": not 0
            <= self.weight_decay
            < math.inf,
            f"warm-up must be 0 epochs or more, found {self.warmup_epochs}": not 0
            <= self.warmup_epochs
            < math.inf,
            f"optimizer must be sgd or adamw, found {self.optimizer!r}": self.optimizer
            not in ("sgd", "adamw"),
        }
        if found := next((text for text, wrong in problems.items() if wrong), None):
            raise OptionError(found)


@dataclass(frozen=True, eq=False)
class Run:
    """One student to train.

    Attributes:
        out: run folder.
        student: trained in place; grows a second head where the objective has two.
        objective: what it minimises. One that mixes two heads at evaluation (`dho`) chooses how on `held_out`
            images, which that run, and no other beside it, does not train on.
        config: its schedule.
    """

    out: Path
    student: Model
    objective: Objective
    config: TrainConfig = TrainConfig()


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
    on_progress: Progress | None = None,
) -> list[TrainReport]:
    """Train students side by side on one stream, each into its run folder.

    Args:
        runs: what to train.
        stream: batches of views, labels and the teacher's answers, on the device to train on.
        evaluation: the test set, evaluated after each epoch; None trains without.
        resume: go on from the folders' checkpoints.
        on_progress: called after every step with {"epoch", "step", "steps", "views_per_second"} and after
            every epoch with {"run", and what the run's metrics.jsonl gets}.

    Returns:
        A report per run.

    Raises:
        OptionError: options that cannot be trained with, or a folder holds a run and `resume` is off.
        MismatchError: a folder holds a run of another configuration.
        NonFiniteError: a loss became NaN or infinite; the checkpoint of the epoch before is kept.
        StorageError: the disk said no; the checkpoint before is kept.
    """
    if not runs or len({run.out for run in runs}) < len(runs):
        raise OptionError("train needs at least one run, each with a folder of its own")
    learners = [Learner(run, stream, resume=resume) for run in runs]
    started, views = time.perf_counter(), 0
    for epoch in range(min(learner.epoch for learner in learners), max(run.config.epochs for run in runs)):
        active = [x for x in learners if x.epoch == epoch < x.run.config.epochs]
        began, seen = time.perf_counter(), 0
        for learner in active:
            learner.begin()
        for step, batch in enumerate(stream.epoch(epoch)):
            for learner in active:
                learner.step(batch)
            seen += len(batch.views)
            if on_progress:
                rate = seen / (time.perf_counter() - began)
                on_progress(
                    {"epoch": epoch, "step": step + 1, "steps": learners[0].steps, "views_per_second": rate}
                )
        seconds = time.perf_counter() - began
        views += seen
        for learner in active:
            learner.mix_heads()
        scores = evaluation.of([x.model for x in active]) if evaluation else [{} for _ in active]
        for learner, score in zip(active, scores, strict=True):
            row = learner.end({"views_per_second": seen / seconds, "seconds": seconds, **score})
            if on_progress:
                on_progress({"run": str(learner.run.out), **row})
    seconds = time.perf_counter() - started
    return [learner.report(seconds, views / seconds) for learner in learners]


# One student ----------------------------------------------------------------------------------------------


class Learner:
    """A student with its optimiser, schedule and run folder, between one epoch and the next."""

    def __init__(self, run: Run, stream: Stream, *, resume: bool = False) -> None:
        run.config.check()
        self.run, self.steps = run, stream.steps(0)
        self.student = _with_heads(run.student, run.objective.heads, run.config.seed)
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
        self.device = stream.device
        precision = choose_precision(run.config.precision, self.device)
        self.model = ViewModel(self.student, precision).on(self.device)
        self._validation = Validation(stream) if run.objective.mixes_heads else None
        self.optimizer = _optimizer(self.model, run.config)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _cosine(run.config, self.steps))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self._parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        self.epoch = self.folder.restore(self._parts, self.device) if resume else 0

    def begin(self) -> None:
        """Begin an epoch."""
        self.model.train()
        self._step, self._views = 0, 0
        self._sums: dict[str, Tensor] = {}

    def step(self, batch: Batch) -> None:
        """Take one step on a batch."""
        done = self.epoch * self.steps + self._step
        torch.manual_seed(
            key(self.run.config.seed, done) >> 1
        )  # dropout's numbers; views have keys of their own
        if self._validation:
            batch = self._validation.without(batch)
            if len(batch.views) < 2:  # too few for batch norm
                self._step += 1
                return
        logits = self.model(batch.views)
        progress = done / (self.run.config.epochs * self.steps)
        loss, terms = self.run.objective(logits, batch.teacher, batch.target, progress=progress)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self._step += 1
        self._views += len(batch.views)
        for name, value in {"loss": loss.detach(), **terms}.items():  # summed on the device: no step waits
            self._sums[name] = self._sums.get(name, 0.0) + value.float() * len(batch.views)

    def mix_heads(self) -> None:
        """Choose how two heads answer together, where the objective asks for it, on the held-out images."""
        if self._validation:
            self._validation.choose(self.model)

    def end(self, measured: dict[str, float]) -> dict[str, Any]:
        """Keep the epoch in the run folder; returns its row of metrics.jsonl."""
        means = {name: float(total) / self._views for name, total in self._sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{self.run.out}: {name} became {value} in epoch {self.epoch}; the checkpoint of the epoch "
                    "before is kept; try a smaller --lr, or --precision float32"
                )
        row = {"epoch": self.epoch, **means, "lr": self.optimizer.param_groups[0]["lr"], **measured}
        self.folder.keep(row, self._parts, self.student)
        self.epoch += 1
        return row

    def report(self, seconds: float, views_per_second: float) -> TrainReport:
        """Sum the run up."""
        rows = self.folder.metrics()
        return TrainReport(
            out=str(self.run.out),
            student=self.run.student.name,
            parameters=sum(p.numel() for p in self.student.module.parameters()),
            epochs=len(rows),
            loss=rows[-1]["loss"],
            top1=rows[-1].get("top1"),
            top5=rows[-1].get("top5"),
            best_top1=max((row["top1"] for row in rows if "top1" in row), default=None),
            seconds=seconds,
            views_per_second=views_per_second,
        )


def _with_heads(student: Model, heads: int, seed: int) -> Model:
    if student.heads > heads:
        raise OptionError(f"{student.name} ({student.weights}) has two heads; train it with dho or dhkd")
    return student.with_two_heads(seed) if heads == 2 else student


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)


def _cosine(config: TrainConfig, steps: int) -> Callable[[int], float]:
    total, warmup = config.epochs * steps, config.warmup_epochs * steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))

    return factor


# Two heads ------------------------------------------------------------------------------------------------

HELD_OUT, AT_MOST = 10, 5000


def held_out(images: Images) -> npt.NDArray[np.int64]:
    """Labelled training images that choices are made on: a keyed tenth, at most 5,000; never any of the test set.

    Returns:
        (m,) int64 samples, in order; the same for every run on these images.
    """
    labelled = np.flatnonzero(images.labels >= 0)
    return np.sort(labelled[permutation(len(labelled), 0)[: min(len(labelled) // HELD_OUT, AT_MOST)]])


class Validation:
    """Images held out of a run's training, to choose how its two heads answer together."""

    def __init__(self, stream: Stream) -> None:
        images, recipe = stream.views.images, stream.views.maker.recipe
        self._samples = torch.from_numpy(held_out(images))
        pairs = [[(i, 0) for i in part.tolist()] for part in torch.split(self._samples, 256) if len(part)]
        views = KeyedViews(images, recipe_named(recipe.evaluation), "skip")
        self._loader = view_loader(views, pairs, workers=stream.config.workers, device=stream.device)

    def without(self, batch: Batch) -> Batch:
        """Return the batch without the images held out, and without views that these are mixed into."""
        rows = ~torch.isin(batch.samples, self._samples)
        if batch.partners is not None:
            rows &= ~torch.isin(batch.partners, self._samples)
        return batch[rows]

    @torch.inference_mode()
    def choose(self, model: ViewModel) -> None:
        """Set the mixing of a model's heads to the most accurate; even where no image has a label."""
        heads = model.module
        assert isinstance(heads, TwoHeads)
        model.eval()
        heads.training = True  # it gives both heads apart; what is below stays in evaluation mode
        device = heads.mixture.device
        logits, labels = [], []
        for batch in loaded(self._loader):
            logits.append(model(batch.views[batch.valid].to(device)).cpu())
            labels.append(batch.labels[batch.valid])
        heads.mixing = choose_mixing(torch.cat(logits), torch.cat(labels)) if logits else EVEN
        model.eval()
