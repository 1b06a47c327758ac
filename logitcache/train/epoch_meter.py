"""How far a student is in an epoch, and what its losses have come to."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from logitcache.distributed import World
from logitcache.errors import NonFiniteError


class Ledger:
    """Steps and losses of one epoch, summed in float64 on the device so that no step waits for it.

    Attributes:
        epoch: the epoch, from 0.
        step: steps taken of it.
        views: views that its losses are of.
        seconds: spent on them, by this rank's clock.
    """

    def __init__(self, epoch: int, device: torch.device) -> None:
        self.epoch, self.step, self.views = epoch, 0, 0
        self.seconds = 0.0
        self._sums: dict[str, Tensor] = {}
        self._first_bad = torch.tensor(-1, device=device)

    def add(self, values: Mapping[str, Tensor], views: int) -> None:
        """Add losses, each a mean over so many views of the step at hand."""
        self.views += views
        for name, value in values.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(value, dtype=_exact(value.device))
            self._sums[name].add_(value, alpha=views)
        bad = (self._first_bad < 0) & ~torch.isfinite(self._sums["loss"])
        self._first_bad = torch.where(bad, self.step, self._first_bad)

    def means(self) -> dict[str, float]:
        """Return the mean of each loss over the views so far; waits for the device."""
        return {name: float(total) / self.views for name, total in self._sums.items()}

    def of_all(self, world: World) -> "Ledger":
        """Return the ledger of all ranks, who have taken the same steps; waits for the device and for them."""
        if world.size == 1:
            return self
        names = sorted(self._sums)
        device = self._first_bad.device
        mine = [float(self.views), *(float(self._sums[name]) for name in names)]
        total = world.all_reduce_sum(torch.tensor(mine, dtype=_exact(device), device=device))
        steps = world.all_gather(int(self._first_bad))
        whole = Ledger(self.epoch, device)
        whole.step, whole.views, whole.seconds = self.step, int(total[0]), self.seconds
        whole._sums = dict(zip(names, total[1:], strict=True))
        whole._first_bad = torch.tensor(min((s for s in steps if s >= 0), default=-1), device=device)
        return whole

    def require_finite(self, weights_finite: bool = True) -> None:
        """Insist that neither a loss nor a weight became NaN or infinite; waits for the device.

        Raises:
            NonFiniteError: one did.
        """
        at = int(self._first_bad)
        wrong = [f"{name} became {mean}" for name, mean in self.means().items() if not math.isfinite(mean)]
        if at < 0 and not wrong and not weights_finite:
            wrong = ["weights became NaN or infinite"]
        if wrong:
            step = (at if at >= 0 else self.step - 1) + 1
            raise NonFiniteError(
                f"{wrong[0]} in epoch {self.epoch + 1}, step {step}; any checkpoint from before is kept; "
                "try a smaller --lr, --clip-norm 1, or --precision float32"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "views": self.views,
            "seconds": self.seconds,
            "sums": dict(self._sums),
            "first_bad": self._first_bad,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from what `state_dict` returned, on the device that this one is on.

        Raises:
            TypeError: it holds no such counts.
        """
        counts = state["epoch"], state["step"], state["views"]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise TypeError(f"expected counts of epochs, steps and views, found {counts}")
        self.epoch, self.step, self.views = counts
        self.seconds = float(state["seconds"])
        device = self._first_bad.device
        self._sums = {name: total.to(device, _exact(device)) for name, total in state["sums"].items()}
        self._first_bad = state["first_bad"].to(device)

    def without_sums(self) -> None:
        """Leave the sums so far to another rank, which has them."""
        self.views, self._sums = 0, {name: torch.zeros_like(total) for name, total in self._sums.items()}


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which Metal has not
