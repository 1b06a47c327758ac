"""What a trained student answers for the images of a cache, viewed without randomness, each once."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from logitcache.errors import NonFiniteError
from logitcache.models.forward import ViewModel
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.loader import iterate_batches, view_loader

SEED = 0  # of evaluation views, which are the same under every seed


@torch.inference_mode()
def iterate_answers(
    model: ViewModel,
    views: KeyedViews,
    *,
    device: torch.device,
    batch_size: int = 256,
    workers: int = -1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate a student's answers, batch by batch.

    Args:
        model: on its device; in evaluation mode from here on.
        views: of the images, by a recipe without randomness; those that do not decode are left out if it says so.
        device: where the model is.
        batch_size: images per forward.
        workers: as `loader.view_loader` takes it.
        on_progress: called with (images done, images to do).

    Yields:
        (B,) int64 samples and (B, C) float32 probabilities, on the CPU.

    Raises:
        NonFiniteError: an answer is not a number.
        DataError: an image does not decode.
    """
    n = len(views)
    batches = [[(i, SEED) for i in range(n)[at : at + batch_size]] for at in range(0, n, batch_size)]
    model.eval()
    done = 0
    for batch in iterate_batches(view_loader(views, batches, workers=workers, device=device)):
        done += len(batch.samples)
        if batch.valid.any():
            shown = batch.views[batch.valid.to(batch.views.device)].to(device)
            probs = model(shown).softmax(1).cpu()
            if not probs.isfinite().all():
                raise NonFiniteError("the student's answers hold NaN or infinity; check its weights")
            yield batch.samples[batch.valid], probs
        if on_progress:
            on_progress(done, n)
