"""The teacher itself: run on every batch, or held against the one that a cache names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitcache.errors import Difference, MismatchError
from logitcache.models.build import Model
from logitcache.store.reader import CacheReader
from logitcache.teacher.completion import Completion
from logitcache.teacher.reach import find_outliers, outlier_error
from logitcache.teacher.sparse import SparseTeacher

CHECK_EVERY = 50  # answers of a GPU; looking at them waits for it


class LiveTeacher:
    """The teacher itself, run on every batch: what a cache saves, and what it is checked against.

    With k < C it forgets the other logits, as a cache does; `completion` then tells them as a cache's would.
    """

    def __init__(
        self, model: nn.Module, n: int, k: int, num_classes: int, completion: Completion | None = None
    ) -> None:
        self.model, self.n, self.k, self.num_classes = model.eval(), n, k, num_classes
        self.completion = completion
        self._answers, self._outlier = 0, torch.zeros(())

    def __repr__(self) -> str:
        return f"LiveTeacher({type(self.model).__name__}, k={self.k} of {self.num_classes} classes)"

    def about(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Say that the teacher is live."""
        return {"live": type(self.model).__name__, "k": self.k}

    def prepare(self, seeds: Sequence[int]) -> None:
        """Nothing to prepare."""

    def usable(self, seed: int) -> npt.NDArray[np.bool_]:
        """Every sample."""
        return np.ones(self.n, dtype=bool)

    @torch.no_grad()
    def answer(self, views: Tensor, samples: Tensor, seeds: Tensor) -> SparseTeacher:
        """Run the model, uint8 views in, logits out, and keep the top k.

        Raises:
            NonFiniteError: this answer, or one of the last `CHECK_EVERY`, is no logits.
        """
        teacher = SparseTeacher.from_logits(self.model(views), self.k, self.completion)
        worst = torch.where(find_outliers(teacher.top), teacher.top, 0.0)
        at = worst.abs().argmax()  # of a NaN, where there is one
        outlier = self._outlier.to(worst.device)
        self._outlier = torch.where(outlier == 0, worst[at], outlier)
        self._answers += 1
        if (not worst.is_cuda or self._answers % CHECK_EVERY == 1) and (found := float(self._outlier)):
            half = getattr(self.model, "dtype", torch.float32) is not torch.float32
            raise outlier_error(found, f"a view of the last {CHECK_EVERY} batches", half=half)
        return teacher


def require_same_teacher(reader: CacheReader, teacher: Model) -> None:
    """Refuse a teacher other than the one whose logits the cache keeps.

    Raises:
        MismatchError: it is another; `fields` says what differs.
    """
    expected = reader.spec.teacher
    fields = [
        Difference(f"teacher.{name}", getattr(expected, name), getattr(teacher, name))
        for name in ("name", "weights_sha256", "adapter")
        if getattr(expected, name) != getattr(teacher, name)
    ]
    if fields:
        raise MismatchError(
            f"{reader.path} was made by another teacher ({expected.name}, weights {expected.weights})",
            fields,
            "name the cache's own with --teacher and --weights",
        )
