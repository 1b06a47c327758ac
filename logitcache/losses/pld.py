"""Plackett-Luce distillation: the likelihood of the teacher's ranking, label first."""

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.arguments import upcast, warn_of_even_tail
from logitcache.losses.soft_ranks import sort_rows
from logitcache.teacher.sparse import SparseTeacher


def pld(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Mean over labelled rows of Σ_k p_{π_k} [ log Σ_{l≥k} exp s_{π_l} − s_{π_k} ], p = softmax(t/T).

    π is the label first, then the other classes by falling teacher logit: each choice, weighted by the teacher's
    probability of the class chosen, out of what the earlier ones left.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: (B,) int64, −1 where there is no label.
        temperature: T > 0, of the weights.

    Raises:
        OptionError: there is no target, or the temperature is not positive.

    Source: Bassam, Zhu, Bian 2025 (arXiv 2506.12542), section 4.
    """
    if target is None:
        raise OptionError("loss pld needs labels; give a target")
    warn_of_even_tail(teacher, "pld")
    labelled, label = target >= 0, target.clamp(min=0)[:, None]
    s = upcast(student_logits)
    last = torch.finfo(teacher.logits.dtype).max
    order = sort_rows(teacher.logits.scatter(1, label, last))[1]  # the last choice first
    p, s = teacher.at(temperature).probs.gather(1, order), s.gather(1, order)
    rows = (p * (s.logcumsumexp(1) - s)).sum(1)
    return torch.where(labelled, rows, 0.0).sum() / labelled.sum().clamp(min=1)
