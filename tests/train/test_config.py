"""Settings of a training: what each does to a student, and the published sets of them."""

import dataclasses
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from dumping import RECIPE, a_teacher
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small import few_digits
from torch import Tensor
from training import Perceptron, perceptron

from logitcache.errors import DeviceMemoryError, OptionError, UnknownNameError
from logitcache.losses import Objective
from logitcache.models.build import Model, build_model
from logitcache.models.forward import ViewModel
from logitcache.stream.batch import StreamConfig
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.train.config import (
    PROTOCOLS,
    TrainConfig,
    choose_protocol,
    possible_protocols,
    protocol_named,
)
from logitcache.train.evaluation import Evaluation
from logitcache.train.events import EpochDone, StepDone, TrainEvent
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.train.optim import learning_rate
from logitcache.views.recipes import recipe_named

PLAIN = TrainConfig(epochs=2, lr=0.1, warmup_epochs=0.5)


def tiny() -> Model:
    return build_model("digits_tiny", num_classes=10, view_size=8, weights="random", seed=1)


def digits_stream(**options: Any) -> Stream:
    views = Stream.plain(few_digits(), RECIPE, seeds=(0, 1)).views
    teacher = LiveTeacher(ViewModel(a_teacher()), 300, 10, 10)
    return Stream(views, teacher, StreamConfig(**{"batch_size": 60, "seeds": (0, 1), "workers": 0} | options))


def trained(out: Path, student: Model, loss: str = "kd", **settings: Any) -> dict[str, Tensor]:
    """Train on the digits; returns the weights that were kept."""
    run = Run(out, student, Objective.parse(loss), dataclasses.replace(PLAIN, **settings))
    train([run], digits_stream())
    return load_file(out / "last.safetensors")


def assert_close(mine: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}))


# Settings by name -----------------------------------------------------------------------------------------


def test_protocols_are_the_published_ones() -> None:
    for name, values in {
        "cifar-kd": (0.05, 64, 240, (150, 180, 210), 5e-4),
        "imagenet-kd": (0.2, 512, 100, (30, 60, 90), 1e-4),
    }.items():
        found = protocol_named(name)
        config = found.config
        assert values == (
            config.lr, found.batch_size, config.epochs, config.milestones, config.weight_decay,
        )  # fmt: skip
        rates = [learning_rate(config, epoch * 7, 7) for epoch in range(config.epochs)]
        assert rates[0] == config.lr
        drops = [e for e in range(1, len(rates)) if rates[e] < rates[e - 1]]
        assert tuple(drops) == config.milestones
        assert rates[-1] == pytest.approx(config.lr / 1000)
    assert PROTOCOLS["digits"].config == TrainConfig()


@pytest.mark.parametrize(
    ("data", "n", "view_size", "name", "epochs", "batch_size"),
    [
        ("digits", 1437, 8, "digits", 20, 64),
        ("cifar100", 50_000, 32, "cifar-kd", 240, 64),
        ("imagefolder:imagenet", 1_281_167, 224, "imagenet-kd", 100, 512),
        ("imagefolder:imagenet", 1_281_167, 64, "imagenet-kd", 100, 512),
        ("imagefolder:food", 75_750, 224, "imagenet-kd", 100, 512),
        ("imagefolder:pets", 3_680, 224, "few", 52, 64),
        ("imagefolder:emoji", 900, 64, "few", 53, 16),
        ("imagefolder:shapes", 20, 64, "few", 100, 16),
        ("imagefolder:birds", 19_999, 64, "few", 20, 64),
    ],
)
def test_auto_goes_by_the_data(
    data: str, n: int, view_size: int, name: str, epochs: int, batch_size: int
) -> None:
    found, protocol = choose_protocol("auto", data, n, view_size)
    assert (found, protocol.config.epochs, protocol.batch_size) == (name, epochs, batch_size)
    assert choose_protocol(found, "", n, 0) == (found, protocol)


@pytest.mark.parametrize(
    ("n", "batch_size", "views", "epochs"), [(3_680, 128, 1, 100), (3_680, 32, 1, 26), (3_680, None, 2, 26)]
)
def test_few_comes_to_some_3000_steps_whatever_a_step_holds(
    n: int, batch_size: int | None, views: int, epochs: int
) -> None:
    _, protocol = choose_protocol("few", "", n, 224, batch_size, views)
    assert protocol.config.epochs == epochs
    assert epochs * n * views / protocol.batch_size == pytest.approx(3_000, rel=0.05)
    assert protocol.batch_size == (batch_size or 64)


