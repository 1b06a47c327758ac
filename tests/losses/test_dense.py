"""Every loss is its plain dense formula on the teacher's logits, and its gradient is that of its value."""

import functools
import math

import dense
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from logitcache.losses import LOSSES
from logitcache.losses.correlation import FLAT
from logitcache.teacher.completion import Completion, fit_statistics
from logitcache.teacher.sparse import SparseTeacher

pytestmark = pytest.mark.filterwarnings("ignore:.*of which the teacher lists:UserWarning")

CASES = [
    ("kd", {}),
    ("kd", {"temperature": 1.0}),
    ("reverse_kl", {}),
    ("js", {"temperature": 2.0}),
    ("bdkd", {}),
    ("bdkd", {"temperature": 1.0, "delta": 3.0, "entropy_temperature": 2.0}),
    ("erkd", {}),
    ("erkd", {"temperature": 1.0, "entropy_temperature": 2.0}),
    ("ttm", {}),
    ("wttm", {"temperature": 2.0}),
    ("dist", {}),
    ("dist", {"temperature": 4.0, "beta": 2.0, "gamma": 0.5}),
    ("dkd", {}),
    ("dkd", {"temperature": 1.0, "alpha": 0.5, "beta": 2.0}),
    ("nkd", {}),
    ("nkd", {"temperature": 2.0, "gamma": 1.0}),
    ("pld", {}),
    ("pld", {"temperature": 2.0}),
    ("logit_std", {}),
    ("kendall", {}),
    ("mse", {}),
    ("mse", {"centred": True}),
    ("sinkd", {}),
    ("sinkd", {"strength": 0.5, "iterations": 3}),
    ("taid", {"progress": 0.5}),
    ("taid", {"temperature": 2.0, "start": 0.1}),
    ("dho", {}),
    ("dhkd", {}),
    ("cmkd", {}),
    ("cmkd", {"temperature": 1.0, "strength": 0.05}),
    ("cmkd", {"values": "logits", "intra": 0.5}),
]


@functools.cache
def completion(classes):
    """Class statistics of a teacher whose classes go together."""
    generator = torch.Generator().manual_seed(classes)
    factors = torch.randn(classes, 4, generator=generator)
    logits = torch.randn(60, 4, generator=generator) @ factors.T
    return Completion.of(fit_statistics(3 * logits + torch.randn(60, classes, generator=generator)))


def made(name, *, b=6, c=20, k=None, dtype=torch.float64, told=True):
    """Student logits, a teacher that lists k of its logits and is told the others or spreads them evenly, labels."""
    s, t, _, y = dense.batch(b, c, dtype=dtype, heads=LOSSES[name].heads)
    return s, SparseTeacher.from_logits(t, k or c, completion(c) if told else None), y


def has_flat_columns(logits, temperature):
    p = (logits / temperature).softmax(1)
    return (p.std(0, correction=0) < 2 * FLAT * p.square().mean(0).sqrt()).any()


def assert_equal(value, expected, s, tolerance):
    (gradient,), (expected_gradient,) = torch.autograd.grad(value, s), torch.autograd.grad(expected, s)
    assert value.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    assert (gradient - expected_gradient).norm() <= tolerance * (expected_gradient.norm() + 1e-3)


@pytest.mark.parametrize(("name", "options"), CASES)
@given(st.integers(3, 30), st.integers(2, 9), st.data())
@settings(max_examples=15, deadline=None)
def test_equals_the_dense_loss(name, options, classes, rows, data):
    """All classes listed, or the others completed: what is listed makes no difference, but to `kendall`."""
    k = classes if name == "kendall" else data.draw(st.integers(1, classes))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    s, teacher, y = made(name, b=rows, c=classes, k=k)
    if name == "dist" or "intra" in options:
        temperature = options.get("temperature", LOSSES[name].options()["temperature"].default)
        assume(not any(has_flat_columns(x, temperature) for x in (s, teacher.logits)))
    if (
        name == "pld"
    ):  # of two classes with one logit, such as the last listed one and the next, either may come first
        assume((teacher.logits.sort(1).values.diff(dim=1) > 0).all())
    value = LOSSES[name].function(s, teacher, y, **options)
    assert_equal(value, getattr(dense, name)(s, teacher.logits, y, **options), s, 1e-7)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_equals_the_dense_loss_in_float32(name, options):
    s, teacher, y = made(name, dtype=torch.float32)
    value = LOSSES[name].function(s, teacher, y, **options)
    assert_equal(value, getattr(dense, name)(s, teacher.logits, y, **options), s, 1e-5)


