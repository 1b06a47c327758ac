"""Which samples a way keeps: laws, and each against a plain writing of it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import linprog
from scipy.stats import rankdata

from logitcache.errors import OptionError
from logitcache.train.selection import (
    count_kept,
    hedge,
    keep_balanced,
    keep_best,
    keep_farthest,
    keep_robust,
    score_need,
    share_out,
)

SIZES = st.integers(3, 40)  # of two points either is the farthest from the mean


def distinct(n, seed):
    return np.random.default_rng(seed).random(n)


WAYS = {
    "best": lambda numbers, count: keep_best(numbers[:, 0], count),
    "lowest": lambda numbers, count: keep_best(numbers[:, 0], count, lowest=True),
    "llkd": lambda numbers, count: keep_best(score_need(numbers[:, 0], numbers[:, 1]), count),
    "coreset": lambda numbers, count: keep_farthest(numbers.astype(np.float32), count),
    "robust": lambda numbers, count: keep_robust(numbers[:, 0], count, 0.2),
}


@pytest.mark.parametrize("way", WAYS)
@given(SIZES, st.integers(0, 1000), st.data())
def test_a_permutation_of_the_samples_permutes_the_choice(way, n, seed, data):
    numbers = np.stack([distinct(n, seed + column) for column in range(3)], 1)
    count, order = data.draw(st.integers(0, n)), np.random.default_rng(seed).permutation(n)
    if way == "llkd":  # two samples can tie by their lower rank, and then either is kept
        score = np.sort(score_need(numbers[:, 0], numbers[:, 1]))[::-1]
        count -= 1 if 0 < count < n and score[count - 1] == score[count] else 0
        if 0 < count < n and score[count - 1] == score[count]:
            return
    kept, shuffled = WAYS[way](numbers, count), WAYS[way](numbers[order], count)
    assert len(set(kept.samples.tolist())) == len(kept.samples) == count
    assert set(order[shuffled.samples].tolist()) == set(kept.samples.tolist())
    np.testing.assert_allclose(shuffled.score, kept.score[order], rtol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@given(arrays.arrays(np.float64, st.tuples(SIZES, st.just(2)), elements=st.floats(0, 1)), st.data())
def test_as_many_are_kept_as_are_asked_for_whatever_ties(way, numbers, data):
    count = data.draw(st.integers(0, len(numbers)))
    kept = WAYS[way](numbers.round(1), count)
    assert len(set(kept.samples.tolist())) == len(kept.samples) == count
    assert set(kept.samples.tolist()) <= set(range(len(numbers)))


@given(SIZES, st.integers(0, 1000), st.data())
def test_no_sample_that_is_left_has_a_higher_score(n, seed, data):
    score, count = distinct(n, seed).round(1), data.draw(st.integers(1, n))
    kept, lowest = keep_best(score, count), keep_best(score, count, lowest=True)
    assert sorted(score[kept.samples]) == sorted(score)[n - count :]
    assert sorted(score[lowest.samples]) == sorted(score)[:count]


def test_ties_are_not_kept_by_their_order():
    """Samples stand class after class in a folder: the first of those that tie would be the first classes."""
    assert 300 < keep_best(np.ones(1000), 500).samples.mean() < 700
    assert 300 < keep_farthest(np.ones((1000, 3), np.float32), 500).samples.mean() < 700
    assert 300 < keep_robust(np.ones(1000), 500, 0.1).samples.mean() < 700


# Coresets -----------------------------------------------------------------------------------------------


@given(SIZES, st.integers(2, 6), st.integers(0, 1000), st.data())
def test_a_coreset_is_the_greedy_one_of_all_distances(n, classes, seed, data):
    points = np.random.default_rng(seed).dirichlet(np.ones(classes), n).astype(np.float32)
    count = data.draw(st.integers(1, n))
    wide = points.astype(np.float64)
    pairwise = np.linalg.norm(wide[:, None] - wide[None], axis=2)
    expected = [int(np.argmax(np.linalg.norm(wide - wide.mean(0), axis=1)))]
    while len(expected) < count:
        nearest = pairwise[:, expected].min(1)
        nearest[expected] = -1
        expected.append(int(np.argmax(nearest)))
    kept = keep_farthest(points, count)
    assert kept.samples.tolist() == expected
    left = np.setdiff1d(np.arange(n), expected)
    np.testing.assert_allclose(kept.score[left], pairwise[left][:, expected].min(1))


def test_distances_do_not_depend_on_the_pieces(monkeypatch):
    points = np.random.default_rng(0).dirichlet(np.ones(5), 50).astype(np.float32)
    whole = keep_farthest(points, 20)
    monkeypatch.setattr("logitcache.train.selection.CHUNK", 15)
    pieces = keep_farthest(points, 20)
    assert pieces.samples.tolist() == whole.samples.tolist()
    np.testing.assert_array_equal(pieces.score, whole.score)


# Robust -------------------------------------------------------------------------------------------------


def worst_case(gain, probability, wrong):
    """What is left where so many answers are wrong, a part of one too, and these of most worth."""
    worth = np.sort(gain * probability)[::-1]
    whole = math.floor(wrong)
    lost = worth[:whole].sum() + (wrong - whole) * (worth[whole] if whole < len(worth) else 0)
    return worth.sum() - lost


@given(st.integers(3, 15), st.integers(0, 1000), st.floats(0, 0.9), st.data())
def test_hedging_is_the_best_against_the_worst_case(n, seed, mistakes, data):
    """The same by linear programming: max Σ x − m t − Σ u, u ≥ x − t, of x = π g."""
    gain, count = np.sort(distinct(n, seed))[::-1].copy(), data.draw(st.integers(1, n - 1))
    wrong = mistakes * n
    objective = np.concatenate([-gain, [wrong], np.ones(n)])
    above = np.concatenate([np.diag(gain), -np.ones((n, 1)), -np.eye(n)], 1)
    spent = np.concatenate([np.ones(n), np.zeros(n + 1)])[None]
    bounds = [(0, 1)] * n + [(0, None)] * (n + 1)
    best = linprog(objective, above, np.zeros(n), spent, [count], bounds)
    found = hedge(gain, count, mistakes)
    assert found.sum() == pytest.approx(count)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-9
    assert worst_case(gain, found, wrong) == pytest.approx(-best.fun, abs=1e-6)


def test_without_mistakes_the_highest_gains_are_kept_and_with_many_all_are_drawn_from():
    gain = distinct(100, 0)
    assert set(keep_robust(gain, 30, 0.0).samples.tolist()) == set(np.argsort(gain)[70:].tolist())
    assert gain[keep_robust(gain, 30, 0.9).samples].min() < 0.1


@given(st.integers(5, 60), st.integers(0, 1000), st.floats(0, 1), st.data())
def test_each_stretch_of_gains_has_as_many_samples_as_its_probabilities_say(n, seed, mistakes, data):
    gain, count = distinct(n, seed), data.draw(st.integers(1, n))
    order = np.argsort(-gain)
    taken = np.isin(order, keep_robust(gain, count, mistakes).samples)
    expected = np.cumsum(hedge(gain[order], count, mistakes))
    assert np.abs(np.cumsum(taken) - expected).max() <= 0.5 + 1e-6


# Shares -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.data())
def test_each_group_gets_its_share_to_less_than_one(sizes, data):
    count = data.draw(st.integers(0, sum(sizes)))
    counts = share_out(count, sizes)
    assert sum(counts) == count
    for mine, size in zip(counts, sizes, strict=True):
        assert abs(mine - count * size / sum(sizes)) < 1
        assert mine <= size


@given(st.integers(1, 60), st.integers(0, 1000), st.data())
def test_balanced_keeps_the_best_of_each_class(n, seed, data):
    classes, score = np.random.default_rng(seed).integers(0, 4, n), distinct(n, seed)
    count = data.draw(st.integers(1, n))
    kept = keep_balanced(count, classes, lambda of, number: keep_best(score[of], number))
    assert len(set(kept.samples.tolist())) == count
    np.testing.assert_array_equal(kept.score, score)
    for one in np.unique(classes):
        here = np.flatnonzero(classes == one)
        mine = kept.samples[np.isin(kept.samples, here)]
        assert abs(len(mine) - count * len(here) / n) < 1
        assert set(mine.tolist()) == set(here[np.argsort(-score[here])[: len(mine)]].tolist())


@given(arrays.arrays(np.float64, st.integers(1, 30), elements=st.integers(0, 5)), st.integers(0, 100))
def test_need_is_the_lower_of_both_ranks(confidence, seed):
    unsure = np.random.default_rng(seed).integers(0, 5, len(confidence)).astype(float)
    expected = np.minimum(rankdata(confidence), rankdata(unsure)) / len(confidence)
    np.testing.assert_allclose(score_need(confidence, unsure), expected)


def test_a_share_or_a_number():
    assert count_kept(1.0, 7) == 7
    assert count_kept(0.3, 1437) == 431
    assert count_kept(2.0, 7) == 2
    for keep, says in ((0.0, "a share"), (-1, "a share"), (1.5, "a share"), (math.nan, "a share")):
        with pytest.raises(OptionError, match=says):
            count_kept(keep, 7)
    with pytest.raises(OptionError, match="8 samples cannot be kept of 7"):
        count_kept(8.0, 7)
    with pytest.raises(OptionError, match="less than one"):
        count_kept(0.01, 7)
    with pytest.raises(OptionError, match="mistakes must be a share"):
        hedge(np.ones(3), 1, 1.5)
