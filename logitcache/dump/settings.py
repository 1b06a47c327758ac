"""`DumpConfig`: how stage one runs."""

import dataclasses
from dataclasses import dataclass
from typing import Self

from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.views.keyed_views import OnBadImage

TOP_K = 8  # logits of a new cache
ALL_UP_TO = 16  # classes of which it keeps every one


def default_top_k(num_classes: int) -> int:
    """Return how many logits a new cache keeps where nobody says."""
    return num_classes if num_classes <= ALL_UP_TO else TOP_K


@dataclass(frozen=True)
class DumpConfig(Spec):
    """How stage one runs. What identifies the cache is k, profile, precision; the rest is only speed.

    Attributes:
        seeds: augmentation seeds to dump; None: those of the cache, of a new one 0 to 3, of a test split, whose views
            do not vary, 0.
        top_k: logits to keep per view, capped at the class count; None: those of the cache, of a new one 8, or all
            of up to 16 classes.
        profile: "default", "compact", "archive" or "exact"; None: that of the cache, of a new one "default".
        batch_size: views per forward; 0 takes 64 on the CPU and 256 on CUDA.
        precision: "float32", "bfloat16" or "float16"; "auto": that of the cache, of a new one what fits the device.
        device: "auto", "cpu", "cuda", "cuda:N".
        compile: the teacher by `torch.compile`; its logits then differ as between devices, in the last bits.
        workers: processes that make views, one by one; −1: as fits, 0: none (see `loader.view_loader`).
        seeds_per_pass: seeds that share one decoding of each image.
        on_bad_image: "error" stops; "skip" marks the sample as one without a teacher.
        calibration: views that a new cache's class statistics are estimated from, before its first shard; 0: it gets
            none. None: as `calibration.choose_count` says, none where every logit is kept.
        shard_samples: samples per shard; 0 fits it to the data set, or takes that of the cache.
        start_method: of the workers; None takes the platform's.
        grow: append images that the cache has not yet; without, data that has grown is refused.
    """

    seeds: tuple[int, ...] | None = None
    top_k: int | None = None
    profile: str | None = None
    batch_size: int = 0
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False
    workers: int = -1
    seeds_per_pass: int = 1
    on_bad_image: OnBadImage = "error"
    calibration: int | None = None
    shard_samples: int = 0
    start_method: str | None = None
    grow: bool = False

    def with_defaults_of(self, cache: CacheSpec) -> Self:
        """Return these settings; those left open are as in the cache that the dump goes on with.

        Its profile "exact" keeps every logit, so that one stays open where fewer are asked for.
        """
        exact = cache.profile.name == "exact"
        fits = self.top_k is None or not exact or self.top_k >= cache.k
        return dataclasses.replace(
            self,
            top_k=cache.k if self.top_k is None else self.top_k,
            profile=self.profile or (cache.profile.name if fits else None),
            precision=cache.teacher.precision if self.precision == "auto" else self.precision,
            shard_samples=self.shard_samples or cache.shard_samples,
        )
