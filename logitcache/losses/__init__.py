"""Losses for distilling from a sparse teacher: pure functions, and the `Objective` that adds them up."""

from logitcache.losses.ce import ce
from logitcache.losses.cmkd import cmkd
from logitcache.losses.decoupled import dkd, nkd
from logitcache.losses.dist import dist
from logitcache.losses.kd import js, kd, reverse_kl
from logitcache.losses.kendall import kendall
from logitcache.losses.logit_std import logit_std
from logitcache.losses.mse import mse
from logitcache.losses.objective import LOSSES, Objective
from logitcache.losses.pld import pld
from logitcache.losses.registry import Loss, Term
from logitcache.losses.sinkd import sinkd
from logitcache.losses.soft_ranks import blondel_ranks, laplace_ranks, soft_spearman
from logitcache.losses.taid import taid
from logitcache.losses.ttm import ttm, wttm
from logitcache.losses.two_heads import choose_mixing, dhkd, dho
from logitcache.models.nets import Mixing, mixed

__all__ = [
    "LOSSES",
    "Loss",
    "Mixing",
    "Objective",
    "Term",
    "blondel_ranks",
    "ce",
    "choose_mixing",
    "cmkd",
    "dhkd",
    "dho",
    "dist",
    "dkd",
    "js",
    "kd",
    "kendall",
    "laplace_ranks",
    "logit_std",
    "mixed",
    "mse",
    "nkd",
    "pld",
    "reverse_kl",
    "sinkd",
    "soft_spearman",
    "taid",
    "ttm",
    "wttm",
]
