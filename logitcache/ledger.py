"""How far a student is in an epoch, and what its losses have come to."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from logitcache.errors import NonFiniteError


class Ledger:
    """Steps and losses of one epoch, summed on the device so that no step waits for it.

    Attributes:
        epoch: the epoch, from 0.
        step: steps taken of it.
        views: views that its losses are of.
    """

    def __init__(self, epoch: int, device: torch.device) -> None:
        self.epoch, self.step, self.views = epoch, 0, 0
        self._sums: dict[str, Tensor] = {}
        self._first_bad = torch.tensor(-1, device=device)

    def add(self, values: Mapping[str, Tensor], views: int) -> None:
        """Add losses, each a mean over so many views of the step at hand."""
        self.views += views
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.float() * views
        bad = (self._first_bad < 0) & ~torch.isfinite(self._sums["loss"])
        self._first_bad = torch.where(bad, self.step, self._first_bad)

    def means(self) -> dict[str, float]:
        """Return the mean of each loss over the views so far; waits for the device."""
        return {name: float(total) / self.views for name, total in self._sums.items()}

    def require_finite(self, weights: Iterable[Tensor]) -> None:
        """Insist that neither a loss nor a weight became NaN or infinite; waits for the device.

        Raises:
            NonFiniteError: one did.
        """
        at = int(self._first_bad)
        wrong = [f"{name} became {mean}" for name, mean in self.means().items() if not math.isfinite(mean)]
        if at < 0 and not wrong and not all(w.isfinite().all() for w in weights if w.is_floating_point()):
            wrong = ["weights became NaN or infinite"]
        if wrong:
            step = (at if at >= 0 else self.step - 1) + 1
            raise NonFiniteError(
                f"{wrong[0]} in epoch {self.epoch + 1}, step {step}; the checkpoint from before is kept; "
                "try a smaller --lr, --clip-norm 1, or --precision float32"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "views": self.views,
            "sums": dict(self._sums),
            "first_bad": self._first_bad,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from what `state_dict` returned."""
        self.epoch, self.step, self.views = state["epoch"], state["step"], state["views"]
        self._sums, self._first_bad = dict(state["sums"]), state["first_bad"]
