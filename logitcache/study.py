"""Stage two by the names of the command line: the stream, the test set and the students that they stand for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.datasets import open_images
from logitcache.errors import DataError, NotFoundError
from logitcache.evaluation import Evaluation
from logitcache.learner import Run
from logitcache.lessons import Lesson
from logitcache.models import build
from logitcache.runs import free_folder
from logitcache.sparse import MixSpace
from logitcache.spool import DEFAULT_LIMIT
from logitcache.stream import Stream
from logitcache.views import recipe_named

Say = Callable[[str], None]


@dataclass(frozen=True)
class Supply:
    """Where batches come from.

    Attributes:
        caches: paths or URLs; several are an ensemble, none trains from labels alone.
        mix_weights, mix_space: `weights` and `space` of an ensemble, as `Stream.from_caches` takes them.
        data: of `open_images`; "auto" are the cache's, or the digits.
        recipe: of `recipe_named`, without a cache; "auto" is the data's own.
        seeds: augmentation seeds; none are all that the cache has complete, or one per epoch.
        batch_size, order, device, workers: of `StreamConfig`.
        allow_drift, spool_folder, spool_limit: of `Stream.from_cache`.
    """

    caches: tuple[str | Path, ...]
    data: str = "auto"
    recipe: str = "auto"
    mix_weights: tuple[float, ...] = ()
    mix_space: MixSpace = "probability"
    seeds: tuple[int, ...] = ()
    batch_size: int = 64
    order: int = 0
    device: str = "auto"
    workers: int = -1
    allow_drift: bool = False
    spool_folder: Path | None = None
    spool_limit: int = DEFAULT_LIMIT

    def stream(self, epochs: int, say: Say) -> Stream:
        """Open the stream, of which so many epochs will be wanted; what the user should know is said.

        Raises:
            LogitCacheError: see `Stream.from_cache`, `Stream.from_caches` and `open_images`.
        """
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "order": self.order,
            "device": self.device,
            "workers": self.workers,
        }
        if not self.caches:
            images = open_images(self.data if self.data != "auto" else "digits")
            made_by = recipe_named(self.recipe if self.recipe != "auto" else images.recipe)
            return Stream.plain(images, made_by, seeds=self.seeds or tuple(range(epochs)), **options)
        named = open_images(self.data) if self.data != "auto" else None
        options |= {
            "allow_drift": self.allow_drift,
            "spool_folder": self.spool_folder,
            "spool_limit": self.spool_limit,
            "seeds": self.seeds,
        }
        if len(self.caches) == 1 and not self.mix_weights:
            stream = Stream.from_cache(self.caches[0], named, **options)
        else:
            weights = self.mix_weights or None
            stream = Stream.from_caches(self.caches, named, weights=weights, space=self.mix_space, **options)
        if stream.drift:
            say(f"warning: --allow-drift: {stream.drift}; the run's config.json records it")
        if more := stream.views.images.left_out:
            say(
                f"note: {more:,} images came after the cache and are left out; `logitcache dump --grow` adds them"
            )
        return stream


def evaluation_beside(stream: Stream, say: Say) -> Evaluation | None:
    """Open the test split beside a stream; where there is none, say so and return None."""
    try:
        return Evaluation.beside(stream)
    except (DataError, NotFoundError) as error:
        say(f"note: training without evaluation: {error}")
        return None


def runs_of(
    students: tuple[str, ...], lessons: tuple[Lesson, ...], stream: Stream, out: Path | None, weights: str
) -> list[Run]:
    """Build every student once for every lesson.

    Args:
        students: names, as `build` takes them.
        lessons: what each is taught; its seed draws the first weights.
        stream: tells the classes and the size of the views.
        out: run folder, a folder of run folders where there are several; None: runs/STUDENT-LESSON-N.
        weights: as `build` takes them.

    Raises:
        LogitCacheError: see `build`.
    """
    size = max(stream.views.any_view().shape[1:])
    runs = []
    for name in students:
        for lesson in lessons:
            seed = lesson.config.seed
            model = build(name, num_classes=stream.num_classes, view_size=size, weights=weights, seed=seed)
            label = f"{model.name}-{lesson.name}".replace("/", "_").replace(":", "_")
            folder = out or free_folder(Path("runs"), label)
            if out and len(students) * len(lessons) > 1:
                folder = out / label
            runs.append(Run(folder, model, lesson.objective, lesson.config))
    return runs
