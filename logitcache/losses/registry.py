"""A loss as the registry knows it, and one use of it with every option filled in."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from logitcache.teacher.sparse import SparseTeacher


@dataclass(frozen=True)
class Loss:
    """A registered loss: its function, its weight against cross-entropy, and how many heads it reads."""

    function: Callable[..., Tensor]
    weight: float = 1.0
    heads: int = 1

    def options(self) -> dict[str, inspect.Parameter]:
        """Return the keyword arguments a user may set; `progress` is the trainer's."""
        parameters = inspect.signature(self.function, eval_str=True).parameters
        return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name != "progress"}


@dataclass(frozen=True)
class Term:
    """A loss with all its options; call it with a batch. As text it is ``name(option=value, ...)``."""

    name: str
    loss: Loss
    options: dict[str, Any]

    def __call__(
        self,
        student_logits: Tensor,
        teacher: SparseTeacher,
        target: Tensor | None = None,
        progress: float = 0.0,
    ) -> Tensor:
        """Compute the loss; `progress` reaches those that follow it."""
        extra = {"progress": progress} if self.follows_progress else {}
        return self.loss.function(student_logits, teacher, target, **self.options, **extra)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}({options})"

    @property
    def follows_progress(self) -> bool:
        """Whether the loss changes in the course of training."""
        return "progress" in (self.loss.function.__kwdefaults__ or {})
