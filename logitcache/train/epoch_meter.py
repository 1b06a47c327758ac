"""How many steps of an epoch a student has taken, and the means of its losses."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from logitcache.distributed import World
from logitcache.errors import NonFiniteError


class EpochMeter:
    """Steps and losses of one epoch, summed in float64 on the device so that no step waits for it.

    A checkpoint holds it under the name "ledger".

    Attributes:
        epoch: the epoch, from 0.
        step: steps taken of it.
        views: views that the losses are means over.
        seconds: spent on the steps, by this rank's clock.
    """

    def __init__(self, epoch: int, device: torch.device) -> None:
        self.epoch, self.step, self.views = epoch, 0, 0
        self.seconds = 0.0
        self._sums: dict[str, Tensor] = {}
        self._first_bad = torch.tensor(-1, device=device)  # step whose loss was the first that is not finite

    def add(self, values: Mapping[str, Tensor], views: int) -> None:
        """Add the losses of the step at hand, each a mean over so many views."""
        self.views += views
        for name, value in values.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(value, dtype=_sum_dtype(value.device))
            self._sums[name].add_(value, alpha=views)
        bad = (self._first_bad < 0) & ~torch.isfinite(self._sums["loss"])
        self._first_bad = torch.where(bad, self.step, self._first_bad)

    def means(self) -> dict[str, float]:
        """Return the mean of each loss over the views so far; waits for the device."""
        return {name: float(total) / self.views for name, total in self._sums.items()}

    def over_ranks(self, world: World) -> "EpochMeter":
        """Return the meter of all ranks, which have taken the same steps; waits for the device and for them."""
        if world.size == 1:
            return self
        names = sorted(self._sums)
        device = self._first_bad.device
        sums = [float(self.views), *(float(self._sums[name]) for name in names)]
        views, *totals = world.all_reduce_sum(torch.tensor(sums, dtype=_sum_dtype(device), device=device))
        bad_steps = [step for step in world.all_gather(int(self._first_bad)) if step >= 0]
        meter = EpochMeter(self.epoch, device)
        meter.step, meter.views, meter.seconds = self.step, int(views), self.seconds
        meter._sums = dict(zip(names, totals, strict=True))
        meter._first_bad = torch.tensor(min(bad_steps, default=-1), device=device)
        return meter

    def require_finite(
        self,
        weights_finite: bool = True,
        advice: str = "try a smaller rate",
        at_once: str = "check them, and what is trained on",
    ) -> None:
        """Insist that neither a loss nor a weight became NaN or infinite; waits for the device.

        Args:
            weights_finite: whether all weights are.
            advice: what may help.
            at_once: what may help where the very first loss of a run is not finite.

        Raises:
            NonFiniteError: one did.
        """
        first_bad = int(self._first_bad)
        problems = [f"{name} became {mean}" for name, mean in self.means().items() if not math.isfinite(mean)]
        if first_bad < 0 and not problems and not weights_finite:
            problems = ["weights became NaN or infinite"]
        if problems:
            step = first_bad + 1 if first_bad >= 0 else self.step
            if (self.epoch, first_bad) == (0, 0):  # before any update
                advice = f"the weights were those that it began with: {at_once}"
            raise NonFiniteError(
                f"{problems[0]} in epoch {self.epoch + 1}, step {step}; any checkpoint from before is kept; "
                f"{advice}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, for a checkpoint."""
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
        self._sums = {name: total.to(device, _sum_dtype(device)) for name, total in state["sums"].items()}
        self._first_bad = state["first_bad"].to(device)

    def drop_sums(self) -> None:
        """Set the sums to 0, where rank 0 has loaded them from the same checkpoint."""
        self.views, self._sums = 0, {name: torch.zeros_like(total) for name, total in self._sums.items()}


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Metal has none
