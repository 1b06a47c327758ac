"""What a stream is opened from, by the names that the command line takes."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from logitcache.distributed import World
from logitcache.errors import NotFoundError, OptionError
from logitcache.format.identity import RecipeSpec
from logitcache.paths import expand_home
from logitcache.store import CacheReader
from logitcache.stream.batch import StreamConfig
from logitcache.stream.sampler import choose_samples
from logitcache.stream.stream import Stream
from logitcache.teacher.ensemble import AverageSpace
from logitcache.teacher.spool import DEFAULT_SPOOL_LIMIT
from logitcache.units import count
from logitcache.views.alignment import OnMissing
from logitcache.views.bad_images import BadImage, OnDecoded, find_bad_images, list_bad_images
from logitcache.views.changes import describe_newer_images
from logitcache.views.datasets import choose_recipe, choose_shipped, describe_transparency, open_images
from logitcache.views.images import Images, MissingImagesWarning
from logitcache.views.keyed_views import KeyedViews, OnBadImage
from logitcache.views.mixing import Mixer
from logitcache.views.recipes import recipe_named, with_background

FRESH_EPOCHS = 10_000  # without a cache: so many see new views, then views come again


class DataSize(NamedTuple):
    """What a protocol and a loss are chosen by.

    Attributes:
        name: of the data set.
        n: number of samples that are trained on.
        view_size: longer side of a view, in pixels.
        num_classes: None where the images have no labels.
    """

    name: str
    n: int
    view_size: int
    num_classes: int | None


@dataclass(frozen=True)
class StreamInputs:
    """Caches, images and recipe by name, and how batches are made of them.

    Attributes:
        config: how batches are made, for all ranks together. Without seeds all that the caches have complete are
            taken; without a cache too, new ones for each epoch, up to 10,000 epochs.
        caches: those, or their paths or URLs; several are an ensemble, none trains from labels alone.
        mix_weights: of an ensemble's caches; none: even.
        mix_space: what an ensemble averages, as `Stream.from_caches` takes it.
        data: images, or as `open_images` takes them; "auto": the caches' images, or the digits.
        recipe: without a cache, as `recipe_named` takes it, or that of a run that goes on; "auto": as fits the data.
        background: without a cache, as `recipes.with_background` takes it.
        on_bad_image: without a cache, whether an image that does not decode is an error, or is looked for and left
            out (`look_for_bad_images`).
        bad_images: those that are left out; None where nobody has looked.
        samples_file: lists the samples to train on: numbers in text, or an .npy array; None: as `config` has it.
        allow_drift, missing, spool_folder, spool_limit: as `Stream.from_cache` takes them.
    """

    config: StreamConfig
    caches: tuple[str | Path | CacheReader, ...] = ()
    mix_weights: tuple[float, ...] = ()
    mix_space: AverageSpace = "probability"
    data: str | Images = "auto"
    recipe: str | RecipeSpec = "auto"
    background: str | None = None
    on_bad_image: OnBadImage = "error"
    bad_images: tuple[BadImage, ...] | None = None
    samples_file: Path | None = None
    allow_drift: bool = False
    missing: OnMissing = "error"
    spool_folder: str | Path | None = None
    spool_limit: int = DEFAULT_SPOOL_LIMIT

    def open_data(self, networks: Sequence[str] = ()) -> Self:
        """Return these inputs with their caches opened, or, without any, their images.

        Args:
            networks: names of the students, which say what images they take where none are named.

        Raises:
            LogitCacheError: see `CacheReader` and `open_images`.
        """
        if self.caches:
            return replace(self, caches=tuple(map(CacheReader.of, self.caches)))
        return replace(self, data=self._images() or open_images(choose_shipped(networks)))

    def look_for_bad_images(self, should_stop: Callable[[], bool], on_decoded: OnDecoded) -> Self:
        """Return these inputs with the images that do not decode, where these are to be left out.

        With a cache nothing is looked for: its dump has left out what it could not decode.

        Raises:
            DataError, StoppedError: as `find_bad_images` does.
        """
        if self.caches or self.on_bad_image == "error" or self.bad_images is not None:
            return self
        images, recipe, _ = self._plain()
        samples = None
        if not Mixer.from_recipe(recipe).steps:  # else any image may be a partner
            config = self._configure()
            samples = choose_samples(len(images), config.fraction, config.samples, config.order).tolist()
        found = find_bad_images(
            images,
            recipe,
            samples,
            workers=self.config.workers,
            start_method=self.config.start_method,
            should_stop=should_stop,
            on_decoded=on_decoded,
        )
        return replace(self, bad_images=found)

    def measure(self) -> DataSize:
        """Look at what is trained on: its name, number of samples, size of a view.

        Raises:
            LogitCacheError: see `CacheReader`, `open_images` and `read_samples`.
        """
        classes: int | None
        if self.caches:
            spec = CacheReader.of(self.caches[0]).spec
            name, n, side = spec.dataset.name, spec.dataset.n, spec.recipe.view_size
            side, classes = side or spec.teacher.adapter.size, spec.dataset.num_classes
        else:
            images, recipe, _ = self._plain()
            name, n, classes = images.name, len(images), images.num_classes
            side = recipe.view_size or max(KeyedViews(images, recipe).any_view().shape[1:])
        if self.samples_file is not None:
            n = len(read_samples(self.samples_file))
        return DataSize(name, max(1, round(n * min(1.0, self.config.fraction))), side, classes)

    def _images(self) -> Images | None:
        if isinstance(self.data, Images):
            return self.data
        return open_images(self.data) if self.data != "auto" else None

    def _plain(self) -> tuple[Images, RecipeSpec, str]:
        """Return images, recipe, and why it is that one where it was chosen by the pictures."""
        images = self._images() or open_images(choose_shipped())
        if isinstance(self.recipe, RecipeSpec):
            return images, self.recipe, ""
        if self.recipe == "auto":
            return images, *choose_recipe(images, self.background)
        return images, with_background(recipe_named(self.recipe), self.background), ""

    def open(self, epochs: int, world: World, on_line: Callable[[str], None]) -> Stream:
        """Open a rank's part of the stream.

        Args:
            epochs: how many will be wanted.
            world: this rank among the others.
            on_line: called with a line that the user should know.

        Raises:
            OptionError: batches cannot be dealt to so many ranks, or a recipe is named where the cache has one.
            LogitCacheError: see `Stream.from_cache`, `Stream.from_caches` and `open_images`.
        """
        stream = self._open(epochs, world, on_line)
        if stream.views.images.note:
            on_line(f"note: {stream.views.images.note}")
        white = "--background white puts them on white"
        advice = "`logitcache dump --out ANOTHER` with " + white if self.caches else white
        if bad := stream.bad_images:
            which = "does not decode and is left out" if len(bad) == 1 else "do not decode and are left out"
            on_line(
                f"note: {len(bad):,} of {count(len(stream.views), 'image')} {which}: {list_bad_images(bad)}"
            )
        if note := describe_transparency(stream.views.images, stream.views.maker.recipe, advice):
            on_line(f"note: {note}")
        views = len(stream.samples) * self.config.views_per_image
        if self.config.batch_size > views:
            on_line(
                f"note: batches of {self.config.batch_size:,} are more than the {views:,} views of an epoch, which "
                "is one smaller step; a smaller --batch-size takes more steps"
            )
        return stream

    def _open(self, epochs: int, world: World, on_line: Callable[[str], None]) -> Stream:
        config = self._configure().split(world)
        if not self.caches:
            return self._open_plain(config, epochs, on_line)
        readers = [CacheReader.of(cache) for cache in self.caches]
        with warnings.catch_warnings(
            action="ignore", category=MissingImagesWarning
        ):  # of every rank and cache
            stream = self._open_caches(readers, config)
        if note := (images := stream.views.images).missing_note:
            on_line(f"{'warning' if len(images.missing) > len(images.unneeded) else 'note'}: {note}")
        if stream.drift:
            on_line(f"warning: --allow-drift: {stream.drift}; the run's config.json records it")
        for reader in readers:
            if reader.spec.teacher.weights.startswith("random"):
                on_line(f"note: {describe_random_teacher(reader)}")
        for reader in readers:
            if newer := describe_newer_images(reader, stream.views.images):
                on_line(f"note: {newer}")
                break
        if left_out := images.left_out:
            note = f"note: {count(left_out, 'image')} came after the cache and "
            note += "is left out" if left_out == 1 else "are left out"
            on_line(note if len(images.missing) else f"{note}; `logitcache dump --grow` adds them")
        return stream

    def _configure(self) -> StreamConfig:
        if self.samples_file is None:
            return self.config
        return replace(self.config, samples=read_samples(self.samples_file))

    def _open_plain(self, config: StreamConfig, epochs: int, on_line: Callable[[str], None]) -> Stream:
        images, recipe, reason = self._plain()
        if reason:
            on_line(f"note: views are {recipe.name}'s, as {reason}; --recipe NAME@SIZE makes others")
        seeds = config.seeds or tuple(range(min(epochs, FRESH_EPOCHS) * config.views_per_image))
        return Stream.plain(
            images, recipe, bad_images=self.bad_images or (), **vars(replace(config, seeds=seeds))
        )

    def _open_caches(self, readers: list[CacheReader], config: StreamConfig) -> Stream:
        given = {"recipe": self.recipe if self.recipe != "auto" else None, "background": self.background}
        for name, value in given.items():
            if value is not None:
                raise OptionError(
                    f"the views of {readers[0].path} are made by its own recipe, found --{name} {value}; leave it "
                    "out, or `logitcache dump` another cache with it"
                )
        images = self._images()
        options: dict[str, Any] = {
            "allow_drift": self.allow_drift,
            "missing": self.missing,
            "spool_folder": self.spool_folder,
            "spool_limit": self.spool_limit,
            **vars(config),
        }
        if len(readers) == 1 and not self.mix_weights:
            return Stream.from_cache(readers[0], images, **options)
        weights = self.mix_weights or None
        return Stream.from_caches(readers, images, weights=weights, space=self.mix_space, **options)


def read_samples(file: Path) -> tuple[int, ...]:
    """Read a list of samples.

    Raises:
        NotFoundError: the file cannot be read.
        OptionError: it does not hold whole numbers.
    """
    file = expand_home(file)
    try:
        if file.suffix != ".npy":
            return tuple(map(int, file.read_text(encoding="utf-8-sig").split()))
        samples = np.lib.format.read_array(BytesIO(file.read_bytes()), allow_pickle=False)
        if not np.issubdtype(samples.dtype, np.integer):
            raise ValueError(f"{samples.dtype} are no samples")
    except OSError as error:
        raise NotFoundError(f"cannot read the list of samples {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise OptionError(f"{file} is no list of samples: expected whole numbers, in text or .npy") from error
    return tuple(samples.ravel().tolist())


def describe_random_teacher(reader: CacheReader) -> str:
    """Say what comes of a teacher that nobody trained."""
    return (
        f"the teacher of {reader.path} has random weights: it teaches nothing, and of many classes keeps a student "
        "from learning; --loss ce trains without it"
    )
