"""Correlation matching: Pearson and Spearman agreement with the teacher, weighted by difficulty."""

import math

from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.correlation import pearson, probability_pearson
from logitcache.losses.ranks import laplace_ranks
from logitcache.sparse import SparseTeacher


def cmkd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    strength: float = 0.25,
) -> Tensor:
    """Correlation matching: mean_i [ w_P(i) (1 − Pearson(p_i, q_i)) + w_S(i) (1 − Spearman(t_i, s_i)) ].

    p, q are the softmax at T of teacher and student over all C classes; the rank term compares soft ranks of
    the k logits that the teacher lists. The weights are w_S = h, w_P = 1 − h, with h the teacher's entropy at
    T over log C.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.
        strength: of the soft ranks, in standard deviations of the row's logits on the support.

    Raises:
        OptionError: temperature or strength is not positive.

    Source: a reconstruction of arXiv 2410.06561; see docs/losses.md for what is the paper's and what is ours.
    """
    if not strength > 0:
        raise OptionError(f"strength must be above 0, found {strength}")
    rho, gathered = probability_pearson(student_logits, teacher, temperature)
    hard = teacher.entropy(temperature) / math.log(teacher.num_classes)
    loss = (1 - hard) * (1 - rho)
    if teacher.k > 1:
        loss = loss + hard * (1 - soft_spearman(gathered, -teacher.gap, strength))
    return loss.mean()


def soft_spearman(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """(B,) Pearson correlation of the soft ranks of two (B, n) tensors; in [−1, 1], 0 where a row is flat."""
    return pearson(laplace_ranks(_z_scored(x), strength), laplace_ranks(_z_scored(y), strength))


def _z_scored(x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).clamp(min=1e-8).sqrt()
