"""Stage two: the cache stands for the teacher, and a resumed or shared run is the plain one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dumping import RECIPE, a_teacher, dump_digits
from small import few_digits
from training import CONFIG, a_run, apart, assert_same_weights, rows_of

from logitcache.errors import (
    FormatError,
    MismatchError,
    NonFiniteError,
    NotFoundError,
    OptionError,
    StoppedError,
)
from logitcache.losses import LOSSES, Objective
from logitcache.models.build import build_model
from logitcache.models.forward import ViewModel
from logitcache.models.nets import HeadMixing
from logitcache.models.weights import read_header
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.train.config import TrainConfig
from logitcache.train.evaluation import Evaluation
from logitcache.train.events import StepDone, TrainEvent
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.train.validation import choose_held_out
from logitcache.views.recipes import recipe_named


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    out = tmp_path_factory.mktemp("exact") / "c.zarr"
    dump_digits(out, profile="exact")
    return CacheReader(out)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    out = tmp_path_factory.mktemp("small") / "c.zarr"
    dump_digits(out)
    return CacheReader(out)


def a_stream(cache: CacheReader, **options: Any) -> Stream:
    return Stream.from_cache(cache, few_digits(), **{"batch_size": 32, "workers": 0, **options})


@pytest.mark.parametrize("loss", ["kd", "cmkd", "kd:0.5+cmkd(support='listed'):1"])
def test_training_from_an_exact_cache_is_training_with_the_teacher(
    exact: CacheReader, tmp_path: Path, loss: str
) -> None:
    cached = a_stream(exact)
    live = LiveTeacher(ViewModel(a_teacher()), 300, 10, 10)
    beside = Stream(cached.views, live, cached.config)
    train([a_run(tmp_path / "cached", loss)], cached)
    train([a_run(tmp_path / "live", loss)], beside)
    for mine, theirs in zip(rows_of(tmp_path / "cached"), rows_of(tmp_path / "live"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert_same_weights(tmp_path / "cached", tmp_path / "live", rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"accumulate": 3, "clip_norm": 1.0},
        {"optimizer": "adamw", "lr": 0.01, "ema": 0.8},
    ],
    ids=["bfloat16", "float16", "pieces", "average"],
)
def test_a_resumed_run_from_an_exact_cache_is_an_uninterrupted_one_with_the_teacher(
    exact: CacheReader, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = dataclasses.replace(CONFIG, **settings)
    cached = a_stream(exact)
    live = Stream(cached.views, LiveTeacher(ViewModel(a_teacher()), 300, 10, 10), cached.config)
    train([a_run(tmp_path / "live", config=config)], live)
    asked = iter(range(13))  # to stop, which is said in the second epoch
    with pytest.raises(StoppedError, match="of epoch 2, as asked"):
        train(
            [a_run(tmp_path / "cached", config=config)], cached, should_stop=lambda: next(asked, None) is None
        )
    train([a_run(tmp_path / "cached", config=config)], a_stream(exact), resume=True)
    start = {name: value.clone() for name, value in a_run(tmp_path).student.module.state_dict().items()}
    assert apart(tmp_path / "cached", tmp_path / "live", start) < (1e-2 if "precision" in settings else 1e-4)
    for mine, theirs in zip(rows_of(tmp_path / "cached"), rows_of(tmp_path / "live"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-2 if "precision" in settings else 1e-4)


def test_the_steps_of_cached_and_live_are_equal_to_float32(exact: CacheReader) -> None:
    cached = a_stream(exact)
    live = Stream(cached.views, LiveTeacher(ViewModel(a_teacher()), 300, 10, 10), cached.config)
    objective, student = Objective.parse("cmkd"), ViewModel(a_run(Path()).student)
    for epoch in (0, 1):
        for mine, theirs in zip(cached.epoch(epoch), live.epoch(epoch), strict=True):
            assert torch.equal(mine.views, theirs.views)
            gradients = []
            for batch in (mine, theirs):
                student.zero_grad()
                total, _ = objective(student(batch.views), batch.teacher, batch.target)
                total.backward()
                gradients.append([total.detach(), *(p.grad.clone() for p in student.parameters())])
            for a, b in zip(*gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("epochs_before", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one(
    exact: CacheReader, tmp_path: Path, epochs_before: int
) -> None:
    evaluation = Evaluation(few_digits(100, "test"), recipe_named("identity"))
    train([a_run(tmp_path / "whole")], a_stream(exact), evaluation)

    def stop(event: TrainEvent) -> None:
        if isinstance(event, StepDone) and (event.epoch, event.step) == (epochs_before, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([a_run(tmp_path / "broken")], a_stream(exact), evaluation, on_progress=stop)
    assert len(rows_of(tmp_path / "broken")) == epochs_before
    report = train([a_run(tmp_path / "broken")], a_stream(exact), evaluation, resume=True)[0]
    assert report.epochs == 3
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "whole")
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")


def test_a_student_comes_out_the_same_whoever_trains_beside_it(exact: CacheReader, tmp_path: Path) -> None:
    together = [
        a_run(tmp_path / "a"),
        a_run(tmp_path / "b", "kd", dataclasses.replace(CONFIG, seed=1, epochs=2)),
        a_run(tmp_path / "c", "ce", student="digits_small"),
    ]
    train(together, a_stream(exact))
    train([a_run(tmp_path / "alone")], a_stream(exact))
    assert_same_weights(tmp_path / "a", tmp_path / "alone")
    assert [len(rows_of(tmp_path / name)) for name in "abc"] == [3, 2, 3]


def test_workers_change_nothing(exact: CacheReader, tmp_path: Path) -> None:
    train([a_run(tmp_path / "0")], a_stream(exact))
    train([a_run(tmp_path / "2")], a_stream(exact, workers=2))
    assert_same_weights(tmp_path / "0", tmp_path / "2")


def test_plain_training_needs_no_cache_and_learns(tmp_path: Path) -> None:
    stream = Stream.plain(few_digits(), RECIPE, seeds=tuple(range(6)), batch_size=32, workers=0)
    evaluation = Evaluation(few_digits(100, "test"), recipe_named("identity"))
    config = TrainConfig(epochs=6, lr=0.2)
    report = train([a_run(tmp_path / "r", "ce", config, "digits_small")], stream, evaluation)[0]
    assert report.top1 is not None
    assert report.top1 > 0.5
    assert report.best_top1 == max(row["top1"] for row in rows_of(tmp_path / "r"))


def test_the_kept_weights_build_the_student_again(exact: CacheReader, tmp_path: Path) -> None:
    evaluation = Evaluation(few_digits(100, "test"), recipe_named("identity"))
    run = a_run(tmp_path / "r")
    report = train([run], a_stream(exact), evaluation)[0]
    weights = str(tmp_path / "r" / "last.safetensors")
    again = build_model("digits_tiny", num_classes=10, view_size=8, weights=weights)
    assert again.weights_sha256 == run.student.weights_sha256
    assert evaluation.run([ViewModel(again)])[0].scores()["top1"] == report.top1


def test_of_several_folders_none_is_begun_when_one_holds_a_run(exact: CacheReader, tmp_path: Path) -> None:
    train([a_run(tmp_path / "b")], a_stream(exact))
    with pytest.raises(OptionError, match="b holds a run already"):
        train([a_run(tmp_path / "a"), a_run(tmp_path / "b")], a_stream(exact))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (None, "rows of 3 epochs.*found 0"),
        (slice(1, None), "epoch 0 and a loss"),
        (slice(0, 2), "rows of 3 epochs.*found 2"),
        ([{}], "epoch 0 and a loss"),
        ([{"epoch": "zero", "loss": 1.0}], "epoch 0 and a loss"),
        ([{"epoch": 0}], "epoch 0 and a loss"),
    ],
)
def test_a_run_whose_rows_are_not_those_of_its_epochs_is_one_line(
    rows: Any, problem: str, exact: CacheReader, tmp_path: Path
) -> None:
    train([a_run(tmp_path)], a_stream(exact))
    file, before = tmp_path / "metrics.jsonl", (tmp_path / "best.safetensors").read_bytes()
    lines = file.read_text().splitlines(keepends=True)
    if isinstance(rows, list):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_text("".join(lines[rows]) if rows else "")
    with pytest.raises(FormatError, match=problem):
        train([a_run(tmp_path)], a_stream(exact), resume=True)
    assert (tmp_path / "best.safetensors").read_bytes() == before


def test_a_run_without_a_teacher_is_not_taken_for_one_of_an_older_version(
    exact: CacheReader, tmp_path: Path
) -> None:
    plain = Stream.plain(few_digits(), RECIPE, seeds=(0, 1), batch_size=32, workers=0)
    train([a_run(tmp_path, "ce")], plain)
    with pytest.raises(MismatchError, match="resume with its own options"):
        train([a_run(tmp_path, "kd")], a_stream(exact), resume=True)


def test_a_folder_that_holds_a_run_is_left_alone(exact: CacheReader, tmp_path: Path) -> None:
    train([a_run(tmp_path)], a_stream(exact))
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(OptionError, match="holds a run already"):
        train([a_run(tmp_path)], a_stream(exact))
    for other, field in (
        (a_run(tmp_path, "kd"), "objective.expression"),
        (a_run(tmp_path, config=dataclasses.replace(CONFIG, lr=0.3)), "config.lr"),
    ):
        with pytest.raises(MismatchError) as refusal:
            train([other], a_stream(exact), resume=True)
        assert field in [f.field for f in refusal.value.fields]
    with pytest.raises(MismatchError) as refusal:
        train([a_run(tmp_path)], a_stream(exact, batch_size=16), resume=True)
    assert [f.field for f in refusal.value.fields] == ["stream.batch_size"]
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_resuming_nothing_is_refused(exact: CacheReader, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no run to resume"):
        train([a_run(tmp_path / "none")], a_stream(exact), resume=True)


def test_a_loss_that_is_not_a_number_stops_the_run(exact: CacheReader, tmp_path: Path) -> None:
    wild = dataclasses.replace(CONFIG, lr=1e12)
    with pytest.raises(NonFiniteError, match="epoch"):
        train([a_run(tmp_path, "kd", wild)], a_stream(exact))


@pytest.mark.parametrize("change", [{"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"weight_decay": -1.0}])
def test_options_that_cannot_be_trained_with(
    exact: CacheReader, tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(OptionError):
        train([a_run(tmp_path / "r", config=dataclasses.replace(CONFIG, **change))], a_stream(exact))


@pytest.mark.filterwarnings("ignore:.*compares single logits")  # k = 4 of 10: what is tested is that it runs
@pytest.mark.parametrize("loss", [*LOSSES, "dho:0.5+kd:0.5", "dhkd+cmkd"])
def test_every_loss_trains(small: CacheReader, tmp_path: Path, loss: str) -> None:
    run = a_run(tmp_path / "r", loss, TrainConfig(epochs=2, lr=0.1))
    report = train([run], a_stream(small), Evaluation(few_digits(100, "test"), recipe_named("identity")))[0]
    first, last = rows_of(tmp_path / "r")
    assert last["loss"] < first["loss"]
    assert (report.loss, report.top1) == (last["loss"], last["top1"])


def test_a_run_that_mixes_heads_chooses_on_images_it_does_not_train_on(
    exact: CacheReader, tmp_path: Path
) -> None:
    images = few_digits()
    aside = set(choose_held_out(images).tolist())
    assert len(aside) == 30
    seen: list[int] = []
    run = a_run(tmp_path / "dho", "dho")
    objective = run.objective
    objective.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    train([run, a_run(tmp_path / "kd", "kd")], a_stream(exact))
    assert sum(seen) == 3 * (300 - 30)
    train([a_run(tmp_path / "alone", "kd")], a_stream(exact))
    assert_same_weights(tmp_path / "kd", tmp_path / "alone")


@pytest.mark.parametrize(("loss", "heads"), [("dho", 2), ("dhkd", 2), ("kd", 1)])
def test_a_student_of_two_heads_builds_again_and_answers_alike(
    exact: CacheReader, tmp_path: Path, loss: str, heads: int
) -> None:
    evaluation = Evaluation(few_digits(100, "test"), recipe_named("identity"))
    report = train([a_run(tmp_path / "r", loss)], a_stream(exact), evaluation)[0]
    weights = str(tmp_path / "r" / "last.safetensors")
    again = build_model("digits_tiny", num_classes=10, view_size=8, weights=weights)
    assert again.heads == heads
    assert evaluation.run([ViewModel(again)])[0].scores()["top1"] == report.top1
    if loss == "dhkd":
        assert again.module.mixing == HeadMixing(1.0, 1.0)
    if heads == 2:
        with pytest.raises(OptionError, match="two heads; train it with dho or dhkd"):
            train([Run(tmp_path / "o", again, Objective.parse("kd"))], a_stream(exact))
        assert not (tmp_path / "o").exists()


def test_a_two_headed_run_resumes(exact: CacheReader, tmp_path: Path) -> None:
    evaluation = Evaluation(few_digits(100, "test"), recipe_named("identity"))
    train([a_run(tmp_path / "whole", "dho")], a_stream(exact), evaluation)

    def stop(event: TrainEvent) -> None:
        if isinstance(event, StepDone) and (event.epoch, event.step) == (1, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([a_run(tmp_path / "broken", "dho")], a_stream(exact), evaluation, on_progress=stop)
    train([a_run(tmp_path / "broken", "dho")], a_stream(exact), evaluation, resume=True)
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "whole")
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize("n", [33, 65])
def test_a_last_sample_is_not_left_alone_in_a_batch(tmp_path: Path, n: int) -> None:
    stream = Stream.plain(few_digits(n), RECIPE, seeds=(0,), batch_size=32, workers=0)
    sizes = [len(batch.views) for batch in stream.epoch(0)]
    assert min(sizes) > 1
    assert sum(sizes) == n
    config = TrainConfig(epochs=1)
    train([a_run(tmp_path / "r", "ce", config, "resnet8")], stream)  # its last batch norms see 1 x 1 at worst


NAMES = tuple("abcdefghij")


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        (NAMES, (), NAMES),
        (NAMES, NAMES[::-1], NAMES),  # what it learns from now
        ((), NAMES, NAMES),
        (NAMES[:3], (), ()),  # of other classes
        ((), (), ()),
    ],
)
def test_weights_say_their_classes_and_the_recipe_of_test_images(
    data: tuple[str, ...], model: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path
) -> None:
    images = few_digits(64)
    images.class_names = list(data)
    run = a_run(tmp_path / "run", "ce", dataclasses.replace(CONFIG, epochs=1))
    run = dataclasses.replace(run, student=dataclasses.replace(run.student, class_names=model))
    train([run], Stream.plain(images, RECIPE, seeds=(0,), batch_size=32, workers=0))
    header = read_header(tmp_path / "run" / "best.safetensors")
    assert header is not None
    assert (header.class_names, header.evaluation) == (expected, recipe_named(RECIPE.evaluation))
    told = json.loads((tmp_path / "run" / "config.json").read_text())
    assert told["class_names"] == list(expected)


def test_a_recipe_of_test_images_that_is_not_there_ends_no_training(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, evaluation="gone.toml")
    config = dataclasses.replace(CONFIG, epochs=1)
    train(
        [a_run(tmp_path / "run", "ce", config)],
        Stream.plain(few_digits(64), recipe, seeds=(0,), batch_size=32, workers=0),
    )
    assert read_header(tmp_path / "run" / "best.safetensors").evaluation is None
