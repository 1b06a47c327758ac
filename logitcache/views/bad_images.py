"""Images that do not decode: found before training, left out, and named with the reason in reports."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from logitcache.errors import NAMED, DataError, ImageError, list_some
from logitcache.format.identity import RecipeSpec
from logitcache.format.spec import Spec
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews, Pair, ViewBatch
from logitcache.views.loader import iterate_batches, view_loader
from logitcache.views.ordered_images import NO_VIEW

UNDECODABLE = ("image that does not decode", "images that do not decode")  # one, and several
MOST_EXPLAINED = 100  # images that are decoded again, to say why they do not
AT_ONCE = 64  # images that a worker decodes, between two lines of progress

OnDecoded = Callable[[int, int], None]  # called with how many images were decoded, of how many


@dataclass(frozen=True)
class BadImage(Spec):
    """An image that did not decode.

    Attributes:
        sample: its number.
        image: its file, or what else says which image it is.
        reason: why it does not decode; None where it does by now, or where nobody looked.
    """

    sample: int
    image: str
    reason: str | None

    def __str__(self) -> str:
        return self.image if self.reason is None else f"{self.image} ({self.reason})"


def find_bad_images(
    images: Images,
    recipe: RecipeSpec,
    samples: Sequence[int] | None = None,
    *,
    workers: int = -1,
    start_method: str | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_decoded: OnDecoded = lambda done, total: None,
) -> tuple[BadImage, ...]:
    """Decode each image once; of images in memory there is nothing to decode.

    Args:
        images: to decode.
        recipe: by which they will be viewed; of transparent ones it says the background.
        samples: those to decode; None: all.
        workers: processes that decode, as `loader.view_loader` takes them.
        start_method: of the workers, likewise.
        should_stop: asked while nothing comes from the workers.
        on_decoded: called as they are decoded.

    Returns:
        Those that do not decode.

    Raises:
        DataError: images cannot be read for another reason, or not one of them decodes.
        StoppedError: `should_stop` said so.
    """
    if images.pixels() is not None:
        return ()
    pairs = [(sample, 0) for sample in (range(len(images)) if samples is None else samples)]
    batches = [pairs[start : start + AT_ONCE] for start in range(0, len(pairs), AT_ONCE)]
    loader = view_loader(
        _Decoding(images, recipe, "skip"), batches, workers=workers, start_method=start_method
    )
    bad: list[int] = []
    for number, batch in zip(range(len(batches)), iterate_batches(loader, should_stop), strict=False):
        bad += batch.samples[~batch.valid].tolist()
        on_decoded(min((number + 1) * AT_ONCE, len(pairs)), len(pairs))
    found = explain_bad_images(images, bad)
    if len(bad) == len(pairs):
        raise DataError(f"{images.name}: not one image decodes: {list_bad_images(found)}")
    return found


class _Decoding(KeyedViews):
    """Which images decode, as batches without views."""

    def __getitems__(self, pairs: Sequence[Pair]) -> ViewBatch:
        samples, seeds, labels = self.to_tensors(pairs)
        problem = ""
        try:
            valid = torch.tensor([self._decodes(sample) for sample, _ in pairs])
        except DataError as error:  # raised in a worker it would arrive wrapped in a traceback
            valid, problem = torch.zeros(len(pairs), dtype=torch.bool), str(error)
        return ViewBatch(torch.empty(0), labels, samples, seeds, valid, problem)

    def _decodes(self, sample: int) -> bool:
        try:
            self.images.image(sample)
        except ImageError:
            return False
        return True


def leave_out(images: Images, bad: Sequence[BadImage]) -> Images:
    """Return the same images without these: they keep their numbers, and no view is made of them."""
    if not bad:
        return images
    rest = copy.copy(images)
    numbers = [image.sample for image in bad if image.sample < len(images)]
    rest.missing = np.union1d(images.missing, np.array(numbers, dtype=np.int64))
    return rest


def explain_bad_images(images: Images, samples: Iterable[int]) -> tuple[BadImage, ...]:
    """Name images that did not decode; up to `MOST_EXPLAINED` are decoded again, for the reason."""
    found = []
    for number, sample in enumerate(sorted({*samples})):
        reason = _find_reason(images, sample) if number < MOST_EXPLAINED else None
        found.append(BadImage(sample, images.describe(sample), reason))
    return tuple(found)


def list_bad_images(bad: Sequence[BadImage], where: str = "") -> str:
    """Name the first few in a line; where there are more, `where` says what lists all."""
    return list_some([*map(str, bad)], len(bad)) + (f"; {where}" if where and len(bad) > NAMED else "")


def _find_reason(images: Images, sample: int) -> str | None:
    try:
        images.image(sample)
    except DataError as error:
        message = str(error).partition("does not decode (")[2] or str(error)
        if message.endswith(NO_VIEW):
            name, because = images.describe(sample), f", so {NO_VIEW}"
            return f"it {message.removeprefix(name).removesuffix(because).strip()}"
        return message.removesuffix("; mend or remove it").removesuffix(")")
    return None
