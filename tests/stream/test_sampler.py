"""Which samples and seeds an epoch takes: by keys alone, none twice, none forgotten."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dumping import RECIPE, a_teacher, dump_digits
from hypothesis import given
from hypothesis import strategies as st
from small import few_digits
from training import perceptron
from typer.testing import CliRunner

from logitcache.distributed import World
from logitcache.errors import OptionError
from logitcache.losses import Objective
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader
from logitcache.stream.batch import StreamConfig
from logitcache.stream.sampler import PairSampler, choose_samples, choose_seeds
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.train.config import TrainConfig
from logitcache.train.events import EpochDone, TrainEvent
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.views.datasets import ArrayImages
from logitcache.views.keyed_views import KeyedViews
from logitcache_cli.main import app


@given(st.integers(1, 9), st.integers(0, 5), st.integers(0, 2**40), st.sampled_from(["mod", "random"]))
def test_every_round_takes_every_seed_once(count: int, turn: int, order: int, how: Any) -> None:
    seeds = [7 + 3 * number for number in range(count)]
    taken = [choose_seeds(turn * count + e, seeds, seed_order=how, order=order) for e in range(count)]
    assert sorted(seed for (seed,) in taken) == seeds
    for views in range(1, count + 1):  # several at once walk the same line
        line = [choose_seeds(e, seeds, seed_order=how, order=order)[0] for e in range(3 * views)]
        assert [s for e in range(3) for s in choose_seeds(e, seeds, views, how, order)] == line


def test_rounds_differ_and_keys_do() -> None:
    rounds = {
        tuple(
            choose_seeds(e, range(9), seed_order="random", order=order)[0]
            for e in range(9 * turn, 9 * turn + 9)
        )
        for turn in range(3)
        for order in range(3)
    }
    assert len(rounds) == 9


@given(st.integers(1, 200), st.floats(0.01, 1), st.integers(0, 2**40))
def test_a_fraction_is_drawn_by_its_key(n: int, fraction: float, order: int) -> None:
    if not round(fraction * n):
        with pytest.raises(OptionError, match="no sample is left"):
            choose_samples(n, fraction, order=order)
        return
    chosen = choose_samples(n, fraction, order=order)
    assert len(chosen) == round(fraction * n)
    assert list(chosen) == sorted(set(chosen.tolist()))
    assert np.array_equal(chosen, choose_samples(n, fraction, order=order))
    smaller = choose_samples(n, fraction / 2, order=order) if round(fraction / 2 * n) else chosen
    assert set(smaller.tolist()) <= set(chosen.tolist())
    listed = sorted({0, n // 2, n - 1})
    if few := round(fraction * len(listed)):
        drawn = choose_samples(n, fraction, listed, order).tolist()
        assert len(drawn) == few
        assert set(drawn) <= set(listed)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fraction": 0.0}, "fraction must be"),
        ({"fraction": 1.5}, "fraction must be"),
        ({"samples": (3, 300)}, "there are samples 0 to 299, the list names 300"),
        ({"samples": (-1,)}, "the list names -1"),
        ({"samples": (3, 3)}, "names each once"),
        ({"samples": ()}, "no sample is left"),
        ({"views_per_image": 3}, "views per image must be 1 to 2, the number of seeds, found 3"),
        ({"views_per_image": 2, "batch_size": 25}, "cannot hold 2 views of each image"),
        ({"seed_order": "often"}, "mod or random"),
    ],
)
def test_what_cannot_be_walked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Stream.plain(few_digits(), RECIPE, **{"seeds": (0, 1), "workers": 0, **options}).steps(0)


@pytest.mark.parametrize("world", [1, 2])
def test_views_of_an_image_stand_side_by_side(world: int) -> None:
    ranks = [
        PairSampler(np.arange(48), (5, 3, 8), 12, order=1, epoch=2, world=World(rank, world))
        for rank in range(world)
    ]
    pairs = [pair for batches in zip(*ranks, strict=True) for batch in batches for pair in batch]
    assert set(pairs) == {(sample, seed) for sample in range(48) for seed in (5, 3, 8)}
    assert [sample for sample, _ in pairs[::3]] == [sample for sample, _ in pairs[2::3]]
    assert len(pairs) == 144


class Counting(ArrayImages):
    """Images that count how often one is opened."""

    opened = 0

    def image(self, sample: int) -> torch.Tensor:
        self.opened += 1
        return super().image(sample)


def test_an_image_of_many_views_is_decoded_once(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", profile="exact")
    cached = Stream.from_cache(
        CacheReader(tmp_path / "c.zarr"), few_digits(), batch_size=60, views_per_image=2, workers=0
    )
    some = few_digits()
    images = Counting("digits", "train", some.images, some.labels, 10, "digits")
    live = LiveTeacher(ViewModel(a_teacher()), 300, 10, 10)
    beside = Stream(KeyedViews(images, cached.views.maker.recipe), live, cached.config)
    for mine, theirs in zip(cached.epoch(0), beside.epoch(0), strict=True):
        assert torch.equal(mine.views, theirs.views)
        assert mine.teacher is not None
        assert theirs.teacher is not None
        torch.testing.assert_close(mine.teacher.top, theirs.teacher.top, rtol=1e-5, atol=1e-5)
    assert images.opened == 300


def test_training_without_labels_takes_the_teacher_alone(tmp_path: Path) -> None:
    some = few_digits()
    unlabelled = ArrayImages("digits", "train", some.images, np.full(300, -1), 10, "digits")
    teacher = LiveTeacher(ViewModel(a_teacher()), 300, 10, 10)
    stream = Stream(KeyedViews(unlabelled, RECIPE), teacher, StreamConfig(60, (0, 1), workers=0))
    events: list[TrainEvent] = []
    run = Run(tmp_path / "run", perceptron(), Objective.parse("kd"), TrainConfig(4, lr=0.3))
    train([run], stream, on_progress=events.append)
    rows = [event.row for event in events if isinstance(event, EpochDone)]
    assert [row["ce"] for row in rows] == [0.0] * 4
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(parameter.isfinite().all() for parameter in run.student.module.parameters())


def test_a_list_of_samples_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("1 2 3\n" + "\n".join(map(str, range(10, 107))))
    np.save(tmp_path / "list.npy", np.array([1, 2, 3, *range(10, 107)]))
    words = ["train", "--student", "digits_tiny", "--loss", "ce", "--epochs", "1", "--workers", "0"]
    words += ["--seed-order", "random", "--views-per-image", "2", "--fraction", "0.5"]
    about = []
    for name in ("list.txt", "list.npy"):
        done = CliRunner().invoke(app, [*words, "--samples", name, "--out", f"run-{name}"])
        assert done.exit_code == 0, done.output
        about.append(json.loads((tmp_path / f"run-{name}" / "config.json").read_text())["stream"])
    assert about[0] == about[1]
    assert about[0]["samples"]["n"] == 50
    for name, text in (
        ("odd.txt", "1 two"),
        ("half.txt", "1.5"),
        ("huge.txt", f"{2**70}"),
        ("empty.npy", ""),
    ):
        (tmp_path / name).write_text(text)
    np.save(tmp_path / "half.npy", np.array([0.5, 1.7]))  # no sample 0 and 1
    np.save(tmp_path / "huge.npy", np.array([2**64 - 1], np.uint64))  # nor −1
    with (tmp_path / "many.npy").open("wb") as many:
        np.savez(many, np.arange(3))
    odd = "expected whole numbers"
    for name, said in {
        "none.txt": "cannot read the list",
        **dict.fromkeys(["odd.txt", "half.txt", "half.npy", "empty.npy", "many.npy"], odd),
        "huge.txt": f"the list names {2**70}",
        "huge.npy": f"the list names {2**64 - 1}",
    }.items():
        done = CliRunner().invoke(app, [*words, "--samples", name, "--out", "other"])
        assert done.exit_code == 1, done.output
        assert said in done.stderr
