"""Several teachers of the same views as one: `Ensemble` averages their answers batch by batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.errors import Difference, MismatchError, OptionError
from logitcache.store.reader import CacheReader
from logitcache.teacher.protocol import Teacher
from logitcache.teacher.sparse import SparseTeacher

AverageSpace = Literal["probability", "logit"]


class Ensemble:
    """The average of several teachers, computed for each batch by `average_teachers`.

    Args:
        teachers: two or more, of the same views and classes.
        weights: one for each, not negative; even when None.
        space: "probability" averages probabilities, "logit" their logarithms.

    Raises:
        OptionError: weights or space cannot be honoured.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weights: Sequence[float] | None = None,
        space: AverageSpace = "probability",
    ) -> None:
        self.teachers, self.space = list(teachers), space
        self.weights = _check_options(len(self.teachers), weights, space)
        self.num_classes = self.teachers[0].num_classes

    def __repr__(self) -> str:
        return f"Ensemble({', '.join(map(repr, self.teachers))})"

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
        return average_teachers(
            [t.answer(views, samples, seeds) for t in self.teachers], self.weights, self.space
        )


def average_teachers(
    teachers: Sequence[SparseTeacher],
    weights: Sequence[float] | None = None,
    space: AverageSpace = "probability",
) -> SparseTeacher:
    """Average several teachers of the same rows into one: an ensemble.

    probability: p ∝ Σ_m w_m p_m;  logit: log p = Σ_m w_m log p_m + const (the geometric mean), both over all C
    classes, each member's tail completed by its own class statistics (or, where it has none, spread evenly). The
    mixture's logits are log-probabilities. It lists as many classes as the member that lists most. Where no member
    has class statistics, mean and spread of what no member lists, which rule the tail at other temperatures, are the
    members' averages.

    Args:
        teachers: one or more, with equal numbers of rows and classes.
        weights: one per teacher, not negative; even when None.
        space: where to average.

    Raises:
        OptionError: no teacher, teachers that do not match, weights that cannot be honoured, no such space.
    """
    if not teachers or len({(len(t), t.num_classes) for t in teachers}) != 1:
        raise OptionError("an ensemble needs one or more teachers of the same samples and classes")
    weights = _check_options(len(teachers), weights, space)
    share = [weight / sum(weights) for weight in weights]
    log_p = _average([t.at(1.0).log_probs for t in teachers], share, space).log_softmax(1)
    mixture = SparseTeacher.from_logits(log_p, max(t.k for t in teachers))
    if any(t.is_whole for t in teachers):
        return replace(mixture, known=log_p)
    return _spread_tail(mixture, log_p, teachers, share)


def _spread_tail(
    mixture: SparseTeacher, log_p: Tensor, teachers: Sequence[SparseTeacher], share: Sequence[float]
) -> SparseTeacher:
    """Give a mixture's tail, even where no member lists a class, the mean and variance that the members know of."""
    if not mixture.tail_size:
        return mixture
    below, std = torch.zeros_like(mixture.top), torch.zeros_like(mixture.top)
    unlisted = torch.ones_like(log_p, dtype=torch.bool)
    for teacher, w in zip(teachers, share, strict=True):
        unlisted.scatter_(1, teacher.ids, False)
        if teacher.tail_lse is not None and teacher.tail_mean is not None:
            below = below + w * (teacher.tail_lse - math.log(teacher.tail_size) - teacher.tail_mean)
            std = std + w * (2 * teacher.half_tail_var()).sqrt()
    in_tail = torch.ones_like(unlisted).scatter(1, mixture.ids, False)
    relative = log_p - mixture.top[:, None] - below[:, None] * unlisted
    mean = (relative * in_tail).sum(1) / mixture.tail_size
    spread = ((relative - mean[:, None]).square() + std.square()[:, None] * unlisted) * in_tail
    return replace(mixture, tail_mean=mean, tail_var=spread.sum(1) / mixture.tail_size)


def require_same_views(readers: Sequence[CacheReader]) -> None:
    """Refuse caches of different views: their rows would answer for other pixels.

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


def _check_options(count: int, weights: Sequence[float] | None, space: str) -> list[float]:
    """Return one weight for each of `count` teachers."""
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count or min(weights, default=0) < 0 or not 0 < sum(weights) < math.inf:
        raise OptionError(f"{count} teachers need as many weights of 0 or more, found {weights}")
    if space not in ("probability", "logit"):
        raise OptionError(f"space must be probability or logit, found {space!r}")
    return weights


def _average(log_p: list[Tensor], share: list[float], space: AverageSpace) -> Tensor:
    if space == "logit":
        return torch.stack([x * w for x, w in zip(log_p, share, strict=True) if w]).sum(0)
    return torch.stack([x + math.log(w) for x, w in zip(log_p, share, strict=True) if w]).logsumexp(0)
