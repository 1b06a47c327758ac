"""The sparse teacher: a whole distribution over C classes from its k largest logits and three tail numbers.

A cache keeps, per view, the k largest logits and of the C − k others (the *tail*) the log-sum-exp, mean and
variance, all relative to the largest logit. With t the tail's relative logits, the function

    f(b) = log mean exp(b·t)

is known at b = 0 (value 0, slope mean, curvature variance) and at b = 1 (from the log-sum-exp). The cubic
through these gives the tail's mass at any temperature T = 1/b: exact at T = 1, second-order exact as T grows.
So the student chooses T: `SparseTeacher.at(T)` gives `SoftTargets`, the distribution at T. Nothing here builds a
(B, C) tensor but `densify`, which is for tests.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from logitcache.errors import OptionError
from logitcache.format.schema import RowLayout


@dataclass(frozen=True, eq=False)
class SparseTeacher:
    """Teacher logits of B views over C classes, kept as top-k and tail statistics.

    Attributes:
        ids: (B, k) int64, classes by falling logit.
        gap: (B, k) float, top logit minus this logit, ≥ 0, rising.
        top: (B,) float, the largest raw logit.
        tail_lse: (B,) float, log Σ exp(logit − top) over the C − k classes outside `ids`.
        tail_mean: (B,) float, mean of (logit − top) over the same classes.
        tail_var: (B,) float, population variance of the same. The three are None when k = C.
        num_classes: C.
    """

    ids: Tensor
    gap: Tensor
    top: Tensor
    tail_lse: Tensor | None
    tail_mean: Tensor | None
    tail_var: Tensor | None
    num_classes: int

    @classmethod
    def from_logits(cls, logits: Tensor, k: int) -> Self:
        """Compress (B, C) logits to their top `k`; computed in float32, or float64 when that is given.

        Raises:
            OptionError: `k` is not between 1 and C.
        """
        num_classes = logits.shape[1]
        if not 1 <= k <= num_classes:
            raise OptionError(f"k must be 1 to {num_classes} (the number of classes), found {k}")
        logits = logits if logits.dtype == torch.float64 else logits.float()
        values, ids = logits.topk(k, dim=1)
        top = values[:, 0]
        gap = top[:, None] - values
        if k == num_classes:
            return cls(ids, gap, top, None, None, None, num_classes)
        relative = logits - top[:, None]
        size = num_classes - k
        tail_lse = relative.scatter(1, ids, -math.inf).logsumexp(1)
        tail_mean = relative.scatter(1, ids, 0.0).sum(1) / size
        centred = (relative - tail_mean[:, None]).scatter(1, ids, 0.0)
        return cls(ids, gap, top, tail_lse, tail_mean, centred.square().sum(1) / size, num_classes)

    @classmethod
    def unpack(cls, rows: Tensor, layout: RowLayout) -> Self:
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
        return cls(ids, gap, fields["top"], lse, mean, var, layout.num_classes)

    # The rows -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """Select rows, as indexing a tensor does."""
        return self._map(lambda t: t[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move to a device (and the numbers, not the ids, to a dtype)."""
        return self._map(lambda t: t.to(device, dtype if t.is_floating_point() else None))

    # The logits -----------------------------------------------------------------------------------------

    @property
    def k(self) -> int:
        """Number of classes in the support."""
        return self.ids.shape[1]

    @property
    def tail_size(self) -> int:
        """Number of classes outside the support, C − k."""
        return self.num_classes - self.k

    @property
    def logits(self) -> Tensor:
        """(B, k) raw logits of the support."""
        return self.top[:, None] - self.gap

    def mean(self) -> Tensor:
        """(B,) mean of all C raw logits, exact."""
        return self.top + self._relative_mean()

    def std(self) -> Tensor:
        """(B,) population standard deviation of all C logits, exact."""
        mean = self._relative_mean()
        total = (self.gap + mean[:, None]).square().sum(1)
        if self.tail_mean is not None and self.tail_var is not None:
            total = total + self.tail_size * (self.tail_var + (self.tail_mean - mean).square())
        return (total / self.num_classes).sqrt()

    def standardise(self) -> Self:
        """Return the teacher whose logits are z-scored: (logit − mean) / std over all C classes, both exact."""
        std = self.std().clamp(min=1e-6)
        top = (self.top - self.mean()) / std
        gap = self.gap / std[:, None]
        if self.tail_mean is None or self.tail_var is None:
            return type(self)(self.ids, gap, top, None, None, None, self.num_classes)
        lse, mean, var = self.log_tail_sum(std), self.tail_mean / std, self.tail_var / std.square()
        return type(self)(self.ids, gap, top, lse, mean, var, self.num_classes)

    # The distribution at a temperature ------------------------------------------------------------------

    def log_tail_sum(self, temperature: float | Tensor) -> Tensor:
        """(B,) log Σ exp((logit − top) / T) over the tail, by the cubic; −∞ when k = C. T may differ by row.

        Held inside what is certain: with f as in the module's text, b·mean ≤ f(b) ≤ b·f(1) for b ≤ 1 (Jensen;
        the power mean rises), and b·f(1) ≤ f(b) ≤ f(1) + (b − 1)·max t for b > 1.
        """
        if self.tail_lse is None or self.tail_mean is None or self.tail_var is None:
            return torch.full_like(self.top, -math.inf)
        if not isinstance(temperature, Tensor) and _positive(temperature) == 1.0:
            return self.tail_lse
        b = 1.0 / temperature
        log_size = math.log(self.tail_size)
        at_one = self.tail_lse - log_size
        f = self.tail_mean * b + self.tail_var * (b * b / 2)
        f = f + (at_one - self.tail_mean - self.tail_var / 2) * b**3
        low, high = self._bounds(at_one, b)
        return log_size + torch.minimum(torch.maximum(f, low), high)

    def at(self, temperature: float) -> "SoftTargets":
        """Return the distribution at T, all of it computed once.

        Raises:
            OptionError: T is not above 0.
        """
        support = -self.gap / _positive(temperature)
        lse = support.exp().sum(1).log()  # none is above the first, which is 0
        if not self.tail_size:
            tail = torch.full_like(lse, -math.inf)
            return SoftTargets(self, temperature, lse, support - lse[:, None], tail)
        tail = self.log_tail_sum(temperature)
        lse = torch.logaddexp(lse, tail)
        return SoftTargets(self, temperature, lse, support - lse[:, None], tail - lse)

    # Helpers --------------------------------------------------------------------------------------------

    def _relative_mean(self) -> Tensor:
        total = -self.gap.sum(1)
        if self.tail_mean is not None:
            total = total + self.tail_size * self.tail_mean
        return total / self.num_classes

    def _bounds(self, at_one: Tensor, b: float | Tensor) -> tuple[Tensor, Tensor]:
        assert self.tail_mean is not None
        soft = b * self.tail_mean, b * at_one
        sharp = b * at_one, at_one - (b - 1) * self.gap[:, -1]
        if isinstance(b, Tensor):
            return torch.where(b <= 1, soft[0], sharp[0]), torch.where(b <= 1, soft[1], sharp[1])
        return soft if b <= 1 else sharp

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        tail = (self.tail_lse, self.tail_mean, self.tail_var)
        lse, mean, var = (t if t is None else function(t) for t in tail)
        ids, gap, top = function(self.ids), function(self.gap), function(self.top)
        return type(self)(ids, gap, top, lse, mean, var, self.num_classes)


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """A sparse teacher's distribution at one temperature T; get it by `SparseTeacher.at`.

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
        expected = (self.log_probs.exp() * t.gap).sum(1).mul(-b)
        if t.tail_lse is not None and t.tail_mean is not None and t.tail_var is not None:
            at_one = t.tail_lse - math.log(t.tail_size)
            slope = t.tail_mean + t.tail_var * b + (at_one - t.tail_mean - t.tail_var / 2) * (3 * b * b)
            slope = slope.minimum(-t.gap[:, -1]).maximum(t.tail_mean)
            expected = expected + self.log_tail_mass.exp() * slope * b
        return (self.lse - expected).clamp(0.0, math.log(t.num_classes))

    def densify(self) -> Tensor:
        """(B, C) probabilities with the tail's mass spread evenly: for tests and for small C only."""
        dense = self.log_tail_share.exp()[:, None].expand(-1, self.teacher.num_classes).contiguous()
        return dense.scatter(1, self.teacher.ids, self.probs)


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
