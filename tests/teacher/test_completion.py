"""A completed row keeps what is stored, and depends on nothing but itself and the statistics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_numbers import numbers_of

from logitcache.errors import OptionError
from logitcache.format.class_statistics import ClassStatistics
from logitcache.teacher import completion
from logitcache.teacher.completion import Completion, fit_statistics
from logitcache.teacher.reach import raise_masked
from logitcache.teacher.sparse import SparseTeacher

TOLERANCE = 1e-4


def draw_statistics(seed, classes, rank, spread=1.0, noise=0.1):
    g = np.random.default_rng(seed)
    mean = g.normal(size=classes).astype(np.float32)
    factors = (spread * g.normal(size=(classes, rank))).astype(np.float32)
    return ClassStatistics(mean, factors, noise, 100)


def related_logits(rows, classes, rank=6, seed=0, spread=2.0, noise=0.3):
    """Logits of a last layer: classes vary together along a few directions."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(rank, classes, generator=g)
    z = torch.randn(rows, rank, generator=g) @ directions * spread / rank**0.5
    return z + noise * torch.randn(rows, classes, generator=g) + torch.randn(classes, generator=g)


def tail_of(teacher):
    """(B, C) completed logits relative to the top, −∞ at the listed classes."""
    return (teacher.logits - teacher.top[:, None]).scatter(1, teacher.ids, -math.inf)


def tail_numbers(teacher):
    tail = tail_of(teacher).double()
    mean = tail.masked_fill(tail == -math.inf, 0.0).sum(1) / teacher.tail_size
    return tail.logsumexp(1), mean, tail.amax(1)


def kl(logits, log_q, temperature=1.0):
    log_p = (logits / temperature).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean().item()


cases = st.tuples(
    st.integers(0, 10_000),  # of the draw
    st.sampled_from([2, 3, 5, 17, 100, 650]),  # classes
    st.integers(1, 40),  # k, at most C − 1
    st.sampled_from([1, 3, 12]),  # rank
    st.sampled_from([1e-3, 0.3, 3.0, 30.0]),  # spread of the teacher
    st.sampled_from([0.0, 0.5, 4.0]),  # of the statistics
)


@settings(max_examples=150, deadline=None)
@given(cases)
def test_both_numbers_of_the_tail_are_kept_and_none_of_it_lies_above_the_last_listed(case):
    seed, classes, k, rank, spread, factors = case
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(9, classes, generator=g)
    statistics = draw_statistics(seed, classes, min(rank, classes), spread=factors)
    teacher = SparseTeacher.from_logits(logits, min(k, classes - 1), Completion.of(statistics))
    lse, mean, largest = tail_numbers(teacher)
    scale = 1 + teacher.tail_mean.abs()
    assert ((lse - teacher.tail_lse).abs() <= TOLERANCE * scale).all()
    assert ((mean - teacher.tail_mean).abs() <= TOLERANCE * scale).all()
    assert (largest <= -teacher.gap[:, -1] + 1e-5 * scale).all()
    assert torch.equal(teacher.logits.gather(1, teacher.ids), teacher.listed)


@pytest.mark.parametrize(
    "logits",
    [
        torch.zeros(4, 50),
        torch.eye(50)[:4] * 1e4,
        torch.eye(50)[:4] * 20,
        torch.cat([torch.zeros(4, 49), torch.full((4, 1), -1e4)], 1),
        torch.arange(50.0).expand(4, 50) * 100,
        torch.tensor([[3.0, -1.0]]).expand(4, 2),
    ],
    ids=["all equal", "one-hot", "peaked", "one far below", "steep", "two classes"],
)
@pytest.mark.parametrize("k", [1, 8, 49])
def test_extreme_rows_give_finite_logits_with_the_same_probabilities_of_what_is_listed(logits, k):
    classes = logits.shape[1]
    k = min(k, classes - 1)
    teacher = SparseTeacher.from_logits(
        logits, k, Completion.of(draw_statistics(0, classes, min(5, classes)))
    )
    assert teacher.logits.isfinite().all()
    expected = raise_masked(logits).log_softmax(1).gather(1, teacher.ids)
    torch.testing.assert_close(
        teacher.at(1.0).log_probs.gather(1, teacher.ids), expected, rtol=1e-4, atol=1e-3
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.data())
def test_a_row_is_completed_alike_in_any_batch_and_order(seed, k, data):
    logits = related_logits(23, 40, seed=seed)
    whole = Completion.of(draw_statistics(seed, 40, 5))
    expected = SparseTeacher.from_logits(logits, k, whole).logits
    rows = torch.tensor(data.draw(st.lists(st.integers(0, 22), min_size=1, max_size=30)))
    found = SparseTeacher.from_logits(logits[rows], k, whole).logits
    torch.testing.assert_close(found, expected[rows], rtol=1e-4, atol=1e-4)


