"""Views through a teacher: workers make them, the teacher answers on its device."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from logitcache.dump.settings import DumpConfig
from logitcache.errors import OptionError
from logitcache.format.identity import Precision
from logitcache.models.build import Model
from logitcache.models.forward import BatchHalver, ViewModel, choose_device
from logitcache.views.keyed_views import KeyedViews, Pair, ViewBatch
from logitcache.views.loader import iterate_batches, view_loader


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A data set and a teacher, loaded once.

    Attributes:
        views: of the images, in the order of the cache, by its recipe.
        model: the teacher, on `device`.
        device: where it runs.
        batch_size: samples per forward.
        workers: as `loader.view_loader` takes them.
        start_method: likewise.
    """

    views: KeyedViews
    model: BatchHalver
    device: torch.device
    batch_size: int
    workers: int = -1
    start_method: str | None = None

    def batches(self, pairs: Iterable[list[Pair]]) -> Iterator[ViewBatch]:
        """Make the views of these pairs, batch by batch."""
        loader = view_loader(
            self.views, pairs, workers=self.workers, device=self.device, start_method=self.start_method
        )
        return iterate_batches(loader)


def load_pipeline(
    views: KeyedViews,
    teacher: Model,
    precision: Precision,
    config: DumpConfig,
    on_note: Callable[[str], None] | None = None,
    *,
    compile: bool = False,
) -> Pipeline:
    """Put a teacher on its device, at its precision.

    Args:
        views: what it looks at.
        teacher: who.
        precision: what its forward computes in.
        config: device, batch size and workers.
        on_note: called with a line for people where a batch had to be halved.
        compile: the teacher by `torch.compile`.

    Raises:
        OptionError: the batch size is below 0, or there is no such device.
    """
    if config.batch_size < 0:
        raise OptionError(f"batch size must be at least 1, or 0 for what fits, found {config.batch_size}")
    device = choose_device(config.device)
    model = ViewModel(teacher, precision).on(device).eval()
    if compile:
        model.compile()
    batch_size = config.batch_size or (256 if device.type == "cuda" else 64)
    return Pipeline(
        views, BatchHalver(model, on_note), device, batch_size, config.workers, config.start_method
    )