def test_a_protocol_is_chosen_of_those_that_are_possible() -> None:
    for data, n, size in (("digits", 1437, 8), ("cifar100", 50_000, 32), ("x", 10**6, 224)):
        assert choose_protocol("auto", data, n, size)[1] in possible_protocols("auto")
    assert possible_protocols("digits") == [protocol_named("digits")]
    with pytest.raises(UnknownNameError, match="unknown protocol 'digit'"):
        possible_protocols("digit")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_can_be_trained_with_and_every_value_changed(name: str) -> None:
    config = protocol_named(name).config
    config.check()
    assert TrainConfig.from_dict(config.to_dict()) == config
    other = config.replace(
        {"epochs": "7", "schedule": "multistep", "milestones": "2,5.5", "betas": "0.8,0.9", "ema": "0.99"}
    )
    assert (other.epochs, other.milestones, other.betas, other.ema) == (7, (2.0, 5.5), (0.8, 0.9), 0.99)
    assert dataclasses.replace(other, seed=1) == other.replace({"seed": 1})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": "many"}, "epochs: expected int, found 'many'"),
        ({"nesterov": "yes"}, "nesterov: expected bool"),
        ({"momentum": "0"}, "no-nesterov"),
        ({"schedule": "multistep"}, "needs milestones"),
        ({"schedule": "multistep", "milestones": (3, 30)}, "epoch 30 never comes in 20"),
        ({"milestones": (3, 2)}, "must rise"),
        ({"schedule": "linear"}, "cosine"),
        ({"ema": 1.0}, "ema must be"),
        ({"clip_norm": 0.0}, "clip_norm must be"),
        ({"accumulate": 0}, "accumulate must be"),
        ({"betas": (0.9, 1.0)}, "betas must be"),
        ({"lr": "nan"}, "lr"),
        ({"betas": "0.9,x"}, "betas: expected two numbers such as 0.9,0.999, found '0.9,x'"),
        ({"betas": "0.9"}, "betas: expected two numbers such as 0.9,0.999, found '0.9'"),
        ({"milestones": "10;20"}, "milestones: expected numbers such as 150,180,210, found '10;20'"),
        ({"milestones": ("a",)}, "milestones: expected numbers such as 150,180,210, found"),
    ],
)
def test_settings_that_cannot_be_trained_with(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        TrainConfig().replace(changes)


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean cifar-kd"):
        protocol_named("cifarkd")
    with pytest.raises(UnknownNameError, match="did you mean epochs"):
        TrainConfig().replace({"epoch": 3})


@given(
    schedule=st.sampled_from(["cosine", "multistep", "constant"]),
    warmup=st.floats(0, 4),
    steps=st.integers(1, 50),
)
def test_the_rate_rises_to_its_peak_and_falls_from_there(schedule: Any, warmup: float, steps: int) -> None:
    config = TrainConfig(
        epochs=9, lr=0.3, schedule=schedule, warmup_epochs=warmup, milestones=(5.0, 7.0), gamma=0.5
    )
    rates = [learning_rate(config, step, steps) for step in range(9 * steps)]
    start = sum(step < warmup * steps for step in range(9 * steps))
    assert all(a < b for a, b in pairwise(rates[:start]))
    assert all(a >= b for a, b in pairwise(rates[start:]))
    assert 0 < max(rates) <= config.lr
    if schedule == "constant":
        assert set(rates[start:]) == {0.3}
    if schedule == "multistep":
        assert rates[-1] == pytest.approx(0.3 / 4)


# What a setting does --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["kd", "cmkd"])
@pytest.mark.parametrize("accumulate", [2, 3, 7])
def test_pieces_of_a_batch_give_the_step_of_the_whole(tmp_path: Path, accumulate: int, loss: str) -> None:
    whole = trained(tmp_path / "whole", perceptron(), loss)
    pieces = trained(tmp_path / "pieces", perceptron(), loss, accumulate=accumulate)
    assert_close(whole, pieces, rtol=1e-4, atol=1e-5)


class Roomless(Perceptron):
    """A device with room for 30 views."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 30:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(x)


def test_a_batch_that_does_not_fit_says_in_how_many_pieces_to_run_it(tmp_path: Path) -> None:
    def student() -> Model:
        return dataclasses.replace(perceptron(), module=Roomless())

    with pytest.raises(DeviceMemoryError, match=r"60 views does not fit .* --accumulate 2"):
        trained(tmp_path / "whole", student())
    trained(tmp_path / "pieces", student(), accumulate=2)


def test_no_piece_holds_a_single_row(tmp_path: Path) -> None:
    batch = next(digits_stream(batch_size=5).epoch(0))
    for count in range(1, 9):
        pieces = batch.pieces(count)
        assert torch.equal(torch.cat([piece.samples for piece in pieces]), batch.samples)
        assert min(len(piece.views) for piece in pieces) >= 2
    trained(tmp_path, tiny(), accumulate=32)  # batch norm would refuse one


def test_the_average_of_weights_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    student = perceptron()
    run = Run(tmp_path, student, Objective.parse("kd"), dataclasses.replace(PLAIN, ema=0.9))
    expected: dict[str, Tensor] = {}

    def follow(event: TrainEvent) -> None:
        if isinstance(event, StepDone):
            for name, value in student.module.state_dict().items():
                expected[name] = 0.9 * expected.get(name, value.clone()) + 0.1 * value

    evaluation = Evaluation(few_digits(100, "test"), recipe_named("identity"))
    report = train([run], digits_stream(), evaluation, on_progress=follow)[0]
    kept = load_file(tmp_path / "last.safetensors")
    assert_close(kept, expected, rtol=1e-4, atol=1e-6)
    assert not torch.equal(kept["last.weight"], student.module.state_dict()["last.weight"])
    student.module.load_state_dict(kept)
    assert evaluation.run([ViewModel(student)])[0].scores()["top1"] == report.top1


@pytest.mark.parametrize("clip_norm", [1e-3, None])
def test_clipping_bounds_the_step(tmp_path: Path, clip_norm: float | None) -> None:
    student = perceptron()
    before = {k: v.clone() for k, v in student.module.state_dict().items()}

    def stop(event: TrainEvent) -> None:
        if isinstance(event, StepDone):
            raise KeyboardInterrupt

    config = TrainConfig(momentum=0.0, nesterov=False, weight_decay=0.0, warmup_epochs=0.0)
    run = Run(tmp_path, student, Objective.parse("kd"), config.replace({"lr": 0.1, "clip_norm": clip_norm}))
    with pytest.raises(KeyboardInterrupt):
        train([run], digits_stream(), on_progress=stop)
    after = student.module.state_dict()
    moved = sum(float((after[k] - before[k]).square().sum()) for k in after) ** 0.5
    assert moved == pytest.approx(0.1 * clip_norm, rel=1e-3) if clip_norm else moved > 0.01


@pytest.mark.parametrize("decay_all", [False, True])
def test_biases_decay_only_where_all_do(tmp_path: Path, decay_all: bool) -> None:
    student = perceptron()
    before = {k: v.clone() for k, v in student.module.state_dict().items()}
    config = dataclasses.replace(PLAIN, weight_decay=0.1, decay_all=decay_all, ema=None)
    train([Run(tmp_path, student, Objective.parse("ce", ce_weight=1e-20), config)], digits_stream())
    after = student.module.state_dict()
    assert after["last.weight"].norm() < before["last.weight"].norm()
    assert torch.equal(after["last.bias"], before["last.bias"]) is not decay_all


def test_recomputed_activations_change_nothing(tmp_path: Path) -> None:
    plain, recomputing = perceptron(), perceptron()
    whole = trained(tmp_path / "a", plain)
    again = trained(tmp_path / "b", recomputing, grad_checkpointing=True)
    assert_close(whole, again)
    assert recomputing.module.forwards == 2 * plain.module.forwards
    with pytest.raises(OptionError, match="digits_tiny cannot compute activations again"):
        trained(tmp_path / "c", tiny(), grad_checkpointing=True)
    assert not (tmp_path / "c").exists()


def test_memory_order_and_compilation_change_nothing(tmp_path: Path) -> None:
    plain = trained(tmp_path / "a", tiny())
    last = trained(tmp_path / "b", tiny(), channels_last=True)
    assert_close(plain, last, rtol=1e-3, atol=1e-4)
    with torch.compiler.set_stance("force_eager"):  # what it is compiled to is torch's affair; names are ours
        assert_close(plain, trained(tmp_path / "c", tiny(), compile=True, ema=None))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_is_float32_to_its_rounding(tmp_path: Path, precision: str) -> None:
    plain = trained(tmp_path / "a", perceptron())
    lower = trained(tmp_path / "b", perceptron(), precision=precision)
    assert not torch.equal(plain["first.weight"], lower["first.weight"])
    start = perceptron().module.state_dict()
    for name, value in plain.items():
        assert (lower[name] - value).norm() < 0.05 * (value - start[name]).norm()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_every_optimizer_learns(tmp_path: Path, optimizer: Any) -> None:
    if optimizer == "lamb":
        pytest.importorskip("timm")
    lr = {"sgd": 0.2, "adamw": 0.02, "lamb": 0.1}[optimizer]
    run = Run(tmp_path, perceptron(), Objective.parse("ce"), TrainConfig(6, optimizer, lr))
    losses: list[float] = []

    def follow(event: TrainEvent) -> None:
        if isinstance(event, EpochDone):
            losses.append(event.row["loss"])

    train([run], digits_stream(), on_progress=follow)
    assert losses[-1] < 0.9 * losses[0]


def test_lamb_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(OptionError, match=r"pip install 'logitcache\[timm\]'"):
        trained(tmp_path, perceptron(), optimizer="lamb")
