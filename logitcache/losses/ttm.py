"""Transformed teacher matching: temperature on the teacher's side alone."""

from torch import Tensor

from logitcache.losses.kd import Tail, kl_rows
from logitcache.teacher.sparse import SparseTeacher


def ttm(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    tail: Tail = "uniform",
) -> Tensor:
    """Match the teacher's power-transformed probabilities: mean_i KL(p_i ‖ q_i), p = softmax(t/T), q = softmax(s).

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0, of the teacher; the paper's exponent γ is 1/T.
        tail: as in `kd`.

    Raises:
        OptionError: the temperature is not positive, or the tail policy unknown.

    Source: Zheng and Yang 2024 (arXiv 2402.11148), section 4.
    """
    return kl_rows(student_logits, teacher.at(temperature), tail, student_temperature=1.0).mean()


def wttm(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    tail: Tail = "uniform",
) -> Tensor:
    """Weighted TTM: mean_i U_i · KL(p_i ‖ q_i), where U_i = Σ_c softmax(t_i)_c^(1/T) is larger for smoother teachers.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0, of the teacher.
        tail: as in `kd`.

    Raises:
        OptionError: the temperature is not positive, or the tail policy unknown.

    Source: Zheng and Yang 2024 (arXiv 2402.11148), section 5, with the power sum as weight.
    """
    soft = teacher.at(temperature)
    weight = (soft.lse - teacher.at(1.0).lse / temperature).exp()
    return (weight * kl_rows(student_logits, soft, tail, student_temperature=1.0)).mean()
