"""How fast stage one is: a dump against a bare loop that stores nothing, and one decoding for many views.

The pictures are JPEG files of 500 × 375 pixels whose spectrum falls as that of photographs does.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from logitcache.bench.compare import Comparison, in_turns
from logitcache.dump.job import DumpConfig, dump
from logitcache.format.identity import RecipeSpec
from logitcache.models.build import Model, build
from logitcache.models.forward import ViewModel, choose_precision
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.datasets import Images, open_images
from logitcache.views.loader import KeyedViews, Pair, loaded, view_loader
from logitcache.views.recipes import recipe_named

CLASSES, TOP_K = 1000, 16
SEEDS = 8  # of one pass
LONG = 8  # seeds of a dump against a bare loop: its beginning and end are a small part of it then


def measure(
    *, pictures: int = 512, rounds: int = 3, workers: int = -1, device: torch.device
) -> list[Comparison]:
    """Time dumps, each against its alternative in turns.

    The teacher is ResNet-18 at 64 pixels on the CPU, ViT-L/16 at 224 on CUDA; where decoding is to rule, one that
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
        images = pictures_in(Path(folder) / "pictures", pictures)
        teacher = build("vit_l" if large else "resnet18", num_classes=CLASSES, view_size=64, weights="random")
        idle = idle_teacher(teacher)

        def dumped(model: Model, seeds: int, per_pass: int) -> Callable[[int], object]:
            config = DumpConfig(
                seeds=tuple(range(seeds)),
                top_k=TOP_K,
                seeds_per_pass=per_pass,
                workers=workers,
                device=str(device),
            )
            out = Path(folder) / f"{model.name}-{per_pass}"
            return lambda number: dump(out / f"{number}.zarr", images, recipe, model, config)

        stored = in_turns(
            {
                "dump": dumped(teacher, LONG, 1),
                "bare": lambda _: _bare(images, recipe, teacher, workers, device),
            },
            rounds,
            time.perf_counter,
        )
        passes = in_turns(
            {"one": dumped(idle, SEEDS, SEEDS), "many": dumped(idle, SEEDS, 1)}, rounds, time.perf_counter
        )
    views = len(images)
    real = {"dump": "one seed", "teacher": teacher.name}
    many = {"dump": f"{SEEDS} seeds", "teacher": "tiny"}
    return [
        Comparison.between(real, "bare loop", stored["dump"], stored["bare"], 1.03, views * LONG),
        Comparison.between(many, f"{SEEDS} passes", passes["one"], passes["many"], 0.667, views * SEEDS),
    ]


@torch.inference_mode()
def _bare(images: Images, recipe: RecipeSpec, teacher: Model, workers: int, device: torch.device) -> float:
    """The same loader, forward and top-k as in a dump, and nothing else."""
    size = 256 if device.type == "cuda" else 64
    pairs: list[list[Pair]] = [
        [(i, seed) for i in range(start, min(start + size, len(images)))]
        for seed in range(LONG)
        for start in range(0, len(images), size)
    ]
    model = ViewModel(teacher, choose_precision("auto", device)).on(device).eval()
    total = 0.0
    for batch in loaded(view_loader(KeyedViews(images, recipe), pairs, workers=workers, device=device)):
        sparse = SparseTeacher.from_logits(model(batch.views.to(device, non_blocking=True)), TOP_K)
        total += float(sparse.top.sum())  # waits for the device, as storing would
    return total


class _Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


def idle_teacher(like: Model) -> Model:
    """A teacher that does next to nothing, with the input of another."""
    return dataclasses.replace(like, module=_Idle(), name="idle")


def pictures_in(root: Path, count: int) -> Images:
    """Make a folder of so many JPEG files, and label them at random."""
    from PIL import Image

    rng = np.random.default_rng(0)
    root.mkdir()
    for number in range(count):
        Image.fromarray(_photograph(rng)).save(root / f"{number:05}.jpg", quality=90)
    images = open_images(f"folder:{root}")
    images.labels, images.num_classes = rng.integers(0, CLASSES, count), CLASSES
    return images


def _photograph(rng: np.random.Generator, height: int = 375, width: int = 500) -> npt.NDArray[np.uint8]:
    """(height, width, 3) uint8 noise whose amplitude falls with spatial frequency, as in natural images."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falling = 1 / np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    channels = [
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * falling, (height, width))
        for _ in range(3)
    ]
    shared = channels[0]
    picture = np.stack([shared + 0.4 * channel for channel in channels], 2)
    low, high = np.quantile(picture, [0.01, 0.99])
    pixels: npt.NDArray[np.uint8] = (np.clip((picture - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return pixels
