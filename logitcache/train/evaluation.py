"""How good a model is on images that it was not trained on: how often right, how honestly sure, how near its teacher.

The teacher's answers for these images come from a cache of theirs, as `logitcache dump --split test` makes it; a
cache of training views says nothing about them.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from logitcache.distributed import World
from logitcache.errors import DataError, Difference, MismatchError, NonFiniteError
from logitcache.format.identity import RecipeSpec
from logitcache.format.spec import Spec
from logitcache.losses.kd import kl_rows
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader
from logitcache.stream.sampler import SwitchableSampler
from logitcache.stream.stream import Stream
from logitcache.teacher.cached import CachedTeacher
from logitcache.teacher.sparse import SparseTeacher
from logitcache.train.calibration import BINS, Reliability
from logitcache.views.alignment import in_cache_order
from logitcache.views.datasets import Images, WrappedImages, open_images
from logitcache.views.loader import KeyedViews, ViewBatch, loaded, view_loader
from logitcache.views.recipes import recipe_named
from logitcache.views.replay import prove_replay

SEED = 0  # the only one that a recipe without randomness has any use for
ALONE = World()


class Evaluation:
    """A test set, viewed without randomness.

    Args:
        images: with labels; with a teacher's answers they may lack.
        recipe: how to view them.
        teacher: a cache of the teacher's answers for these very views under seed 0.
        batch_size: images per forward.
        workers: see `loader.view_loader`.
        device: where the models are.

    Raises:
        DataError: no image has a label, and there is no teacher.
        MismatchError: the cache is of other images or another recipe.
        DriftError: its views cannot be made again here.
        IncompleteError: its seed 0 is not complete.
    """

    def __init__(
        self,
        images: Images,
        recipe: RecipeSpec,
        teacher: CacheReader | None = None,
        *,
        batch_size: int = 256,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images, self.recipe, self.batch_size = images, recipe, batch_size
        self.teacher = None
        if teacher is not None:
            self.images = images = _taught(teacher, images, recipe)
            self.teacher = CachedTeacher(teacher)
        elif not (images.labels >= 0).any():
            raise DataError(f"{images.name}: no image of its {images.split} split has a label to evaluate on")
        starts = range(0, len(images), batch_size)
        self._batches = [
            [(i, SEED) for i in range(len(images))[start : start + batch_size]] for start in starts
        ]
        self._switch = SwitchableSampler()
        self.views = KeyedViews(images, recipe)
        self._loader = view_loader(self.views, self._switch, workers=workers, device=device)

    @classmethod
    def beside(cls, stream: Stream, teacher: CacheReader | None = None) -> Self:
        """Evaluate on the test split of what a stream trains on, by the evaluation recipe of its recipe.

        Raises:
            NotFoundError, DataError: there is no test split, or the stream trains on it; and as the class does.
            MismatchError: it has classes that are not trained on.
        """
        name = stream.views.images.name
        if stream.views.images.split == "test":
            raise DataError(f"{name}: its test split is what is trained on, so none is left to evaluate on")
        recipe = recipe_named(stream.views.maker.recipe.evaluation)
        images, workers = open_images(name, "test"), stream.config.workers
        if (images.num_classes or 0) > stream.num_classes:
            raise _other_classes(images.num_classes, stream.num_classes, images)
        return cls(images, recipe, teacher, workers=workers, device=stream.device)

    def of(self, models: Sequence[ViewModel], world: World = ALONE) -> "list[Tally]":
        """Show every image to each of the models once; they are in evaluation mode afterwards.

        Args:
            models: on their device.
            world: the ranks that share the batches, all of which call this with the same models, and get the same
                tallies: one process's, since each batch is still seen whole, and once.

        Raises:
            MismatchError: a model tells other classes apart than there are.
            ClusterError: another rank has ended.
        """
        world.broadcast_buffers(models)
        return [tally.of_all(world) for tally in self._counted(models, world)]

    @torch.inference_mode()
    def _counted(self, models: Sequence[ViewModel], world: World) -> "list[Tally]":
        self._switch.current = self._batches[world.rank :: world.size]
        tallies = [Tally(model, self) for model in models]
        for batch in loaded(self._loader):
            for tally in tallies:
                tally.add(batch)
        return tallies


def _taught(cache: CacheReader, images: Images, recipe: RecipeSpec) -> Images:
    """Prove that a cache answers for these views; returns the images in its order."""
    if cache.spec.recipe != recipe:
        name = cache.spec.recipe.name
        raise MismatchError(
            f"{cache.path} does not hold the teacher's answers for the views evaluated",
            [Difference("recipe", recipe.name, "another of its name" if name == recipe.name else name)],
            "make one by the dump of the training cache with `--split test` added, and its own --out",
        )
    cache.require([SEED])
    ordered = in_cache_order(cache, images)
    if ordered.left_out:
        raise MismatchError(
            f"{cache.path} answers for some of the images only",
            [Difference("dataset.n", len(images), len(ordered))],
            "add the others with `logitcache dump --split test --grow`",
        )
    prove_replay(cache, KeyedViews(ordered, recipe), [SEED])
    return ordered


class Tally:
    """What one model answered, summed on its device, so that no batch waits for the one before."""

    def __init__(self, model: ViewModel, evaluation: Evaluation) -> None:
        self.model, self.evaluation = model.eval(), evaluation
        self.device = next(model.parameters()).device
        zeros = partial(torch.zeros, dtype=torch.float64, device=self.device)
        self._right = zeros(3)  # top-1, top-5, −log p
        self._sure = zeros(3 * BINS)  # images, how many of them right, Σ confidence; by bin
        self._near = zeros(2)  # same top class, KL
        self._edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=self.device)[1:-1]
        self._labelled, self._taught = 0, 0
        self.labels: list[Tensor] = []
        self.predicted: list[Tensor] = []

    def add(self, batch: ViewBatch) -> None:
        """Count a batch."""
        images, teacher = self.evaluation.images, self.evaluation.teacher
        views = batch.views.to(self.device, non_blocking=True)
        logits = self.model(views)
        found = logits.shape[1]
        if teacher and teacher.num_classes != found:
            raise _other_classes(teacher.num_classes, found, images)
        if (images.num_classes or 0) > found:
            raise _other_classes(images.num_classes, found, images)
        self.labels.append(batch.labels)
        self.predicted.append(logits.argmax(1))
        if (known := batch.labels >= 0).any():
            self._add_labelled(logits[known.to(self.device)], batch.labels[known].to(self.device))
        if teacher is not None:
            self._add_taught(logits, teacher.answer(views, batch.samples, batch.seeds))

    def _add_labelled(self, logits: Tensor, labels: Tensor) -> None:
        log_p = logits.double().log_softmax(1)
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        surprise = -log_p.gather(1, labels[:, None])[:, 0]
        self._right += torch.stack([right[:, 0], right.any(1), surprise]).double().sum(1)
        confidence = log_p.amax(1).exp()
        bins = torch.bucketize(confidence, self._edges)  # (0, 1/15], (1/15, 2/15], …
        told = torch.stack([torch.ones_like(confidence), right[:, 0].double(), confidence])
        self._sure.view(3, BINS).index_add_(1, bins, told)
        self._labelled += len(labels)

    def _add_taught(self, logits: Tensor, teacher: SparseTeacher) -> None:
        told = ~teacher.top.isnan()  # the others' images did not decode
        logits, teacher = logits[told], teacher[told]
        same = (logits.argmax(1) == teacher.ids[:, 0]).double()
        kl = kl_rows(logits.double(), teacher.to(self.device, torch.float64).at(1.0), "ghost")
        self._near += torch.stack([same.sum(), kl.sum()])
        self._taught += len(logits)

    def of_all(self, world: World) -> Self:
        """Add what all ranks have summed, and return this; counts are whole numbers, so their sums are exact."""
        sums = (self._right, self._sure, self._near)
        counts = torch.tensor([self._labelled, self._taught], dtype=torch.float64, device=self.device)
        summed = world.all_reduce_sum(torch.cat([*sums, counts]))
        self._right, self._sure, self._near, counts = torch.split(summed, [*map(len, sums), len(counts)])
        self._labelled, self._taught = map(int, counts.tolist())
        return self

    def scores(self) -> dict[str, float]:
        """Means over images, by name.

        Of labelled images: top1 and top5, in [0, 1]; nll, −log of the label's probability, in nats; ece, the
        expected calibration error in 15 bins of equal width, Σ_b |B_b|/n · |accuracy(B_b) − confidence(B_b)|.
        Against the teacher's cache: agreement, in [0, 1], of the top classes; kl, KL(teacher ‖ model) at T = 1 in
        nats over k + 1 outcomes, the teacher's k classes and all others together: at most the KL over all classes.

        Source: Guo et al. 2017 (arXiv 1706.04599), equation 3, for the calibration error.
        """
        scores: dict[str, float] = {}
        if self._labelled:
            scores |= zip(("top1", "top5", "nll"), (self._right / self._labelled).tolist(), strict=True)
            scores["ece"] = told.ece if (told := self.reliability()) else math.nan
        if self._taught:
            scores |= zip(("agreement", "kl"), (self._near / self._taught).tolist(), strict=True)
        return scores

    def reliability(self) -> Reliability | None:
        """Tell how sure the model was, and how often right then; None without labels, or with NaN for an answer."""
        images, right, confidence = self._sure.view(3, BINS).tolist()
        if not self._labelled or not all(map(math.isfinite, confidence)):
            return None
        return Reliability(tuple(map(int, images)), tuple(map(int, right)), tuple(confidence))

    def confusion(self, num_classes: int) -> "Confusion":
        """Count labels against predictions."""
        labels, predicted = torch.cat(self.labels), torch.cat(self.predicted).cpu()
        known = labels >= 0
        cells = (labels[known] * num_classes + predicted[known]).numpy()
        cells, counts = np.unique(cells, return_counts=True)
        columns = cells // num_classes, cells % num_classes, counts
        return Confusion(*(tuple(column.tolist()) for column in columns))


def _other_classes(expected: int | None, found: int, images: Images) -> MismatchError:
    return MismatchError(
        f"the student cannot be evaluated on {images.name}",
        [Difference("number of classes", expected, found)],
        "name the data it was trained on with --data",
    )


@dataclass(frozen=True)
class Confusion(Spec):
    """A confusion matrix by its entries that are not 0: matrix[label[i], predicted[i]] = count[i]."""

    label: tuple[int, ...]
    predicted: tuple[int, ...]
    count: tuple[int, ...]

    def most(self, number: int) -> list[tuple[int, int, int]]:
        """List (label, predicted, count) of the mistakes made most often, by falling count."""
        cells = zip(self.label, self.predicted, self.count, strict=True)
        wrong = [cell for cell in cells if cell[0] != cell[1]]
        return sorted(wrong, key=lambda cell: (-cell[2], cell))[:number]


# One model, in full ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationReport(Spec):
    """What a model is worth and what it costs.

    Attributes:
        data, split, images, recipe: what it was shown.
        top1, top5, nll, ece, agreement, kl: see `Tally.scores`; None without labels, or without a teacher's cache.
        teacher, teacher_top1: whose cache that is, and how often it is right itself, where an image has a label.
        parameters: their number.
        input_size: pixels a side that it sees views resized to.
        flops: floating-point operations of one view, two for a multiplication and an addition.
        images_per_second: through the model, adapter included and views at hand: the median batch.
        batch_size, device, precision: at which these images were seen.
        reliability: accuracy by confidence; None without labels.
        confusion: labels against predictions.
    """

    data: str
    split: str
    images: int
    recipe: str
    top1: float | None
    top5: float | None
    nll: float | None
    ece: float | None
    agreement: float | None
    kl: float | None
    teacher: str | None
    teacher_top1: float | None
    parameters: int
    input_size: int
    flops: int
    images_per_second: float
    batch_size: int
    device: str
    precision: str
    reliability: Reliability | None
    confusion: Confusion


def _top1(teacher: CachedTeacher, images: Images) -> float | None:
    """Share of the labelled images that a teacher has answered for and puts into the class of their label."""
    told = np.flatnonzero(teacher.usable(SEED) & (images.labels >= 0))
    named = teacher.take(torch.from_numpy(told), SEED).ids[:, 0].numpy()
    return float((named == images.labels[told]).mean()) if len(told) else None


def evaluate(model: ViewModel, evaluation: Evaluation, num_classes: int) -> EvaluationReport:
    """Evaluate one model in full.

    Args:
        model: on its device.
        evaluation: on what.
        num_classes: C of the model.

    Raises:
        NonFiniteError: an answer is not a number.
        MismatchError: the images have another number of classes.
    """
    images = evaluation.images
    guessed = isinstance(
        images, WrappedImages
    )  # from the labels that occur, where a data set lists no classes
    if images.num_classes not in (None, num_classes) and not guessed:
        raise _other_classes(images.num_classes, num_classes, images)
    (tally,) = evaluation.of([model])
    scores = tally.scores()
    if not np.isfinite([*scores.values()]).all():
        raise NonFiniteError(
            f"the student's answers on {images.name} hold NaN or infinity; try --precision float32"
        )
    alike = evaluation.views.any_view()[None].to(tally.device)
    views = alike.repeat(min(evaluation.batch_size, len(images)), 1, 1, 1)  # what they show takes no time
    return EvaluationReport(
        data=images.name,
        split=images.split,
        images=len(images),
        recipe=evaluation.recipe.name,
        **{name: scores.get(name) for name in ("top1", "top5", "nll", "ece", "agreement", "kl")},
        teacher=evaluation.teacher.reader.spec.teacher.name if evaluation.teacher else None,
        teacher_top1=_top1(evaluation.teacher, images) if evaluation.teacher else None,
        parameters=sum(p.numel() for p in model.parameters()),
        input_size=model.adapter.spec.size,
        flops=flops(model, views[:1]),
        images_per_second=len(views) / seconds_per_forward(model, views),
        batch_size=len(views),
        device=str(tally.device),
        precision=str(model.dtype).removeprefix("torch."),
        reliability=tally.reliability(),
        confusion=tally.confusion(num_classes),
    )


@torch.no_grad()
def flops(model: ViewModel, views: Tensor) -> int:
    """Count the floating-point operations of a forward: convolutions, matrix products, attention; no others.

    Attention is run as plain matrix products meanwhile: torch counts none of its fused encoder layers, and before
    2.15 no fused attention on the CPU either.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(views)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


@torch.inference_mode()
def seconds_per_forward(model: ViewModel, views: Tensor, most: int = 50, budget: float = 1.0) -> float:
    """Return the median time of a forward: of as many as fit the budget, after one that is not counted."""
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 2 or (len(taken) <= most and time.perf_counter() - began < budget):
        start = time.perf_counter()
        model(views)
        if views.is_cuda:
            torch.cuda.synchronize(views.device)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))
