"""What a teacher answers for, from a cache or live."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from logitcache.teacher.sparse import SparseTeacher


class Teacher(Protocol):
    """Answers for views: from a cache, or live."""

    num_classes: int

    def about(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Return JSON values that identify the teacher's answers under these seeds."""

    def prepare(self, seeds: Sequence[int]) -> None:
        """Make ready for these seeds, in this order; may return before it is done."""

    def usable(self, seed: int) -> npt.NDArray[np.bool_]:
        """(n,) bool: the samples that this teacher can answer for under a seed."""

    def answer(self, views: Tensor, samples: Tensor, seeds: Tensor) -> SparseTeacher:
        """Answer for B views, on the views' device."""