def test_every_loss_is_compared():
    assert {name for name, _ in CASES} == set(LOSSES)


SOFT = ["kd", "reverse_kl", "js", "ttm", "dist", "dkd", "taid", "sinkd", "dho"]


@pytest.mark.parametrize(("name", "temperature"), [*((name, 3.0) for name in SOFT), ("nkd", 1.0)])
@pytest.mark.parametrize("k", [1, 5, 19])
def test_with_an_even_tail_equals_the_dense_loss_of_its_probabilities(name, temperature, k):
    s, teacher, y = made(name, k=k, told=False)
    value = LOSSES[name].function(s, teacher, y, temperature=temperature)
    t = temperature * teacher.at(temperature).log_probs
    assert_equal(value, getattr(dense, name)(s, t, y, temperature=temperature), s, 1e-9)


@pytest.mark.parametrize("name", ["bdkd", "erkd"])
@pytest.mark.parametrize("k", [1, 5, 19])
def test_entropies_of_an_even_tail_are_those_of_its_probabilities(name, k):
    s, teacher, y = made(name, k=k, told=False)
    options = {"temperature": 3.0, "entropy_temperature": 3.0}
    t = 3 * teacher.at(3.0).log_probs
    value = LOSSES[name].function(s, teacher, y, **options)
    assert_equal(value, getattr(dense, name)(s, t, y, **options), s, 1e-9)


def test_bdkd_weighs_by_who_is_less_sure():
    """An oversure student feels more of the forward divergence, an unsure one more of the reverse."""
    sure, unsure = torch.tensor([[4.0, 0.0, 0.0]]).double(), torch.tensor([[0.5, 0.0, 0.0]]).double()
    for s, t, more in ((sure, unsure, "kd"), (unsure, sure, "reverse_kl")):
        teacher = SparseTeacher.from_logits(t, 3)
        forward, reverse, balanced = (LOSSES[n].function(s, teacher) for n in ("kd", "reverse_kl", "bdkd"))
        torch.testing.assert_close(balanced, forward + reverse + LOSSES[more].function(s, teacher))


def test_soft_cross_entropy_is_kd_at_temperature_one_and_the_teachers_entropy():
    """MEAL V2's loss: another value by a constant, and the same gradient."""
    s, t, teacher, _ = dense.batch()
    soft_ce = -(t.softmax(1) * s.log_softmax(1)).sum(1).mean()
    value = LOSSES["kd"].function(s, teacher, temperature=1.0)
    assert_equal(value + dense.entropy(t.softmax(1)).mean(), soft_ce, s, 1e-9)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_wttm_weighs_by_the_power_sum_at_any_k(k):
    s, teacher, _ = made("wttm", k=k, told=False)
    warm, sharp = teacher.listed_at(2.0), teacher.listed_at(1.0)
    rows = dense.kl(teacher.at(2.0).probs, s.softmax(1))
    expected = ((warm.lse - sharp.lse / 2).exp() * rows).mean()
    assert_equal(LOSSES["wttm"].function(s, teacher, temperature=2.0), expected, s, 1e-9)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize(("k", "told"), [(10, True), (4, True), (1, True), (4, False), (1, False)])
