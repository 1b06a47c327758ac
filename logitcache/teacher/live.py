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
from logitcache.teacher.sparse import SparseTeacher


class LiveTeacher:
    """The teacher itself, run on every batch: what a cache saves, and what it is checked against.

    With k < C it forgets the other logits, as a cache does; `completion` then tells them as a cache's would.
    """

    def __init__(
        self, model: nn.Module, n: int, k: int, num_classes: int, completion: Completion | None = None
    ) -> None:
        self.model, self.n, self.k, self.num_classes = model.eval(), n, k, num_classes
        self.completion = completion

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
        """Run the model, uint8 views in, logits out, and keep the top k."""
        return SparseTeacher.from_logits(self.model(views), self.k, self.completion)


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
