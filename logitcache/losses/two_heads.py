"""Students with two heads on one backbone, one for the labels and one for the teacher.

The contract: student logits are (B, 2, C), head 0 learns from cross-entropy and head 1 from the teacher. How the
two become one answer at evaluation is `logitcache.models.nets.mix_heads`, or head 0 alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses.arguments import upcast, warn_of_even_tail
from logitcache.losses.kd import kd
from logitcache.losses.soft_ranks import floored_std
from logitcache.teacher.sparse import SparseTeacher


def dho(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 2.0,
) -> Tensor:
    """Dual-head optimisation: `kd` on head 1, while head 0 learns from the labels; evaluated by `mix_heads`.

    Args:
        student_logits: (B, 2, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0; 2 as in the authors' code.

    Raises:
        OptionError: the student has one head, or an option is out of range.

    Source: Kang et al. 2025 (arXiv 2505.07675), section 3.
    """
    return kd(_teacher_head(student_logits), teacher, temperature=temperature)


def dhkd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 2.0,
) -> Tensor:
    """Dual-head KD: T² · mean_i Σ_c BinaryKL(σ(ẑ_t / T) ‖ σ(ẑ_s / T)) on head 1, ẑ the row's z-scored logits.

    At evaluation head 0 answers alone.

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
    warn_of_even_tail(teacher, "dhkd")
    s = upcast(_teacher_head(student_logits))
    x = (s - s.mean(1, keepdim=True)) / (floored_std(s) * temperature)
    y = (teacher.standardise().logits / temperature).sigmoid()
    rows = (F.softplus(x) - y * x - _binary_entropy(y)).sum(1)
    return rows.mean() * temperature**2


def _binary_entropy(y: Tensor) -> Tensor:
    return -torch.xlogy(y, y) - torch.xlogy(1 - y, 1 - y)


def _teacher_head(student_logits: Tensor) -> Tensor:
    if student_logits.dim() != 3 or student_logits.shape[1] != 2:
        raise OptionError(
            f"a loss for two heads needs student logits of shape (B, 2, C), found {tuple(student_logits.shape)}"
        )
    return student_logits[:, 1]
