"""How far what a record keeps is from the teacher's distribution."""

import torch
from torch import Tensor

LEAST = 1e-8  # the tail's mass where a record's rounded probabilities leave none


def log_probs_of(logits: Tensor, temperature: float) -> Tensor:
    """Return (B, C) log-probabilities at T, in float64."""
    return (logits.double() / temperature).log_softmax(1)


def spread_log_probs(ids: Tensor, p: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Return (B, C) log-probabilities at T from k probabilities at T = 1, the rest spread evenly, in float64.

    That is how TinyViT's and FKD's trainings fill up what was not stored.

    Args:
        ids: (B, k) int64, the listed classes.
        p: (B, k) float, their probabilities.
        num_classes: C > k.
        temperature: T.
    """
    heads = p.double()
    share = (1 - heads.sum(1, keepdim=True)).clamp(min=LEAST) / (num_classes - p.shape[1])
    log_p = share.log().repeat(1, num_classes).scatter(1, ids, heads.clamp(min=2.0**-25).log())
    return log_probs_of(log_p, temperature)


def merge_tail(log_p: Tensor, ids: Tensor) -> Tensor:
    """Return (B, k + 1) log-probabilities, of the listed classes and of all others as one."""
    tail = log_p.scatter(1, ids, -torch.inf).logsumexp(1)
    return torch.cat([log_p.gather(1, ids), tail[:, None]], 1)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return (B,) KL(p ‖ q) in nats, of log-probabilities over the same classes."""
    return (p.exp() * (p - q)).sum(1)
