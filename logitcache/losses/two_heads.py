"""Students with two heads on one backbone, one for the labels and one for the teacher.

The contract: student logits are (B, 2, C), head 0 learns from cross-entropy and head 1 from the teacher. How the
two are one answer at evaluation is `logitcache.models.nets.mixed`, or head 0 alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.kd import Tail, kd
from logitcache.losses.soft_ranks import spread
from logitcache.losses.student_logits import warn_of_tail, widened
from logitcache.models.nets import Mixing, mixed
from logitcache.teacher.sparse import SparseTeacher


def dho(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 2.0,
    tail: Tail = "uniform",
) -> Tensor:
    """Dual-head optimisation: `kd` on head 1, while head 0 learns from the labels; evaluated by `mixed`.

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
    s = widened(_teacher_head(student_logits))
    x = (s - s.mean(1, keepdim=True)) / (spread(s) * temperature)
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


# At evaluation ------------------------------------------------------------------------------------------


def choose_mixing(student_logits: Tensor, target: Tensor) -> Mixing:
    """Choose α and β by accuracy on a validation split (never on test), the even mixing first among equals.

    Args:
        student_logits: (N, 2, C) float.
        target: (N,) int64.
    """
    grid = [Mixing(a / 10, b) for a in range(11) for b in (0.25, 0.5, 1.0, 2.0)]
    grid.sort(key=lambda m: abs(m.alpha - 0.5) + abs(m.beta - 0.5))
    right = [int((mixed(student_logits, m).argmax(1) == target).sum()) for m in grid]
    return grid[right.index(max(right))]
