"""Small trainings, and what tells whether two came to the same."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from logitcache.format.identity import AdapterSpec
from logitcache.losses import Objective
from logitcache.models.build import Model, build_model
from logitcache.train.config import TrainConfig
from logitcache.train.learner import Run

CONFIG = TrainConfig(epochs=3, lr=0.1, seed=5)


def a_run(out: Path, loss: str = "cmkd", config: TrainConfig = CONFIG, student: str = "digits_tiny") -> Run:
    model = build_model(student, num_classes=10, view_size=8, weights="random", seed=config.seed)
    return Run(out, model, Objective.parse(loss), config)


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "views_per_second")} for row in rows]


def assert_same_weights(run: Path, other: Path, **tolerance: float) -> None:
    mine, theirs = load_file(run / "last.safetensors"), load_file(other / "last.safetensors")
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}))


def apart(run: Path, other: Path, start: dict[str, torch.Tensor]) -> float:
    """How far the weights of two runs came apart, as a share of how far they came."""
    mine, theirs = (load_file(folder / "last.safetensors") for folder in (run, other))
    names = [name for name, value in start.items() if value.is_floating_point()]
    between, gone = (
        torch.stack([(theirs[n] - values[n]).square().sum() for n in names]).sum() for values in (mine, start)
    )
    return float((between / gone).sqrt())


class Perceptron(nn.Module):
    """No batch norm, so that rows of a batch do not see each other; counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 24), nn.Linear(24, 10)
        self.recompute, self.forwards = False, 0

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.recompute = enable

    def hidden(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.first(x.flatten(1)).relu()

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.hidden, x, use_reentrant=False) if self.recompute else self.hidden(x)
        return self.last(hidden)


def perceptron() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Model("perceptron", Perceptron(), AdapterSpec(1, 8, (0.5,), (0.5,)), 10, "own")


def outcome(run: Path) -> tuple[Any, ...]:
    """All that a run leaves behind, but for its times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if k not in ("seconds", "views_per_second")} for row in rows]
    kept = [(run / f"{name}.safetensors").read_bytes() for name in ("best", "last")]
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    state = {k: v.numpy().tobytes() for k, v in checkpoint["model"].items()}
    return timeless, kept, state, checkpoint["ledger"]["epoch"], {p.name for p in run.iterdir()}
