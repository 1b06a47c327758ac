"""Extreme inputs, half precision, invariances: no loss may turn into NaN, anywhere."""

import functools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from logitcache.errors import OptionError
from logitcache.losses import LOSSES, Objective
from logitcache.losses.kendall import kendall
from logitcache.teacher.completion import Completion, fit_statistics
from logitcache.teacher.sparse import SparseTeacher

pytestmark = pytest.mark.filterwarnings("ignore:.*of which the teacher lists:UserWarning")

VARIANTS = [
    *((name, {}) for name in LOSSES),
    *((name, {"temperature": 1.0}) for name in ("kd", "reverse_kl", "js", "ttm", "dkd", "sinkd")),
    ("mse", {"centred": True}),
    ("taid", {"progress": 1.0}),
    ("logit_std", {"loss": Objective.parse("pld").terms[0][0]}),
    ("cmkd", {"temperature": 1.0, "operator": "blondel", "intra": 1.0}),
    ("cmkd", {"values": "logits", "difficulty": "student_ce"}),
    ("cmkd", {"difficulty": "student_entropy", "hard": "pearson"}),
    ("cmkd", {"support": "listed", "difficulty": "teacher_error"}),
]


def extreme(kind, b, c):
    if kind == "random":
        return torch.randn(b, c) * 3
    if kind == "equal":
        return torch.full((b, c), 2.5)
    if kind == "nearly_equal":
        return 1.0 + torch.randn(b, c) * 1e-6
    if kind == "one_hot":
        return torch.zeros(b, c).scatter(1, torch.randint(c, (b, 1)), 100.0)
    return torch.randn(b, c).sign() * (10000 if kind == "large" else 60000)


KINDS = ["random", "equal", "nearly_equal", "one_hot", "large", "huge"]


@functools.cache
def completion(classes):
    generator = torch.Generator().manual_seed(classes)
    return Completion.of(fit_statistics(torch.randn(20, classes, generator=generator)))


def check(name, options, s, teacher, y):
    if LOSSES[name].heads == 2:
        s = torch.stack([s.flip(0), s], 1)
    s = s.requires_grad_()
    value = LOSSES[name].function(s, teacher, y, **options)
    (gradient,) = torch.autograd.grad(value, s)
    assert value.dtype == torch.float32
    assert value.isfinite(), value
    assert gradient.dtype == s.dtype
    assert gradient.isfinite().all(), gradient


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.integers(2, 9), st.integers(0, 100), st.data())
@settings(max_examples=25, deadline=None)
def test_nothing_is_ever_nan(name, options, student, teacher, classes, seed, data):
    torch.manual_seed(seed)
    k = data.draw(st.integers(1, classes))
    y = torch.tensor(data.draw(st.lists(st.integers(-1, classes - 1), min_size=3, max_size=3)))
    s, t = extreme(student, 3, classes), extreme(teacher, 3, classes)
    told = data.draw(st.sampled_from([completion(classes), None]))
    check(name, options, s, SparseTeacher.from_logits(t, k, told), y)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("k", "classes"), [(1, 8), (3, 8), (8, 8), (1, 2)])
@pytest.mark.parametrize("told", [True, False])
def test_half_precision_logits_under_autocast(name, options, dtype, k, classes, told):
    y = torch.tensor([0, -1, classes - 1, -1])
    with torch.autocast("cpu", dtype):
        for student in KINDS:
            for kind in KINDS:
                s, t = extreme(student, 4, classes).to(dtype), extreme(kind, 4, classes).to(dtype)
                check(
                    name,
                    options,
                    s,
                    SparseTeacher.from_logits(t, k, completion(classes) if told else None),
                    y,
                )


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_give_the_loss_of_the_same_numbers(name):
    s, t = (extreme("random", 6, 30).bfloat16() for _ in range(2))
    y = torch.randint(30, (6,))
    if LOSSES[name].heads == 2:
        s = torch.stack([s, s.flip(0)], 1)
    teacher = SparseTeacher.from_logits(t, 8, completion(30))
    with torch.autocast("cpu", torch.bfloat16):
        value = LOSSES[name].function(s, teacher, y)
    torch.testing.assert_close(value, LOSSES[name].function(s.float(), teacher, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"values": "logits"}, {"operator": "blondel"}, {"support": "listed"}]
)
def test_cmkd_does_not_see_the_students_offset(options):
    s, t = torch.randn(2, 5, 40, dtype=torch.float64)
    teacher = SparseTeacher.from_logits(t, 10)
    value = LOSSES["cmkd"].function(s, teacher, **options)
    torch.testing.assert_close(LOSSES["cmkd"].function(s + 7, teacher, **options), value)


def test_cmkd_between_logits_does_not_see_the_students_scale():
    s, t = torch.randn(2, 5, 40, dtype=torch.float64)
    teacher = SparseTeacher.from_logits(t, 10)
    value = LOSSES["cmkd"].function(s, teacher, values="logits")
    torch.testing.assert_close(LOSSES["cmkd"].function(s * 3, teacher, values="logits"), value)


LEARNT = ["kd", "reverse_kl", "js", "bdkd", "erkd", "cmkd", "dist", "logit_std", "mse", "taid"]


@pytest.mark.parametrize("name", LEARNT)
def test_a_student_that_is_the_teacher_has_nothing_to_learn(name):
    t = torch.randn(6, 12, dtype=torch.float64) * 3
    s = t.clone().requires_grad_()
    value = LOSSES[name].function(s, SparseTeacher.from_logits(t, 12))
    (gradient,) = torch.autograd.grad(value, s)
    assert value.abs() < 1e-6
    assert gradient.norm() < 1e-6


