"""Images of a cache, for the page: the hardest samples, and two samples as the teacher saw them, seed by seed.

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
from logitcache.report.charts import take_evenly
from logitcache.store import CacheReader
from logitcache.teacher.spool import decode_shard
from logitcache.views.alignment import explain_how_to_show, open_images_to_show
from logitcache.views.images import Images, name_class
from logitcache.views.keyed_views import KeyedViews, check_batch
from logitcache.views.replay import prove_replay

SIDE = 144  # pixels; larger images are made smaller
SEEDS, TOP = 6, 5


@dataclass(frozen=True)
class Thumbnail:
    """An image as a data URI, with its width and height in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class SeenView:
    """A view under one seed, and (class, probability) of the teacher's first five classes at T = 1."""

    seed: int
    thumbnail: Thumbnail
    answers: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SeenSample:
    """One sample: the image, and its views under several seeds; `why` it was chosen."""

    name: str
    why: str
    label: int
    thumbnail: Thumbnail
    views: tuple[SeenView, ...]


@dataclass(frozen=True)
class CacheImages:
    """What could be shown: the hardest samples by number, samples under several seeds, and why no more."""

    hardest: dict[int, Thumbnail]
    samples: tuple[SeenSample, ...]
    note: str = ""
    class_names: Sequence[str] = ()

    def name_of(self, class_: int) -> str:
        """Call a class by its name, or its number where it has none."""
        return name_class(self.class_names, class_)


def open_images_of(reader: CacheReader, names: Sequence[str] = ()) -> tuple[Images | None, str, str]:
    """Open the images of a cache, where the user named them (`open_images_to_show`).

    Returns:
        The images, or None; their name; why they are not shown.

    Raises:
        UnknownNameError, NotFoundError: there is no data set of such a name.
    """
    try:
        images, name = open_images_to_show(reader, names)
    except (DataError, MismatchError) as error:
        return None, "", f"Without images and labels: {error}"
    return images, name, "" if images else f"Without images and labels: {explain_how_to_show(reader)}"


def make_thumbnails(reader: CacheReader, images: Images, stats: StatsReport) -> CacheImages:
    """Make thumbnails of the hardest samples, and of the views of the hardest and the first under several seeds.

    Args:
        reader: the cache.
        images: of `open_images_of`.
        stats: of the cache.
    """
    hardest = {
        hard.sample: thumbnail for hard in stats.hardest if (thumbnail := _thumbnail(images, hard.sample))
    }
    names = images.class_names
    if any(":" in step.transform for step in reader.spec.recipe.steps):
        note = "Its views are made by code of someone's own, which a report does not run."
        return CacheImages(hardest, (), note, names)
    seeds = take_evenly([seed.seed for seed in stats.seeds], SEEDS)
    views = KeyedViews(images, reader.spec.recipe, "skip")
    try:
        prove_replay(reader, views, seeds, limit=64)
        first = next((i for i in range(len(images)) if _thumbnail(images, i)), 0)
        chosen = {**{h.sample: "the hardest sample" for h in stats.hardest[:1]}, first: "the first sample"}
        samples = tuple(_see_sample(reader, views, sample, why, seeds) for sample, why in chosen.items())
    except LogitCacheError as error:
        return CacheImages(hardest, (), f"Views could not be made again: {error}", names)
    return CacheImages(hardest, tuple(sample for sample in samples if sample), class_names=names)


def _see_sample(
    reader: CacheReader, views: KeyedViews, sample: int, why: str, seeds: list[int]
) -> SeenSample | None:
    original = _thumbnail(views.images, sample)
    if original is None:
        return None
    shard = reader.spec.layout.shard_of(sample)
    row = sample - reader.spec.layout.samples_of(shard).start
    seen = []
    for seed in seeds:
        batch, teacher = (
            check_batch(views[sample, seed]),
            decode_shard(reader, seed, shard)[slice(row, row + 1)],
        )
        if batch.valid.all() and not teacher.top.isnan().any():
            answers = zip(
                teacher.ids[0, :TOP].tolist(), teacher.listed_at(1.0).probs[0, :TOP].tolist(), strict=True
            )
            seen.append(SeenView(seed, encode(batch.views[0]), tuple(answers)))
    images = views.images
    return SeenSample(images.describe(sample), why, int(images.labels[sample]), original, tuple(seen))


def _thumbnail(images: Images, sample: int) -> Thumbnail | None:
    try:
        return encode(images.image(sample))
    except ImageError:
        return None


def encode(image: Tensor) -> Thumbnail:
    """Encode an image, (C, H, W) uint8: PNG where it is small, JPEG of at most 144 pixels else."""
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    picture = Image.fromarray(pixels.contiguous().numpy())
    kind = "PNG" if max(picture.size) <= 64 else "JPEG"
    picture.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    picture.save(data, kind, quality=82, optimize=True)
    text = base64.b64encode(data.getvalue()).decode()
    return Thumbnail(f"data:image/{kind.lower()};base64,{text}", *picture.size)
