"""A checkup: verify a cache, then repair it and run its teacher again where the configuration says so."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from logitcache.audit.left_out import name_images_of_problems, name_samples
from logitcache.audit.recheck import RecheckReport, recheck_views
from logitcache.audit.repair import RepairReport, repair_cache
from logitcache.audit.verify import VerifyReport, verify_cache
from logitcache.dump.inputs import recorded_weights
from logitcache.dump.settings import DumpConfig
from logitcache.errors import OptionError
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.models.build import Model, build_model
from logitcache.plugins import require_own
from logitcache.store.reader import CacheReader
from logitcache.views.bad_images import BadImage
from logitcache.views.datasets import open_images, open_recorded
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews, OnBadImage


@dataclass(frozen=True)
class CheckupConfig(Spec):
    """What to check, and how.

    Attributes:
        seeds: augmentation seeds; None for all that have been begun.
        repair: dump damaged shards again.
        replay: run the teacher again on so many random views.
        seed: of the draw of these views.
        teacher, weights, data: the cache's, if they have another name here; weights from a file must be given.
        batch_size: views per forward, as `DumpConfig` has it; the same as in the dump gives the same bits.
        on_bad_image: in a repair, as `DumpConfig` has it.
        device: "auto", "cpu", "cuda", "cuda:N".
        workers: threads that check, and processes that make views; −1: as fits.
    """

    seeds: tuple[int, ...] | None = None
    repair: bool = False
    replay: int = 0
    seed: int = 0
    teacher: str | None = None
    weights: str | None = None
    data: str | None = None
    batch_size: int = 0
    on_bad_image: OnBadImage = "error"
    device: str = "auto"
    workers: int = -1


@dataclass(frozen=True)
class CheckupReport(Spec):
    """What a checkup found; `clean` is after a repair. A cache that is still damaged gets no `replay`.

    `left_out` names the samples without a teacher, as their images did not decode.
    """

    clean: bool
    found: VerifyReport
    repair: RepairReport | None
    replay: RecheckReport | None
    left_out: tuple[BadImage, ...] = ()


def check_cache(
    path: str, config: CheckupConfig, on_progress: Callable[[int, int], None] | None = None
) -> CheckupReport:
    """Verify a cache; then repair it, and run its teacher again, where the configuration says so.

    Args:
        path: of the cache.
        config: what to do.
        on_progress: called with (done, to do): shards while verifying, views while dumping.

    Raises:
        OptionError: an option cannot be honoured.
        LogitCacheError: as `verify_cache`, `repair_cache`, `recheck_views` and `open_teacher` say.
    """
    if config.replay < 0 or config.batch_size < 0:
        raise OptionError(
            f"replay and batch size must be 0 or more, found {config.replay} and {config.batch_size}"
        )
    reader = CacheReader(path)
    spec = reader.spec
    data = open_images(config.data, spec.dataset.split) if config.data else None
    teacher = cache(lambda: open_teacher(spec, config.teacher, config.weights, data))
    found = verify_cache(reader, config.seeds, config.workers, on_progress)
    clean, repaired, replayed = found.clean, None, None
    if config.repair and not found.clean:
        speed = DumpConfig(
            batch_size=config.batch_size,
            device=config.device,
            workers=config.workers,
            on_bad_image=config.on_bad_image,
        )
        repaired = repair_cache(path, found, speed, teacher, on_progress)
        clean = repaired.after.clean
    if config.replay and clean:
        images, model = teacher()
        reader = CacheReader(path)
        size = config.batch_size or 64
        replayed = recheck_views(
            reader, images, model, config.replay, seed=config.seed, device=config.device, batch_size=size
        )
        clean = replayed.clean
    found = name_images_of_problems(reader, found, data)
    left_out = name_samples(reader, found.without_teacher, data)
    return CheckupReport(clean, found, repaired, replayed, left_out)


def open_teacher(
    spec: CacheSpec, name: str | None = None, weights: str | None = None, data: str | Images | None = None
) -> tuple[Images, Model]:
    """Open the images and build the teacher that a cache names.

    Args:
        spec: of the cache.
        name: the teacher's name, if it has another here.
        weights: its weights; needed if the cache's came from a file.
        data: the images, or their name, if they have another here.

    Raises:
        OptionError: the weights came from a file that is not named, or the cache names code that is not your own.
        LogitCacheError: the images or the teacher cannot be opened.
    """
    code = [*spec.recipe.code]  # that the cache names, not the user
    if name is None and not spec.teacher.name.startswith("timm:"):
        code.append(spec.teacher.name)
    require_own("the cache", *code)
    chosen, (kind, _, number) = weights or recorded_weights(spec.teacher), spec.teacher.weights.partition(":")
    split = spec.dataset.split
    if not isinstance(data, Images):
        data = open_images(data, split) if data else open_recorded(spec.dataset.name, split, "the cache")
    images = data
    seed = int(number) if kind == "random" and weights is None and number.isdecimal() else 0
    view = KeyedViews(images, spec.recipe).any_view()
    teacher = build_model(
        name or spec.teacher.name,
        num_classes=spec.dataset.num_classes,
        view_size=max(view.shape[1:]),
        weights=chosen,
        seed=seed,
        input_size=spec.teacher.adapter.size,
    )
    return images, teacher
