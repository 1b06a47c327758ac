"""How fast stage one is: a dump against a bare loop that stores nothing, and one decoding for many views."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from logitcache.bench.compare import Comparison, time_interleaved
from logitcache.bench.workload import CLASSES, TOP_K, idle_teacher, make_pictures
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.format.identity import RecipeSpec
from logitcache.models.build import Model, build_model
from logitcache.models.forward import ViewModel, choose_precision
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews, Pair
from logitcache.views.loader import iterate_batches, view_loader
from logitcache.views.recipes import recipe_named

SEEDS_PER_PASS = 8
SEEDS_AGAINST_BARE = 8  # so many that the beginning and end of a dump are a small part of it


def measure(
    *, pictures: int = 512, rounds: int = 3, workers: int = -1, device: torch.device
) -> list[Comparison]:
    """Time dumps, each against its alternative.

    The teacher is ResNet-18 at 64 pixels on the CPU, ViT-L/16 at 224 on CUDA; where decoding is what counts, one that
    does next to nothing.

    Args:
        pictures: how many to make and to view.
        rounds: how often each ratio is taken; one more is not counted.
        workers: processes that make views, as for `dump`.
        device: where the teacher runs.
    """
    large = device.type == "cuda"
    recipe = recipe_named("imagenet@224" if large else "imagenet@64")
    with tempfile.TemporaryDirectory(prefix="logitcache-bench-") as folder:
        images = make_pictures(Path(folder) / "pictures", pictures)
        teacher = build_model(
            "vit_l" if large else "resnet18", num_classes=CLASSES, view_size=64, weights="random"
        )
        idle = idle_teacher(teacher)

        def dump_with(model: Model, seeds: int, per_pass: int) -> Callable[[int], object]:
            config = DumpConfig(
                seeds=tuple(range(seeds)),
                top_k=TOP_K,
                calibration=0,
                seeds_per_pass=per_pass,
                workers=workers,
                device=str(device),
            )
            out = Path(folder) / f"{model.name}-{per_pass}"
            return lambda number: dump(out / f"{number}.zarr", images, recipe, model, config)

        storing = time_interleaved(
            {
                "dump": dump_with(teacher, SEEDS_AGAINST_BARE, 1),
                "bare": lambda _: _bare_loop(images, recipe, teacher, workers, device),
            },
            rounds,
            time.perf_counter,
        )
        decoding = time_interleaved(
            {
                "one pass": dump_with(idle, SEEDS_PER_PASS, SEEDS_PER_PASS),
                "passes": dump_with(idle, SEEDS_PER_PASS, 1),
            },
            rounds,
            time.perf_counter,
        )
    one_seed = {"dump": "one seed", "teacher": teacher.name}
    one_pass = {"dump": f"{SEEDS_PER_PASS} seeds", "teacher": "tiny"}
    bare_views, pass_views = (len(images) * seeds for seeds in (SEEDS_AGAINST_BARE, SEEDS_PER_PASS))
    return [
        Comparison.between(one_seed, "bare loop", storing["dump"], storing["bare"], 1.03, bare_views),
        Comparison.between(
            one_pass,
            f"{SEEDS_PER_PASS} passes",
            decoding["one pass"],
            decoding["passes"],
            0.667,
            pass_views,
        ),
    ]


@torch.inference_mode()
def _bare_loop(
    images: Images, recipe: RecipeSpec, teacher: Model, workers: int, device: torch.device
) -> float:
    """Run the same loader, forward and top-k as in a dump, and nothing else."""
    size = 256 if device.type == "cuda" else 64
    pairs: list[list[Pair]] = [
        [(i, seed) for i in range(start, min(start + size, len(images)))]
        for seed in range(SEEDS_AGAINST_BARE)
        for start in range(0, len(images), size)
    ]
    model = ViewModel(teacher, choose_precision("auto", device)).on(device).eval()
    total = 0.0
    for batch in iterate_batches(
        view_loader(KeyedViews(images, recipe), pairs, workers=workers, device=device)
    ):
        sparse = SparseTeacher.from_logits(model(batch.views.to(device, non_blocking=True)), TOP_K)
        total += float(sparse.top.sum())  # waits for the device, as storing would
    return total
