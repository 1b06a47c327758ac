"""Correlation matching: Pearson and Spearman agreement with the teacher, weighted by difficulty.

A reconstruction of arXiv 2410.06561 from its abstract: `docs/losses.md` says what is the paper's and what is ours.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.arguments import upcast, warn_of_even_tail
from logitcache.losses.correlation import FLAT, pearson, probability_pearson
from logitcache.losses.dist import intra_class
from logitcache.losses.soft_ranks import RANKS, RankOperator, soft_spearman
from logitcache.teacher.sparse import SparseTeacher

Difficulty = Literal["teacher_entropy", "student_entropy", "teacher_error", "student_ce", "fixed"]


def cmkd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 2.0,
    values: Literal["probabilities", "logits"] = "probabilities",
    operator: RankOperator = "laplace",
    strength: float = 0.25,
    support: Literal["all", "listed"] = "all",
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
        operator: of the soft ranks.
        strength: of the soft ranks, relative to the row's spread.
        support: the classes that are ranked: "all" C, or the k that the teacher lists, among themselves.
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
    _check(operator, strength, support, balance, intra)
    s = upcast(student_logits)
    p = teacher.at(temperature).log_probs.exp()
    q = (s / temperature).softmax(1)
    if values == "probabilities":
        linear = probability_pearson(q, p)
    else:
        warn_of_even_tail(teacher, "cmkd(values=logits)")
        floor = FLAT * teacher.num_classes**0.5
        linear = pearson(s, teacher.logits, floor, floor)
    h = _difficulty(s, teacher, target, difficulty, balance)
    w_rank = h if hard == "spearman" else 1 - h
    loss = (1 - w_rank) * (1 - linear)
    if difficulty != "fixed" or balance != (0.0 if hard == "spearman" else 1.0):
        loss = loss + w_rank * (1 - _spearman(s, teacher, support, strength, operator))
    total = loss.mean()
    return total + intra * intra_class(q, p) if intra else total


def _spearman(
    s: Tensor,
    teacher: SparseTeacher,
    support: Literal["all", "listed"],
    strength: float,
    operator: RankOperator,
) -> Tensor:
    if support == "listed":
        return soft_spearman(s.gather(1, teacher.ids), -teacher.gap, strength, operator)
    warn_of_even_tail(teacher, "cmkd(support=all)")
    return soft_spearman(s, teacher.logits, strength, operator)


def _difficulty(
    s: Tensor, teacher: SparseTeacher, target: Tensor | None, difficulty: Difficulty, balance: float
) -> Tensor:
    """(B,) in [0, 1], without gradient."""
    chance = math.log(teacher.num_classes)
    if difficulty == "fixed":
        return torch.full_like(teacher.top, balance)
    if difficulty == "teacher_entropy":
        return (_entropy(teacher.at(1.0).log_probs) / chance).clamp(0.0, 1.0)
    with torch.no_grad():
        if difficulty == "student_entropy":
            return (_entropy(s.log_softmax(1)) / chance).clamp(0.0, 1.0)
        if target is None:
            raise OptionError(f"loss cmkd of difficulty {difficulty} needs labels; give a target")
        label = target.clamp(min=0)
        if difficulty == "teacher_error":
            h = 1 - teacher.at(1.0).prob_of(label)
        else:
            h = F.cross_entropy(s, label, reduction="none") / chance
        return torch.where(target >= 0, h.clamp(0.0, 1.0), balance)


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(1)


def _check(operator: str, strength: float, support: str, balance: float, intra: float) -> None:
    if operator not in RANKS:
        raise OptionError(f"operator must be {' or '.join(RANKS)}, found {operator!r}")
    if not strength > 0:
        raise OptionError(f"strength must be above 0, found {strength}")
    if support not in ("all", "listed"):
        raise OptionError(f"support must be all or listed, found {support!r}")
    if not 0 <= balance <= 1:
        raise OptionError(f"balance must be 0 to 1, found {balance}")
    if not 0 <= intra < math.inf:
        raise OptionError(f"intra must be 0 or more, found {intra}")