def test_a_large_batch_is_completed_in_blocks_that_say_the_same(monkeypatch):
    logits = related_logits(64, 300)
    whole = Completion.of(draw_statistics(0, 300, 8))
    expected = SparseTeacher.from_logits(logits, 5, whole).logits
    monkeypatch.setattr(completion, "BLOCK", 7 * 300)
    found = SparseTeacher.from_logits(logits, 5, whole).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [3, 5, 9])
@pytest.mark.parametrize("few_classes", [True, False])
def test_the_posterior_is_that_of_the_normal_model(k, few_classes, monkeypatch):
    """Against the textbook's conditional mean of a joint normal; by k × k equations up to 5 listed, then by 5 × 5.

    Of many classes there is no covariance in memory.
    """
    if not few_classes:
        monkeypatch.setattr(completion, "COVARIANCE_CLASSES", 13)
    whole = Completion.of(draw_statistics(3, 14, 5)).to("cpu", torch.float64)
    assert (whole.covariance is not None) == few_classes
    logits = related_logits(1, 14, seed=3).double()
    centred = (logits - logits.mean(1, keepdim=True))[0]
    ids = SparseTeacher.from_logits(logits, k).ids[0]
    covariance = whole.factors @ whole.factors.T
    gain = covariance[:, ids] @ torch.linalg.inv(covariance[ids][:, ids] + whole.noise * torch.eye(k))
    found = torch.empty(1, 14, dtype=torch.float64)
    whole._expect(found, ids[None], centred[ids][None])
    tolerance = 1e-6  # the covariance is computed in float32
    expected = whole.mean + gain @ (centred[ids] - whole.mean[ids])
    torch.testing.assert_close(found[0], expected, rtol=tolerance, atol=tolerance)


def test_the_variance_left_is_the_least_that_so_many_logits_can_leave():
    whole = Completion.of(draw_statistics(3, 14, 5))
    covariance = (whole.factors @ whole.factors.T).double()
    assert whole.variance_left(0) == pytest.approx(float(covariance.trace()) / 14 + whole.noise, rel=1e-5)
    assert whole.variance_left(5) == pytest.approx(whole.noise)
    for k in (1, 3):
        for seed in range(20):
            ids = torch.randperm(14, generator=torch.Generator().manual_seed(seed))[:k]
            gain = covariance[:, ids] @ torch.linalg.pinv(covariance[ids][:, ids])
            left = (covariance - gain @ covariance[ids]).trace() / 14 + whole.noise
            assert whole.variance_left(k) <= float(left) * (1 + 1e-6)


@pytest.mark.parametrize("k", [1, 4, 8])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_completing_is_nearer_to_the_teacher_than_an_even_tail(k, temperature):
    logits = related_logits(1200, 100)
    whole = Completion.of(fit_statistics(logits[:1000]))
    held_out = logits[1000:]
    even = SparseTeacher.from_logits(held_out, k).at(temperature).log_probs
    completed = SparseTeacher.from_logits(held_out, k, whole).at(temperature).log_probs
    assert kl(held_out, completed, temperature) < 0.6 * kl(held_out, even, temperature)


def test_statistics_are_the_same_bytes_whatever_the_number_of_threads():
    logits = related_logits(300, 120)
    found = set()
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.add(numbers_of(fit_statistics(logits)))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.parametrize(("rows", "classes"), [(2000, 50), (100, 400)], ids=["more rows", "more classes"])
def test_statistics_of_a_known_model_are_found_again(rows, classes):
    logits = related_logits(rows, classes, rank=4, noise=0.5)
    statistics = fit_statistics(logits)
    centred = logits - logits.mean(1, keepdim=True)
    np.testing.assert_allclose(statistics.mean, centred.mean(0).numpy(), atol=1e-5)
    assert statistics.factors.shape[1] == 4
    assert 0.7 * 0.25 < statistics.noise < 1.3 * 0.25
    assert statistics.views == rows
    apart = (centred - centred.mean(0)).double()
    strongest = torch.linalg.svd(apart, full_matrices=False).Vh[:4]
    along = torch.from_numpy(statistics.factors).double()
    along = along / along.norm(dim=0)
    torch.testing.assert_close(
        (strongest @ along).abs(), torch.eye(4, dtype=torch.float64), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("logits", [torch.zeros(100, 6), torch.ones(8, 2), torch.eye(6).repeat(4, 1) * 1e4])
def test_statistics_of_extreme_teachers_are_valid(logits):
    statistics = fit_statistics(logits)
    teacher = SparseTeacher.from_logits(logits, 1, Completion.of(statistics))
    assert teacher.logits.isfinite().all()


@pytest.mark.parametrize("logits", [torch.zeros(7, 5), torch.zeros(20, 1), torch.full((20, 5), math.nan)])
def test_statistics_of_nothing_are_refused(logits):
    with pytest.raises(OptionError, match="class statistics need"):
        fit_statistics(logits)
