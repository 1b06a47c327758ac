import math

import dense
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from logitcache.errors import OptionError
from logitcache.losses.soft_ranks import (
    RANKS,
    _pooling_strength,
    blondel_ranks,
    laplace_ranks,
    soft_spearman,
    steepness,
)

rows = st.lists(
    st.lists(st.integers(-5, 5), min_size=6, max_size=6).filter(lambda row: len(set(row)) > 1),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("operator", RANKS)
@given(rows)
@settings(max_examples=40, deadline=None)
def test_small_strength_gives_the_true_ranks_with_ties(operator, values):
    x = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(RANKS[operator](x, 1e-4), torch.from_numpy(rankdata(x.numpy(), axis=1)))


@pytest.mark.parametrize("operator", RANKS)
def test_small_strength_gives_spearmans_correlation(operator):
    x, y = torch.randn(2, 8, 50, dtype=torch.float64).round(decimals=1)
    expected = [spearmanr(a, b).statistic for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(soft_spearman(x, y, 1e-5, operator).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 16, 33, 200])
@pytest.mark.parametrize("strength", [0.01, 0.25, 3.0])
def test_laplace_is_the_sum_over_all_pairs(n, strength):
    x = torch.randn(5, n, dtype=torch.float64, requires_grad=True)
    ranks = laplace_ranks(x, strength)
    if n == 1:
        assert ranks.eq(1).all()
        return
    expected = dense.ranks(x, strength * x.std(1, correction=0)[:, None, None])
    torch.testing.assert_close(ranks, expected)
    weights = torch.randn_like(ranks)
    torch.testing.assert_close(*(torch.autograd.grad(r, x, weights)[0] for r in (ranks, expected)))


def test_laplace_does_not_underflow_between_far_values():
    x = torch.tensor([[-60000.0, -1.0, 0.0, 1.0, 60000.0]], requires_grad=True)
    ranks = laplace_ranks(x, 1e-5)
    torch.testing.assert_close(ranks, torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), atol=0.2, rtol=0)
    (gradient,) = torch.autograd.grad(ranks[0, 2], x)
    assert gradient.isfinite().all()
    assert gradient[0, 2] > 0


def pav(x):
    """Decreasing isotonic regression, one block at a time."""
    blocks = []
    for value in x:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    return np.concatenate([[value] * size for value, size in blocks])


@pytest.mark.parametrize("n", [1, 2, 7, 60])
@pytest.mark.parametrize("strength", [0.01, 0.3, 0.9])
def test_blondel_is_the_projection_by_pool_adjacent_violators(n, strength):
    x = torch.randn(6, n, dtype=torch.float64).round(decimals=1)
    ranks = blondel_ranks(x, strength)
    for row, got in zip(x.numpy(), ranks.numpy(), strict=True):
        order = np.argsort(-row, kind="stable")
        top = np.cumsum(np.sort(row - row.mean())[::-1])[:-1]
        size = np.arange(1, n)
        most = max((top / size / ((n - size) / 2)).max(), 0.02 / n) if n > 1 else 1.0
        scaled = row[order] / (strength * most)
        expected = np.empty(n)
        expected[order] = scaled - pav(scaled - np.arange(n, 0, -1))
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_blondel_at_full_strength_is_pearson_and_says_so():
    x, y = torch.randn(2, 4, 16, dtype=torch.float64)
    with pytest.warns(UserWarning, match="Spearman is Pearson"):
        rho = soft_spearman(x, y, 1.0, "blondel")
    torch.testing.assert_close(rho, dense.pearson(x, y))
    assert (soft_spearman(x, y, 0.9, "blondel") - dense.pearson(x, y)).abs().max() > 1e-3


def test_the_usual_strength_of_one_pools_everything_on_z_scores():
    z = dense.z(torch.randn(100, 100, dtype=torch.float64))
    assert _pooling_strength(z).max() < 1


@pytest.mark.parametrize("operator", RANKS)
@pytest.mark.parametrize("n", [2, 9])
def test_gradients(operator, n):
    x = torch.randn(3, n, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: RANKS[operator](x, 0.3), (x,))


