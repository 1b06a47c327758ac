"""Time-interpolated distillation: the target moves from the student's own answer to the teacher's."""

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.arguments import upcast
from logitcache.losses.kd import kl_rows
from logitcache.teacher.sparse import SparseTeacher


def taid(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 1.0,
    start: float = 0.4,
    end: float = 1.0,
    progress: float = 0.0,
) -> Tensor:
    """KL to an interpolated target: T² · mean_i KL(p_i ‖ q_i), p = softmax(((1 − m) · s + m · t) / T).

    s is the student without gradient, q = softmax(s/T) with it; m rises linearly from `start` to `end` as
    `progress` goes from 0 to 1. The paper's adaptive m, which follows the loss, is its schedule's refinement and
    needs state between steps; it is not here.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.
        start: m at the start of training, in [0, 1].
        end: m at its end, in [start, 1].
        progress: share of the training that is done, in [0, 1]; the trainer says, not the user.

    Raises:
        OptionError: an option is out of range.

    Source: Shing et al. 2025 (arXiv 2501.16937), equations 3 to 5; start and end as there.
    """
    if not 0 <= start <= end <= 1:
        raise OptionError(f"start and end must rise from 0 to 1, found {start} and {end}")
    if not 0 <= progress <= 1:
        raise OptionError(f"progress must be 0 to 1, found {progress}")
    m = start + (end - start) * progress
    log_p = teacher.at(temperature).log_probs  # t/T, less a number per row, which the softmax does not see
    s = upcast(student_logits) / temperature
    log_target = torch.lerp(s.detach(), log_p.to(s.dtype), m).log_softmax(1)
    return kl_rows(log_target, s.log_softmax(1)).mean() * temperature**2
