"""A test image that does not decode is told before training, may be left out, and costs no epoch that is trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import fails, logitcache, succeeds
from dumping import IDENTITY, RECIPE, taught
from in_ranks import in_ranks
from pictures import image_folder
from refusals import refused
from small import Pixels, few_digits
from training import outcome, perceptron

from logitcache.distributed import ALONE, World
from logitcache.errors import DataError, ImageError, LogitCacheError
from logitcache.losses import Objective
from logitcache.models.forward import ViewModel
from logitcache.stream.stream import Stream
from logitcache.train.config import TrainConfig
from logitcache.train.evaluation import Evaluation, evaluate
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.views.datasets import ArrayImages


def digits_with_a_bad_one(bad: int = 25, n: int = 60) -> Pixels:
    sound = few_digits(n, "test")
    images = Pixels("digits", "test", sound.images, sound.labels, 10, "digits")
    images.changed, images.broken = bad, True
    return images


def without(images: ArrayImages, bad: int) -> ArrayImages:
    rest = np.delete(np.arange(len(images)), bad)
    return ArrayImages("digits", "test", images.images[rest], images.labels[rest], 10, "digits")


def trained(out: Path, images: ArrayImages, world: World = ALONE, **options: Any) -> Any:
    stream = Stream.plain(
        few_digits(120), RECIPE, seeds=(0, 1), batch_size=60 // world.size, workers=0, world=world
    )
    evaluation = Evaluation(images, IDENTITY, batch_size=20)
    run = Run(out, perceptron(), Objective.parse("ce"), TrainConfig(2, lr=0.1))
    return train([run], stream, evaluation, **options)


def test_an_evaluation_that_fails_loses_no_epoch(tmp_path: Path):
    trained(tmp_path / "whole", few_digits(60, "test"))
    refused(
        ImageError, lambda: trained(tmp_path / "run", digits_with_a_bad_one()), "test image ", "sample 25"
    )
    kept = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (kept["ledger"]["epoch"], kept["ledger"]["step"]) == (0, 2)  # all of its steps
    trained(tmp_path / "run", few_digits(60, "test"), resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_an_evaluation_that_fails_on_one_rank_ends_all_and_loses_no_epoch(tmp_path: Path):
    def in_world(out: Path, images: ArrayImages, **options: Any) -> dict[int, Any]:
        return in_ranks(lambda world: trained(out, images, world, **options))

    in_world(tmp_path / "whole", few_digits(60, "test"))
    heard = in_world(tmp_path / "run", digits_with_a_bad_one())  # the second batch, so the second rank's
    assert all(isinstance(error, LogitCacheError) for error in heard.values())
    assert "rank 1: test image sample 25" in str(heard[0])
    in_world(tmp_path / "run", few_digits(60, "test"), resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("with_teacher", [False, True])
def test_scores_without_a_bad_image_are_those_of_the_others(with_teacher: bool, tmp_path: Path):
    bad = digits_with_a_bad_one()
    good = without(bad, 25)
    caches = [None, None]
    if with_teacher:
        caches = [
            taught(tmp_path / "bad.zarr", bad, on_bad_image="skip"),
            taught(tmp_path / "good.zarr", good),
        ]
    model = ViewModel(perceptron())
    skipping = Evaluation(bad, IDENTITY, caches[0], batch_size=20, on_bad_image="skip")
    assert skipping.find_bad_images() == [25]
    found = evaluate(model, skipping, 10)
    expected = evaluate(model, Evaluation(good, IDENTITY, caches[1], batch_size=20), 10)
    assert (found.images, found.left_out) == (59, 1)
    assert (expected.images, expected.left_out) == (59, 0)
    assert found.confusion == expected.confusion
    for name in ("top1", "top5", "nll", "ece", "agreement", "kl", "teacher_top1"):
        score = getattr(expected, name)
        assert getattr(found, name) == (score if score is None else pytest.approx(score, rel=1e-6))


def test_a_batch_of_which_no_image_decodes_is_left_out_and_ranks_count_alike():
    images = digits_with_a_bad_one()

    def count(world: World) -> tuple[int, dict[str, float]]:
        evaluation = Evaluation(images, IDENTITY, batch_size=1, on_bad_image="skip")
        (meter,) = evaluation.run([ViewModel(perceptron())], world)
        return meter.left_out, meter.scores()

    alone = count(World())
    assert alone[0] == 1
    for left_out, scores in in_ranks(count).values():
        assert left_out == 1
        assert scores == pytest.approx(alone[1])


def test_images_of_which_not_one_decodes_are_refused_also_when_they_may_be_left_out():
    images = digits_with_a_bad_one(0, 1)
    evaluation = Evaluation(images, IDENTITY, on_bad_image="skip")
    refused(DataError, evaluation.find_bad_images, "not one image decodes")


def test_commands_name_a_bad_test_image_first_and_leave_it_out_when_told_to(tmp_path: Path):
    root = image_folder(tmp_path / "pictures")
    bad = root / "val" / "bee" / "1.png"
    whole = bad.read_bytes()
    words = ["--data", f"imagefolder:{root}"]
    training = ["train", "--student", "resnet8", "--loss", "ce", "--recipe", "imagenet@32", "--workers", 0]
    training += [*words, "--epochs", 2, "--batch-size", 4, "--out"]
    bad.write_bytes(whole[:60])
    line = fails(*training, "run", cwd=tmp_path)
    assert f"test image {bad} does not decode (" in line
    assert line.endswith("; mend or remove it, or leave it out with --on-bad-image skip")
    assert not (tmp_path / "run").exists()
    succeeds(*training, "run", "--on-bad-image", "skip", cwd=tmp_path)
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["left_out"] for row in rows] == [1, 1]
    assert f"test image {bad}" in fails("evaluate", "run", *words, "--workers", 0, cwd=tmp_path)
    options = [*words, "--workers", 0, "--on-bad-image", "skip"]
    text = " ".join(succeeds("evaluate", "run", *options, cwd=tmp_path).split())
    assert f"left out 1 image that does not decode: {bad} (" in text
    told = json.loads(succeeds("evaluate", "run", *options, "--json", cwd=tmp_path))
    assert (told["images"], told["left_out"]) == (8, 1)
    assert [(each["sample"], each["image"]) for each in told["bad"]] == [(4, str(bad))]
    assert "truncated" in told["bad"][0]["reason"]
    succeeds("report", "run", "--out", "page.html", cwd=tmp_path)
    bad.write_bytes(whole)
    training_image = root / "train" / "bee" / "1.png"
    training_image.write_bytes(whole[:60])
    ended = logitcache(*training, "other", cwd=tmp_path)
    assert ended.exit_code == 1
    assert ended.stderr.rstrip().endswith(
        f"{training_image} does not decode (image file is truncated); mend or remove it, or leave it "
        "out with --on-bad-image skip"
    )
