"""Training in several ranks is training in one process on the same batches, and one that is lost ends all."""

import dataclasses
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from dumping import RECIPE, a_teacher, dump_digits, taught
from in_ranks import commanded, in_ranks
from mixed import BOTH, a_recipe
from safetensors.torch import load_file
from small import few_digits
from torch import nn
from training import apart, outcome, perceptron, rows_of

from logitcache.distributed import World
from logitcache.errors import (
    ClusterError,
    NonFiniteError,
    OptionError,
    StoppedError,
    StorageError,
    StudentsError,
    WeightsError,
)
from logitcache.format.identity import AdapterSpec
from logitcache.losses import Objective
from logitcache.models.build import Model, build_model
from logitcache.models.forward import ViewModel
from logitcache.stream.batch import StreamConfig
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.train.config import TrainConfig
from logitcache.train.evaluation import Evaluation
from logitcache.train.events import EpochDone, TrainEvent
from logitcache.train.learner import Learner, Run
from logitcache.train.loop import train
from logitcache.views.recipes import recipe_named

CONFIG = TrainConfig(2, lr=0.1)
BATCH = 60  # 300 digits: five whole batches
SUMS = ("nll", "ece", "kl")  # scores that are no counts


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exact") / "c.zarr"
    dump_digits(out, profile="exact")
    return out


