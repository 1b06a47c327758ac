"""Epochs of different lengths, as bad images that are mixed into others make them."""

import json
from pathlib import Path

from mixed import a_recipe
from small import few_digits
from torch import Tensor

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import ImageError
from logitcache.format.identity import StepSpec
from logitcache.losses import Objective
from logitcache.models.build import build_model
from logitcache.stream.stream import Stream
from logitcache.train.config import TrainConfig
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.views.datasets import ArrayImages

EPOCHS, BAD = 4, range(0, 50, 5)


class SomeBad(ArrayImages):
    """Digits of which every fifth does not decode."""

    def image(self, sample: int) -> Tensor:
        if sample in BAD:
            raise ImageError(f"sample {sample} does not decode")
        return super().image(sample)


def test_a_longer_epoch_neither_ends_training_nor_moves_the_schedule(tmp_path: Path) -> None:
    few = few_digits(50)
    images = SomeBad("few", "train", few.images, few.labels, 10, "digits")
    recipe = a_recipe(StepSpec("MixUp", {"alpha": 1.0, "probability": 0.6}))
    teacher = build_model("digits_tiny", num_classes=10, view_size=8, weights="random", seed=1)
    config = DumpConfig(tuple(range(EPOCHS)), 4, device="cpu", workers=0, on_bad_image="skip")
    dump(tmp_path / "c.zarr", images, recipe, teacher, config)
    stream = Stream.from_cache(tmp_path / "c.zarr", images, batch_size=2, workers=0)
    steps = [stream.steps(epoch) for epoch in range(EPOCHS)]
    assert len(set(steps)) > 1
    assert max(steps) > steps[0]

    student = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    schedule = {"schedule": "multistep", "milestones": (1.0, 2.0, 3.0), "gamma": 0.1, "warmup_epochs": 0.0}
    settings = TrainConfig(EPOCHS, lr=0.05, **schedule)
    train([Run(tmp_path / "run", student, Objective.parse("taid"), settings)], stream)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [round(row["lr"], 9) for row in rows] == [0.05, 0.005, 0.0005, 0.00005]
