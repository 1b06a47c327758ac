"""How far what a record keeps is from the teacher's distribution, over the listed classes and all others as one."""

import numpy as np
import torch
from torch import Tensor

from logitcache.teacher.sparse import SparseTeacher

LEAST = 1e-8  # the tail's mass where a record's rounded probabilities leave none


def true_log_probs(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Return (B, k + 1) log-probabilities at T of the listed classes and of all others together, in float64."""
    log_p = (logits.double() / temperature).log_softmax(1)
    tail = log_p.scatter(1, ids, -torch.inf).logsumexp(1)
    return torch.cat([log_p.gather(1, ids), tail[:, None]], 1)


def sparse_log_probs(teacher: SparseTeacher, temperature: float) -> Tensor:
    """Return the same, (B, k + 1), from the rows of a cache."""
    soft = teacher.listed_at(temperature)
    return torch.cat([soft.log_probs, soft.log_tail_mass[:, None]], 1).double()


def spread_log_probs(p: Tensor, listed: int, num_classes: int, temperature: float) -> Tensor:
    """Return the same, (B, listed + 1), from the first k ≤ `listed` probabilities at T = 1, the rest spread evenly.

    That is how TinyViT's and FKD's trainings fill up what was not stored.
    """
    heads, k = p.double(), p.shape[1]
    share = (1 - heads.sum(1, keepdim=True)).clamp(min=LEAST) / (num_classes - k)
    heads = heads.clamp(min=2.0**-25).log() / temperature
    share = share.log() / temperature
    both = torch.cat([heads, share.expand(-1, listed - k), share + np.log(num_classes - listed)], 1)
    return both - both.logsumexp(1, keepdim=True)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return (B,) KL(p ‖ q) in nats, of log-probabilities over the same classes."""
    return (p.exp() * (p - q)).sum(1)
