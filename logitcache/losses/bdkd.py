"""Balanced divergences: forward and reverse KL together, the one weighing more by who is less sure."""

import math

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.arguments import upcast
from logitcache.losses.kd import kl_rows
from logitcache.teacher.sparse import SparseTeacher


def bdkd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    delta: float = 2.0,
    entropy_temperature: float = 1.0,
) -> Tensor:
    """Forward and reverse KL, balanced by sample: T² · mean_i a_i KL(p_i ‖ q_i) + b_i KL(q_i ‖ p_i).

    p = softmax(t/T), q = softmax(s/T). a_i is `delta` where the teacher's entropy is above the student's, b_i is
    `delta` where it is below, else they are 1: an oversure student is pulled over all that the teacher finds
    possible, an unsure one to the teacher's mode. The weights have no gradient. Of the paper this is the student's
    half, the teacher fixed.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0, of the divergences.
        delta: weight of the divergence that matters more, 1 or more; at 1 the two are added.
        entropy_temperature: at which both entropies are taken, above 0.

    Raises:
        OptionError: an option is out of range.

    Source: Amara et al. 2022 (BD-KD, arXiv 2212.12965).
    """
    if not 1 <= delta < math.inf:
        raise OptionError(f"delta must be 1 or more, found {delta}")
    s = upcast(student_logits)
    log_p, log_q = teacher.at(temperature).log_probs, (s / temperature).log_softmax(1)
    ours = (s.detach() / entropy_temperature).softmax(1)
    gap = teacher.at(entropy_temperature).entropy() + torch.xlogy(ours, ours).sum(1)
    forward = torch.where(gap > 0, delta, 1.0) * kl_rows(log_p, log_q)
    reverse = torch.where(gap < 0, delta, 1.0) * kl_rows(log_q, log_p)
    return (forward + reverse).mean() * temperature**2
