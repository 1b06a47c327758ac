"""What a training step takes, and how it is made: a batch, and the configuration of all batches."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from logitcache.distributed import ALONE, World
from logitcache.errors import OptionError
from logitcache.store import seed_list
from logitcache.stream.sampler import SeedOrder
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.mixing import MixedLabels


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """What a training step takes.

    Attributes:
        views: (B, C, h, w) uint8, on the training device.
        labels: (B,) int64, −1 where there is none.
        samples: (B,) int64, on the CPU.
        seeds: (B,) int64, on the CPU.
        teacher: the teacher's answer for these views, or None for plain training.
        partners: (B,) int64, on the CPU: the samples that views are mixed with; None where the recipe does not mix.
        mixed: both labels of each view and their shares; None likewise.
    """

    views: Tensor
    labels: Tensor
    samples: Tensor
    seeds: Tensor
    teacher: SparseTeacher | None
    partners: Tensor | None = None
    mixed: MixedLabels | None = None

    def __repr__(self) -> str:
        mixed = "" if self.mixed is None else ", mixed"
        shape = f"views {tuple(self.views.shape)} {str(self.views.dtype).removeprefix('torch.')}{mixed}"
        return f"Batch({shape}, {seed_list(sorted(set(self.seeds.tolist())))}, teacher {self.teacher!r})"

    def __getitem__(self, rows: Tensor) -> "Batch":
        """Select rows by a mask, (B,) bool, or by number, (m,) int64; on the CPU."""
        here = rows.to(self.views.device)
        return Batch(
            self.views[here],
            self.labels[here],
            self.samples[rows],
            self.seeds[rows],
            None if self.teacher is None else self.teacher[here],
            None if self.partners is None else self.partners[rows],
            None if self.mixed is None else MixedLabels(*(part[here] for part in self.mixed)),
        )

    def pieces(self, count: int) -> "list[Batch]":
        """Cut into so many batches of nearly equal size; into fewer where one would hold a single row."""
        count = min(count, max(1, len(self.views) // 2))
        if count == 1:
            return [self]
        return [self[rows] for rows in torch.arange(len(self.views)).tensor_split(count)]

    @property
    def target(self) -> Tensor | MixedLabels:
        """What an `Objective` asks for: the labels, of mixed views both."""
        return self.labels if self.mixed is None else self.mixed


@dataclass(frozen=True)
class StreamConfig:
    """How batches are made.

    Attributes:
        batch_size: pairs per batch and rank.
        seeds: augmentation seeds, S of them.
        seed_order: "mod": epoch e takes seeds[e mod S]; "random": each round of S epochs takes all, shuffled.
        views_per_image: seeds that an epoch takes at once, each image's views side by side in a batch.
        fraction: of the samples to train on, drawn by `order`.
        samples: those to train on; None: all.
        order: key of the shuffling.
        workers: processes that make views, one by one; −1: as fits, 0: none (see `loader.view_loader`).
        device: where batches go: "auto", "cpu", "cuda", "cuda:N".
        start_method: of the workers; None takes the platform's.
        world: this process among those that train together.
    """

    batch_size: int = 128
    seeds: tuple[int, ...] = ()
    seed_order: SeedOrder = "mod"
    views_per_image: int = 1
    fraction: float = 1.0
    samples: tuple[int, ...] | None = None
    order: int = 0
    workers: int = -1
    device: str = "auto"
    start_method: str | None = None
    world: World = ALONE

    def split(self, world: World) -> "StreamConfig":
        """Return what one of these ranks takes of such batches: as many views each, on a device of its own.

        Raises:
            OptionError: batches cannot be dealt evenly to so many ranks.
        """
        if self.batch_size % world.size:
            raise OptionError(
                f"batches of {self.batch_size} cannot be dealt evenly to {world.size} ranks; choose a --batch-size "
                f"such as {max(1, self.batch_size // world.size) * world.size}"
            )
        device = world.choose_device(self.device)
        return dataclasses.replace(self, batch_size=self.batch_size // world.size, device=device, world=world)
