"""Stream: batches of (views, labels, teacher) by epoch, the teacher from a cache, or live for comparison.

`PairSampler` says which (sample, seed) pairs a batch holds, `KeyedViews` makes the views in workers, a `Teacher`
answers for them. In your own loop:

    stream = Stream.from_cache("c.zarr", batch_size=256)
    for epoch in range(100):
        for batch in stream.epoch(epoch):
            loss, _ = objective(student(batch.views), batch.teacher, batch.target)
"""

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.distributed import World
from logitcache.errors import DataError, IncompleteError, OptionError
from logitcache.format.identity import RecipeSpec
from logitcache.models.forward import choose_device
from logitcache.store import CacheReader, seed_list
from logitcache.stream.batch import Batch, StreamConfig
from logitcache.stream.sampler import (
    PairSampler,
    SwitchableSampler,
    choose_samples,
    choose_seeds,
    require_seeds,
)
from logitcache.teacher.cached import CachedTeacher
from logitcache.teacher.ensemble import AverageSpace, Ensemble, require_same_views
from logitcache.teacher.protocol import Teacher
from logitcache.teacher.spool import DEFAULT_SPOOL_LIMIT
from logitcache.views.alignment import OnMissing
from logitcache.views.bad_images import BadImage, leave_out
from logitcache.views.images import Images, MissingImagesWarning
from logitcache.views.keyed_views import KeyedViews, ViewBatch
from logitcache.views.loader import iterate_batches, view_loader
from logitcache.views.mixing import MixedLabels
from logitcache.views.recipes import evaluation_recipe
from logitcache.views.replay import Drift, open_proved_views


