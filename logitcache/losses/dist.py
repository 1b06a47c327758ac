"""DIST: match the relations between classes within a sample, and between samples within a class."""

import math

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.arguments import upcast
from logitcache.losses.correlation import FLAT, pearson, probability_pearson
from logitcache.teacher.sparse import SparseTeacher


def dist(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """T² · [ β · mean_rows (1 − Pearson(p_i, q_i)) + γ · mean_columns (1 − Pearson(p_·c, q_·c)) ].

    p = softmax(t/T), q = softmax(s/T); a column is one class over the batch.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.
        beta: weight of the relations between classes (rows).
        gamma: weight of the relations within a class (columns).

    Raises:
        OptionError: an option is out of range.

    Source: Huang et al. 2022 (arXiv 2205.10536), section 4; β = γ = 1, T = 1 as there for ImageNet (2, 2, 4 on
    CIFAR-100); the factor T² is in the authors' code.
    """
    if not 0 <= beta < math.inf or not 0 <= gamma < math.inf:
        raise OptionError(f"beta and gamma must be 0 or more, found {beta} and {gamma}")
    p = teacher.at(temperature).probs
    q = (upcast(student_logits) / temperature).softmax(1)
    loss = beta * (1 - probability_pearson(q, p)).mean()
    if gamma:
        loss = loss + gamma * intra_class(q, p)
    return loss * temperature**2


def intra_class(q: Tensor, p: Tensor) -> Tensor:
    """Mean over the classes of 1 − Pearson(p_·c, q_·c) over the B samples, of (B, C) probabilities.

    A class whose probabilities spread by less than `FLAT`, relative to their size, counts as flat.
    """
    return 1 - pearson(q, p, _floor(q.detach()), _floor(p), dim=0).mean()


def _floor(p: Tensor) -> Tensor:
    floor: Tensor = FLAT * torch.linalg.vector_norm(p, dim=0, keepdim=True)
    return floor.clamp(min=1e-15)
