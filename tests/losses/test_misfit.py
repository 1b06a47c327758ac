"""Which loss is warned of on which teacher: what costs students accuracy is said in one line, all else is silent.

The numbers behind the table are those of docs/losses.md, "What warns".
"""

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.losses import LOSSES, Objective
from logitcache.losses.ce import ce
from logitcache.teacher.completion import Completion, fit_statistics
from logitcache.teacher.ensemble import average_teachers
from logitcache.teacher.sparse import SparseTeacher

C, B = 100, 16


def completion(classes: int) -> Completion:
    return Completion.of(fit_statistics(torch.randn(64, classes, generator=torch.Generator().manual_seed(1))))


Make = Callable[[Tensor], SparseTeacher]

KINDS: dict[str, Make] = {
    "exact": lambda t: SparseTeacher.from_logits(t, C),
    "8 completed": lambda t: SparseTeacher.from_logits(t, 8, completion(C)),
    "32 completed": lambda t: SparseTeacher.from_logits(t, 32, completion(C)),
    "1 completed": lambda t: SparseTeacher.from_logits(t, 1, completion(C)),
    "8 even, sharp": lambda t: SparseTeacher.from_logits(t * 20, 8),
    "8 even, wide": lambda t: SparseTeacher.from_logits(t, 8),
    "1 even": lambda t: SparseTeacher.from_logits(t, 1),
    "ensemble": lambda t: average_teachers(
        [SparseTeacher.from_logits(t, 8, completion(C)), SparseTeacher.from_logits(t, 8)]
    ),
    "8 completed, masked": lambda t: SparseTeacher.from_logits(
        t.masked_fill(torch.arange(C) >= 50, -torch.inf), 8, completion(C)
    ),
    "8 completed, near uniform": lambda t: SparseTeacher.from_logits(t / 1000, 8, completion(C)),
}
EVEN_LOGITS = "classes, of which the teacher lists"
MASS = "of the probability from classes that the teacher does not list"
FEW = "is too coarse for it"
NO_ORDER = "that has no gradient"
PROBABILITIES = [
    "kd",
    "reverse_kl",
    "js",
    "bdkd",
    "erkd",
    "dist",
    "dkd",
    "nkd",
    "ttm",
    "wttm",
    "sinkd",
    "taid",
    "dho",
]
LOGITS = ["cmkd", "pld", "logit_std", "mse", "dhkd"]
WIDE = {"8 even, wide": MASS, "1 even": MASS}
EVEN = {"8 even, sharp": EVEN_LOGITS, "8 even, wide": EVEN_LOGITS, "1 even": EVEN_LOGITS}
COARSE = dict.fromkeys(
    ("8 completed", "1 completed", "8 completed, masked", "8 completed, near uniform"), FEW
)
RANKED = {"1 completed": NO_ORDER, "1 even": NO_ORDER}
WARNED = {
    **dict.fromkeys(PROBABILITIES, WIDE),
    **dict.fromkeys(LOGITS, EVEN),
    "reverse_kl": {**WIDE, **COARSE},
    "bdkd": {**WIDE, **COARSE},
    "mse": {**EVEN, **COARSE},
    "kendall": RANKED,
}


def said(
    expression: str, make: Make, *, rows: int = B, classes: int = C, labels: int | None = 0
) -> list[str]:
    """Return what is said of three batches."""
    objective, found = Objective.parse(expression, ce_weight=0.0 if labels is None else 1.0), []
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            t, s = torch.randn(2, rows, classes, generator=generator)
            student = torch.stack([s, s], 1) if objective.heads == 2 else s
            target = None if labels is None else torch.full((rows,), labels)
            objective(student.requires_grad_(), make(t), target)
        found = [str(warning.message) for warning in caught]
    assert all("\n" not in text for text in found)
    return found


def test_the_table_is_of_all_losses() -> None:
    assert WARNED.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_degrades_is_said_once_in_a_line(name: str, kind: str) -> None:
    found = said(name, KINDS[kind])
    expected = WARNED[name].get(kind, "")
    assert len(found) == (1 if expected else 0), found
    assert all(expected in text and text.startswith(name) for text in found)


# What has no gradient is said, and what has one is not ----------------------------------------------------------


