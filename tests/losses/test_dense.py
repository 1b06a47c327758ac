"""At k = C every loss is its plain dense formula, in value and gradient."""

import dense
import pytest
import torch

from logitcache.losses import LOSSES

CASES = [
    ("kd", {}),
    ("kd", {"temperature": 1.0}),
    ("cmkd", {}),
    ("cmkd", {"temperature": 1.0, "strength": 0.05}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_dense_loss(name, options, dtype):
    s, t, teacher, y = dense.batch(dtype=dtype)
    value = LOSSES[name].function(s, teacher, y, **options)
    expected = getattr(dense, name)(s, t, y, **options)
    (gradient,) = torch.autograd.grad(value, s)
    (expected_gradient,) = torch.autograd.grad(expected, s)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    assert value.item() == pytest.approx(expected.item(), rel=tolerance)
    assert (gradient - expected_gradient).norm() <= tolerance * expected_gradient.norm()


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("k", [1, 4, 10])
def test_gradcheck(name, options, k):
    s, _, teacher, y = dense.batch(b=3, c=10, k=k)
    assert torch.autograd.gradcheck(lambda s: LOSSES[name].function(s, teacher, y, **options), (s,))


@pytest.mark.parametrize("tail", ["uniform", "ghost", "renorm"])
def test_kd_under_each_tail_policy(tail):
    s, _, teacher, _ = dense.batch(k=5)
    q, support = (s / 2).softmax(1), torch.zeros_like(s, dtype=torch.bool).scatter(1, teacher.ids, True)
    p = teacher.densify(2.0)
    if tail == "ghost":
        p, q = (torch.cat([x.gather(1, teacher.ids), (x * ~support).sum(1, True)], 1) for x in (p, q))
    elif tail == "renorm":
        p, q = p.gather(1, teacher.ids), q.gather(1, teacher.ids)
        p = p / p.sum(1, True)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    value = LOSSES["kd"].function(s, teacher, temperature=2.0, tail=tail)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, s, retain_graph=True)[0] for x in (value, expected)))
    assert torch.autograd.gradcheck(
        lambda s: LOSSES["kd"].function(s, teacher, temperature=2.0, tail=tail), (s,)
    )
