"""What one model answered on a test set, as sums on its device: accuracy, calibration, agreement with the teacher."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from logitcache.distributed import World
from logitcache.errors import Difference, MismatchError
from logitcache.format.spec import Spec
from logitcache.losses.kd import kl_rows
from logitcache.models.forward import ViewModel
from logitcache.teacher.cached import CachedTeacher
from logitcache.teacher.sparse import SparseTeacher
from logitcache.train.confidence import BINS, Reliability
from logitcache.views.images import Images
from logitcache.views.keyed_views import ViewBatch


class ScoreMeter:
    """Sums over the images that a model has seen, on its device, so that no batch waits for the one before.

    Args:
        model: on its device; in evaluation mode from here on.
        images: those that the batches show.
        teacher: answers for their views; None: the model is scored by labels alone.

    Attributes:
        left_out: how many images do not decode, where the batches leave them out.
        bad: which, of those that this rank has seen.
        labels, predicted: (B,) int64 of each batch: labels, -1 where there are none, and the model's first classes.
    """

    def __init__(self, model: ViewModel, images: Images, teacher: CachedTeacher | None) -> None:
        self.model, self.images, self.teacher = model.eval(), images, teacher
        self.device = next(chain(model.parameters(), model.buffers())).device
        zeros = partial(torch.zeros, dtype=torch.float64, device=self.device)
        self._label_sums = zeros(3)  # top-1, top-5, −log p
        self._bin_sums = zeros(3 * BINS)  # images, how many of them right, Σ confidence; by bin
        self._teacher_sums = zeros(2)  # same top class, KL
        self._edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=self.device)[1:-1]
        self._labelled, self._answered, self.left_out = 0, 0, 0
        self.bad: list[int] = []
        self.labels: list[Tensor] = []
        self.predicted: list[Tensor] = []

    def add(self, batch: ViewBatch) -> None:
        """Run the model on a batch, and count its answers.

        Raises:
            MismatchError: the model has another number of classes than teacher or images.
        """
        if left_out := int((~batch.valid).sum()):
            self.left_out += left_out
            self.bad += batch.samples[~batch.valid].tolist()
            views, labels, samples, seeds, valid = (part[batch.valid] for part in batch[:5])
            batch = ViewBatch(views, labels, samples, seeds, valid)
            if not len(batch.views):
                return
        views = batch.views.to(self.device, non_blocking=True)
        logits = self.model(views)
        classes = logits.shape[1]
        if self.teacher and self.teacher.num_classes != classes:
            raise classes_differ(classes, self.teacher.num_classes, self.images)
        if (self.images.num_classes or 0) > classes:
            raise classes_differ(classes, self.images.num_classes, self.images)
        self.labels.append(batch.labels)
        self.predicted.append(logits.argmax(1))
        if (known := batch.labels >= 0).any():
            self._compare_labels(logits[known.to(self.device)], batch.labels[known].to(self.device))
        if self.teacher is not None:
            self._compare_teacher(logits, self.teacher.answer(views, batch.samples, batch.seeds))

    def _compare_labels(self, logits: Tensor, labels: Tensor) -> None:
        log_p = logits.double().log_softmax(1)
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        nll = -log_p.gather(1, labels[:, None])[:, 0]
        self._label_sums += torch.stack([right[:, 0], right.any(1), nll]).double().sum(1)
        confidence = log_p.amax(1).exp()
        bins = torch.bucketize(confidence, self._edges)  # (0, 1/15], (1/15, 2/15], …
        rows = torch.stack([torch.ones_like(confidence), right[:, 0].double(), confidence])
        self._bin_sums.view(3, BINS).index_add_(1, bins, rows)
        self._labelled += len(labels)

    def _compare_teacher(self, logits: Tensor, teacher: SparseTeacher) -> None:
        answered = ~teacher.top.isnan()  # the others' images did not decode
        logits, teacher = logits[answered], teacher[answered]
        same = (logits.argmax(1) == teacher.ids[:, 0]).double()
        soft = teacher.to(self.device, torch.float64).at(1.0)
        kl = kl_rows(soft.log_probs, logits.double().log_softmax(1))
        self._teacher_sums += torch.stack([same.sum(), kl.sum()])
        self._answered += len(logits)

    def all_reduce(self, world: World) -> None:
        """Replace the sums by those of all ranks; counts are whole numbers in float64, so they are exact."""
        sums = (self._label_sums, self._bin_sums, self._teacher_sums)
        counts = torch.tensor(
            [self._labelled, self._answered, self.left_out], dtype=torch.float64, device=self.device
        )
        reduced = world.all_reduce_sum(torch.cat([*sums, counts]))
        parts = torch.split(reduced, [*map(len, sums), len(counts)])
        self._label_sums, self._bin_sums, self._teacher_sums, counts = parts
        self._labelled, self._answered, self.left_out = map(int, counts.tolist())

    def scores(self) -> dict[str, float]:
        """Means over images, by name.

        Of labelled images: top1 and top5, in [0, 1]; nll, −log of the label's probability, in nats; ece, the
        expected calibration error in 15 bins of equal width, Σ_b |B_b|/n · |accuracy(B_b) − confidence(B_b)|.
        Against the teacher's cache: agreement, in [0, 1], of the top classes; kl, KL(teacher ‖ model) at T = 1 over
        all classes, in nats; those that the cache does not list are as its class statistics tell them, or all alike.

        Source: Guo et al. 2017 (arXiv 1706.04599), equation 3, for the calibration error.
        """
        scores: dict[str, float] = {}
        if self._labelled:
            scores |= zip(("top1", "top5", "nll"), (self._label_sums / self._labelled).tolist(), strict=True)
            reliability = self.reliability()
            scores["ece"] = reliability.ece if reliability else math.nan
        if self._answered:
            scores |= zip(("agreement", "kl"), (self._teacher_sums / self._answered).tolist(), strict=True)
        return scores

    def reliability(self) -> Reliability | None:
        """Return accuracy by confidence bin; None without labels, or where an answer was NaN."""
        images, right, confidence = self._bin_sums.view(3, BINS).tolist()
        if not self._labelled or not all(map(math.isfinite, confidence)):
            return None
        return Reliability(tuple(map(int, images)), tuple(map(int, right)), tuple(confidence))

    def confusion(self, num_classes: int) -> "Confusion":
        """Count labels against predictions, of the images that this rank has seen."""
        labels, predicted = torch.cat(self.labels), torch.cat(self.predicted).cpu()
        known = labels >= 0
        cells = (labels[known] * num_classes + predicted[known]).numpy()
        cells, counts = np.unique(cells, return_counts=True)
        columns = cells // num_classes, cells % num_classes, counts
        return Confusion(*(tuple(column.tolist()) for column in columns))


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


def classes_differ(expected: int, found: int | None, images: Images) -> MismatchError:
    """Return the error for a student whose `expected` classes are not the `found` ones of images or their teacher."""
    return MismatchError(
        f"the student cannot be evaluated on {images.name}",
        [Difference("number of classes", expected, found)],
        "name the data it was trained on with --data",
    )
