"""How fast stage one is: a dump against a bare loop that stores nothing, and one decoding for many views.

The pictures are JPEG files of 500 × 375 pixels whose spectrum falls as that of photographs does.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from logitcache.bench import ratio_cells
from logitcache.datasets import Images, open_images
from logitcache.dump import DumpConfig, dump
from logitcache.forward import ViewModel, choose_precision
from logitcache.loader import KeyedViews, Pair, loaded, view_loader
from logitcache.models import Model, build
from logitcache.schema import RecipeSpec, Spec
from logitcache.sparse import SparseTeacher
from logitcache.views import recipe_named

Seconds = npt.NDArray[np.float64]

CLASSES, TOP_K = 1000, 16
SEEDS = 8  # of one pass
LONG = 4  # seeds of a dump against a bare loop: its beginning and end are a small part of it then


@dataclass(frozen=True)
class Row(Spec):
    """One comparison: median views per second, and the ratio of times per round as median and quartiles."""

    name: str
    against: str
    teacher: str
    views_per_second: float
    views_per_second_against: float
    ratio: float
    ratio_low: float
    ratio_high: float
    wanted: float
    """What the ratio should be at most."""

    def cells(self) -> dict[str, str]:
        """Return columns and what to print in them."""
        ratio = ratio_cells(self.ratio, self.ratio_low, self.ratio_high, self.wanted)
        rates = {"views/s": f"{self.views_per_second:,.0f}", "other": f"{self.views_per_second_against:,.0f}"}
        return {"dump": self.name, "against": self.against, "teacher": self.teacher, **rates, **ratio}


def measure(*, pictures: int = 512, rounds: int = 3, workers: int = -1, device: torch.device) -> list[Row]:
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
        images = _pictures(Path(folder) / "pictures", pictures)
        teacher = build("vit_l" if large else "resnet18", num_classes=CLASSES, view_size=64, weights="random")
        idle = _idle(teacher)

        def dumped(model: Model, seeds: int, per_pass: int) -> Callable[[Path], object]:
            config = DumpConfig(
                seeds=tuple(range(seeds)),
                top_k=TOP_K,
                seeds_per_pass=per_pass,
                workers=workers,
                device=str(device),
            )
            return lambda out: dump(out, images, recipe, model, config)

        bare = lambda _: _bare(images, recipe, teacher, workers, device)  # noqa: E731
        stored = _in_turns({"dump": dumped(teacher, LONG, 1), "bare": bare}, rounds, Path(folder))
        passes = _in_turns(
            {"one": dumped(idle, SEEDS, SEEDS), "many": dumped(idle, SEEDS, 1)}, rounds, Path(folder)
        )
    views = len(images)
    return [
        _row("dump", "bare loop", teacher.name, stored["dump"], stored["bare"], views * LONG, 1.03),
        _row(
            f"{SEEDS} seeds, 1 pass",
            f"{SEEDS} passes",
            "next to none",
            passes["one"],
            passes["many"],
            views * SEEDS,
            0.667,
        ),
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


def _idle(like: Model) -> Model:
    """A teacher that does next to nothing, with the input of another."""
    return dataclasses.replace(like, module=_Idle(), name="idle")


def _pictures(root: Path, count: int) -> Images:
    """Make a folder of JPEG files."""
    from PIL import Image

    rng = np.random.default_rng(0)
    root.mkdir()
    for number in range(count):
        Image.fromarray(_photograph(rng)).save(root / f"{number:05}.jpg", quality=90)
    return open_images(f"folder:{root}")


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


def _in_turns(ways: dict[str, Callable[[Path], object]], rounds: int, folder: Path) -> dict[str, Seconds]:
    """Seconds of each way in each round; every run has a new folder."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in _either_order(ways, number):
            out = folder / f"{name}-{number}-{len(times[name])}.zarr"
            start = time.perf_counter()
            way(out)
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(seconds) for name, seconds in times.items()}


def _either_order(
    ways: dict[str, Callable[[Path], object]], number: int
) -> Iterator[tuple[str, Callable[[Path], object]]]:
    return reversed(ways.items()) if number % 2 else iter(ways.items())


def _row(
    name: str, against: str, teacher: str, mine: Seconds, theirs: Seconds, views: int, wanted: float
) -> Row:
    low, middle, high = np.quantile(mine / theirs, [0.25, 0.5, 0.75]).tolist()
    rate, rate_against = (float(views / np.median(seconds)) for seconds in (mine, theirs))
    return Row(name, against, teacher, rate, rate_against, middle, low, high, wanted)