class Stream:
    """Batches by epoch, any epoch at any time: nothing is carried from one to the next.

    Args:
        views: of the images.
        teacher: answers for them; None for training from labels alone.
        config: how batches are made.
        drift: what of the views differs from those that the teacher saw, where that was allowed.
        bad_images: that do not decode; their samples, and views that they are mixed into, are left out.

    Attributes:
        samples: (m,) int64, rising: those to train on, usable or not.

    Raises:
        OptionError: the configuration cannot be honoured.
    """

    def __init__(
        self,
        views: KeyedViews,
        teacher: Teacher | None,
        config: StreamConfig,
        drift: Drift | None = None,
        bad_images: Sequence[BadImage] = (),
    ) -> None:
        if not config.seeds:
            raise OptionError("a stream needs at least one augmentation seed")
        if config.batch_size < 1:
            raise OptionError(f"batch size must be at least 1, found {config.batch_size}")
        require_seeds(config.seeds, config.views_per_image, config.seed_order)
        self.views, self.teacher, self.config, self.drift = views, teacher, config, drift
        self.bad_images = tuple(bad_images)
        views.images = leave_out(views.images, self.bad_images)
        self.device = choose_device(config.device)
        self.samples = choose_samples(len(views), config.fraction, config.samples, config.order)
        self._steps: dict[tuple[int, ...], int] = {}
        self._epochs_begun = 0
        self._sampler = SwitchableSampler()
        self._loader = view_loader(
            views,
            self._sampler,
            workers=config.workers,
            device=self.device,
            start_method=config.start_method,
        )

    def __repr__(self) -> str:
        config = self.config
        seeds = f"{seed_list(list(config.seeds))}, batches of {config.batch_size}"
        return f"Stream({self.views!r}, {seeds}, teacher {self.teacher!r}, {self.device})"

    @classmethod
    def from_cache(
        cls,
        cache: str | Path | CacheReader,
        images: Images | Any = None,
        *,
        allow_drift: bool = False,
        missing: OnMissing = "error",
        spool_folder: str | Path | None = None,
        spool_limit: int = DEFAULT_SPOOL_LIMIT,
        **options: Any,
    ) -> Self:
        """Stream from a cache, after proof that its views can be made again here.

        Args:
            cache: the cache, or its local path or fsspec URL.
            images: what it was made of, as `CachedViews` takes it: text such as "imagefolder:PATH", too; by default
                what it names. Images that came later are left out.
            allow_drift: go on although views differ; `drift` then says which, and so does `about`.
            missing: whether an image that is not there is an error, or its sample left out, and views that it is
                mixed into (see `align_images`); `about` then says which.
            spool_folder: where decoded seeds are kept, for all runs on the node.
            spool_limit: bytes that this folder may hold; see `open_spool`.
            **options: fields of `StreamConfig`, with `rank` and `world_size` for its `world`; `seeds` defaults to
                all that are complete.

        Raises:
            MismatchError: the images are others than the cache's.
            DriftError: views made here differ from those that the teacher saw.
            IncompleteError: seeds asked for are not complete.
        """
        reader = CacheReader.of(cache)
        config = _configure(**options)
        views, seeds, drift = open_proved_views(
            reader, images, config.seeds, allow_drift=allow_drift, missing=missing
        )
        config = dataclasses.replace(config, seeds=seeds)
        return cls(views, CachedTeacher(reader, spool_folder, spool_limit), config, drift)

    @classmethod
    def from_caches(
        cls,
        caches: Sequence[str | Path | CacheReader],
        images: Images | Any = None,
        *,
        weights: Sequence[float] | None = None,
        space: AverageSpace = "probability",
        seeds: tuple[int, ...] = (),
        allow_drift: bool = False,
        missing: OnMissing = "error",
        spool_folder: str | Path | None = None,
        spool_limit: int = DEFAULT_SPOOL_LIMIT,
        **options: Any,
    ) -> Self:
        """Stream from the caches of several teachers of the same views, averaged by `average_teachers`.

        Args:
            caches: two or more.
            images: what they were made of, as for `from_cache`.
            weights: one for each cache; even when None.
            space: whether to average probabilities or their logarithms.
            seeds: augmentation seeds; by default those that are complete in every cache.
            allow_drift: as for `from_cache`; `drift` is then that of the first cache that has any.
            missing: as for `from_cache`.
            spool_folder: as for `from_cache`.
            spool_limit: likewise.
            **options: as for `from_cache`.

        Raises:
            MismatchError: the caches are of different views.
            IncompleteError: no seed is complete in all of them, or one asked for is not.
            OptionError: weights or space cannot be honoured.
        """
        readers = [CacheReader.of(cache) for cache in caches]
        require_same_views(readers)
        chosen = seeds or tuple(sorted(set.intersection(*(set(reader.complete()) for reader in readers))))
        if not chosen:
            held = "; ".join(f"{reader.path} has {seed_list(reader.complete())}" for reader in readers)
            raise IncompleteError(
                f"no seed is complete in every cache ({held}); dump the same --seeds of each"
            )
        if not seeds:
            opened = {seed for reader in readers for seed in reader.opened_seeds()}
            if others := sorted(opened.difference(chosen)):
                warnings.warn(
                    f"{seed_list(others)} left out, as not every cache has all of it; `logitcache dump` completes it",
                    stacklevel=2,
                )
        proved: list[tuple[KeyedViews, tuple[int, ...], Drift | None]] = []
        for reader in readers:
            with warnings.catch_warnings():
                if proved:  # of the same images, of which the first has told
                    warnings.simplefilter("ignore", MissingImagesWarning)
                proved.append(
                    open_proved_views(reader, images, chosen, allow_drift=allow_drift, missing=missing)
                )
        teachers = [CachedTeacher(reader, spool_folder, spool_limit) for reader in readers]
        without = [
            str(reader.path) for reader in readers if reader.spec.tail_size and not reader.statistics()
        ]
        if 0 < len(without) < len(readers):
            warnings.warn(
                f"{', '.join(without)} has no class statistics, so its share of the ensemble has an even tail; "
                "`logitcache calibrate` adds them",
                stacklevel=2,
            )
        drift = next((drift for _, _, drift in proved if drift), None)
        config = _configure(seeds=chosen, **options)
        return cls(proved[0][0], Ensemble(teachers, weights, space), config, drift)

    @classmethod
    def plain(
        cls, images: Images | Any, recipe: RecipeSpec, *, bad_images: Sequence[BadImage] = (), **options: Any
    ) -> Self:
        """Stream without a teacher, to train from labels alone; options as for `from_cache`, with `seeds` given.

        Images are as `from_cache` takes them; `bad_images`, as `find_bad_images` returns them, are left out.
        """
        return cls(KeyedViews(images, recipe), None, _configure(**options), None, bad_images)

    @property
    def num_classes(self) -> int:
        """Number of classes C that a student needs.

        Raises:
            DataError: there are neither labels nor a teacher to tell.
        """
        if self.teacher is not None:
            return self.teacher.num_classes
        if self.views.images.num_classes is None:
            raise DataError(
                f"{self.views.images.name} has no labels: training needs a cache of a teacher's logits"
            )
        return self.views.images.num_classes

    @property
    def evaluation(self) -> RecipeSpec:
        """The recipe by which test images are viewed, as that of the training views names it."""
        return evaluation_recipe(self.views.maker.recipe)

    def about(self) -> dict[str, Any]:
        """Return JSON values that say what this stream gives: data, recipe, seeds, teacher, and what was allowed.

        That is drift, and images that are missing.
        """
        images = self.views.images
        missing = np.setdiff1d(images.missing, images.unneeded)
        return {
            "data": images.spec(self.num_classes).to_dict(),
            "recipe": self.views.maker.recipe.to_dict(),
            "batch_size": self.config.batch_size * self.config.world.size,
            "order": self.config.order,
            "seeds": list(self.config.seeds),
            "seed_order": self.config.seed_order,
            "views_per_image": self.config.views_per_image,
            "samples": self._describe_samples(),
            "teacher": self.teacher and self.teacher.about(self.config.seeds),
            "drift": self.drift and self.drift.to_dict(),
            **({"missing": _identify(missing)} if len(missing) else {}),
        }

    def _describe_samples(self) -> dict[str, Any] | None:
        return None if len(self.samples) == len(self.views) else _identify(self.samples)

    def steps(self, epoch: int) -> int:
        """Number of batches of an epoch.

        Raises:
            OptionError: not one batch can be filled on every rank.
        """
        seeds = self._epoch_seeds(epoch)
        if seeds not in self._steps:  # which samples can be used depends on the seeds alone
            self._steps[seeds] = len(self._epoch_sampler(epoch))
        return self._steps[seeds]

    def epoch(
        self, epoch: int, start: int = 0, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Batch]:
        """Iterate one epoch's batches; one epoch at a time, as they share the workers.

        Args:
            epoch: which, from 0.
            start: batches to leave out at its beginning; their views are not made.
            should_stop: asked while no batch comes from the workers.

        Raises:
            OptionError: another epoch has been begun meanwhile.
            DataError: an image does not decode.
            StoppedError: `should_stop` said so.
            LogitCacheError: a worker died, or all do nothing. (Torch may say so first, as a RuntimeError, while
                *your* code runs; `loader.report_worker_deaths` around the loop makes one of the other.)
        """
        self._epochs_begun = begun = self._epochs_begun + 1
        if self.teacher is not None:
            seeds = [*self._epoch_seeds(epoch), *self._epoch_seeds(epoch + 1)]
            self.teacher.prepare(list(dict.fromkeys(seeds)))
        self._sampler.current = sampler = self._epoch_sampler(epoch, start)
        batches = iterate_batches(self._loader, should_stop)
        for _ in range(len(sampler)):
            if self._epochs_begun != begun:  # the workers' next batch would be the other epoch's
                raise OptionError(
                    f"epoch {epoch} was left for another; open a second stream to interleave them"
                )
            batch = next(batches)
            views = batch.views.to(self.device, non_blocking=True)
            labels = batch.labels.to(self.device, non_blocking=True)
            answer = None
            if self.teacher is not None:
                answer = self.teacher.answer(views, batch.samples, batch.seeds)
            yield Batch(
                views,
                labels,
                batch.samples,
                batch.seeds,
                answer,
                batch.partners,
                self._mixed_labels(batch, labels),
            )

    def _mixed_labels(self, batch: ViewBatch, labels: Tensor) -> MixedLabels | None:
        if batch.partners is None or batch.shares is None:
            return None
        others = torch.from_numpy(self.views.images.labels[batch.partners.numpy()])
        shares = batch.shares.to(labels.device, non_blocking=True)
        return MixedLabels(labels, others.to(labels.device, non_blocking=True), shares)

    def _usable(self, seed: int) -> npt.NDArray[np.bool_]:
        """(n,) bool: the samples that have a view and, where there is a teacher, its answer."""
        makeable = self.views.makeable(seed)
        return makeable if self.teacher is None else self.teacher.usable(seed) & makeable

    def _epoch_seeds(self, epoch: int) -> tuple[int, ...]:
        config = self.config
        return choose_seeds(epoch, config.seeds, config.views_per_image, config.seed_order, config.order)

    def _epoch_sampler(self, epoch: int, start: int = 0) -> PairSampler:
        config, samples, seeds = self.config, self.samples, self._epoch_seeds(epoch)
        if self.teacher is not None or len(self.views.images.missing):
            samples = samples[np.all([self._usable(seed)[samples] for seed in seeds], axis=0)]
        sampler = PairSampler(
            samples,
            seeds,
            config.batch_size,
            order=config.order,
            epoch=epoch,
            world=config.world,
            start=start,
        )
        if not start and not len(sampler):
            raise OptionError(
                f"not one batch: {len(samples)} samples for batches of {config.batch_size} on "
                f"{config.world.size} ranks; choose a smaller batch size"
            )
        return sampler


def _identify(samples: npt.NDArray[np.int64]) -> dict[str, Any]:
    return {"n": len(samples), "sha256": hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest()}


def _configure(**options: Any) -> StreamConfig:
    """Make a configuration of its fields, or of `rank` and `world_size` in place of its `world`."""
    if "world" not in options:
        options["world"] = World(options.pop("rank", 0), options.pop("world_size", 1))
    return StreamConfig(**options)
