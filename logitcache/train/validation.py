"""Validation: training images held out of a run, to choose how its student's two heads are mixed."""

import numpy as np
import numpy.typing as npt
import torch

from logitcache.models.forward import ViewModel
from logitcache.models.nets import HeadMixing, TwoHeads, choose_head_mixing
from logitcache.stream.batch import Batch
from logitcache.stream.stream import Stream
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.keys import permutation
from logitcache.views.loader import iterate_batches, view_loader
from logitcache.views.recipes import evaluation_recipe

ONE_IN, AT_MOST = 10, 5000  # labelled images that are held out


def choose_held_out(images: Images) -> npt.NDArray[np.int64]:
    """Choose the training images to hold out: a keyed tenth of those with a label, at most 5,000.

    Returns:
        (m,) int64 samples, in order; the same for every run on these images.
    """
    labelled = np.flatnonzero(images.labels >= 0)
    return np.sort(labelled[permutation(len(labelled), 0)[: min(len(labelled) // ONE_IN, AT_MOST)]])


class Validation:
    """The images held out of a run: kept from its training, and answered by both heads to choose their mixing."""

    def __init__(self, stream: Stream) -> None:
        images, recipe = stream.views.images, stream.views.maker.recipe
        self._samples = torch.from_numpy(choose_held_out(images))
        pairs = [[(i, 0) for i in part.tolist()] for part in torch.split(self._samples, 256) if len(part)]
        views = KeyedViews(images, evaluation_recipe(recipe), "skip")
        self._loader = view_loader(views, pairs, workers=stream.config.workers, device=stream.device)

    def drop_held_out(self, batch: Batch) -> Batch:
        """Return a batch without the held-out images, and without views that these are mixed into."""
        rows = ~torch.isin(batch.samples, self._samples)
        if batch.partners is not None:
            rows &= ~torch.isin(batch.partners, self._samples)
        return batch[rows]

    @torch.inference_mode()
    def choose_mixing(self, model: ViewModel) -> None:
        """Set the mixing of a model's heads to the most accurate one; to even shares where no image has a label."""
        heads = model.module
        assert isinstance(heads, TwoHeads)
        model.eval()
        heads.training = True  # so that it returns both heads; the modules below it stay in evaluation mode
        device = heads.mixture.device
        logits, labels = [], []
        for batch in iterate_batches(self._loader):
            logits.append(model(batch.views[batch.valid].to(device)).cpu())
            labels.append(batch.labels[batch.valid])
        heads.mixing = choose_head_mixing(torch.cat(logits), torch.cat(labels)) if logits else HeadMixing()
        model.eval()
