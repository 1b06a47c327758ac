"""Losses for distilling from a sparse teacher: pure functions, and the `Objective` that adds them up."""

from logitcache.losses.ce import ce
from logitcache.losses.cmkd import cmkd
from logitcache.losses.kd import kd
from logitcache.losses.objective import LOSSES, Loss, Objective

__all__ = ["LOSSES", "Loss", "Objective", "ce", "cmkd", "kd"]
