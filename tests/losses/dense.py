"""Every loss once more, on dense (B, C) teacher logits, written plainly: what the sparse ones must equal."""

import math

import torch

from logitcache.sparse import SparseTeacher


def ranks(x, tau):
    u = (x[:, :, None] - x[:, None, :]) / tau
    cdf = torch.where(u < 0, u.clamp(max=0).exp() / 2, 1 - (-u.clamp(min=0)).exp() / 2)
    return 0.5 + cdf.sum(2)


def pearson(x, y):
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))


def z(x):
    return (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)


def kd(s, t, y, temperature=4.0):
    p, log_q = (t / temperature).softmax(1), (s / temperature).log_softmax(1)
    return temperature**2 * (p * (p.log() - log_q)).sum(1).mean()


def cmkd(s, t, y, temperature=4.0, strength=0.25):
    p, q = (t / temperature).softmax(1), (s / temperature).softmax(1)
    h = -(p * p.log()).sum(1) / math.log(t.shape[1])
    spearman = pearson(ranks(z(s), strength), ranks(z(t), strength))
    return ((1 - h) * (1 - pearson(p, q)) + h * (1 - spearman)).mean()


def batch(b=6, c=20, k=None, dtype=torch.float64, spread=3.0):
    """Random student and teacher logits, the teacher's sparse form, and labels."""
    s, t = torch.randn(2, b, c, dtype=dtype) * spread
    t = t + s / 3
    return s.requires_grad_(), t, SparseTeacher.from_logits(t, k or c), torch.randint(c, (b,))
