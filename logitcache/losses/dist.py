"""DIST: match the relations between classes within a sample, and between samples within a class."""

import math

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.correlation import FLAT, CorrelationTail, probability_pearson
from logitcache.losses.kd import apply_tail_policy
from logitcache.losses.student_logits import upcast
from logitcache.teacher.sparse import SoftTargets, SparseTeacher


def dist(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    tail: CorrelationTail = "uniform",
) -> Tensor:
    """T² · [ β · mean_rows (1 − Pearson(p_i, q_i)) + γ · mean_columns (1 − Pearson(p_·c, q_·c)) ].

    p = softmax(t/T), q = softmax(s/T); a column is one class over the batch. Columns that no teacher of the batch
    lists say nothing and are left out.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.
        beta: weight of the relations between classes (rows).
        gamma: weight of the relations within a class (columns).
        tail: "uniform" or "renorm", as in `kd`.

    Raises:
        OptionError: an option is out of range.

    Source: Huang et al. 2022 (arXiv 2205.10536), section 4; β = γ = 1, T = 1 as there for ImageNet (2, 2, 4 on
    CIFAR-100); the factor T² is in the authors' code.
    """
    if not 0 <= beta < math.inf or not 0 <= gamma < math.inf:
        raise OptionError(f"beta and gamma must be 0 or more, found {beta} and {gamma}")
    soft = teacher.at(temperature)
    rows, _ = probability_pearson(student_logits, soft, tail)
    loss = beta * (1 - rows).mean()
    if gamma:
        loss = loss + gamma * intra_class(student_logits, soft, tail)
    return loss * temperature**2


def intra_class(student_logits: Tensor, soft: SoftTargets, tail: CorrelationTail) -> Tensor:
    """Mean over the classes that the batch's teachers list of 1 − Pearson(p_·c, q_·c), over the B samples.

    The teacher's column is its rows' tail shares plus sparse excesses, so that sums over it are one product with
    the shares and one scatter. A column of q whose relative spread is below `FLAT` counts as flat.
    """
    teacher = soft.teacher
    batch, num_classes = student_logits.shape
    q = (upcast(student_logits) / soft.temperature).softmax(1)
    q_centred = q - q.mean(0)
    q_norm = q_centred.square().sum(0)
    q_norm = q_norm.clamp(min=1e-30).maximum(q.detach().square().sum(0) * FLAT**2).sqrt()

    log_p, log_mass = apply_tail_policy(soft, tail)
    share = log_mass.exp() / max(1, teacher.tail_size)
    excess = log_p.exp() - share[:, None]

    def per_class(x: Tensor) -> Tensor:
        return x.new_zeros(num_classes).index_add(0, teacher.ids.flatten(), x.flatten())

    wide_share, wide_excess = share.double(), excess.double()
    mean = (wide_share.sum() + per_class(wide_excess)) / batch
    both = wide_excess * (wide_excess + 2 * wide_share[:, None])
    square = wide_share.square().sum() + per_class(both)
    p_norm = (
        (square - batch * mean.square()).clamp(min=1e-30).maximum(square * FLAT**2).sqrt().to(share.dtype)
    )

    # A product of sums rather than a matmul, which autocast would take to half precision.
    cov = (share[:, None] * q_centred).sum(0) + per_class(excess * q_centred.gather(1, teacher.ids))
    listed = per_class(torch.ones_like(excess)) > 0
    return torch.where(listed, 1 - cov / (p_norm * q_norm), 0.0).sum() / listed.sum()
