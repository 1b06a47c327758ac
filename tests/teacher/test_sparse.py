import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcache.errors import OptionError
from logitcache.teacher.completion import Completion, fit_statistics
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
    soft, listed = teacher.at(temperature), teacher.listed_at(temperature)
    torch.testing.assert_close(teacher.logits, x)
    torch.testing.assert_close(soft.probs, p, **close)
    torch.testing.assert_close(soft.log_probs, (x / temperature).log_softmax(1), **close)
    torch.testing.assert_close(listed.probs, p.gather(1, teacher.ids), **close)
    for distribution in (soft, listed):
        torch.testing.assert_close(distribution.entropy(), -(p * p.log()).sum(1), **close)
        torch.testing.assert_close(
            distribution.prob_of(teacher.ids[:, 1]), p.gather(1, teacher.ids)[:, 1], **close
        )
    torch.testing.assert_close(listed.lse + teacher.top / temperature, (x / temperature).logsumexp(1))
    assert listed.tail_mass.eq(0).all()


@pytest.mark.parametrize("k", [1, 16, 199, 200])
def test_what_is_listed_is_the_largest(k):
    x = logits()
    teacher = SparseTeacher.from_logits(x, k)
    torch.testing.assert_close(teacher.listed, x.topk(k, 1).values)
    torch.testing.assert_close(teacher.logits.gather(1, teacher.ids), teacher.listed)


def test_at_temperature_one_everything_listed_is_exact():
    x = logits()
    p = x.softmax(1)
    teacher = SparseTeacher.from_logits(x, 16)
    soft = teacher.listed_at(1.0)
    torch.testing.assert_close(soft.probs, p.gather(1, teacher.ids))
    torch.testing.assert_close(teacher.at(1.0).probs.gather(1, teacher.ids), soft.probs)
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
    assert (teacher.listed_at(temperature).tail_mass - mass).abs().mean() < error


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_support_and_tail_sum_to_one(temperature):
    teacher = SparseTeacher.from_logits(logits(), 16)
    soft, dense = teacher.listed_at(temperature), teacher.at(temperature)
    torch.testing.assert_close(soft.probs.sum(1) + soft.tail_mass, torch.ones(64).double())
    torch.testing.assert_close(dense.probs.sum(1), torch.ones(64).double())
    torch.testing.assert_close(dense.probs.gather(1, teacher.ids), soft.probs)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_without_a_variance_the_tail_is_that_of_a_normal_one(temperature):
    x = logits() * 0 + torch.randn(64, 2000, generator=torch.Generator().manual_seed(3)).double()[:, :200]
    x[:, :4] += 6
    teacher = SparseTeacher.from_logits(x, 4)
    without = replace(teacher, tail_var=None)
    close = without.listed_at(temperature).tail_mass - teacher.listed_at(temperature).tail_mass
    assert close.abs().max() < 0.02


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
    teacher = SparseTeacher.from_logits(x, k)
    soft = teacher.listed_at(temperature)
    mass, entropy = soft.tail_mass, soft.entropy()
    assert mass.isfinite().all()
    assert entropy.ge(0).all()
    assert entropy.le(math.log(classes) + 1e-6).all()
    assert teacher.at(temperature).probs.isfinite().all()
    assert teacher.at(temperature).entropy().isfinite().all()
    assert teacher.logits.isfinite().all()
    if k < classes:
        least = soft.probs[:, -1]
        assert (mass / (classes - k) <= least * (1 + 1e-3) + 1e-30).all()


def test_a_class_of_the_tail_has_the_mean_share():
    x = logits()
    teacher = SparseTeacher.from_logits(x, 5)
    classes = torch.stack([teacher.ids[:, 3], x.argmin(1)], 1)
    soft = teacher.listed_at(2.0)
    dense = teacher.at(2.0).probs
    torch.testing.assert_close(soft.log_prob_of(classes).exp(), dense.gather(1, classes))
    torch.testing.assert_close(soft.prob_of(classes[:, 1]), dense.gather(1, classes[:, 1:])[:, 0])
    torch.testing.assert_close(dense.gather(1, classes[:, 1:])[:, 0], soft.log_tail_share.exp())


def test_what_is_known_of_every_class_is_told_of_those_outside_the_list():
    teacher = SparseTeacher.from_logits(
        logits(), 16, Completion.of(fit_statistics(logits(400)))
    ).standardise()
    for temperature in (0.5, 1.0, 4.0):
        listed, whole = teacher.listed_at(temperature), teacher.at(temperature)
        torch.testing.assert_close(listed.log_probs, whole.log_probs.gather(1, teacher.ids))
        torch.testing.assert_close(listed.tail_mass, 1 - whole.probs.gather(1, teacher.ids).sum(1))
        torch.testing.assert_close(listed.entropy(), whole.entropy())