def trained(
    out: Path,
    world: World,
    cache: Path,
    configs: tuple[TrainConfig, ...] = (CONFIG,),
    student: Model | None = None,
    **options: Any,
) -> Any:
    """Train from a cache, as one of the world's ranks."""
    config = {"batch_size": BATCH // world.size, "world": world, "workers": 0}
    stream = Stream.from_cache(cache, few_digits(), **config)
    evaluation = Evaluation(few_digits(60, "test"), recipe_named("identity"), batch_size=20)
    folders = [out] if len(configs) == 1 else [out / str(number) for number in range(len(configs))]
    runs = [
        Run(f, student or perceptron(), Objective.parse("kd"), c)
        for f, c in zip(folders, configs, strict=True)
    ]
    return train(runs, stream, evaluation, **options)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, accumulate=3, clip_norm=1.0),
        dataclasses.replace(CONFIG, optimizer="adamw", lr=0.01, ema=0.8),
    ],
    ids=["plain", "pieces", "average"],
)
def test_ranks_take_the_steps_of_one_process_with_the_teacher_live(
    config: TrainConfig, exact: Path, tmp_path: Path
) -> None:
    cached = Stream.from_cache(exact, few_digits(), batch_size=BATCH, workers=0)
    live = LiveTeacher(ViewModel(a_teacher()), 300, 10, 10)
    alone = Stream(cached.views, live, cached.config)
    evaluation = Evaluation(few_digits(60, "test"), recipe_named("identity"))
    train([Run(tmp_path / "alone", perceptron(), Objective.parse("kd"), config)], alone, evaluation)
    heard = in_ranks(lambda world: trained(tmp_path / "ranks", world, exact, (config,)))
    assert heard[1] == []
    assert heard[0][0].epochs == 2
    for mine, theirs in zip(rows_of(tmp_path / "ranks"), rows_of(tmp_path / "alone"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    mine, theirs = weights_of(tmp_path / "ranks"), weights_of(tmp_path / "alone")
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4)


class Partly(nn.Module):
    """A layer without a part in the logits, frozen ones, and a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.used, self.unused = nn.Linear(64, 24), nn.Linear(24, 10), nn.Linear(24, 10)
        self.norm = nn.BatchNorm1d(24)
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(self.norm(self.frozen(x.flatten(1))).relu())


def partly() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Model("partly", Partly(), AdapterSpec(1, 8, (0.5,), (0.5,)), 10, "own")


@pytest.mark.parametrize(
    "config", [CONFIG, dataclasses.replace(CONFIG, accumulate=3)], ids=["plain", "pieces"]
)
def test_layers_that_are_unused_or_frozen_stay_as_they_are_in_ranks(
    config: TrainConfig, exact: Path, tmp_path: Path
) -> None:
    heard = in_ranks(lambda world: trained(tmp_path / "run", world, exact, (config,), partly()))
    assert heard[0][0].epochs == 2
    began, ended = partly().module.state_dict(), weights_of(tmp_path / "run")
    moved = {name.partition(".")[0] for name, value in began.items() if not torch.equal(value, ended[name])}
    assert moved == {"used", "norm"}


class Fickle(Partly):
    """Leaves a layer out from its third forward on."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0
        self.more = nn.Linear(64, 10)
        del self.unused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        logits = super().forward(x)
        return logits + self.more(x.flatten(1)) if self.forwards < 3 else logits


def test_layers_that_come_and_go_are_one_line_in_ranks(exact: Path, tmp_path: Path) -> None:
    student = dataclasses.replace(partly(), module=Fickle())
    heard = in_ranks(lambda world: trained(tmp_path / "run", world, exact, student=student))
    assert all(isinstance(heard[rank], OptionError) for rank in (0, 1)), heard
    assert "takes other layers in some steps than in others" in str(heard[0])


@pytest.mark.parametrize("batch_size", [32, 256])  # seven batches for three ranks, and one
def test_ranks_that_share_an_evaluation_score_as_one_process(batch_size: int, tmp_path: Path) -> None:
    images = few_digits(200, "test")
    cache = taught(tmp_path / "c.zarr", images)

    def scores(world: World) -> Any:
        students = [
            ViewModel(build_model("digits_tiny", num_classes=10, view_size=8, weights="random")),
            ViewModel(perceptron()),
        ]
        if world.rank:  # as ranks that each remember their own batches
            next(students[0].buffers()).mul_(0.5)
        evaluation = Evaluation(images, recipe_named("identity"), cache, batch_size=batch_size)
        seen: list[int] = []
        students[1].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        return [meter.scores() for meter in evaluation.run(students, world)], sum(seen)

    alone, n = scores(World())
    heard = in_ranks(scores, 3)
    assert sum(seen for _, seen in heard.values()) == n == 200
    for found, _ in heard.values():
        assert found == heard[0][0]
        for mine, theirs in zip(found, alone, strict=True):
            assert {**mine, **dict.fromkeys(SUMS)} == {**theirs, **dict.fromkeys(SUMS)}
            assert mine == pytest.approx(theirs, rel=1e-12)


def test_ranks_in_half_precision_on_mixed_views_train_as_one_process_with_the_teacher(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, precision="bfloat16")
    dump_digits(tmp_path / "c.zarr", recipe=a_recipe(*BOTH), profile="exact")
    cached = Stream.from_cache(tmp_path / "c.zarr", few_digits(), batch_size=BATCH, workers=0)
    live = Stream(cached.views, LiveTeacher(ViewModel(a_teacher()), 300, 10, 10), cached.config)
    train([Run(tmp_path / "alone", perceptron(), Objective.parse("kd"), config)], live)
    in_ranks(lambda world: trained(tmp_path / "ranks", world, tmp_path / "c.zarr", (config,)))
    assert apart(tmp_path / "ranks", tmp_path / "alone", perceptron().module.state_dict()) < 0.02
    for mine, theirs in zip(rows_of(tmp_path / "ranks"), rows_of(tmp_path / "alone"), strict=True):
        assert {name: mine[name] for name in theirs} == pytest.approx(theirs, rel=1e-2)


def test_what_ranks_score_is_what_the_weights_kept_score(exact: Path, tmp_path: Path) -> None:
    def train_one(world: World) -> Any:
        student = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
        return trained(tmp_path / "run", world, exact, student=student)

    in_ranks(train_one)
    weights = str(tmp_path / "run" / "last.safetensors")
    kept = build_model("digits_tiny", num_classes=10, view_size=8, weights=weights)
    evaluation = Evaluation(few_digits(60, "test"), recipe_named("identity"), batch_size=20)
    (meter,) = evaluation.run([ViewModel(kept)])
    score, row = meter.scores(), rows_of(tmp_path / "run")[-1]
    assert {name: row[name] for name in score} == pytest.approx(score, rel=1e-12)


def test_ranks_that_are_stopped_go_on_as_if_they_had_not_been(exact: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, optimizer="adamw", lr=0.01, ema=0.8)

    def stopped(world: World) -> Any:
        steps = iter(range(6))  # only rank 1 is asked to stop, in the second epoch
        return trained(
            tmp_path / "broken",
            world,
            exact,
            (config,),
            should_stop=lambda: world.rank == 1 and next(steps, None) is None,
        )

    in_ranks(lambda world: trained(tmp_path / "whole", world, exact, (config,)))
    heard = in_ranks(stopped)
    assert heard[1] == []
    assert isinstance(heard[0], StoppedError)
    assert "step 2 of epoch 2" in str(heard[0])
    in_ranks(lambda world: trained(tmp_path / "broken", world, exact, (config,), resume=True))
    mine, theirs = outcome(tmp_path / "broken"), outcome(tmp_path / "whole")
    assert mine[1:] == theirs[1:]  # weights, bit for bit
    for row, other in zip(mine[0], theirs[0], strict=True):
        assert row == pytest.approx(other, rel=1e-6)
    trained(tmp_path / "broken", World(), exact, (config,), resume=True)  # one process may go on with it


def test_a_lost_rank_ends_all(exact: Path, tmp_path: Path) -> None:
    def doomed(world: World) -> Any:
        def stop() -> bool:
            if world.rank == 1 and (tmp_path / "run" / "metrics.jsonl").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return False

        return trained(tmp_path / "run", world, exact, should_stop=stop, checkpoint_every=0.0)

    heard = in_ranks(doomed, lost=1)
    assert set(heard) == {0}
    assert isinstance(heard[0], ClusterError)
    assert "another rank ended" in str(heard[0])
    heard = in_ranks(lambda world: trained(tmp_path / "run", world, exact, resume=True))
    assert heard[0][0].epochs == 2


def test_what_fails_in_telling_ends_all(exact: Path, tmp_path: Path) -> None:
    """Rank 0 alone tells; were only its student to end, its others would go on with those of another rank."""

    def full(event: TrainEvent) -> None:
        if isinstance(event, EpochDone) and event.run.name == "0":
            raise StorageError("the disk is full")

    two = (CONFIG, dataclasses.replace(CONFIG, lr=0.2))
    heard = in_ranks(lambda world: trained(tmp_path, world, exact, two, on_progress=full))
    assert isinstance(heard[0], StorageError)
    assert isinstance(heard[1], ClusterError)


def test_what_ends_all_is_said_once(exact: Path, tmp_path: Path) -> None:
    wild = dataclasses.replace(CONFIG, lr=1e30, warmup_epochs=0.0)
    heard = in_ranks(lambda world: trained(tmp_path / "wild", world, exact, (wild,)))
    assert isinstance(heard[0], NonFiniteError)
    assert heard[1] == []
    in_ranks(lambda world: trained(tmp_path / "done", world, exact, (CONFIG,)))
    heard = in_ranks(lambda world: trained(tmp_path / "done", world, exact, (CONFIG,)))
    assert isinstance(heard[0], OptionError)
    assert "holds a run already" in str(heard[0])
    assert heard[1] == []
    heard = in_ranks(lambda world: trained(tmp_path / "two", world, exact, (wild, CONFIG)))
    assert isinstance(heard[0], StudentsError)
    assert [Path(report.out).name for report in heard[0].reports] == ["1"]
    assert heard[1] == []


def wrong(config: TrainConfig, world: World, ranks: tuple[int, ...]) -> TrainConfig:
    """Return settings that these ranks cannot begin with."""
    return dataclasses.replace(config, precision=f"float{world.rank}") if world.rank in ranks else config


@pytest.mark.parametrize("ranks", [(1,), (2,), (1, 2)], ids=str)
def test_where_rank_0_alone_could_begin_all_end_and_say_which_could_not(
    ranks: tuple[int, ...], exact: Path, tmp_path: Path
) -> None:
    heard = in_ranks(lambda world: trained(tmp_path / "run", world, exact, (wrong(CONFIG, world, ranks),)), 3)
    for rank, error in heard.items():
        if rank in ranks:
            assert isinstance(error, OptionError)
            assert f"found 'float{rank}'" in str(error)
        else:
            assert isinstance(error, ClusterError)
            assert f"rank {ranks[0]} could not begin to train: precision must be" in str(error)


def test_where_rank_0_could_not_begin_it_alone_says_so(exact: Path, tmp_path: Path) -> None:
    heard = in_ranks(lambda world: trained(tmp_path / "run", world, exact, (wrong(CONFIG, world, (0, 1)),)))
    assert "found 'float0'" in str(heard[0])
    assert heard[1] == []


def test_the_command_line_ends_where_only_another_rank_could_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Learner.open

    def fails_elsewhere(self: Learner, **options: Any) -> None:
        if os.environ["RANK"] == "1":
            raise StorageError("this rank's disk is gone")
        opened(self, **options)

    monkeypatch.setattr(Learner, "open", fails_elsewhere)
    words = ["train", "--student", "digits_tiny", "--loss", "ce", "--epochs", "1", "--workers", "0"]
    for form in ([], ["--json"]):
        (code, printed, said), other = commanded([*words, *form], tmp_path)
        assert (code, printed) == (1, "")
        line = "logitcache: rank 1 could not begin to train: this rank's disk is gone"
        assert said.splitlines()[-1] == line
        assert other == (1, "", "logitcache: this rank's disk is gone\n")


def test_the_command_line_ends_where_only_another_rank_could_not_open_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_elsewhere(name: str, **options: Any) -> Model:
        if os.environ["RANK"] == "1":
            raise WeightsError("this rank has no weights")
        return build_model(name, **options)

    monkeypatch.setattr("logitcache.train.launch.build_model", fails_elsewhere)
    words = ["train", "--student", "digits_tiny", "--loss", "ce", "--epochs", "1", "--workers", "0"]
    (code, printed, said), other = commanded(words, tmp_path)
    assert (code, printed) == (1, "")
    assert said.splitlines()[-1].startswith(
        "logitcache: another rank ended before all was done; it, or torchrun"
    )
    assert other == (1, "", "logitcache: this rank has no weights\n")


def test_ranks_need_a_process_group_and_one_head(exact: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="torchrun"):
        trained(tmp_path / "run", World(0, 2), exact)
    views = Stream.plain(few_digits(), RECIPE, seeds=(0,)).views

    def mixing(world: World) -> Any:
        config = StreamConfig(30, (0,), world=world, workers=0)
        run = Run(tmp_path / "dho", perceptron(), Objective.parse("dho"), CONFIG)
        return train([run], Stream(views, LiveTeacher(ViewModel(a_teacher()), 300, 10, 10), config))

    heard = in_ranks(mixing)
    assert isinstance(heard[0], OptionError)
    assert "train it in one process" in str(heard[0])
    assert heard[1] == []
    assert not (tmp_path / "dho").exists()


def test_the_command_line_in_ranks_prints_one_report(tmp_path: Path) -> None:
    words = ["train", "--student", "digits_tiny", "--loss", "ce", "--epochs", "2", "--workers", "0", "--json"]
    (code, printed, said), other = commanded(words, tmp_path)
    assert code == 0, said
    assert other == (0, "", "")
    (report,) = json.loads(printed)["runs"]
    assert report["epochs"] == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [Path(report["out"]).name]
    assert said.count("epoch 2 of 2") == 1
    config = json.loads((tmp_path / report["out"] / "config.json").read_text())
    assert config["stream"]["batch_size"] == 64
    (code, _, said), other = commanded([*words, "--batch-size", "33"], tmp_path)
    assert code == 1
    assert "batches of 33 cannot be dealt evenly to 2 ranks; choose a --batch-size such as 32" in said
    assert other == (0, "", "")


@pytest.mark.filterwarnings("default")
def test_what_a_loss_cannot_learn_is_said_by_one_rank(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: print(message, file=sys.stderr))
    words = ["train", "--student", "digits_tiny", "--cache", str(exact), "--epochs", "1", "--workers", "0"]
    (code, _, said), other = commanded([*words, "--loss", "kd(temperature=50)"], tmp_path)
    assert code == 0, said
    assert said.count("kd's temperature 50 is outside") == 1
    assert other == (0, "", "")
