"""Entropy-reweighted distillation: rows count more where the teacher is less sure."""

from torch import Tensor

from logitcache.losses.arguments import upcast
from logitcache.losses.kd import kl_rows
from logitcache.teacher.sparse import SparseTeacher


def erkd(
    student_logits: Tensor,
    teacher: SparseTeacher,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    entropy_temperature: float = 4.0,
) -> Tensor:
    """KL weighted by the teacher's entropy: T² · mean_i H(softmax(t_i/E)) · KL(p_i ‖ q_i), H in nats.

    p = softmax(t/T), q = softmax(s/T), E the entropy temperature.

    Args:
        student_logits: (B, C) float.
        teacher: B rows over the same C classes.
        target: not used.
        temperature: T > 0, of the divergence.
        entropy_temperature: E > 0, of the weight; the smaller, the more rows differ in weight.

    Raises:
        OptionError: a temperature is not positive.

    Source: Su et al. 2023 (ER-KD, arXiv 2311.13621), and the authors' code, where E is always 4.
    """
    weight = teacher.at(entropy_temperature).entropy()
    log_q = (upcast(student_logits) / temperature).log_softmax(1)
    return (weight * kl_rows(teacher.at(temperature).log_probs, log_q)).mean() * temperature**2
