"""Transformed teacher matching: temperature on the teacher's side alone."""

from torch import Tensor

from logitcache.losses.arguments import upcast
from logitcache.losses.kd import kl_rows
from logitcache.teacher.sparse import SparseTeacher


def ttm(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
) -> Tensor:
    """Match the teacher's power-transformed probabilities: mean_i KL(p_i ‖ q_i), p = softmax(t/T), q = softmax(s).

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0, of the teacher; the paper's exponent γ is 1/T.

    Raises:
        OptionError: the temperature is not positive.

    Source: Zheng and Yang 2024 (arXiv 2402.11148), section 4.
    """
    log_q = upcast(student_logits).log_softmax(1)
    return kl_rows(teacher.at(temperature).log_probs, log_q).mean()


def wttm(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
) -> Tensor:
    """Weighted TTM: mean_i U_i · KL(p_i ‖ q_i), where U_i = Σ_c softmax(t_i)_c^(1/T) is larger for smoother teachers.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0, of the teacher.

    Raises:
        OptionError: the temperature is not positive.

    Source: Zheng and Yang 2024 (arXiv 2402.11148), section 5, with the power sum as weight.
    """
    log_p = teacher.at(temperature).log_probs
    log_q = upcast(student_logits).log_softmax(1)
    # softmax(t)^(1/T) = U · softmax(t/T) in every class, so in the most likely one.
    weight = (teacher.at(1.0).log_probs.amax(1) / temperature - log_p.amax(1)).exp()
    return (weight * kl_rows(log_p, log_q)).mean()
