"""At k = C every loss is its plain dense formula, in value and gradient; below, its gradient is its value's."""

import math

import dense
import pytest
import torch

from logitcache.losses import LOSSES
from logitcache.teacher.sparse import SparseTeacher

pytestmark = pytest.mark.filterwarnings("ignore:.*of which the teacher lists:UserWarning")

CASES = [
    ("kd", {}),
    ("kd", {"temperature": 1.0}),
    ("reverse_kl", {}),
    ("js", {"temperature": 2.0}),
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


def made(name, **options):
    return dense.batch(heads=LOSSES[name].heads, **options)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_dense_loss(name, options, dtype):
    s, t, teacher, y = made(name, dtype=dtype)
    value = LOSSES[name].function(s, teacher, y, **options)
    expected = getattr(dense, name)(s, t, y, **options)
    (gradient,) = torch.autograd.grad(value, s)
    (expected_gradient,) = torch.autograd.grad(expected, s)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    assert value.item() == pytest.approx(expected.item(), rel=tolerance)
    assert (gradient - expected_gradient).norm() <= tolerance * expected_gradient.norm()


def test_every_loss_is_compared():
    assert {name for name, _ in CASES} == set(LOSSES)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("k", [1, 4, 10])
def test_gradcheck(name, options, k):
    s, _, teacher, y = made(name, b=3, c=10, k=k)
    fixed = {"start": 1.0} if name == "taid" else {}  # below 1 its target moves with the student, by design

    def loss(s):
        return LOSSES[name].function(s, teacher, y, **(options | fixed))

    if name == "mse" and options and k == 1:
        assert loss(s) == 0
    elif name == "kendall" and k == 1:
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


def test_cmkd_can_rank_all_classes_with_the_tail_as_one_tie():
    s, t, teacher, _ = dense.batch(k=5)
    flat = torch.full_like(t, -100.0).scatter(1, teacher.ids, teacher.logits)
    for row, ids in zip(flat, teacher.ids, strict=True):
        row[ids] = 15 + dense.ranks(dense.z(row[ids][None]), 0.25)[0]
        row[row == -100.0] = 8.0
    spearman = dense.pearson(dense.ranks(dense.z(s), 0.25), flat)
    value = LOSSES["cmkd"].function(s, teacher, support="topk+tail", difficulty="fixed", balance=1.0)
    torch.testing.assert_close(value, (1 - spearman).mean())
    assert torch.autograd.gradcheck(lambda s: LOSSES["cmkd"].function(s, teacher, support="topk+tail"), (s,))


# Tail policies ------------------------------------------------------------------------------------------


def under_policy(s, teacher, tail, temperature):
    """Teacher's and student's distributions as a tail policy sees them, densely."""
    p, q = teacher.at(temperature).densify(), (s / temperature).softmax(1)
    outside = torch.ones_like(s, dtype=torch.bool).scatter(1, teacher.ids, False)
    if tail == "ghost":
        return tuple(torch.cat([x.gather(1, teacher.ids), (x * outside).sum(1, True)], 1) for x in (p, q))
    if tail == "renorm":
        p = p.masked_fill(outside, 0.0)
        p = p / p.sum(1, True)
    return p, q


FORMULAS = {
    "kd": lambda p, q: 4 * (torch.xlogy(p, p) - p * q.log()).sum(1).mean(),
    "reverse_kl": lambda p, q: 4 * dense.kl(q, p).mean(),
    "js": lambda p, q: (
        2 * (2 * dense.entropy((p + q) / 2) + torch.xlogy(p, p).sum(1) - dense.entropy(q)).mean()
    ),
    "dist": lambda p, q: 4 * (1 - dense.pearson(p, q)).mean(),
}


@pytest.mark.parametrize(
    ("name", "tail"),
    [
        *((name, tail) for name in ("kd", "js") for tail in ("uniform", "ghost", "renorm")),
        *(("reverse_kl", tail) for tail in ("uniform", "ghost")),
        *(("dist", tail) for tail in ("uniform", "renorm")),
    ],
)
@pytest.mark.parametrize("k", [1, 5, 19])
def test_tail_policies(name, tail, k):
    s, _, teacher, _ = dense.batch(k=k)
    options = {"temperature": 2.0, "tail": tail} | ({"gamma": 0.0} if name == "dist" else {})

    def loss(s):
        return LOSSES[name].function(s, teacher, **options)

    value, expected = loss(s), FORMULAS[name](*under_policy(s, teacher, tail, 2.0))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (value, expected)))


def test_the_tail_of_the_other_losses_is_spread_evenly():
    """Where the true tail is flat, nothing is lost: the sparse loss is the dense one."""
    s, t, _, y = dense.batch(c=20)
    threshold = t.topk(5, 1).values[:, -1:]
    flat = torch.where(t >= threshold, t, threshold - 2)
    teacher = SparseTeacher.from_logits(flat, 5)
    for name, options in [
        ("ttm", {}),
        ("wttm", {}),
        ("dkd", {}),
        ("nkd", {"temperature": 2.0}),
        ("logit_std", {}),
        ("taid", {"progress": 0.3}),
        ("dist", {"gamma": 0.0}),
    ]:
        value = LOSSES[name].function(s, teacher, y, **options)
        expected = getattr(dense, name)(s, flat, y, **options)
        assert value.item() == pytest.approx(expected.item(), rel=1e-9), name
        (gradient,), (wanted,) = torch.autograd.grad(value, s), torch.autograd.grad(expected, s)
        torch.testing.assert_close(gradient, wanted, msg=name)
