"""What the page shows of a cache's images: the hardest samples, and one sample as the teacher saw it, seed by seed.

Views are shown only after proof that they are those that the teacher saw.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from logitcache.audit.stats import StatsReport
from logitcache.errors import DataError, ImageError, LogitCacheError, MismatchError
from logitcache.report.charts import spaced
from logitcache.store import CacheReader
from logitcache.teacher.spool import decode
from logitcache.views.alignment import how_to_show, images_to_show
from logitcache.views.datasets import Images
from logitcache.views.images import called
from logitcache.views.loader import KeyedViews, require
from logitcache.views.replay import prove_replay

SIDE = 144  # pixels; larger images are made smaller
SEEDS, TOP = 6, 5


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, with its size as shown there."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Look:
    """A view under one seed, and (class, probability) of the teacher's first five at T = 1."""

    seed: int
    picture: Picture
    answers: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Sample:
    """One sample under several seeds."""

    name: str
    why: str
    label: int
    picture: Picture
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Pictures:
    """What could be shown: the hardest samples by number, samples under several seeds, why there is no more."""

    hardest: dict[int, Picture]
    samples: tuple[Sample, ...]
    note: str = ""
    class_names: Sequence[str] = ()

    def name_of(self, class_: int) -> str:
        """Call a class by its name, or its number where it has none."""
        return called(self.class_names, class_)


def open_for(reader: CacheReader, named: Sequence[str] = ()) -> tuple[Images | None, str, str]:
    """Open the images of a cache among those that the user named (`images_to_show`); then their name, or why not.

    Raises:
        UnknownNameError, NotFoundError: there is no data set of such a name.
    """
    try:
        images, name = images_to_show(reader, named)
    except (DataError, MismatchError) as error:
        return None, "", f"Without images and labels: {error}"
    return images, name, "" if images else f"Without images and labels: {how_to_show(reader)}"


def pictures(reader: CacheReader, images: Images, found: StatsReport) -> Pictures:
    """Take pictures of the hardest samples, and of the hardest and the first under several seeds.

    Args:
        reader: the cache.
        images: as `open_for` gives them.
        found: what `stats` says of the cache.
    """
    hardest = {hard.sample: shot for hard in found.hardest if (shot := _taken(images, hard.sample))}
    names = images.class_names
    if any(":" in step.transform for step in reader.spec.recipe.steps):
        note = "Its views are made by code of someone's own, which a report does not run."
        return Pictures(hardest, (), note, names)
    seeds = spaced([seed.seed for seed in found.seeds], SEEDS)
    views = KeyedViews(images, reader.spec.recipe, "skip")
    try:
        prove_replay(reader, views, seeds, most=64)
        first = next((i for i in range(len(images)) if _taken(images, i)), 0)
        chosen = {**{h.sample: "the hardest sample" for h in found.hardest[:1]}, first: "the first sample"}
        samples = tuple(_sample(reader, views, sample, why, seeds) for sample, why in chosen.items())
    except LogitCacheError as error:
        return Pictures(hardest, (), f"Views could not be made again: {error}", names)
    return Pictures(hardest, tuple(sample for sample in samples if sample), class_names=names)


def _sample(reader: CacheReader, views: KeyedViews, sample: int, why: str, seeds: list[int]) -> Sample | None:
    original = _taken(views.images, sample)
    if original is None:
        return None
    shard = reader.spec.layout.shard_of(sample)
    row = sample - reader.spec.layout.samples_of(shard).start
    looks = []
    for seed in seeds:
        batch, teacher = require(views[sample, seed]), decode(reader, seed, shard)[slice(row, row + 1)]
        if batch.valid.all() and not teacher.top.isnan().any():
            answers = zip(teacher.ids[0, :TOP].tolist(), teacher.at(1.0).probs[0, :TOP].tolist(), strict=True)
            looks.append(Look(seed, picture(batch.views[0]), tuple(answers)))
    images = views.images
    return Sample(images.describe(sample), why, int(images.labels[sample]), original, tuple(looks))


def _taken(images: Images, sample: int) -> Picture | None:
    try:
        return picture(images.image(sample))
    except ImageError:
        return None


def picture(image: Tensor) -> Picture:
    """Encode an image, (C, H, W) uint8: PNG where it is small, JPEG of at most 144 pixels else."""
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    made = Image.fromarray(pixels.contiguous().numpy())
    kind = "PNG" if max(made.size) <= 64 else "JPEG"
    made.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    made.save(data, kind, quality=82, optimize=True)
    text = base64.b64encode(data.getvalue()).decode()
    return Picture(f"data:image/{kind.lower()};base64,{text}", *made.size)
