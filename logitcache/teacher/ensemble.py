"""Several teachers of the same views, answering as one."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from logitcache.errors import Difference, MismatchError, OptionError
from logitcache.store import CacheReader
from logitcache.teacher.sparse import MixSpace, SparseTeacher, mix

if TYPE_CHECKING:
    from logitcache.teacher.protocol import Teacher


class Ensemble:
    """The average of several teachers, made anew for each batch (`sparse.mix`).

    Args:
        teachers: two or more, of the same views and classes.
        weights: one for each, not negative; even when None.
        space: "probability" averages probabilities, "logit" their logarithms.

    Raises:
        OptionError: weights or space cannot be honoured.
    """

    def __init__(
        self,
        teachers: Sequence["Teacher"],
        weights: Sequence[float] | None = None,
        space: MixSpace = "probability",
    ) -> None:
        self.teachers, self.space = list(teachers), space
        self.weights = [1.0] * len(self.teachers) if weights is None else list(weights)
        if (
            len(self.weights) != len(self.teachers)
            or min(self.weights, default=0) < 0
            or not 0 < sum(self.weights) < math.inf
        ):
            raise OptionError(
                f"{len(self.teachers)} teachers need as many weights of 0 or more, found {self.weights}"
            )
        if space not in ("probability", "logit"):
            raise OptionError(f"space must be probability or logit, found {space!r}")
        self.num_classes = self.teachers[0].num_classes

    def about(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Identify every member, its weight, and how they are averaged."""
        members = [teacher.about(seeds) for teacher in self.teachers]
        return {"ensemble": members, "weights": self.weights, "space": self.space}

    def prepare(self, seeds: Sequence[int]) -> None:
        """Make every member ready."""
        for teacher in self.teachers:
            teacher.prepare(seeds)

    def usable(self, seed: int) -> npt.NDArray[np.bool_]:
        """(n,) bool: the samples that every member can answer for."""
        usable: npt.NDArray[np.bool_] = np.all([teacher.usable(seed) for teacher in self.teachers], axis=0)
        return usable

    def answer(self, views: Tensor, samples: Tensor, seeds: Tensor) -> SparseTeacher:
        """Average the members' answers; it lists as many classes as the member that lists most."""
        return mix([t.answer(views, samples, seeds) for t in self.teachers], self.weights, self.space)


def require_same_views(readers: Sequence[CacheReader]) -> None:
    """Insist that caches are of the same views, so that their rows answer for the same pixels.

    Raises:
        MismatchError: images, classes or recipe differ; `fields` says which.
    """
    first, *others = readers
    expected = _views_of(first)
    for other in others:
        found = _views_of(other)
        if fields := list(_differences(expected, found)):
            raise MismatchError(
                f"{other.path} is of other views than {first.path}",
                fields,
                "teachers can be averaged where they saw the same views; dump one of them again with the "
                "other's --data and --recipe",
            )


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[Difference]:
    for name, value in expected.items():
        other = found[name]
        if value != other:
            named = name == "recipe" and value["name"] != other["name"]  # then the names say enough
            yield Difference(name, value["name"], other["name"]) if named else Difference(name, value, other)


def _views_of(reader: CacheReader) -> dict[str, Any]:
    data = reader.spec.dataset
    return {
        "images": data.n,
        "classes": data.num_classes,
        "fingerprint": data.fingerprint,
        "recipe": reader.spec.recipe.to_dict(),
        "growth": [then.dataset.n for then in reader.spec.history()],  # whom a view may be mixed with
    }
