"""The teacher of a batch: what a cache's rows list, and what follows from it for all C classes.

A cache keeps, per view, the k largest logits and of the C − k others (the *tail*) the log-sum-exp and mean, all
relative to the largest logit. `SparseTeacher.logits` is the whole answer, (B, C), which any loss for dense teacher
logits can take: the tail is completed by the class statistics of the cache (`completion`), and keeps both of its
numbers exactly. `SparseTeacher.at(T)` is its distribution at a temperature.

Where a cache has no class statistics, nothing is known of the order in the tail: its mass is spread evenly. With t
the tail's relative logits, the function

    f(b) = log mean exp(b·t)

is known at b = 0 (value 0, slope mean, in such caches also curvature variance) and at b = 1 (from the log-sum-exp).
The cubic through these gives the tail's mass at any temperature T = 1/b: exact at T = 1, second-order exact as T
grows. `SparseTeacher.listed_at(T)` builds on that, and on nothing of size (B, C).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.format.identity import Profile
from logitcache.format.quantize import code_gaps, decode_gaps, round_mantissa
from logitcache.format.schema import RowLayout
from logitcache.teacher.completion import Completion
from logitcache.teacher.reach import MASKED


@dataclass(frozen=True, eq=False, repr=False)
class SparseTeacher:
    """Teacher logits of B views over C classes, kept as top-k and tail statistics.

    Attributes:
        ids: (B, k) int64, classes by falling logit.
        gap: (B, k) float, top logit minus this logit, ≥ 0, rising.
        top: (B,) float, the largest raw logit.
        tail_lse: (B,) float, log Σ exp(logit − top) over the C − k classes outside `ids`.
        tail_mean: (B,) float, mean of (logit − top) over the same classes.
        tail_var: (B,) float, population variance of the same; None where a cache began with class statistics. All
            three are None when k = C.
        num_classes: C.
        completion: what completes the tail; None where nothing is known of its order.
        known: (B, C) float, the raw logits where they are known without completing anything, as of an ensemble.
    """

    ids: Tensor
    gap: Tensor
    top: Tensor
    tail_lse: Tensor | None
    tail_mean: Tensor | None
    tail_var: Tensor | None
    num_classes: int
    completion: Completion | None = None
    known: Tensor | None = None

    @classmethod
    def from_logits(cls, logits: Tensor, k: int, completion: Completion | None = None) -> Self:
        """Compress (B, C) logits to their top `k`, as a cache keeps them, unrounded.

        Computed in float32, or float64 when that is given. Classes that are masked, by −∞ say, lie `reach.MASKED`
        below the top.

        Raises:
            OptionError: `k` is not between 1 and C.
        """
        num_classes = logits.shape[1]
        if not 1 <= k <= num_classes:
            raise OptionError(f"k must be 1 to {num_classes} (the number of classes), found {k}")
        logits = logits if logits.dtype == torch.float64 else logits.float()
        values, ids = logits.topk(k, dim=1)
        top = values[:, 0]
        gap = (top[:, None] - values).clamp(max=MASKED)
        if k == num_classes:
            return cls(ids, gap, top, None, None, None, num_classes)
        relative = (logits - top[:, None]).clamp(min=-MASKED)
        size = num_classes - k
        tail_lse = relative.scatter(1, ids, -math.inf).logsumexp(1)
        tail_mean = relative.scatter(1, ids, 0.0).sum(1) / size
        centred = (relative - tail_mean[:, None]).scatter(1, ids, 0.0)
        tail_var = centred.square().sum(1) / size
        return cls(ids, gap, top, tail_lse, tail_mean, tail_var, num_classes, completion)

    @classmethod
    def unpack(cls, rows: Tensor, layout: RowLayout, completion: Completion | None = None) -> Self:
        """Decode (B, row_bytes) uint8 rows of a spool, on whatever device they are."""
        fields = {}
        for name, dtype, count, offset in layout.fields:
            raw = rows[:, offset : offset + count * _SIZE[dtype]].contiguous().view(_STORED[dtype])
            fields[name] = raw if count > 1 or name in ("ids", "gap") else raw[:, 0]
        ids = fields["ids"].long() & _MASK.get(fields["ids"].dtype, -1)
        gap = fields["gap"]
        if layout.gap_coding == "differences":
            gap = (gap.int() & _MASK.get(gap.dtype, -1)).cumsum(1, dtype=torch.int32)
            if layout.gap_step is None:
                gap = gap.to(torch.int16).view(torch.float16)
        gap = gap.float() if layout.gap_step is None else gap.float() * layout.gap_step
        lse, mean, var = (fields.get(name) for name in ("tail_lse", "tail_mean", "tail_var"))
        return cls(ids, gap, fields["top"], lse, mean, var, layout.num_classes, completion)

    # The rows -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __repr__(self) -> str:
        tail = "" if self.is_whole else ", completed" if self.completion else ", even tail"
        rows = f"{len(self)} rows, k={self.k} of {self.num_classes} classes{tail}"
        return f"SparseTeacher({rows}, {self.top.device})"

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """Select rows, as indexing a tensor does."""
        return self._map(lambda t: t[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move to a device (and the numbers, not the ids, to a dtype)."""
        return self._map(lambda t: t.to(device, dtype if t.is_floating_point() else None))

    # The logits -----------------------------------------------------------------------------------------

    @property
    def k(self) -> int:
        """Number of classes that are listed."""
        return self.ids.shape[1]

    @property
    def tail_size(self) -> int:
        """Number of classes that are not, C − k."""
        return self.num_classes - self.k

    @property
    def listed(self) -> Tensor:
        """(B, k) raw logits of the listed classes."""
        return self.top[:, None] - self.gap

    @property
    def is_whole(self) -> bool:
        """Whether single logits of the tail are known or can be told: `logits` is then no even fill."""
        return self.tail_size <= 1 or self.known is not None or self.completion is not None

    @functools.cached_property
    def logits(self) -> Tensor:
        """(B, C) raw logits, computed when first asked for; no gradient flows into them.

        Listed ones are as stored. The others are completed by the class statistics: their mean and log-sum-exp are
        those stored, and none lies above the last listed one. Without class statistics each is the tail's mean share
        at T = 1; `at` then does better at other temperatures.
        """
        if self.known is not None:
            return self.known
        if self.tail_lse is None or self.tail_mean is None:
            return torch.empty_like(self.gap).scatter_(1, self.ids, self.listed)
        if self.completion is not None:
            dtype = torch.promote_types(self.gap.dtype, torch.float32)
            completion = self.completion.to(self.gap.device, dtype)
            row = (x.to(dtype) for x in (self.gap, self.tail_lse, self.tail_mean))
            return completion.complete(self.ids, *row).add_(self.top[:, None]).to(self.gap.dtype)
        share = self.top + self.tail_lse - math.log(self.tail_size)
        return share[:, None].repeat(1, self.num_classes).scatter_(1, self.ids, self.listed)

    def rounded(self, profile: Profile) -> Self:
        """Return the answers as a cache of a profile gives them back, on the CPU, float32."""

        def scalars(values: Tensor) -> Tensor:
            return torch.from_numpy(round_mantissa(values.cpu().numpy(), profile.scalar_bits))

        optional = (self.tail_lse, self.tail_mean, self.tail_var)
        lse, mean, var = (t if t is None else scalars(t) for t in optional)
        gap = torch.from_numpy(decode_gaps(code_gaps(self.gap.cpu().numpy(), profile), profile))
        ids, top = self.ids.cpu(), scalars(self.top)
        return type(self)(ids, gap, top, lse, mean, var, self.num_classes, self.completion)

    def standardise(self) -> Self:
        """Return the teacher whose logits are z-scored over all C classes: (logit − mean) / std."""
        logits = self.logits
        std, mean = torch.std_mean(logits, 1, correction=0, keepdim=True)
        std = std.clamp(min=1e-6)
        known = (logits - mean) / std
        top, gap = (self.top - mean[:, 0]) / std[:, 0], self.gap / std
        return replace(self, gap=gap, top=top, tail_lse=None, tail_mean=None, tail_var=None, known=known)

    # The distribution at a temperature ------------------------------------------------------------------

    def at(self, temperature: float) -> "SoftTargets":
        """Return the distribution at T over all C classes.

        Raises:
            OptionError: T is not above 0.
        """
        if self.is_whole:
            return SoftTargets((self.logits / _positive(temperature)).log_softmax(1))
        listed = self.listed_at(temperature)
        share = listed.log_tail_share[:, None].repeat(1, self.num_classes)
        return SoftTargets(share.scatter_(1, self.ids, listed.log_probs))

    def listed_at(self, temperature: float) -> "ListedTargets":
        """Return the distribution at T over the listed classes and all others together.

        Its cost does not grow with C. At T = 1 it is that of `at`; at others the tail's mass differs a little.

        Raises:
            OptionError: T is not above 0.
        """
        support = -self.gap / _positive(temperature)
        lse = support.exp().sum(1).log()  # none is above the first, which is 0
        if not self.tail_size:
            tail = torch.full_like(lse, -math.inf)
            return ListedTargets(self, temperature, lse, support - lse[:, None], tail)
        tail = self.log_tail_sum(temperature)
        lse = torch.logaddexp(lse, tail)
        return ListedTargets(self, temperature, lse, support - lse[:, None], tail - lse)

    def log_tail_sum(self, temperature: float) -> Tensor:
        """(B,) log Σ exp((logit − top) / T) over the tail; −∞ when k = C.

        Where the logits are not known, by the cubic, held inside what is certain: with f as in the module's text,
        b·mean ≤ f(b) ≤ b·f(1) for b ≤ 1 (Jensen; the power mean rises), and b·f(1) ≤ f(b) ≤ f(1) + (b − 1)·max t for
        b > 1.
        """
        if self.known is not None and self.tail_size:
            relative = (self.known - self.top[:, None]) / _positive(temperature)
            return relative.scatter(1, self.ids, -math.inf).logsumexp(1)
        if self.tail_lse is None or self.tail_mean is None:
            return torch.full_like(self.top, -math.inf)
        if _positive(temperature) == 1.0:
            return self.tail_lse
        b = 1.0 / temperature
        log_size = math.log(self.tail_size)
        at_one = self.tail_lse - log_size
        mean, half_var = self.tail_mean, self.half_tail_var()
        f = mean * b + half_var * b * b + (at_one - mean - half_var) * b**3
        if b <= 1:
            low, high = b * mean, b * at_one
        else:
            low, high = b * at_one, at_one - (b - 1) * self.gap[:, -1]
        return log_size + torch.minimum(torch.maximum(f, low), high)

    # Helpers --------------------------------------------------------------------------------------------

    def half_tail_var(self) -> Tensor:
        """(B,) half the tail's variance; if not stored, that of a normal tail of its mean and log-sum-exp."""
        assert self.tail_lse is not None
        assert self.tail_mean is not None
        if self.tail_var is not None:
            return self.tail_var / 2
        return (self.tail_lse - math.log(self.tail_size) - self.tail_mean).clamp(min=0.0)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        optional = (self.tail_lse, self.tail_mean, self.tail_var, self.known)
        lse, mean, var, known = (t if t is None else function(t) for t in optional)
        ids, gap, top = function(self.ids), function(self.gap), function(self.top)
        mapped = type(self)(ids, gap, top, lse, mean, var, self.num_classes, self.completion, known)
        if known is None and "logits" in self.__dict__:  # completed once, whoever asks
            mapped.__dict__["logits"] = function(self.logits)
        return mapped


