"""How far a teacher's logits may lie apart: classes that it masks, and numbers that are no logits.

A class that lies `MASKED` below the largest logit has no mass at any temperature in use: at T = 20 its probability is
e^−50 of the first one's. Teachers mask classes by −∞, the lowest float or −10⁹, and the tail's mean would be all
of that number. So whatever lies lower is taken to lie there, in a cache and live alike. Completing
keeps them there; an even tail, which knows no class of it from another, can't: it gives each the same.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from logitcache.errors import NonFiniteError

REACH = 10_000.0  # of a logit, up or down
MASKED = 1_000.0  # the largest gap


def raise_masked(logits: Tensor) -> Tensor:
    """Return (B, C) logits, none of them more than `MASKED` below the largest of its row."""
    top = logits.amax(1, keepdim=True).clamp(max=torch.finfo(logits.dtype).max)  # ∞ stays the only one
    return logits.maximum(top - MASKED)


def count_unmasked(logits: Tensor) -> Tensor:
    """Count the classes that each row leaves unmasked: (B, C) logits -> (B,) int64."""
    return (logits > logits.amax(1, keepdim=True) - MASKED).sum(1)


def split_tails(unmasked: Tensor, k: int, num_classes: int) -> Tensor:
    """Say which rows have masked classes beside others outside their top k, (B,) bool, by `count_unmasked`."""
    return (unmasked > k) & (unmasked < num_classes)


def describe_split_tails(most: int) -> str:
    """Say what an even tail makes of masked classes, and what to do, where views leave `most` others unmasked."""
    return (
        "the teacher masks classes, and leaves more unmasked than the cache lists; without class statistics an even "
        f"tail gives masked ones as much mass as others: list all others by --top-k {most:,} or more, in a new cache"
    )


def find_outliers(top: Tensor) -> Tensor:
    """Say which rows are no logits, (B,) bool, by the largest number of each, (B,): NaN, or farther than ±`REACH`."""
    return ~(top.abs() <= REACH)


def require_logits(logits: Tensor, wanted: Tensor, where: Callable[[int], str], *, half: bool) -> Tensor:
    """Return a batch's logits with masked classes raised, after a look at them; waits for the device.

    Args:
        logits: (B, C).
        wanted: (B,) bool: rows that count.
        where: says of which view a row is, for the message.
        half: whether the teacher runs in half precision.

    Raises:
        NonFiniteError: a row that counts is no logits.
    """
    raised = raise_masked(logits)
    if (wrong := wanted & find_outliers(raised.amax(1))).any():
        row = int(wrong.nonzero()[0])
        top, class_ = raised[row].max(0)
        raise outlier_error(float(top), where(row), half=half, class_=int(class_))
    return raised


def outlier_error(
    top: float, where: str, *, half: bool, class_: int | None = None, so_far: str = ""
) -> NonFiniteError:
    """Return the error for a row that is no logits.

    Args:
        top: its largest number.
        where: of which view.
        half: whether the teacher runs in half precision.
        class_: of that number.
        so_far: what became of the work until then, for the message.
    """
    if top <= -REACH:
        advice = "at least one class must be left unmasked"
    elif math.isfinite(top):
        advice = "give a teacher whose answers are logits, as its loss takes them, not scaled"
    else:
        advice = f"{'try --precision float32 in another cache, or ' if half else ''}check the weights"
    found = f"{top:g}" if math.isfinite(top) else str(top)
    of_class = "" if class_ is None else f" (class {class_})"
    return NonFiniteError(
        f"the teacher's largest logit for {where} is {found}{of_class}, expected a number within ±{REACH:,.0f}; "
        f"{so_far}{advice}"
    )


def sum_to_one(listed: Tensor, tail_sum: Tensor) -> bool:
    """Say whether a model's answers are probabilities: each row sums to 1, and none of what it lists is negative.

    Args:
        listed: (B, k) of a row's numbers.
        tail_sum: (B,) sum of the others, 0 where there are none.
    """
    total = listed.sum(1) + tail_sum
    return bool(((total - 1).abs() < 1e-3).all() and (listed >= 0).all() and (tail_sum > -1e-3).all())
