"""The student's side of a loss: log-probabilities on the teacher's support, and one number for the tail.

Nearly every loss of this package needs the student's softmax only on k classes and in sum over the rest. So
the (B, C) logits are read once forward and once backward, and nothing of size (B, C) is kept in between but
the logits themselves: the backward recomputes exp(s/T − lse) and writes the gradient in one go.
"""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logitcache.teacher.sparse import SparseTeacher

TailSum = Literal["log", "mass", "none"]


def split(student_logits: Tensor, ids: Tensor, temperature: float, tail: TailSum) -> tuple[Tensor, Tensor]:
    """Compute the student's log-probabilities at T on the support, and one number for the other classes.

    Args:
        student_logits: (B, C) float; half precision is computed in float32.
        ids: (B, k) int64, distinct within a row.
        temperature: T > 0.
        tail: "log" for the mean over the tail of log q_j, "mass" for log Σ q_j over the tail, "none" for 0.

    Returns:
        (B, k) log q on the support; (B,) what `tail` asks for (0 when k = C).
    """
    kind = tail if ids.shape[1] < student_logits.shape[1] else "none"
    parts: tuple[Tensor, Tensor] = _Split.apply(student_logits, ids, temperature, kind)
    return parts


def upcast(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32, others as they are: no loss is computed in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def warn_of_tail(teacher: SparseTeacher, loss: str) -> None:
    """Warn that a loss reads the single logits of classes that the teacher does not list."""
    if teacher.tail_size:
        warnings.warn(
            f"{loss} compares single logits of all {teacher.num_classes} classes, of which the teacher lists "
            f"{teacher.k}: most of its gradient is another loss's (docs/losses.md); dump with a larger top-k, or "
            "take kd or cmkd",
            stacklevel=3,
        )


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, ids: Tensor, temperature: float, tail: TailSum
    ) -> tuple[Tensor, Tensor]:
        s = upcast(student)
        scaled = s / temperature if temperature != 1.0 else s
        lse = scaled.logsumexp(1)
        log_q = scaled.gather(1, ids) - lse[:, None]
        size = s.shape[1] - ids.shape[1]
        if tail == "log":
            rest = (scaled.sum(1) - (log_q + lse[:, None]).sum(1)) / size - lse
            tail_lse = lse
        elif tail == "mass":
            tail_lse = scaled.scatter(1, ids, -torch.inf).logsumexp(1)
            rest = tail_lse - lse
        else:
            rest, tail_lse = torch.zeros_like(lse), lse
        ctx.save_for_backward(student, ids, lse, log_q, tail_lse)
        ctx.temperature, ctx.tail, ctx.size = temperature, tail, size
        return log_q, rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_q: Tensor, grad_rest: Tensor) -> tuple[Tensor, None, None, None]:
        # d log q_c / ds_j = ([c = j] − q_j) / T; the tail's number adds its own share per tail class.
        student, ids, lse, log_q, tail_lse = ctx.saved_tensors
        b = 1.0 / ctx.temperature
        total = grad_log_q.sum(1) if ctx.tail == "none" else grad_log_q.sum(1) + grad_rest
        scaled = upcast(student) * b
        grad = (scaled - lse[:, None]).exp_().mul_(total[:, None] * -b)
        if ctx.tail == "log":
            grad += grad_rest[:, None] * (b / ctx.size)
        elif ctx.tail == "mass":
            grad += (scaled - tail_lse[:, None]).exp_().mul_(grad_rest[:, None] * b)
        grad.scatter_(1, ids, (grad_log_q - log_q.exp() * total[:, None]) * b)
        return grad.to(student.dtype), None, None, None
