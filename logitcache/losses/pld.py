"""Plackett-Luce distillation: the likelihood of the teacher's ranking, label first."""

from typing import Literal

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.student_logits import upcast
from logitcache.teacher.sparse import SparseTeacher


def pld(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 1.0,
    tail: Literal["uniform", "renorm"] = "uniform",
) -> Tensor:
    """Mean over labelled rows of Σ_k p_{π_k} [ log Σ_{l≥k} exp s_{π_l} − s_{π_k} ], p = softmax(t/T).

    π is the label first, then the other classes by falling teacher logit: each choice, weighted by the teacher's
    probability of the class chosen, out of what the earlier ones left. The teacher does not order its tail: there
    (`uniform`) each class is a choice out of the whole tail, at the tail's mean share; `renorm` leaves these
    choices out, so that the tail only stands among what is left.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: (B,) int64, −1 where there is no label.
        temperature: T > 0, of the weights.
        tail: as above.

    Raises:
        OptionError: there is no target, the temperature is not positive, or the tail policy not one of the two.

    Source: Bassam, Zhu, Bian 2025 (arXiv 2506.12542), section 4; ties as in Breslow's approximation are ours.
    """
    if target is None:
        raise OptionError("loss pld needs labels; give a target")
    if tail not in ("uniform", "renorm"):
        raise OptionError(f"tail must be uniform or renorm for pld, found {tail!r}")
    soft, s = teacher.at(temperature), upcast(student_logits)
    labelled, label = target >= 0, target.clamp(min=0)[:, None]
    listed = teacher.ids == label
    lowest = torch.finfo(s.dtype).min / 4  # a finite −∞: no NaN in the gradient of an empty sum

    s_label = s.gather(1, label)[:, 0]
    s_support = s.gather(1, teacher.ids).masked_fill(listed, lowest)
    s_tail = s.scatter(1, teacher.ids, lowest).scatter(1, label, lowest)
    tail_lse = s_tail.logsumexp(1)
    remaining = torch.cat([tail_lse[:, None], s_support.flip(1)], 1).logcumsumexp(1)[:, 1:].flip(1)
    choices = torch.where(listed, 0.0, soft.probs * (remaining - s_support))
    rows = soft.prob_of(label[:, 0]) * (s.logsumexp(1) - s_label) + choices.sum(1)

    size = teacher.tail_size - (~listed.any(1)).to(s.dtype)
    if tail == "uniform" and teacher.tail_size:
        total = s.scatter(1, teacher.ids, 0.0).scatter(1, label, 0.0).sum(1)
        share = soft.log_tail_share.exp()
        rows = rows + torch.where(size > 0, share * (size * tail_lse - total), 0.0)
    return torch.where(labelled, rows, 0.0).sum() / labelled.sum().clamp(min=1)
