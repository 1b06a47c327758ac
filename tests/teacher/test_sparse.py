import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcache.errors import OptionError
from logitcache.teacher.ensemble import average_teachers
from logitcache.teacher.sparse import SparseTeacher


def logits(b=64, c=200, dtype=torch.float64, seed=0):
    """Heavy-headed rows, as a trained classifier's: a broad bulk and a few classes far above it."""
    generator = torch.Generator().manual_seed(seed)
    bulk = torch.randn(b, c, generator=generator, dtype=dtype) * 1.5
    return bulk + 8 * torch.rand(b, c, generator=generator, dtype=dtype) ** 20


TEMPERATURES = [0.5, 1.0, 1.5, 2.0, 4.0, 20.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_every_class_it_is_the_dense_softmax(temperature, dtype):
    x = logits(dtype=dtype)
    teacher = SparseTeacher.from_logits(x, x.shape[1])
    p = (x / temperature).softmax(1)
    close = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {}
    soft = teacher.at(temperature)
    torch.testing.assert_close(soft.densify(), p, **close)
    torch.testing.assert_close(soft.entropy(), -(p * p.log()).sum(1), **close)
    torch.testing.assert_close(soft.lse + teacher.top / temperature, (x / temperature).logsumexp(1))
    assert soft.tail_mass.eq(0).all()


@pytest.mark.parametrize("k", [1, 16, 199, 200])
def test_mean_and_deviation_of_all_logits_are_exact(k):
    x = logits()
    teacher = SparseTeacher.from_logits(x, k)
    torch.testing.assert_close(teacher.mean(), x.mean(1))
    torch.testing.assert_close(teacher.std(), x.std(1, correction=0))
    torch.testing.assert_close(teacher.logits, x.topk(k, 1).values)


def test_at_temperature_one_everything_listed_is_exact():
    x = logits()
    p = x.softmax(1)
    teacher = SparseTeacher.from_logits(x, 16)
    soft = teacher.at(1.0)
    torch.testing.assert_close(soft.probs, p.gather(1, teacher.ids))
    torch.testing.assert_close(soft.tail_mass, 1 - p.gather(1, teacher.ids).sum(1))
    torch.testing.assert_close(soft.log_tail_mass.exp(), soft.tail_mass)


@pytest.mark.parametrize(
    ("temperature", "error"), [(0.8, 0.05), (1.5, 0.02), (2.0, 0.02), (4.0, 0.01), (50.0, 1e-4)]
)
def test_the_tail_follows_the_temperature(temperature, error):
    """log Σ_tail exp(t / T): the cubic is close where an evenly spread tail (constant in T) is not."""
    x = logits()
    teacher = SparseTeacher.from_logits(x, 16)
    relative = (x - x.amax(1, keepdim=True)).scatter(1, teacher.ids, -math.inf)
    true = (relative / temperature).logsumexp(1)
    assert (teacher.log_tail_sum(temperature) - true).abs().mean() < error
    mass = (true - (x / temperature - x.amax(1, keepdim=True) / temperature).logsumexp(1)).exp()
    assert (teacher.at(temperature).tail_mass - mass).abs().mean() < error


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_support_and_tail_sum_to_one(temperature):
    soft = SparseTeacher.from_logits(logits(), 16).at(temperature)
    torch.testing.assert_close(soft.probs.sum(1) + soft.tail_mass, torch.ones(64).double())
    torch.testing.assert_close(soft.densify().sum(1), torch.ones(64).double())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1e-3, 1.0, 30.0, 60_000.0]),
    st.integers(2, 12),
    st.floats(0.1, 100.0),
    st.data(),
)
def test_the_tail_keeps_its_bounds(seed, scale, classes, temperature, data):
    """Whatever the logits: tail classes are no likelier than the least listed one, and nothing is NaN."""
    k = data.draw(st.integers(1, classes))
    x = torch.randn(4, classes, generator=torch.Generator().manual_seed(seed)) * scale
    soft = SparseTeacher.from_logits(x, k).at(temperature)
    mass, entropy = soft.tail_mass, soft.entropy()
    assert mass.isfinite().all()
    assert entropy.ge(0).all()
    assert entropy.le(math.log(classes) + 1e-6).all()
    assert soft.densify().isfinite().all()
    if k < classes:
        least = soft.probs[:, -1]
        assert (mass / (classes - k) <= least * (1 + 1e-3) + 1e-30).all()


