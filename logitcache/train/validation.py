"""Training images held out of a run, to choose how two heads answer together."""

import numpy as np
import numpy.typing as npt
import torch

from logitcache.models.forward import ViewModel
from logitcache.models.nets import HeadMixing, TwoHeads, choose_head_mixing
from logitcache.stream.stream import Batch, Stream
from logitcache.views.datasets import Images
from logitcache.views.keys import permutation
from logitcache.views.loader import KeyedViews, loaded, view_loader
from logitcache.views.recipes import recipe_named

HELD_OUT, AT_MOST = 10, 5000


def held_out(images: Images) -> npt.NDArray[np.int64]:
    """Labelled training images that choices are made on: a keyed tenth, at most 5,000; never any of the test set.

    Returns:
        (m,) int64 samples, in order; the same for every run on these images.
    """
    labelled = np.flatnonzero(images.labels >= 0)
    return np.sort(labelled[permutation(len(labelled), 0)[: min(len(labelled) // HELD_OUT, AT_MOST)]])


class Validation:
    """Images held out of a run's training, to choose how its two heads answer together."""

    def __init__(self, stream: Stream) -> None:
        images, recipe = stream.views.images, stream.views.maker.recipe
        self._samples = torch.from_numpy(held_out(images))
        pairs = [[(i, 0) for i in part.tolist()] for part in torch.split(self._samples, 256) if len(part)]
        views = KeyedViews(images, recipe_named(recipe.evaluation), "skip")
        self._loader = view_loader(views, pairs, workers=stream.config.workers, device=stream.device)

    def without(self, batch: Batch) -> Batch:
        """Return the batch without the images held out, and without views that these are mixed into."""
        rows = ~torch.isin(batch.samples, self._samples)
        if batch.partners is not None:
            rows &= ~torch.isin(batch.partners, self._samples)
        return batch[rows]

    @torch.inference_mode()
    def choose(self, model: ViewModel) -> None:
        """Set the mixing of a model's heads to the most accurate; even where no image has a label."""
        heads = model.module
        assert isinstance(heads, TwoHeads)
        model.eval()
        heads.training = True  # it gives both heads apart; what is below stays in evaluation mode
        device = heads.mixture.device
        logits, labels = [], []
        for batch in loaded(self._loader):
            logits.append(model(batch.views[batch.valid].to(device)).cpu())
            labels.append(batch.labels[batch.valid])
        mixing = choose_head_mixing(torch.cat(logits), torch.cat(labels)) if logits else HeadMixing()
        heads.mixing = mixing
        model.eval()
