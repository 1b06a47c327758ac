"""Every loss once more, on dense (B, C) teacher logits, written plainly: what ours must equal."""

import math

import torch

from logitcache.teacher.sparse import SparseTeacher


def ranks(x, tau):
    u = (x[:, :, None] - x[:, None, :]) / tau
    cdf = torch.where(u < 0, u.clamp(max=0).exp() / 2, 1 - (-u.clamp(min=0)).exp() / 2)
    return 0.5 + cdf.sum(2)


def pearson(x, y):
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))


def z(x):
    return (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)


def kl(p, q):
    return (p * (p / q).log()).sum(1)


def soft(t, s, temperature):
    return (t / temperature).softmax(1), (s / temperature).softmax(1)


def kd(s, t, y, temperature=4.0):
    p, q = soft(t, s, temperature)
    return temperature**2 * kl(p, q).mean()


def reverse_kl(s, t, y, temperature=4.0):
    p, q = soft(t, s, temperature)
    return temperature**2 * kl(q, p).mean()


def js(s, t, y, temperature=4.0):
    p, q = soft(t, s, temperature)
    return temperature**2 * (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)).mean() / 2


def bdkd(s, t, y, temperature=4.0, delta=2.0, entropy_temperature=1.0):
    p, q = soft(t, s, temperature)
    h_t, h_s = (entropy(x) for x in soft(t, s.detach(), entropy_temperature))
    total = 0.0
    for row in range(len(s)):
        forward, reverse = kl(p[row : row + 1], q[row : row + 1]), kl(q[row : row + 1], p[row : row + 1])
        total = total + (delta if h_t[row] > h_s[row] else 1) * forward
        total = total + (delta if h_s[row] > h_t[row] else 1) * reverse
    return temperature**2 * total.squeeze() / len(s)


def erkd(s, t, y, temperature=4.0, entropy_temperature=4.0):
    p, q = soft(t, s, temperature)
    return temperature**2 * (entropy((t / entropy_temperature).softmax(1)) * kl(p, q)).mean()


def ttm(s, t, y, temperature=4.0):
    return kl((t / temperature).softmax(1), s.softmax(1)).mean()


def wttm(s, t, y, temperature=4.0):
    power = t.softmax(1) ** (1 / temperature)
    weight = power.sum(1)
    return (weight * kl(power / weight[:, None], s.softmax(1))).mean()


def dist(s, t, y, temperature=1.0, beta=1.0, gamma=1.0):
    p, q = soft(t, s, temperature)
    return temperature**2 * (beta * (1 - pearson(p, q)).mean() + gamma * (1 - pearson(p.T, q.T)).mean())


def others(p, y):
    keep = torch.ones_like(p, dtype=torch.bool).scatter(1, y[:, None], False)
    rest = p[keep].view(len(p), -1)
    return rest / rest.sum(1, keepdim=True)


def dkd(s, t, y, temperature=4.0, alpha=1.0, beta=8.0):
    p, q = soft(t, s, temperature)
    p_y, q_y = (x.gather(1, y[:, None]) for x in (p, q))
    label = kl(torch.cat([p_y, 1 - p_y], 1), torch.cat([q_y, 1 - q_y], 1))
    return temperature**2 * (alpha * label + beta * kl(others(p, y), others(q, y))).mean()


def nkd(s, t, y, temperature=1.0, gamma=1.5):
    p_y, q_y = (x.softmax(1).gather(1, y[:, None])[:, 0] for x in (t, s))
    p, q = (others(x, y) for x in soft(t, s, temperature))
    return (-p_y * q_y.log() - gamma * temperature**2 * (p * q.log()).sum(1)).mean()


def pld(s, t, y, temperature=1.0):
    p = (t / temperature).softmax(1)
    total = 0.0
    for row in range(len(s)):
        order = t[row].argsort(descending=True).tolist()
        order.remove(int(y[row]))
        order.insert(0, int(y[row]))
        for at, c in enumerate(order):
            total = total + p[row, c] * (s[row, order[at:]].logsumexp(0) - s[row, c])
    return total / len(s)


def logit_std(s, t, y):
    return kd(z(s), z(t), y, 2.0)


def kendall(s, t, y, strength=0.5):
    sign = (t[:, :, None] - t[:, None, :]).sign()
    x = s / (strength * s.std(1, correction=0, keepdim=True))
    smooth = (x[:, :, None] - x[:, None, :]).tanh()
    return 1 - ((sign * smooth).sum((1, 2)) / sign.abs().sum((1, 2))).mean()


def mse(s, t, y, centred=False):
    if centred:
        s, t = (x - x.mean(1, keepdim=True) for x in (s, t))
    return torch.nn.functional.mse_loss(s, t)


def sinkd(s, t, y, temperature=2.0, strength=0.1, iterations=20):
    p, q = soft(t, s, temperature)
    cost = (q[:, None] - p[None]).abs().sum(2)
    plan = (-cost / strength).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum() / len(s)


def taid(s, t, y, temperature=1.0, start=0.4, end=1.0, progress=0.0):
    m = start + (end - start) * progress
    p = (((1 - m) * s.detach() + m * t) / temperature).softmax(1)
    return temperature**2 * kl(p, (s / temperature).softmax(1)).mean()


def dho(s, t, y, temperature=2.0):
    return kd(s[:, 1], t, y, temperature)


def dhkd(s, t, y, temperature=2.0):
    p, q = ((z(x) / temperature).sigmoid() for x in (t, s[:, 1]))
    return temperature**2 * (kl(p, q) + kl(1 - p, 1 - q)).mean()


def entropy(p):
    return -(p * p.log()).sum(1)


def cmkd(s, t, y, temperature=2.0, strength=0.25, values="probabilities", h=None, intra=0.0):
    p, q = soft(t, s, temperature)
    if h is None:
        h = entropy(t.softmax(1)) / math.log(t.shape[1])
    linear = pearson(p, q) if values == "probabilities" else pearson(t, s)
    spearman = pearson(ranks(z(s), strength), ranks(z(t), strength))
    columns = intra * (1 - pearson(p.T, q.T)).mean()
    return ((1 - h) * (1 - linear) + h * (1 - spearman)).mean() + columns


def batch(b=6, c=20, k=None, dtype=torch.float64, spread=3.0, heads=1):
    """Random student and teacher logits, the teacher's sparse form, and labels."""
    s, t = torch.randn(2, b, c, dtype=dtype) * spread
    t = t + s / 3
    if heads == 2:
        s = torch.stack([torch.randn_like(s), s], 1)
    return s.requires_grad_(), t, SparseTeacher.from_logits(t, k or c), torch.randint(c, (b,))
