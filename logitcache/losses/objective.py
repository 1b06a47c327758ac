"""What a student minimises: cross-entropy plus any weighted sum of distillation losses, from a line of text.

    kd                                   one loss, its default options and weight
    kd:0.5+cmkd(temperature=2.0):1       a sum, with weights and options

To add a loss: write the function in a file of its own and one line in `LOSSES`.
"""

import ast
import math
import re
import typing
import warnings
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from logitcache.errors import OptionError, UnknownNameError
from logitcache.losses.bdkd import bdkd
from logitcache.losses.ce import ce
from logitcache.losses.cmkd import cmkd
from logitcache.losses.decoupled import dkd, nkd
from logitcache.losses.dist import dist
from logitcache.losses.erkd import erkd
from logitcache.losses.kd import js, kd, reverse_kl
from logitcache.losses.kendall import kendall
from logitcache.losses.logit_std import logit_std
from logitcache.losses.misfit import list_misfits
from logitcache.losses.mse import mse
from logitcache.losses.pld import pld
from logitcache.losses.registry import Loss, Term
from logitcache.losses.sinkd import sinkd
from logitcache.losses.taid import taid
from logitcache.losses.ttm import ttm, wttm
from logitcache.losses.two_heads import dhkd, dho
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.mixing import MixedLabels

# The default weights, against a cross-entropy of weight 1, are argued in docs/losses.md.
LOSSES = {
    "kd": Loss(kd),
    "reverse_kl": Loss(reverse_kl),
    "js": Loss(js, weight=4.0),
    "bdkd": Loss(bdkd, weight=0.5),
    "erkd": Loss(erkd, weight=0.25),
    "cmkd": Loss(cmkd, weight=4.0),
    "dist": Loss(dist),
    "dkd": Loss(dkd),
    "nkd": Loss(nkd),
    "ttm": Loss(ttm),
    "wttm": Loss(wttm),
    "pld": Loss(pld),
    "logit_std": Loss(logit_std, weight=9.0),
    "kendall": Loss(kendall, weight=2.0),
    "mse": Loss(mse, weight=0.25),
    "sinkd": Loss(sinkd, weight=0.8),
    "taid": Loss(taid),
    "dho": Loss(dho, heads=2),
    "dhkd": Loss(dhkd, heads=2),
}