def gradient_of(expression: str, teacher: SparseTeacher, rows: int, classes: int) -> float:
    objective = Objective.parse(expression, ce_weight=0.0)
    s = torch.randn(rows, classes, dtype=torch.float64)
    student = (torch.stack([s, s], 1) if objective.heads == 2 else s).requires_grad_()
    with warnings.catch_warnings(action="ignore"):
        total, _ = objective(student, teacher, torch.zeros(rows, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(total, student)
    return float(gradient.norm())


@pytest.mark.parametrize(
    "expression",
    [*LOSSES, "dist(gamma=0.0)", "cmkd(intra=1.0)", "cmkd(support=listed)", "logit_std(loss=dkd)"],
)
def test_of_two_classes_those_without_a_gradient_are_named(expression: str) -> None:
    torch.manual_seed(0)
    teacher = SparseTeacher.from_logits(torch.randn(B, 2, dtype=torch.float64), 2)
    found = said(expression, lambda t: SparseTeacher.from_logits(t, 2), classes=2)
    if gradient_of(expression, teacher, B, 2) < 1e-6:
        (text,) = found
        assert "two classes is always the same: it has no gradient; take kd" in text
    else:
        assert found == []


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
@pytest.mark.parametrize(
    "expression", ["dist(beta=0.0)", "cmkd(intra=1.0)", "sinkd", "dist(gamma=0.0)", "kd"]
)
def test_too_few_rows_for_losses_that_compare_them(expression: str, rows: int) -> None:
    found = said(expression, KINDS["exact"], rows=rows)
    compares = expression in ("dist(beta=0.0)", "cmkd(intra=1.0)", "sinkd")
    assert len(found) == (compares and rows < 3)
    assert all(f"compares the rows of a batch, of which there are {rows}" in text for text in found)
    if expression == "dist(beta=0.0)" and rows != 2:  # of two a column correlates fully, but for flat ones
        torch.manual_seed(0)
        teacher = SparseTeacher.from_logits(torch.randn(rows, C, dtype=torch.float64), C)
        assert (gradient_of(expression, teacher, rows, C) < 1e-6) == (rows == 1)


@pytest.mark.parametrize("expression", ["kendall", "cmkd(support=listed)", "logit_std(loss=kendall)"])
@pytest.mark.parametrize("k", [1, 2, 60])
def test_order_of_one_or_two_listed_classes(expression: str, k: int) -> None:
    found = said(expression, lambda t: SparseTeacher.from_logits(t * 8, k, completion(C)))
    assert [NO_ORDER in text for text in found] == ([True] if k < 3 else [])


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 20.0, 100.0])
def test_temperatures_that_nobody_uses(temperature: float) -> None:
    for name in ("kd", "dist", "js", "logit_std(loss=kd(temperature={}))"):
        text = name.format(temperature) if "{}" in name else f"{name}(temperature={temperature})"
        found = said(text, KINDS["exact"])
        assert len(found) == (not 0.1 <= temperature <= 20)
        assert all("temperature" in line and "is outside 0.1 to 20" in line for line in found)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_without_labels(name: str) -> None:
    found = said(name, KINDS["exact"], labels=-1)
    assert len(found) == (name in ("dkd", "nkd", "pld"))
    assert all("no row of the first batch has one" in text for text in found)


@pytest.mark.parametrize("name", LOSSES)
def test_no_labels_at_all_are_enough_or_the_loss_says_that_it_needs_them(name: str) -> None:
    if name in ("dkd", "nkd", "pld"):
        with pytest.raises(OptionError, match=f"loss {name} needs labels; give a target"):
            said(name, KINDS["exact"], labels=None)
    else:
        found = said(name, KINDS["exact"], labels=None)
        assert [("without cross-entropy" in text) for text in found] == ([True] if name == "sinkd" else [])
    with pytest.raises(OptionError, match="loss cmkd of difficulty teacher_error needs labels"):
        said("cmkd(difficulty=teacher_error)", KINDS["exact"], labels=None)


@pytest.mark.parametrize("name", LOSSES)
def test_another_number_of_classes_is_refused_in_a_line(name: str) -> None:
    objective = Objective.parse(name)
    shape = (B, 2, C - 10) if objective.heads == 2 else (B, C - 10)
    with pytest.raises(
        OptionError, match=re.escape("of 100 classes, the student's of 90; build the student with")
    ):
        objective(torch.randn(shape), KINDS["exact"](torch.randn(B, C)), torch.zeros(B, dtype=torch.int64))


@given(mass=st.floats(0.01, 0.9), name=st.sampled_from(PROBABILITIES))
def test_it_is_the_mass_of_an_even_tail_that_counts(mass: float, name: str) -> None:
    share = torch.full((B, C), (1 - mass) / 8).index_fill(1, torch.arange(8, C), mass / (C - 8))
    if mass / (C - 8) > (1 - mass) / 8:
        return
    temperature = LOSSES[name].options()["temperature"].default
    logits = share.log() * temperature
    found = said(name, lambda _: SparseTeacher.from_logits(logits, 8))
    at = float(SparseTeacher.from_logits(logits, 8).listed_at(temperature).tail_mass.mean())
    limit = 0.1 if name in ("dist", "dkd", "nkd") else 0.25
    assert len(found) == (at > limit)


def test_a_term_of_weight_zero_is_not_looked_at() -> None:
    assert said("reverse_kl:0+kd", KINDS["8 completed"]) == []


@pytest.mark.parametrize("kind", ["8 completed", "8 even, sharp"])
def test_what_learns_little_without_cross_entropy(kind: str) -> None:
    (text,) = said("kendall", KINDS[kind], labels=None)
    assert "never against the other 92: without cross-entropy" in text
    assert said("kendall+kd", KINDS[kind], labels=None) == []
    assert said("kendall", KINDS[kind]) == []


def test_what_is_looked_at_changes_no_number() -> None:
    s, t = torch.randn(2, B, C)
    y = torch.zeros(B, dtype=torch.int64)
    teacher, objective = KINDS["8 completed"](t), Objective.parse("kd")
    first, again = (objective(s, teacher, y)[0] for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first, ce(s, y) + LOSSES["kd"].function(s, teacher))