def test_what_is_completed_once_stays_so_in_parts_and_in_half_precision():
    teacher = SparseTeacher.from_logits(logits().float(), 16, Completion.of(fit_statistics(logits(400))))
    half = teacher.to("cpu", torch.float16).logits
    assert half.dtype is torch.float16
    torch.testing.assert_close(half.float(), teacher.logits, rtol=2e-2, atol=2e-2)
    part = teacher[10:20]
    assert torch.equal(vars(part)["logits"], teacher.logits[10:20])


@pytest.mark.parametrize("k", [16, 200])
def test_standardised_logits_have_mean_zero_and_deviation_one(k):
    x = logits()
    teacher = SparseTeacher.from_logits(x, k)
    z = teacher.standardise()
    torch.testing.assert_close(z.logits.mean(1), torch.zeros(64).double())
    torch.testing.assert_close(z.logits.std(1, correction=0), torch.ones(64).double())
    torch.testing.assert_close(z.logits.gather(1, z.ids), z.listed)
    assert torch.equal(z.ids, teacher.ids)
    if k == 200:
        torch.testing.assert_close(
            z.logits, (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
        )


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
    torch.testing.assert_close(mixture.at(1.0).probs, expected)
    torch.testing.assert_close(mixture.top.exp(), expected.amax(1))


def test_a_mixture_of_sparse_teachers_is_the_mixture_of_what_they_say():
    members = [SparseTeacher.from_logits(logits(seed=seed), 8) for seed in (1, 2, 3)]
    mixture = average_teachers(members)
    expected = sum(m.at(1.0).probs for m in members) / 3
    assert mixture.k == 8
    soft = mixture.listed_at(1.0)
    torch.testing.assert_close(soft.probs, expected.gather(1, mixture.ids))
    torch.testing.assert_close(soft.probs.sum(1) + soft.tail_mass, torch.ones(64).double())
    assert mixture.gap.diff(dim=1).ge(0).all()
    assert all(len(set(row)) == mixture.k for row in mixture.ids.tolist())


@pytest.mark.parametrize("space", ["probability", "logit"])
@pytest.mark.parametrize("ks", [(8, 8), (3, 12), (20, 39)])
def test_of_teachers_with_flat_tails_nothing_is_lost_but_what_k_classes_cannot_say(space, ks):
    members = [SparseTeacher.from_logits(logits(c=40, seed=seed), k) for seed, k in enumerate(ks)]
    flat = [m.at(1.0).log_probs for m in members]
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
        difference = (mixture.listed_at(temperature).probs - p.gather(1, mixture.ids)).abs().sum(1).mean()
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
            found, expected = mixture.listed_at(temperature), teacher.listed_at(temperature)
            torch.testing.assert_close(found.probs, expected.probs)
            torch.testing.assert_close(found.tail_mass, expected.tail_mass)
    alone = average_teachers([teacher, other], [1.0, 0.0], space)
    torch.testing.assert_close(alone.at(1.0).probs, teacher.at(1.0).probs)


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_a_mixture_of_completed_teachers_is_that_of_their_whole_answers(space):
    whole = Completion.of(fit_statistics(logits(400)))
    members = [SparseTeacher.from_logits(logits(seed=seed), k, whole) for seed, k in ((1, 8), (2, 4))]
    mixture = average_teachers(members, [1.0, 3.0], space)
    p, q = (m.logits.log_softmax(1) for m in members)
    mixed = (0.25 * p + 0.75 * q).softmax(1) if space == "logit" else 0.25 * p.exp() + 0.75 * q.exp()
    torch.testing.assert_close(mixture.at(1.0).probs, mixed)
    torch.testing.assert_close(mixture.at(4.0).log_probs, (mixed.log() / 4).log_softmax(1))
    assert mixture.is_whole
    assert mixture.k == 8


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_what_one_member_knows_of_the_tail_is_not_lost_by_another_that_does_not(space):
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(400, 5, generator=generator) @ torch.randn(5, 200, generator=generator)
    whole = SparseTeacher.from_logits(x[300:], 8, Completion.of(fit_statistics(x[:300])))
    even = SparseTeacher.from_logits(x[300:], 8)

    def divergence(teacher, temperature):
        p = (x[300:] / temperature).log_softmax(1)
        return (p.exp() * (p - teacher.at(temperature).log_probs)).sum(1).mean()

    mixed, both_even = (average_teachers([one, even], None, space) for one in (whole, even))
    for temperature in (1.0, 2.0, 4.0):
        found, least = divergence(mixed, temperature), divergence(whole, temperature)
        assert least < found < divergence(both_even, temperature)


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