@dataclass(frozen=True, eq=False, repr=False)
class SoftTargets:
    """A teacher's distribution at one temperature over all classes; get it by `SparseTeacher.at`.

    Attributes:
        log_probs: (B, C) log-probabilities.
    """

    log_probs: Tensor

    def __repr__(self) -> str:
        return (
            f"SoftTargets({' rows, '.join(map(str, self.log_probs.shape))} classes, {self.log_probs.device})"
        )

    @property
    def probs(self) -> Tensor:
        """(B, C) probabilities."""
        return self.log_probs.exp()

    def entropy(self) -> Tensor:
        """(B,) entropy in nats."""
        p = self.probs
        return -torch.xlogy(p, p).sum(1)

    def prob_of(self, classes: Tensor) -> Tensor:
        """(B,) probability of one class per row, (B,) int64."""
        return self.log_probs.gather(1, classes[:, None])[:, 0].exp()


@dataclass(frozen=True, eq=False, repr=False)
class ListedTargets:
    """A teacher's distribution at one temperature T over the listed classes and all others together.

    Get it by `SparseTeacher.listed_at`.

    Attributes:
        teacher: whose distribution.
        temperature: T.
        lse: (B,) log Σ exp((logit − top) / T) over all C classes, ≥ 0.
        log_probs: (B, k) log-probabilities of the support.
        log_tail_mass: (B,) log-probability of all other classes together; −∞ when k = C.
    """

    teacher: SparseTeacher
    temperature: float
    lse: Tensor
    log_probs: Tensor
    log_tail_mass: Tensor

    def __repr__(self) -> str:
        return f"ListedTargets({self.teacher!r}, temperature={self.temperature:g})"

    @property
    def probs(self) -> Tensor:
        """(B, k) probabilities of the support; with `tail_mass` they sum to one."""
        return self.log_probs.exp()

    @property
    def tail_mass(self) -> Tensor:
        """(B,) probability of all classes outside the support; 0 when k = C."""
        return self.log_tail_mass.exp()

    @property
    def log_tail_share(self) -> Tensor:
        """(B,) log of the mean probability of a class outside the support; −∞ when k = C."""
        return self.log_tail_mass - math.log(max(1, self.teacher.tail_size))

    def log_prob_of(self, classes: Tensor) -> Tensor:
        """(B, m) log-probabilities of m classes per row; a class of the tail gets the tail's mean share.

        Args:
            classes: (B, m) int64.
        """
        ids, order = self.teacher.ids.sort(1)
        at = torch.searchsorted(ids, classes.contiguous()).clamp(max=self.teacher.k - 1)
        inside = self.log_probs.gather(1, order.gather(1, at))
        return torch.where(ids.gather(1, at) == classes, inside, self.log_tail_share[:, None])

    def prob_of(self, classes: Tensor) -> Tensor:
        """(B,) probability of one class per row, (B,) int64, as `log_prob_of`."""
        return self.log_prob_of(classes[:, None])[:, 0].exp()

    def entropy(self) -> Tensor:
        """(B,) entropy in nats: log Z − (1/Z) Σ b·t·exp(b·t), b = 1/T.

        The tail's part of the sum is (C − k)·b·f'(b)·exp f(b), f as in the module's text; f' is the tail's mean
        logit under its own softmax, and lies between the plain mean and the largest.
        """
        t, b = self.teacher, 1.0 / self.temperature
        if t.known is not None:
            return t.at(self.temperature).entropy()
        expected = (self.log_probs.exp() * t.gap).sum(1).mul(-b)
        if t.tail_lse is not None and t.tail_mean is not None:
            at_one, half_var = t.tail_lse - math.log(t.tail_size), t.half_tail_var()
            slope = t.tail_mean + 2 * half_var * b + (at_one - t.tail_mean - half_var) * (3 * b * b)
            slope = slope.minimum(-t.gap[:, -1]).maximum(t.tail_mean)
            expected = expected + self.log_tail_mass.exp() * slope * b
        return (self.lse - expected).clamp(0.0, math.log(t.num_classes))


_STORED = {
    "uint8": torch.uint8,
    "uint16": torch.int16,  # read signed, masked after widening: torch lacks most uint16 operations
    "uint32": torch.int32,
    "float16": torch.float16,
    "float32": torch.float32,
}
_SIZE = {name: dtype.itemsize for name, dtype in _STORED.items()}
_MASK = {torch.int16: 0xFFFF, torch.int32: 0xFFFF_FFFF}


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise OptionError(f"temperature must be above 0, found {temperature}")
    return temperature
