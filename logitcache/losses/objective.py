"""What a student minimises: cross-entropy plus any weighted sum of distillation losses, from a line of text.

    kd                                   one loss, its default options and weight
    kd:0.5+cmkd(temperature=2.0):1       a sum, with weights and options

To add a loss: write the function in a file of its own and one line in `LOSSES`.
"""

import ast
import inspect
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from logitcache.errors import OptionError, UnknownNameError
from logitcache.losses.ce import ce
from logitcache.losses.cmkd import cmkd
from logitcache.losses.kd import kd
from logitcache.sparse import SparseTeacher


@dataclass(frozen=True)
class Loss:
    """A registered loss: its function, and its weight against cross-entropy unless another is given."""

    function: Callable[..., Tensor]
    weight: float

    def options(self) -> dict[str, inspect.Parameter]:
        """Return the keyword arguments a user may set."""
        parameters = inspect.signature(self.function).parameters
        return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


LOSSES = {
    "kd": Loss(kd, 1.0),
    "cmkd": Loss(cmkd, 2.0),
}


@dataclass(frozen=True)
class Term:
    """One loss of an objective: every option filled in, and its weight."""

    name: str
    options: dict[str, Any]
    weight: float

    def __str__(self) -> str:
        options = ", ".join(f"{name}={_written(value)}" for name, value in self.options.items())
        return f"{self.name}({options}):{self.weight!r}"


class Objective(nn.Module):
    """ce_weight · CE + Σ weight · loss, over one batch."""

    def __init__(
        self, terms: tuple[Term, ...], *, ce_weight: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= ce_weight < math.inf:
            raise OptionError(f"ce_weight must be 0 or more, found {ce_weight}")
        if not 0 <= label_smoothing <= 1:
            raise OptionError(f"label_smoothing must be 0 to 1, found {label_smoothing}")
        self.terms, self.ce_weight, self.label_smoothing = terms, ce_weight, label_smoothing

    @classmethod
    def parse(cls, expression: str, *, ce_weight: float = 1.0, label_smoothing: float = 0.0) -> Self:
        """Read an objective such as ``"kd:0.5+cmkd(temperature=2.0):1"``; ``"ce"`` is cross-entropy alone.

        A term is ``name(option=value, ...):weight``; options and weight may be left out.

        Raises:
            UnknownNameError: there is no loss of that name.
            OptionError: the text does not parse, or an option or weight cannot be honoured.
        """
        terms = tuple(_term(text) for text in _summands(expression) if text != "ce")
        return cls(terms, ce_weight=ce_weight, label_smoothing=label_smoothing)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term asks the teacher; cross-entropy alone does not."""
        return bool(self.terms)

    def spec(self) -> dict[str, Any]:
        """Return JSON values that say everything; `parse` of the expression restores the same objective."""
        return {
            "expression": "+".join(map(str, self.terms)) or "ce",
            "ce_weight": self.ce_weight,
            "label_smoothing": self.label_smoothing,
        }

    def forward(
        self, student_logits: Tensor, teacher: SparseTeacher | None, target: Tensor, *, progress: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the total and each term of it.

        Args:
            student_logits: (B, C) float.
            teacher: B rows over the same classes; may be None for cross-entropy alone.
            target: (B,) int64, −1 where there is no label.
            progress: how much of the training is done, in [0, 1]; some losses follow it.

        Returns:
            The scalar to minimise, and each term before weighting, detached: ``{"ce": …, "kd": …}``.

        Raises:
            OptionError: a term needs a teacher and there is none.
        """
        cross_entropy = ce(student_logits, target, label_smoothing=self.label_smoothing)
        total = self.ce_weight * cross_entropy
        values = {"ce": cross_entropy.detach()}
        for number, term in enumerate(self.terms, 1):
            if teacher is None:
                raise OptionError(f"loss {term.name} needs a teacher; give one, or train with the loss ce")
            value = LOSSES[term.name].function(student_logits, teacher, target, **term.options)
            total = total + term.weight * value
            values[term.name if term.name not in values else f"{term.name}#{number}"] = value.detach()
        return total, values

    def extra_repr(self) -> str:
        """Show the expression when printed."""
        return str(self.spec())


# Reading an expression ----------------------------------------------------------------------------------


def _summands(expression: str) -> list[str]:
    """Split at the plus signs that stand outside brackets and are not part of a number such as 1e+3."""
    texts, depth, start = [], 0, 0
    for at, sign in enumerate(expression):
        depth += (sign == "(") - (sign == ")")
        if sign == "+" and depth == 0 and not re.search(r":\s*[\d.]+[eE]$|:\s*$", expression[:at]):
            texts.append(expression[start:at])
            start = at + 1
    texts.append(expression[start:])
    return [text.strip() for text in texts]


def _term(text: str) -> Term:
    match = re.fullmatch(r"(?P<name>\w+)\s*(?P<options>\(.*\))?\s*(?::(?P<weight>[^:()]*))?", text, re.DOTALL)
    if match is None:
        raise OptionError(f"a loss reads name(option=value, ...):weight, found {text!r}")
    name = match["name"]
    if name == "ce":
        raise OptionError(
            f"cross-entropy takes its weight and label smoothing as options of their own, found {text!r}"
        )
    if name not in LOSSES:
        raise UnknownNameError("loss", name, [*LOSSES, "ce"])
    weight = LOSSES[name].weight if match["weight"] is None else _weight(match["weight"], text)
    term = Term(name, _options(name, match["options"] or "()"), weight)
    _try(term)
    return term


def _weight(text: str, term: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise OptionError(f"a weight must be a number of 0 or more, found {text!r} in {term!r}")
    return weight


def _options(name: str, text: str) -> dict[str, Any]:
    """Fill in every option of a loss from ``(option=value, ...)``; a bare word is a string."""
    try:
        call = ast.parse(f"f{text}", mode="eval").body
    except (SyntaxError, ValueError):
        call = None
    if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
        raise OptionError(f"options of {name} read (option=value, ...), found {text!r}")
    parameters = LOSSES[name].options()
    given = {}
    for word in call.keywords:
        option = str(word.arg)
        if option not in parameters:
            known = ", ".join(parameters)
            raise OptionError(f"loss {name} has no option {option!r}; it has {known}")
        given[option] = _value(f"{name}'s {option}", word.value, parameters[option].annotation)
    return {option: given.get(option, p.default) for option, p in parameters.items()}


def _value(what: str, node: ast.expr, hint: Any) -> Any:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = ast.unparse(node)
    if not _fits(value, hint):
        raise OptionError(f"{what} must be {_described(hint)}, found {value!r}")
    return float(value) if hint is float else value


def _fits(value: object, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, h) for h in typing.get_args(hint))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(typing.cast(float, value))
    return value is None if hint is type(None) else type(value) is hint


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if isinstance(hint, types.UnionType):
        return " or ".join(map(_described, typing.get_args(hint)))
    names = {
        float: "a number",
        int: "a whole number",
        bool: "True or False",
        type(None): "None",
        str: "a word",
    }
    return names[hint]


def _written(value: object) -> str:
    """Write a value as `_options` reads it back."""
    return value if isinstance(value, str) else repr(value)


def _try(term: Term) -> None:
    """Run a loss once on two rows of four classes, so that a bad option is refused before any training."""
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, 0.5]])
    teacher = SparseTeacher.from_logits(logits, 2)
    LOSSES[term.name].function(logits.flip(0), teacher, torch.tensor([0, 1]), **term.options)
