"""Students with two heads on one backbone, one for the labels and one for the teacher.

The contract: student logits are (B, 2, C), head 0 learns from cross-entropy and head 1 from the teacher. How the
two become one answer at evaluation is `logitcache.models.nets.mix_heads`, or head 0 alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.kd import Tail, kd
from logitcache.losses.soft_ranks import floored_std
from logitcache.losses.student_logits import upcast, warn_of_tail
from logitcache.teacher.sparse import SparseTeacher


def dho(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 2.0,
    tail: Tail = "uniform",
) -> Tensor:
    """Dual-head optimisation: `kd` on head 1, while head 0 learns from the labels; evaluated by `mix_heads`.

    Args:
        student_logits: (B, 2, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0; 2 as in the authors' code.
        tail: as in `kd`.

    Raises:
        OptionError: the student has one head, or an option is out of range.

    Source: Kang et al. 2025 (arXiv 2505.07675), section 3.
    """
    return kd(_teacher_head(student_logits), teacher, temperature=temperature, tail=tail)


def dhkd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 2.0,
) -> Tensor:
    """Dual-head KD: T² · mean_i Σ_c BinaryKL(σ(ẑ_t / T) ‖ σ(ẑ_s / T)) on head 1, ẑ the row's z-scored logits.

    The teacher's mean and deviation over all C classes are exact. A class of its tail gets the tail's mean
    sigmoid, to second order in the tail's spread. At evaluation head 0 answers alone.

    Args:
        student_logits: (B, 2, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0.

    Raises:
        OptionError: the student has one head, or the temperature is not positive.

    Source: Yang et al. 2024 (arXiv 2411.08937), BinaryKL-Norm; its gradient alignment and its non-linear second
    head are matters of the optimiser and the model, not of this function.
    """
    if not temperature > 0:
        raise OptionError(f"temperature must be above 0, found {temperature}")
    warn_of_tail(teacher, "dhkd")
    s = upcast(_teacher_head(student_logits))
    x = (s - s.mean(1, keepdim=True)) / (floored_std(s) * temperature)
    z = teacher.standardise()
    y = (z.logits / temperature).sigmoid()
    at = x.gather(1, teacher.ids)
    rows = (F.softplus(at) - y * at - _binary_entropy(y)).sum(1)
    if z.tail_mean is not None and z.tail_var is not None:
        mean = ((z.top + z.tail_mean) / temperature).sigmoid()
        bend = mean * (1 - mean) * (1 - 2 * mean) / 2
        y = (mean + bend * z.tail_var / temperature**2).clamp(1e-6, 1 - 1e-6)
        total = F.softplus(x).sum(1) - F.softplus(at).sum(1)
        rows = rows + total - y * (x.sum(1) - at.sum(1)) - teacher.tail_size * _binary_entropy(y)
    return rows.mean() * temperature**2


def _binary_entropy(y: Tensor) -> Tensor:
    return -torch.xlogy(y, y) - torch.xlogy(1 - y, 1 - y)


def _teacher_head(student_logits: Tensor) -> Tensor:
    if student_logits.dim() != 3 or student_logits.shape[1] != 2:
        raise OptionError(
            f"a loss for two heads needs student logits of shape (B, 2, C), found {tuple(student_logits.shape)}"
        )
    return student_logits[:, 1]