class Objective(nn.Module):
    """ce_weight · CE + Σ weight · loss, over one batch; the first is looked at, for what a loss cannot learn from."""

    def __init__(
        self,
        terms: tuple[tuple[Term, float], ...],
        *,
        ce_weight: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= ce_weight < math.inf:
            raise OptionError(f"ce_weight must be 0 or more, found {ce_weight}")
        if not 0 <= label_smoothing <= 1:
            raise OptionError(f"label_smoothing must be 0 to 1, found {label_smoothing}")
        self.terms, self.ce_weight, self.label_smoothing = terms, ce_weight, label_smoothing
        self._has_looked = False
        names = [term.name for term, _ in terms]
        self.keys = [
            name if name not in names[:at] else f"{name}#{names[: at + 1].count(name)}"
            for at, name in enumerate(names)
        ]

    @classmethod
    def parse(cls, expression: str, *, ce_weight: float = 1.0, label_smoothing: float = 0.0) -> Self:
        """Read an objective such as ``"kd:0.5+cmkd(temperature=2.0):1"``; ``"ce"`` is cross-entropy alone.

        A term is ``name(option=value, ...):weight``; options and weight may be left out. Cross-entropy is always
        there, by `ce_weight`, or as a term ``ce:weight``.

        Raises:
            UnknownNameError: there is no loss of that name.
            OptionError: the text does not parse, or an option or weight cannot be honoured; or cross-entropy has two
                weights, or all weights are 0.
        """
        texts = _split_terms(expression)
        own = [text for text in texts if re.match(r"ce\s*(:|$)", text)]
        weights = [_parse_weight(text, ce_weight) for text in own]
        beside = [] if ce_weight == 1.0 else [ce_weight]
        if len(own) > 1 or len({*weights, *beside}) > 1:
            named = ", ".join(f"{weight:g}" for weight in weights + beside)
            raise OptionError(
                f"cross-entropy takes one weight, found {named}, in {expression!r} and beside it"
            )
        terms = tuple(_parse_weighted(text) for text in texts if text not in own)
        ce_weight = [*weights, ce_weight][0]
        if not any((ce_weight, *(weight for _, weight in terms))):
            raise OptionError(
                f"every weight of {expression!r} is 0, so nothing would be learnt; give one above 0"
            )
        return cls(terms, ce_weight=ce_weight, label_smoothing=label_smoothing)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term asks the teacher; cross-entropy alone does not."""
        return bool(self.terms)

    @property
    def heads(self) -> int:
        """How many heads the student needs: 1, or 2 for logits of shape (B, 2, C)."""
        return max([1, *(term.loss.heads for term, _ in self.terms)])

    @property
    def mixes_heads(self) -> bool:
        """Whether both heads answer at evaluation; `models.nets.choose_head_mixing` says how."""
        return any(term.name == "dho" for term, _ in self.terms)

    def spec(self) -> dict[str, Any]:
        """Return the settings as JSON values; `parse` of them gives the same objective."""
        return {
            "expression": "+".join(f"{term}:{weight!r}" for term, weight in self.terms) or "ce",
            "ce_weight": self.ce_weight,
            "label_smoothing": self.label_smoothing,
        }

    def forward(
        self,
        student_logits: Tensor,
        teacher: SparseTeacher | None,
        target: Tensor | MixedLabels | None,
        *,
        progress: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the total and each term of it.

        Args:
            student_logits: (B, C) float; (B, 2, C) where `heads` is 2: cross-entropy reads head 0, every other
                term head 1.
            teacher: B rows over the same classes; may be None for cross-entropy alone.
            target: (B,) int64, −1 where there is no label; None where nothing asks for labels. Of mixed views
                cross-entropy takes both labels, by their shares, and every other term the one of the larger share.
            progress: how much of the training is done, in [0, 1]; some losses follow it.

        Returns:
            The scalar to minimise, and each term before weighting, detached: ``{"ce": …, "kd": …}``.

        Raises:
            OptionError: a term needs a teacher or labels, and there are none; or the logits have another number of
                heads, or are of other rows or classes than the teacher's; or labels are not one to a row.
        """
        if student_logits.dim() != 1 + self.heads:
            shape = "(B, C)" if self.heads == 1 else "(B, 2, C)"
            raise OptionError(
                f"this objective needs student logits of shape {shape}, found {tuple(student_logits.shape)}"
            )
        if teacher is not None and self.terms:
            self._require_rows(len(student_logits), len(teacher))
            self._require_classes(student_logits.shape[-1], teacher.num_classes)
        for labels in () if target is None else (target,) if isinstance(target, Tensor) else target:
            _require_labels(len(student_logits), labels)
        head_0, head_1 = (student_logits, student_logits) if self.heads == 1 else student_logits.unbind(1)
        total, label, values = student_logits.new_zeros(()), None, {}
        if target is not None:
            cross_entropy = ce(head_0, target, label_smoothing=self.label_smoothing)
            label = target if isinstance(target, Tensor) else target.dominant
            total = self.ce_weight * cross_entropy
            values["ce"] = cross_entropy.detach()
        elif self.ce_weight:
            raise OptionError(
                f"cross-entropy of weight {self.ce_weight:g} needs labels; give a target, or ce_weight=0"
            )
        for key, (term, weight) in zip(self.keys, self.terms, strict=True):
            if teacher is None:
                raise OptionError(f"loss {term.name} needs a teacher; give one, or train with the loss ce")
            value = term(student_logits if term.loss.heads == 2 else head_1, teacher, label, progress)
            total = total + weight * value
            values[key] = value.detach()
        if teacher is not None and self.terms and not (self._has_looked or torch.compiler.is_compiling()):
            self._look_at(len(student_logits), teacher, target)
        return total, values

    def extra_repr(self) -> str:
        """Write the sum as `parse` takes it, options that are not the defaults alone."""
        terms = "+".join(f"{_describe_term(term)}:{weight:g}" for term, weight in self.terms)
        smoothed = f", label_smoothing={self.label_smoothing:g}" if self.label_smoothing else ""
        return f"{terms or 'ce'}, ce_weight={self.ce_weight:g}{smoothed}"

    def _require_rows(self, found: int, expected: int) -> None:
        if found != expected:
            raise OptionError(
                f"the teacher's answers are of {expected} rows, the student's logits of {found}; give the logits of "
                "the same batch, row by row"
            )

    def _require_classes(self, found: int, expected: int) -> None:
        if found != expected:
            raise OptionError(
                f"the teacher's logits are of {expected} classes, the student's of {found}; build the student with "
                f"num_classes={expected}"
            )

    def _look_at(self, rows: int, teacher: SparseTeacher, target: Tensor | MixedLabels | None) -> None:
        """Warn of what the losses cannot learn from batches like the first."""
        self._has_looked = True
        labels = target.dominant if isinstance(target, MixedLabels) else target
        alone = not self.ce_weight and len(self.terms) == 1
        for term, weight in self.terms:
            for misfit in list_misfits(term, rows, teacher, labels, alone=alone) if weight else ():
                warnings.warn(misfit, stacklevel=2)


def _require_labels(rows: int, labels: Tensor) -> None:
    if labels.shape != (rows,):
        raise OptionError(
            f"labels must be of shape ({rows},), one to a row of logits, found {tuple(labels.shape)}"
        )


def _describe_term(term: Term) -> str:
    defaults = {name: parameter.default for name, parameter in term.loss.options().items()}
    given = {name: value for name, value in term.options.items() if str(value) != str(defaults[name])}
    return (
        f"{term.name}({', '.join(f'{name}={value}' for name, value in given.items())})"
        if given
        else term.name
    )


# Reading an expression ----------------------------------------------------------------------------------


def _split_terms(expression: str) -> list[str]:
    """Split at the plus signs that stand outside brackets and are not part of a number such as 1e+3."""
    terms, depth, start = [], 0, 0
    for at, character in enumerate(expression):
        depth += (character == "(") - (character == ")")
        if character == "+" and depth == 0 and not re.search(r":\s*[\d.]+[eE]$|:\s*$", expression[:at]):
            terms.append(expression[start:at])
            start = at + 1
    terms.append(expression[start:])
    return [term.strip() for term in terms]


def _parse_weighted(text: str) -> tuple[Term, float]:
    term = _parse_term(re.sub(r":[^():]*$", "", text).strip())
    weight = _parse_weight(text, term.loss.weight)
    _try_out(term)
    return term, weight


def _parse_weight(text: str, default: float) -> float:
    """Read the weight at the end of a term; the default where there is none."""
    found = re.search(r":([^():]*)$", text)
    try:
        weight = float(found[1]) if found else default
    except ValueError:
        weight = math.nan
    if found and not 0 <= weight < math.inf:
        raise OptionError(f"a weight must be a number of 0 or more, found {found[1]!r} in {text!r}")
    return weight


def _parse_term(text: str) -> Term:
    match = re.fullmatch(r"(?P<name>\w+)\s*(?P<options>\(.*\))?", text, re.DOTALL)
    if match is None:
        raise OptionError(f"a loss reads name(option=value, ...):weight, found {text!r}{_advise_form(text)}")
    name = match["name"]
    if name == "ce":
        raise OptionError("cross-entropy takes label smoothing as an option of its own, --label-smoothing")
    if name not in LOSSES:
        raise UnknownNameError("loss", name, [*LOSSES, "ce"])
    return Term(name, LOSSES[name], _parse_options(name, match["options"] or "()"))


def _advise_form(text: str) -> str:
    if "*" in text:
        return "; its weight stands behind it, as in kd:0.5"
    if text.count("(") != text.count(")"):
        return "; a bracket is open"
    if "," in text or len(text.split()) > 1:
        return "; several are joined by +, as in kd:0.5+ce:0.5"
    return "" if text else "; name one, such as cmkd, kd or ce"


def _parse_options(name: str, text: str) -> dict[str, Any]:
    """Fill in every option of a loss from ``(option=value, ...)``; a bare word is a string."""
    try:
        call = ast.parse(f"f{text}", mode="eval").body
    except (SyntaxError, ValueError):
        call = None
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise OptionError(f"options of {name} read (option=value, ...), found {text!r}")
    parameters = LOSSES[name].options()
    given = {}
    for keyword in call.keywords:
        option = str(keyword.arg)
        if option not in parameters:
            raise OptionError(
                f"loss {name} has no option {option!r}; it has {', '.join(parameters) or 'none'}"
            )
        given[option] = _parse_value(f"{name}'s {option}", keyword.value, parameters[option].annotation)
    return {option: given.get(option, p.default) for option, p in parameters.items()}


def _parse_value(what: str, node: ast.expr, hint: Any) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = ast.unparse(node).replace(" ", "")  # a bare word, such as teacher_entropy
    if hint is Term:
        return _parse_term(str(value))
    if not _fits(value, hint):
        raise OptionError(f"{what} must be {_describe(hint)}, found {value!r}")
    return float(value) if hint is float else value


def _fits(value: object, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(typing.cast(float, value))
    return type(value) is hint


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    return {float: "a number", int: "a whole number", bool: "True or False"}[hint]


def _try_out(term: Term) -> None:
    """Run a loss once on two rows of four classes, so that a bad option is refused before training."""
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, 0.5]])
    student = logits.flip(0) if term.loss.heads == 1 else torch.stack([logits, logits.flip(0)], 1)
    term(student, SparseTeacher.from_logits(logits, 4), torch.tensor([0, 1]))
