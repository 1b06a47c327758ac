"""How good a model is on labelled images that it was not trained on."""

from collections.abc import Sequence
from typing import Self

import torch

from logitcache.datasets import Images, open_images
from logitcache.forward import ViewModel
from logitcache.loader import KeyedViews, loaded, view_loader
from logitcache.schema import RecipeSpec
from logitcache.stream import Stream
from logitcache.views import recipe_named


class Evaluation:
    """A labelled test set, viewed without randomness."""

    def __init__(
        self,
        images: Images,
        recipe: RecipeSpec,
        *,
        batch_size: int = 256,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images = images
        starts = range(0, len(images), batch_size)
        pairs = [[(i, 0) for i in range(len(images))[start : start + batch_size]] for start in starts]
        self._loader = view_loader(KeyedViews(images, recipe), pairs, workers=workers, device=device)

    @classmethod
    def beside(cls, stream: Stream) -> Self:
        """Evaluate on the test split of what a stream trains on, by the evaluation recipe of its recipe.

        Raises:
            NotFoundError, DataError: there is no test split.
        """
        images = open_images(stream.views.images.name, "test")
        recipe = recipe_named(stream.views.maker.recipe.evaluation)
        return cls(images, recipe, workers=stream.config.workers, device=stream.device)

    @torch.inference_mode()
    def of(self, models: Sequence[ViewModel]) -> list[dict[str, float]]:
        """Return {"top1", "top5"} in [0, 1] for each; the models are in evaluation mode afterwards."""
        hits = torch.zeros(len(models), 2, dtype=torch.float64)
        labelled = 0
        for model in models:
            model.eval()
        for batch in loaded(self._loader):
            labelled += int((batch.labels >= 0).sum())
            for number, model in enumerate(models):
                logits = model(batch.views.to(next(model.parameters()).device, non_blocking=True))
                right = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu() == batch.labels[:, None]
                hits[number] += torch.stack([right[:, 0].sum(), right.any(1).sum()])
        return [{"top1": float(top1), "top5": float(top5)} for top1, top5 in hits / max(1, labelled)]
