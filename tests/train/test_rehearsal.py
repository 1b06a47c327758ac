"""A student is tried before it trains: what it answers meanwhile, and what of it learns."""

from collections import namedtuple
from pathlib import Path

import pytest
import torch
from dumping import RECIPE
from small import few_digits
from torch import Tensor, nn

from logitcache.errors import OptionError, WeightsError
from logitcache.format.identity import AdapterSpec
from logitcache.losses import Objective
from logitcache.models.build import Model
from logitcache.stream.stream import Stream
from logitcache.train.config import TrainConfig
from logitcache.train.events import StudentNoted, TrainEvent
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.train.rehearsal import rehearse

Pair = namedtuple("Pair", ("logits", "aside"))


class Branching(nn.Module):
    """Answers with more while it trains, as Inception does."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.norm = kind, nn.BatchNorm1d(64)
        self.main, self.aside = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> object:
        hidden = self.norm(x.flatten(1))
        if not self.training or self.kind == "plain":
            return self.main(hidden)
        if self.kind == "features":
            return hidden
        if self.kind == "broken" or (self.kind == "wide" and len(x) < 8):
            raise RuntimeError(f"too small: {len(x)}")
        if self.kind == "wide":
            return self.main(hidden)
        if self.kind == "pair":
            return Pair(self.main(hidden), self.aside(hidden))
        if self.kind == "twins":
            return self.main(hidden), self.aside(hidden)
        if self.kind == "mean":
            return self.main(hidden).mean(0, keepdim=True)
        if self.kind == "detached":
            return self.main(hidden).detach()
        return (
            hidden[:, :10].clone().requires_grad_()
        )  # unlearnt: of no parameter but the norm's, which is frozen


def a_student(kind: str) -> Model:
    module = Branching(kind)
    module.norm.requires_grad_(kind != "unlearnt")
    return Model(kind, module, AdapterSpec(1, 8, (0.5,), (0.5,)), 10, "own")


def run(student: Model, out: Path) -> list[str]:
    events: list[TrainEvent] = []
    stream = Stream.plain(few_digits(60), RECIPE, seeds=(0,), batch_size=20, workers=0)
    config = TrainConfig(1, warmup_epochs=0.0)
    train([Run(out, student, Objective.parse("ce"), config)], stream, on_progress=events.append)
    return [event.note for event in events if isinstance(event, StudentNoted)]


@pytest.mark.parametrize(("kind", "told"), [("pair", "Pair"), ("twins", "tuple")])
def test_auxiliary_heads_are_not_trained_and_that_is_said(tmp_path: Path, kind: str, told: str) -> None:
    student = a_student(kind)
    aside, main = (layer.weight.clone() for layer in (student.module.aside, student.module.main))
    (note,) = run(student, tmp_path / "run")
    assert f"{kind} answers with {told} while it trains, of which the logits alone are trained" in note
    assert "learn nothing: aside.weight, aside.bias" in note
    assert torch.equal(student.module.aside.weight, aside)
    assert not torch.equal(student.module.main.weight, main)


def test_a_rehearsal_leaves_a_student_as_it_was() -> None:
    student = a_student("plain")
    student.module.norm.eval()
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    generator = torch.default_generator.get_state()
    assert rehearse(student).unused == ("aside.weight", "aside.bias")
    assert all(torch.equal(value, before[name]) for name, value in student.module.state_dict().items())
    assert all(parameter.grad is None for parameter in student.module.parameters())
    assert (student.module.training, student.module.norm.training) == (True, False)
    assert torch.equal(torch.default_generator.get_state(), generator)


@pytest.mark.parametrize(
    ("kind", "error", "told"),
    [
        ("features", WeightsError, r"features, while it trains: expected logits \(B, 10\), found \(2, 64\)"),
        (
            "broken",
            OptionError,
            r"broken fails on a \(2, 1, 8, 8\) float batch while it trains: too small: 2",
        ),
        ("mean", WeightsError, r"a row of logits for each of 2 images, found 1;"),
        (
            "detached",
            OptionError,
            "detached cannot be trained: its logits depend on no parameter that learns",
        ),
        (
            "unlearnt",
            OptionError,
            "unlearnt cannot be trained: its logits depend on no parameter that learns",
        ),
    ],
)
def test_what_fails_only_in_training_is_one_line(
    kind: str, error: type[Exception], told: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        run(a_student(kind), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_student_that_takes_only_larger_batches_is_trained(tmp_path: Path) -> None:
    run(a_student("wide"), tmp_path / "run")
    assert (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_student_with_nothing_to_learn_is_refused(frozen: bool, tmp_path: Path) -> None:
    student = a_student("plain")
    if frozen:
        student.module.requires_grad_(False)
    else:
        student = Model("none", nn.Flatten(), AdapterSpec(1, 8, (0.5,), (0.5,)), 64, "own")
    with pytest.raises(OptionError, match="all of its parameters are frozen" if frozen else "no parameters"):
        run(student, tmp_path / "run")