def test_a_class_of_the_tail_has_the_mean_share():
    x = logits()
    teacher = SparseTeacher.from_logits(x, 5)
    classes = torch.stack([teacher.ids[:, 3], x.argmin(1)], 1)
    soft = teacher.at(2.0)
    dense = soft.densify()
    torch.testing.assert_close(soft.log_prob_of(classes).exp(), dense.gather(1, classes))
    torch.testing.assert_close(soft.prob_of(classes[:, 1]), dense.gather(1, classes[:, 1:])[:, 0])


@pytest.mark.parametrize("k", [16, 200])
def test_standardised_logits_have_mean_zero_and_deviation_one(k):
    x = logits()
    z = (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
    teacher, expected = SparseTeacher.from_logits(x, k).standardise(), SparseTeacher.from_logits(z, k)
    torch.testing.assert_close(teacher.mean(), torch.zeros(64).double())
    torch.testing.assert_close(teacher.std(), torch.ones(64).double())
    torch.testing.assert_close(teacher.logits, expected.logits)
    torch.testing.assert_close(teacher.at(2.0).probs, expected.at(2.0).probs, rtol=0.02, atol=0)


def test_rows_can_be_selected_and_moved():
    teacher = SparseTeacher.from_logits(logits(), 7)
    part = teacher[torch.tensor([5, 2])].to("cpu", torch.float32)
    assert len(part) == 2
    assert (part.k, part.tail_size, part.num_classes) == (7, 193, 200)
    assert part.ids.dtype == torch.int64
    assert part.tail_lse.dtype == torch.float32
    assert torch.equal(part.ids, teacher.ids[[5, 2]])
    assert len(teacher[10:20]) == 10


@pytest.mark.parametrize("k", [0, 201])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(OptionError, match="k must be 1 to 200"):
        SparseTeacher.from_logits(logits(), k)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(OptionError, match="temperature must be above 0"):
        SparseTeacher.from_logits(logits(), 4).at(temperature)


# Ensembles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_a_mixture_of_whole_teachers_is_the_dense_mixture(space):
    x, y = logits(seed=1), logits(seed=2)
    mixture = average_teachers(
        [SparseTeacher.from_logits(x, 200), SparseTeacher.from_logits(y, 200)], [3.0, 1.0], space
    )
    if space == "probability":
        expected = 0.75 * x.softmax(1) + 0.25 * y.softmax(1)
    else:
        expected = (0.75 * x.log_softmax(1) + 0.25 * y.log_softmax(1)).softmax(1)
    torch.testing.assert_close(mixture.at(1.0).densify(), expected)
    torch.testing.assert_close(mixture.top.exp(), expected.amax(1))


def test_a_mixture_of_sparse_teachers_is_the_mixture_of_what_they_say():
    members = [SparseTeacher.from_logits(logits(seed=seed), 8) for seed in (1, 2, 3)]
    mixture = average_teachers(members)
    expected = sum(m.at(1.0).densify() for m in members) / 3
    assert mixture.k == 8
    soft = mixture.at(1.0)
    torch.testing.assert_close(soft.probs, expected.gather(1, mixture.ids))
    torch.testing.assert_close(soft.probs.sum(1) + soft.tail_mass, torch.ones(64).double())
    assert mixture.gap.diff(dim=1).ge(0).all()
    assert all(len(set(row)) == mixture.k for row in mixture.ids.tolist())


@pytest.mark.parametrize("space", ["probability", "logit"])
@pytest.mark.parametrize("ks", [(8, 8), (3, 12), (20, 39)])
def test_of_teachers_with_flat_tails_nothing_is_lost_but_what_k_classes_cannot_say(space, ks):
    members = [SparseTeacher.from_logits(logits(c=40, seed=seed), k) for seed, k in enumerate(ks)]
    flat = [m.at(1.0).densify().log() for m in members]
    dense = torch.stack(flat).exp().mean(0).log() if space == "probability" else sum(flat) / 2
    expected = SparseTeacher.from_logits(dense.log_softmax(1), max(ks))
    found = average_teachers(
        [SparseTeacher.from_logits(x, k) for x, k in zip(flat, ks, strict=True)], space=space
    )
    for name in ("gap", "top", "tail_lse", "tail_mean", "tail_var"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=name)


@given(
    st.integers(0, 1000),
    st.lists(st.integers(1, 12), min_size=2, max_size=3),
    st.lists(st.integers(0, 15), min_size=1, max_size=15),
    st.sampled_from(["probability", "logit"]),
)
def test_a_row_of_a_mixture_is_the_same_whatever_rows_stand_beside_it(seed, ks, rows, space):
    members = [
        SparseTeacher.from_logits(logits(16, 12, torch.float32, seed + n), k) for n, k in enumerate(ks)
    ]
    part, whole = (
        average_teachers([m[torch.tensor(rows)] for m in members], space=space),
        average_teachers(members, space=space),
    )
    kept = whole[torch.tensor(rows)]
    assert torch.equal(part.ids, kept.ids)
    torch.testing.assert_close(part.gap, kept.gap)
    torch.testing.assert_close(part.top, kept.top)
    torch.testing.assert_close(part.log_tail_sum(2.0), kept.log_tail_sum(2.0))


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_a_mixture_follows_the_temperature(space):
    members = [logits() + 0.3 * logits(seed=seed) for seed in (1, 2)]  # members of an ensemble mostly agree
    mixture = average_teachers([SparseTeacher.from_logits(x, 16) for x in members], space=space)
    if space == "probability":
        dense = torch.stack([x.softmax(1) for x in members]).mean(0).log()
    else:
        dense = torch.stack([x.log_softmax(1) for x in members]).mean(0)
    for temperature in (1.0, 2.0, 4.0):
        p = (dense / temperature).softmax(1)
        difference = (mixture.at(temperature).probs - p.gather(1, mixture.ids)).abs().sum(1).mean()
        assert difference < 0.06, temperature


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_a_teacher_mixed_with_itself_or_with_weight_zero_stays_itself(space):
    teacher, other = (SparseTeacher.from_logits(logits(seed=seed), 16) for seed in (1, 2))
    for mixture in (
        average_teachers([teacher, teacher], space=space),
        average_teachers([teacher], space=space),
    ):
        assert torch.equal(mixture.ids, teacher.ids)
        for temperature in (1.0, 3.0):
            found, expected = mixture.at(temperature), teacher.at(temperature)
            torch.testing.assert_close(found.probs, expected.probs)
            torch.testing.assert_close(found.tail_mass, expected.tail_mass)
    alone = average_teachers([teacher, other], [1.0, 0.0], space).at(1.0)
    torch.testing.assert_close(alone.probs[:, 0], teacher.at(1.0).probs[:, 0])


def test_an_ensemble_that_cannot_be_is_refused():
    teacher = SparseTeacher.from_logits(logits(), 4)
    with pytest.raises(OptionError, match="same samples and classes"):
        average_teachers([])
    with pytest.raises(OptionError, match="same samples and classes"):
        average_teachers([teacher, teacher[:3]])
    with pytest.raises(OptionError, match="as many weights"):
        average_teachers([teacher, teacher], [1.0])
    with pytest.raises(OptionError, match="weights of 0 or more"):
        average_teachers([teacher, teacher], [1.0, -1.0])
    with pytest.raises(OptionError, match="space must be"):
        average_teachers([teacher], space="square")
