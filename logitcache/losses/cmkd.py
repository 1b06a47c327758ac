"""Correlation matching: Pearson and Spearman agreement with the teacher, weighted by difficulty.

A reconstruction of arXiv 2410.06561 from its abstract: `docs/losses.md` says what is the paper's and what is ours.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.correlation import (
    FLAT,
    CorrelationTail,
    check_correlation_tail,
    probability_pearson,
    sparse_pearson,
)
from logitcache.losses.dist import intra_class
from logitcache.losses.soft_ranks import RANKS, RankOperator, rank_floor, soft_spearman, steepness
from logitcache.losses.student_logits import split, upcast, warn_of_tail
from logitcache.teacher.sparse import SparseTeacher

Difficulty = Literal["teacher_entropy", "student_entropy", "teacher_error", "student_ce", "fixed"]


def cmkd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 2.0,
    values: Literal["probabilities", "logits"] = "probabilities",
    tail: CorrelationTail = "uniform",
    operator: RankOperator = "laplace",
    strength: float = 0.25,
    support: Literal["topk", "topk+tail"] = "topk",
    difficulty: Difficulty = "teacher_entropy",
    hard: Literal["spearman", "pearson"] = "spearman",
    balance: float = 0.5,
    intra: float = 0.0,
) -> Tensor:
    """Correlation matching: mean_i [ w_P(i) (1 − Pearson_i) + w_S(i) (1 − Spearman_i) ] + intra · columns.

    Pearson_i is over all C classes. Spearman_i is the Pearson correlation of soft ranks. With a difficulty h_i in
    [0, 1], w_S = h and w_P = 1 − h, or the other way round; weights carry no gradient.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: (B,) int64, −1 where there is no label; two measures of difficulty ask for it.
        temperature: T > 0, of the probabilities that Pearson compares.
        values: what Pearson compares: softmax at T, or the logits (their z-scores, as Pearson does not care).
        tail: "uniform" or "renorm", as in `kd`; logits take the teacher's mean tail logit.
        operator: of the soft ranks.
        strength: of the soft ranks, relative to the row's spread.
        support: "topk" ranks the k classes that the teacher lists among themselves; "topk+tail" ranks all C, the
            teacher's tail as one tied group.
        difficulty: "teacher_entropy" and "student_entropy" over log C, "teacher_error" 1 − p_y, "student_ce"
            the student's cross-entropy over log C, at most 1, all at T = 1; "fixed" is `balance` in every row.
            A row without a label counts as of difficulty `balance`.
        hard: the term that hard samples lean on.
        balance: the difficulty of "fixed", in [0, 1].
        intra: weight of DIST's columns (classes over the batch), at T.

    Raises:
        OptionError: an option is out of range, or a label is needed and there is no target.

    Source: a reconstruction of Niu et al. 2024 (arXiv 2410.06561).
    """
    _check(tail, operator, strength, support, balance, intra)
    soft = teacher.at(temperature)
    if values == "probabilities":
        rho, gathered = probability_pearson(student_logits, soft, tail)
    else:
        rho, gathered = _logit_pearson(student_logits, teacher)
    h = _difficulty(student_logits, teacher, target, difficulty, balance)
    w_rank = h if hard == "spearman" else 1 - h
    loss = (1 - w_rank) * (1 - rho)
    if support == "topk+tail" and teacher.tail_size:
        loss = loss + w_rank * (1 - _spearman_over_all(student_logits, teacher, operator, strength))
    elif teacher.k > 1:
        rank_rho = soft_spearman(gathered, -teacher.gap, strength, operator, falling=True)
        loss = loss + w_rank * (1 - rank_rho)
    total = loss.mean()
    return total + intra * intra_class(student_logits, soft, tail) if intra else total


def _logit_pearson(student_logits: Tensor, teacher: SparseTeacher) -> tuple[Tensor, Tensor]:
    warn_of_tail(teacher, "cmkd(values=logits)")
    s = upcast(student_logits)
    elsewhere = teacher.top.new_zeros(()) if teacher.tail_mean is None else teacher.tail_mean
    rho = sparse_pearson(s, teacher.ids, -teacher.gap, elsewhere, FLAT * teacher.num_classes**0.5)
    return rho, s.gather(1, teacher.ids)


def _spearman_over_all(
    student_logits: Tensor, teacher: SparseTeacher, operator: RankOperator, strength: float
) -> Tensor:
    """(B,) correlation of the student's soft ranks over all C with the teacher's: its tail shares a mean rank."""
    warn_of_tail(teacher, "cmkd(support=topk+tail)")
    s = upcast(student_logits)
    ranks = RANKS[operator](s, strength)
    listed = RANKS[operator](-teacher.gap, strength) if teacher.k > 1 else torch.ones_like(teacher.gap)
    elsewhere = listed.new_tensor((teacher.tail_size + 1) / 2)
    rho = sparse_pearson(
        ranks, teacher.ids, listed + teacher.tail_size, elsewhere, rank_floor(teacher.num_classes)
    )
    return rho * steepness(s)[:, 0]


def _difficulty(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None,
    difficulty: Difficulty,
    balance: float,
) -> Tensor:
    """(B,) in [0, 1], without gradient."""
    chance = math.log(teacher.num_classes)
    if difficulty == "fixed":
        return torch.full_like(teacher.top, balance)
    if difficulty == "teacher_entropy":
        return teacher.at(1.0).entropy() / chance
    with torch.no_grad():
        if difficulty == "student_entropy":
            log_q = upcast(student_logits).log_softmax(1)
            return (-(log_q.exp() * log_q).sum(1) / chance).clamp(0.0, 1.0)
        if target is None:
            raise OptionError(f"difficulty {difficulty} needs labels; give a target")
        label = target.clamp(min=0)
        if difficulty == "teacher_error":
            h = 1 - teacher.at(1.0).prob_of(label)
        else:
            h = -split(student_logits, label[:, None], 1.0, "none")[0][:, 0] / chance
        return torch.where(target >= 0, h.clamp(0.0, 1.0), balance)


def _check(tail: str, operator: str, strength: float, support: str, balance: float, intra: float) -> None:
    check_correlation_tail(tail)
    if operator not in RANKS:
        raise OptionError(f"operator must be {' or '.join(RANKS)}, found {operator!r}")
    if not strength > 0:
        raise OptionError(f"strength must be above 0, found {strength}")
    if support not in ("topk", "topk+tail"):
        raise OptionError(f"support must be topk or topk+tail, found {support!r}")
    if not 0 <= balance <= 1:
        raise OptionError(f"balance must be 0 to 1, found {balance}")
    if not 0 <= intra < math.inf:
        raise OptionError(f"intra must be 0 or more, found {intra}")