def test_gradcheck(name, options, k, told):
    s, teacher, y = made(name, b=3, c=10, k=k, told=told)
    fixed = {"start": 1.0} if name == "taid" else {}  # below 1 its target moves with the student, by design

    def loss(s):
        return LOSSES[name].function(s, teacher, y, **(options | fixed))

    if name == "kendall" and k == 1:
        assert loss(s) == 1
    else:
        assert torch.autograd.gradcheck(loss, (s,))


@pytest.mark.parametrize(
    "options", [{"difficulty": "fixed", "balance": 0.3}, {"difficulty": "teacher_error"}]
)
@pytest.mark.parametrize("hard", ["spearman", "pearson"])
def test_cmkd_weighs_by_difficulty(options, hard):
    s, t, teacher, y = dense.batch()
    h = torch.full((6,), 0.3) if "balance" in options else 1 - t.softmax(1).gather(1, y[:, None])[:, 0]
    value = LOSSES["cmkd"].function(s, teacher, y, hard=hard, **options)
    expected = dense.cmkd(s, t, y, h=h if hard == "spearman" else 1 - h)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("difficulty", ["student_entropy", "student_ce"])
def test_cmkd_weights_carry_no_gradient(difficulty):
    s, t, teacher, y = dense.batch(spread=1.0)
    with torch.no_grad():
        q = s.softmax(1)
        log_q_y = s.log_softmax(1).gather(1, y[:, None])[:, 0]
        measure = dense.entropy(q) if difficulty == "student_entropy" else -log_q_y
        h = (measure / math.log(20)).clamp(max=1.0)
    value = LOSSES["cmkd"].function(s, teacher, y, difficulty=difficulty)
    expected = dense.cmkd(s, t, y, h=h)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (value, expected)))


@pytest.mark.parametrize("k", [2, 5, 20])
def test_cmkd_can_rank_the_listed_classes_among_themselves(k):
    s, t, _, _ = dense.batch()
    teacher = SparseTeacher.from_logits(t, k, completion(20))
    x, y = s.gather(1, teacher.ids), teacher.listed
    spearman = dense.pearson(dense.ranks(dense.z(x), 0.25), dense.ranks(dense.z(y), 0.25))
    value = LOSSES["cmkd"].function(s, teacher, support="listed", difficulty="fixed", balance=1.0)
    assert_equal(value, (1 - spearman).mean(), s, 1e-9)


def test_one_listed_class_alone_has_no_order():
    s, t, _, _ = dense.batch()
    options = {"support": "listed", "difficulty": "fixed", "balance": 1.0}
    value = LOSSES["cmkd"].function(s, SparseTeacher.from_logits(t, 1), **options)
    value.backward()
    assert value == 1
    assert s.grad.eq(0).all()


def test_cmkd_takes_an_even_tail_for_tied():
    """Its classes share their mean rank, below those that are listed."""
    s, teacher, _ = made("cmkd", k=5, told=False)
    ranks = torch.full_like(s, 8.0).scatter(
        1, teacher.ids, torch.arange(20.0, 15.0, -1).double().expand(6, 5)
    )
    found = LOSSES["cmkd"].function(s, teacher, difficulty="fixed", balance=1.0, strength=1e-3)
    expected = (1 - dense.pearson(dense.ranks(dense.z(s), 1e-3), ranks.detach())).mean()
    torch.testing.assert_close(found, expected)


def test_dist_takes_a_class_that_never_changes_for_flat():
    """Its column has no correlation: the loss counts it as 1, and it has no gradient."""
    s, t = torch.randn(2, 6, 5)
    t[:, 3] = t[:, :3].logsumexp(1)  # of the first four it has half
    t[:, 4] = -100.0
    s.requires_grad_()
    columns = {"temperature": 1.0, "beta": 0.0}
    value = LOSSES["dist"].function(s, SparseTeacher.from_logits(t, 5), **columns)
    p, q = t.softmax(1), s.softmax(1)
    expected = (3 - dense.pearson(p.T, q.T)[:3].sum() + 2) / 5
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
