"""How good a model is on a test set: accuracy, calibration, agreement with its teacher; and what it costs.

The teacher's answers for these images come from a cache of theirs, as `logitcache dump --split test` makes it; a
cache of training views says nothing about them.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from logitcache.distributed import ALONE, World
from logitcache.errors import (
    DataError,
    Difference,
    ImageError,
    LogitCacheError,
    MismatchError,
    NonFiniteError,
)
from logitcache.format.identity import RecipeSpec
from logitcache.format.spec import Spec
from logitcache.models.forward import ViewModel, choose_device
from logitcache.models.weights import count_parameters
from logitcache.store import CacheReader
from logitcache.stream.sampler import SwitchableSampler
from logitcache.stream.stream import Stream
from logitcache.teacher.cached import CachedTeacher
from logitcache.train.confidence import Reliability
from logitcache.train.cost import count_flops, time_forward
from logitcache.train.score_meter import Confusion, ScoreMeter, classes_differ
from logitcache.views.alignment import align_images
from logitcache.views.bad_images import BadImage, explain_bad_images
from logitcache.views.changes import describe_newer_images
from logitcache.views.datasets import open_images
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews, OnBadImage
from logitcache.views.loader import iterate_batches, view_loader
from logitcache.views.own_images import WrappedImages
from logitcache.views.recipes import NO_BACKGROUND
from logitcache.views.replay import prove_replay

COLOURS = {"#ffffff": "white", "#000000": "black"}  # as they are written in advice
TEST_IMAGE = "test image"  # how the error of one that does not decode begins
SEED = 0  # the only one: the views of an evaluation recipe are the same under every seed


class Evaluation:
    """A test set, viewed without randomness.

    Args:
        images: with labels; with a teacher's answers they may have none.
        recipe: how to view them.
        teacher: a cache of the teacher's answers for these views under seed 0.
        batch_size: images per forward.
        workers: see `loader.view_loader`.
        device: where the models are.
        on_bad_image: whether an image that does not decode is an error, or left out of the scores.

    Raises:
        DataError: no image has a label, and there is no teacher.
        OptionError: there is no such device.
        MismatchError: the cache is of other images or another recipe.
        DriftError: its views cannot be made again here.
        IncompleteError: its seed 0 is not complete.
    """

    def __init__(
        self,
        images: Images,
        recipe: RecipeSpec,
        teacher: CacheReader | None = None,
        *,
        batch_size: int = 256,
        workers: int = 0,
        device: torch.device | str = "cpu",
        on_bad_image: OnBadImage = "error",
    ) -> None:
        self.images, self.recipe, self.batch_size = images, recipe, batch_size
        self.teacher = None
        if teacher is not None:
            self.images = images = _require_answers(teacher, images, recipe)
            self.teacher = CachedTeacher(teacher)
        elif not (images.labels >= 0).any():
            raise DataError(f"{images.name}: no image of its {images.split} split has a label to evaluate on")
        samples, starts = range(len(images)), range(0, len(images), batch_size)
        self._batches = [[(i, SEED) for i in samples[start : start + batch_size]] for start in starts]
        self._sampler = SwitchableSampler()
        self.views = KeyedViews(images, recipe, on_bad_image)
        device = choose_device(str(device))
        self._loader = view_loader(self.views, self._sampler, workers=workers, device=device)

    @classmethod
    def for_stream(
        cls, stream: Stream, teacher: CacheReader | None = None, on_bad_image: OnBadImage = "error"
    ) -> Self:
        """Open the test split of what a stream trains on, by the evaluation recipe of its recipe.

        Raises:
            NotFoundError, DataError: there is no test split, or the stream trains on it; and as the class does.
            MismatchError: it has classes that are not trained on.
        """
        name = stream.views.images.name
        if stream.views.images.split == "test":
            raise DataError(f"{name}: its test split is what is trained on, so none is left to evaluate on")
        recipe = stream.evaluation
        images, workers = open_images(name, "test"), stream.config.workers
        if (images.num_classes or 0) > stream.num_classes:
            raise classes_differ(stream.num_classes, images.num_classes, images)
        device = stream.device
        return cls(images, recipe, teacher, workers=workers, device=device, on_bad_image=on_bad_image)

    def find_bad_images(self, should_stop: Callable[[], bool] = lambda: False) -> list[int]:
        """Decode every image once, where they are not in memory, before anything is spent on training.

        Args:
            should_stop: asked while no batch comes from the workers.

        Returns:
            Those that do not decode, and are left out of the scores.

        Raises:
            DataError: one does not, and none is to be left out; the message names it. Or not one decodes.
            StoppedError: `should_stop` said so.
        """
        if self.images.pixels() is not None:
            return []
        self._sampler.current = self._batches
        with _say_test_image():
            batches = iterate_batches(self._loader, should_stop)
            return [i for batch in batches for i in batch.samples[~batch.valid].tolist()]

    def describe_newer_images(self) -> str | None:
        """Say which images are newer than the cache of the teacher's answers; None for none, or without a teacher."""
        return describe_newer_images(self.teacher.reader, self.images) if self.teacher else None

    def run(
        self,
        models: Sequence[ViewModel],
        world: World = ALONE,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[ScoreMeter]:
        """Show every image to each of the models once; they are in evaluation mode afterwards.

        Args:
            models: on their device.
            world: the ranks that share the batches. All call this with the same models, and get the same scores, to
                the rounding of sums: those of one process, since no batch is divided.
            should_stop: asked while no batch comes from the workers.

        Returns:
            What each of the models answered.

        Raises:
            MismatchError: a model has another number of classes.
            DataError: an image does not decode.
            LogitCacheError: another rank could not go on; the message says why.
            ClusterError: another rank has ended.
            StoppedError: `should_stop` said so.
        """
        world.broadcast_buffers(models)
        failed: Exception | None = None
        meters: list[ScoreMeter] = []
        try:
            meters = self._run(models, self._batches[world.rank :: world.size], should_stop)
        except Exception as error:  # whatever it is, the others must not wait for this rank
            failed = error
        reasons = world.all_gather(failed and str(failed))
        if failed:
            raise failed
        other = next((rank for rank, reason in enumerate(reasons) if reason is not None), None)
        if other is not None:
            raise LogitCacheError(f"rank {other}: {reasons[other]}")
        for meter in meters:
            meter.all_reduce(world)
        return meters

    @torch.inference_mode()
    def _run(
        self,
        models: Sequence[ViewModel],
        batches: list[list[tuple[int, int]]],
        should_stop: Callable[[], bool],
    ) -> list[ScoreMeter]:
        self._sampler.current = batches
        meters = [ScoreMeter(model, self.images, self.teacher) for model in models]
        with _say_test_image():
            for batch in iterate_batches(self._loader, should_stop):
                for meter in meters:
                    meter.add(batch)
        return meters


@contextmanager
def _say_test_image() -> Iterator[None]:
    """Say of an image that does not decode that it is a test image."""
    try:
        yield
    except DataError as error:
        if "does not decode" not in str(error):
            raise
        raise ImageError(f"{TEST_IMAGE} {error}") from error


def _require_answers(cache: CacheReader, images: Images, recipe: RecipeSpec) -> Images:
    """Insist that a cache holds answers for these very views; returns the images in its order."""
    if cache.spec.recipe != recipe:
        title = cache.spec.recipe.title
        raise MismatchError(
            f"{cache.path} does not hold the teacher's answers for the views evaluated",
            [Difference("recipe", recipe.title, "another of its name" if title == recipe.title else title)],
            _advise_recipe(cache.spec.recipe, recipe),
        )
    cache.require([SEED])
    ordered = align_images(cache, images)
    if ordered.left_out:
        raise MismatchError(
            f"{cache.path} answers for some of the images only",
            [Difference("dataset.n", len(ordered), len(images))],
            "add the others with `logitcache dump --split test --grow`",
        )
    prove_replay(cache, KeyedViews(ordered, recipe), [SEED])
    return ordered


def _advise_recipe(found: RecipeSpec, expected: RecipeSpec) -> str:
    """Say how a cache of the test images is made whose views are by the recipe that is expected."""
    if replace(found, background=expected.background) == expected:
        colour = COLOURS.get(str(expected.background), expected.background) or NO_BACKGROUND
        return f"make one by the command that made this, but with `--background {shlex.quote(colour)} --out ANOTHER`"
    return "make one as the training cache was made, but with `logitcache dump --split test --out ANOTHER`"


@dataclass(frozen=True)
class EvaluationReport(Spec):
    """How good a model is, and what it costs.

    Attributes:
        data, split, images, recipe: what it was shown.
        left_out: how many images there are besides, which do not decode.
        bad: these, by name.
        top1, top5, nll, ece, agreement, kl: of `ScoreMeter.scores`; None without labels, or a teacher's cache.
        teacher, teacher_top1: whose cache that is, and its own top-1 on the labelled images.
        parameters: their number.
        input_size: pixels a side that it sees views resized to.
        flops: floating-point operations of one view, two for a multiplication and an addition.
        images_per_second: through the model, adapter included and views at hand: the median batch.
        batch_size, device, precision: at which these images were seen.
        reliability: accuracy by confidence bin; None without labels.
        confusion: labels against predictions.
    """

    data: str
    split: str
    images: int
    left_out: int
    recipe: str
    top1: float | None
    top5: float | None
    nll: float | None
    ece: float | None
    agreement: float | None
    kl: float | None
    teacher: str | None
    teacher_top1: float | None
    parameters: int
    input_size: int
    flops: int
    images_per_second: float
    batch_size: int
    device: str
    precision: str
    reliability: Reliability | None
    confusion: Confusion
    bad: tuple[BadImage, ...] = ()


def evaluate(model: ViewModel, evaluation: Evaluation, num_classes: int) -> EvaluationReport:
    """Evaluate one model in full.

    Args:
        model: on its device.
        evaluation: on what.
        num_classes: C of the model.

    Raises:
        NonFiniteError: an answer is not a number.
        MismatchError: the images have another number of classes.
    """
    images = evaluation.images
    guessed = isinstance(images, WrappedImages)  # classes are those that occur, where a data set lists none
    if images.num_classes not in (None, num_classes) and not guessed:
        raise classes_differ(num_classes, images.num_classes, images)
    (meter,) = evaluation.run([model])
    scores = meter.scores()
    if not np.isfinite([*scores.values()]).all():
        raise NonFiniteError(
            f"the student's answers on {images.name} hold NaN or infinity; "
            f"{'check its weights' if model.dtype is torch.float32 else 'try --precision float32'}"
        )
    view = evaluation.views.any_view()[None].to(meter.device)
    views = view.repeat(
        min(evaluation.batch_size, len(images)), 1, 1, 1
    )  # speed does not depend on what they show
    return EvaluationReport(
        data=images.name,
        split=images.split,
        images=len(images) - meter.left_out,
        left_out=meter.left_out,
        recipe=evaluation.recipe.title,
        **{name: scores.get(name) for name in ("top1", "top5", "nll", "ece", "agreement", "kl")},
        teacher=evaluation.teacher.reader.spec.teacher.name if evaluation.teacher else None,
        teacher_top1=_teacher_top1(evaluation.teacher, images) if evaluation.teacher else None,
        parameters=count_parameters(model),
        input_size=model.adapter.spec.size,
        flops=count_flops(model, views[:1]),
        images_per_second=len(views) / time_forward(model, views),
        batch_size=len(views),
        device=str(meter.device),
        precision=str(model.dtype).removeprefix("torch."),
        reliability=meter.reliability(),
        confusion=meter.confusion(num_classes),
        bad=explain_bad_images(images, meter.bad),
    )


def _teacher_top1(teacher: CachedTeacher, images: Images) -> float | None:
    """Return a teacher's top-1 on the labelled images that it has answered for; None where there are none."""
    samples = np.flatnonzero(teacher.usable(SEED) & (images.labels >= 0))
    predicted = teacher.take(torch.from_numpy(samples), SEED).ids[:, 0].numpy()
    return float((predicted == images.labels[samples]).mean()) if len(samples) else None