@pytest.mark.parametrize("operator", RANKS)
def test_ranks_do_not_change_under_shift_and_scale(operator):
    x = torch.randn(4, 20, dtype=torch.float64)
    torch.testing.assert_close(RANKS[operator](x * 7 - 3, 0.3), RANKS[operator](x, 0.3))


@pytest.mark.parametrize("operator", RANKS)
def test_ranks_do_not_change_under_monotone_maps_as_strength_goes_to_zero(operator):
    x = torch.randn(4, 20, dtype=torch.float64)
    torch.testing.assert_close(RANKS[operator](x.exp(), 1e-5), RANKS[operator](x, 1e-5))


@pytest.mark.parametrize("operator", RANKS)
def test_ranks_go_with_their_values(operator):
    x, order = torch.randn(4, 20, dtype=torch.float64), torch.randperm(20)
    torch.testing.assert_close(RANKS[operator](x[:, order], 0.3), RANKS[operator](x, 0.3)[:, order])
    assert math.isclose(RANKS[operator](x, 0.3).mean().item(), 10.5)


@pytest.mark.parametrize("operator", RANKS)
@pytest.mark.parametrize("strength", [0.0, -1.0, math.nan])
def test_a_strength_that_is_not_positive_is_refused(operator, strength):
    with pytest.raises(OptionError, match="strength must be above 0"):
        RANKS[operator](torch.randn(2, 3), strength)


@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("strength", [0.3, 0.01])
def test_the_fused_correlation_is_the_correlation_of_the_ranks(n, scale, strength):
    x, y = torch.randn(2, 4, n, dtype=torch.float64)
    x = (x * scale).requires_grad_()
    composed = dense.pearson(laplace_ranks(x, strength), laplace_ranks(y, strength)) * steepness(x)[:, 0]
    fused = soft_spearman(x, y, strength)
    torch.testing.assert_close(fused, composed)
    weights = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad(r, x, weights)[0] for r in (fused, composed)))


@pytest.mark.parametrize("strength", [0.25, 0.03])
def test_many_rows_are_correlated_as_each_alone(strength):
    """Whatever rows are taken at once, and however the sums are made: exponentials in float64, or a recurrence."""
    x, y = torch.randn(2, 70, 1000)
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    fused = soft_spearman(x, y, strength)
    ranks = (laplace_ranks(values, strength) for values in (wide, y.double()))
    composed = dense.pearson(*ranks)
    torch.testing.assert_close(fused, composed.float(), rtol=1e-5, atol=1e-6)
    weights = torch.randn(70)
    (mine,) = torch.autograd.grad(fused, x, weights)
    (expected,) = torch.autograd.grad(composed, wide, weights.double())
    assert (mine - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("operator", RANKS)
def test_a_flat_row_has_no_correlation_and_a_bounded_gradient(operator):
    y = torch.randn(3, 16)
    for x in (torch.zeros(3, 16), torch.randn(3, 16) * 1e-5):
        x.requires_grad_()
        rho = soft_spearman(x, y, 0.25, operator)
        (gradient,) = torch.autograd.grad(rho.sum(), x)
        assert rho.abs().max() < 0.01
        assert gradient.norm(dim=1).max() < 1e3


@pytest.mark.parametrize("n", [100, 250, 260])
def test_values_far_from_the_rest_lose_no_digits(n):
    """On either side of where the sums change from products of exponentials to a recurrence."""
    x = torch.randn(4, n)
    x[0, 3], x[1, :2], x[2, 5:] = 1e4, -1e4, 0.0
    values = x.double()
    u = (values[:, :, None] - values[:, None]) / (0.25 * values.std(1, correction=0))[:, None, None]
    pairwise = torch.where(u < 0, u.clamp(max=0).exp() / 2, 1 - (-u).clamp(max=0).exp() / 2).sum(2) + 0.5
    x.requires_grad_()
    ranks = laplace_ranks(x, 0.25)
    torch.testing.assert_close(ranks, pairwise.float(), rtol=1e-5, atol=1e-4)
    (gradient,) = torch.autograd.grad((ranks * torch.linspace(-1, 1, n)).sum(), x)
    assert gradient.isfinite().all()