@pytest.mark.parametrize("name", ["kd", "reverse_kl", "js"])
def test_temperature_squared_keeps_the_gradients_size(name):
    """For T → ∞ the gradient of T² · divergence tends to a limit: that of half the centred squares over C."""
    s, t = (torch.randn(4, 10, dtype=torch.float64) for _ in range(2))
    s.requires_grad_()
    teacher = SparseTeacher.from_logits(t, 10)
    at = [torch.autograd.grad(LOSSES[name].function(s, teacher, temperature=T), s)[0] for T in (1e3, 1e4)]
    difference = s.detach() - t
    limit = (difference - difference.mean(1, keepdim=True)) / 10 / 4 / (4 if name == "js" else 1)
    torch.testing.assert_close(at[1], limit, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(at[0], at[1], rtol=1e-2, atol=1e-4)


def test_kendall_is_the_true_tau_when_the_strength_is_small():
    s, t = torch.randn(2, 7, 9, dtype=torch.float64)
    expected = sum(1 - kendalltau(a, b).statistic for a, b in zip(s.numpy(), t.numpy(), strict=True)) / 7
    assert kendall(s, SparseTeacher.from_logits(t, 9), strength=1e-4).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["dkd", "nkd", "pld"])
def test_losses_with_labels_ask_for_them_and_skip_rows_without(name):
    s, t = torch.randn(2, 6, 10, dtype=torch.float64)
    y = torch.tensor([3, -1, 5, -1, 0, 9])
    teacher = SparseTeacher.from_logits(t, 4)
    kept = y >= 0
    value = LOSSES[name].function(s, teacher, y)
    torch.testing.assert_close(value, LOSSES[name].function(s[kept], teacher[kept], y[kept]))
    with pytest.raises(OptionError, match=f"{name} needs labels"):
        LOSSES[name].function(s, teacher)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("mse", "logit_std", "dhkd", "pld", "cmkd")),
        ("cmkd", {"support": "listed", "values": "logits"}),
    ],
)
def test_losses_of_single_logits_warn_of_an_even_tail(name, options):
    t, y = torch.randn(4, 10), torch.zeros(4, dtype=torch.int64)
    s = torch.stack([t, t], 1) if LOSSES[name].heads == 2 else t
    even = SparseTeacher.from_logits(t, 4)
    for whole in (SparseTeacher.from_logits(t, 10), SparseTeacher.from_logits(t, 4, completion(10))):
        LOSSES[name].function(s, whole, y, **options)
    with pytest.warns(UserWarning, match="10 classes, of which the teacher lists 4") as warned:
        LOSSES[name].function(s, even, y, **options)
    (text,) = {str(warning.message) for warning in warned}
    assert "`logitcache calibrate CACHE` adds that" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("kd", "reverse_kl", "js", "bdkd", "erkd", "ttm", "wttm", "dkd")),
        *((name, {}) for name in ("nkd", "taid", "dist")),
        *((name, {}) for name in ("sinkd", "kendall", "dho")),
        ("cmkd", {"support": "listed"}),
        ("cmkd", {"difficulty": "fixed", "balance": 0.0}),
    ],
)
def test_losses_of_probabilities_do_not_warn(name, options):
    t, y = torch.randn(4, 10), torch.zeros(4, dtype=torch.int64)
    s = torch.stack([t, t], 1) if LOSSES[name].heads == 2 else t
    with warnings.catch_warnings(action="error"):
        LOSSES[name].function(s, SparseTeacher.from_logits(t, 4), y, **options)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("kd", {"temperature": -1.0}, "temperature must be"),
        ("bdkd", {"delta": 0.5}, "delta must be"),
        ("bdkd", {"entropy_temperature": 0.0}, "temperature must be"),
        ("erkd", {"entropy_temperature": -1.0}, "temperature must be"),
        ("dist", {"gamma": -1.0}, "beta and gamma"),
        ("cmkd", {"operator": "sort"}, "laplace or blondel"),
        ("cmkd", {"support": "topk"}, "all or listed"),
        ("cmkd", {"balance": 2.0}, "balance"),
        ("cmkd", {"intra": -1.0}, "intra"),
        ("cmkd", {"difficulty": "teacher_error"}, "needs labels"),
        ("cmkd", {"difficulty": "student_ce"}, "needs labels"),
        ("dkd", {"beta": -1.0}, "beta must be"),
        ("sinkd", {"iterations": 0}, "iterations"),
        ("taid", {"start": 0.9, "end": 0.5}, "start and end"),
        ("taid", {"progress": 1.5}, "progress"),
        ("kendall", {"strength": 0.0}, "strength"),
        ("dho", {}, r"\(B, 2, C\)"),
        ("dhkd", {}, r"\(B, 2, C\)"),
    ],
)
def test_options_out_of_range_are_refused(name, options, says):
    t = torch.randn(4, 10)
    target = None if says == "needs labels" else torch.zeros(4, dtype=torch.int64)
    with pytest.raises(OptionError, match=says):
        LOSSES[name].function(t, SparseTeacher.from_logits(t, 4), target, **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("expression", "backend"), [("kd", "inductor"), ("kd:0.5+cmkd", "aot_eager")])
def test_the_default_losses_compile_whole(expression, backend):
    objective = Objective.parse(expression)
    s, t = torch.randn(2, 8, 50)
    teacher, y = SparseTeacher.from_logits(t, 10, completion(50)), torch.randint(50, (8,))
    assert teacher.logits.shape == (8, 50)  # completed before: that is no part of the graph
    whole = torch.compile(lambda s: objective(s, teacher, y)[0], fullgraph=True, backend=backend)
    results = []
    for function in (whole, lambda s: objective(s, teacher, y)[0]):
        leaf = s.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
