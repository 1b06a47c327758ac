"""Without a cache, a training image that does not decode is named, or found at first and left out of the run."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import fails, logitcache, succeeds
from dumping import RECIPE
from in_ranks import commanded
from mixed import BOTH, a_recipe
from pictures import image_folder
from small import Pixels, few_digits

from logitcache.distributed import ALONE
from logitcache.errors import DataError, FormatError, ImageError, StoppedError
from logitcache.format.identity import RecipeSpec
from logitcache.stream.batch import StreamConfig
from logitcache.stream.stream import Stream
from logitcache.stream.stream_inputs import StreamInputs
from logitcache.train.events import EpochDone, ImagesDecoded, TrainEvent
from logitcache.train.launch import TrainJob
from logitcache.train.run_folder import RunFolder
from logitcache.train.variants import VariantInputs
from logitcache.views.bad_images import BadImage, find_bad_images
from logitcache.views.datasets import ArrayImages
from logitcache.views.keyed_views import OnBadImage

WORDS = (
    "train",
    "--student",
    "resnet8",
    "--loss",
    "ce",
    "--data",
    "imagefolder:pets",
    "--recipe",
    "imagenet@16",
)
SKIP = ("--on-bad-image", "skip")
BAD = 4  # train/bee/1.png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image_folder(tmp_path / "pets")
    spoil(tmp_path)
    return tmp_path


def spoil(folder: Path) -> bytes:
    """Empty most of a training picture, whose size stays; returns what it was."""
    file = folder / "pets" / "train" / "bee" / "1.png"
    sound = file.read_bytes()
    file.write_bytes(sound[:60].ljust(len(sound), b"\0"))
    return sound


def job(folder: Path, on_bad_image: OnBadImage = "skip", epochs: int = 2) -> TrainJob:
    config = StreamConfig(batch_size=4, workers=0, device="cpu")
    data = f"imagefolder:{folder}/pets"
    inputs = StreamInputs(config, data=data, recipe="imagenet@16", on_bad_image=on_bad_image)
    variants = VariantInputs("ce", settings={"epochs": epochs}, batch_size=4)
    return TrainJob(("resnet8",), variants, inputs, folder / "run", on_bad_image=on_bad_image)


def test_a_run_that_ends_before_its_first_checkpoint_keeps_no_other_from_its_folder(folder: Path) -> None:
    words = (*WORDS, "--epochs", 1, "--workers", 0, "--out", "run")
    told = logitcache(*words, cwd=folder)
    assert told.exit_code == 1
    last = told.stderr.splitlines()[-1]
    assert "bee/1.png does not decode (" in last
    assert last.endswith("mend or remove it, or leave it out with --on-bad-image skip")
    assert [file.name for file in (folder / "run").iterdir()] == ["config.json"]
    shown = json.loads(succeeds(*words, *SKIP, "--json", cwd=folder))["runs"][0]
    assert [(bad["sample"], Path(bad["image"]).name) for bad in shown["left_out"]] == [(BAD, "1.png")]
    assert "holds a run already" in fails(*words, *SKIP, cwd=folder)  # which has something to lose


def test_what_is_left_out_is_said_at_the_beginning_and_at_the_end(folder: Path) -> None:
    ended = logitcache(*WORDS, "--epochs", 1, "--workers", 2, "--out", "run", *SKIP, cwd=folder)
    assert ended.exit_code == 0, ended.output
    line = next(line for line in ended.stderr.splitlines() if "left out" in line)
    assert line.startswith("note: 1 of 9 images does not decode and is left out: ")
    assert "bee/1.png (" in line
    assert "left out 1 image that does not decode: " in " ".join(ended.stdout.split())


def test_each_image_is_decoded_once_and_a_run_that_goes_on_looks_at_none(folder: Path) -> None:
    events: list[TrainEvent] = []

    def stop() -> bool:
        return any(isinstance(event, EpochDone) for event in events)

    with pytest.raises(StoppedError):
        job(folder).run(ALONE, print, on_progress=events.append, should_stop=stop)
    assert [(e.done, e.total) for e in events if isinstance(e, ImagesDecoded)] == [(9, 9)]
    events.clear()
    report = job(folder).run(ALONE, print, on_progress=events.append, resume=True)[0]
    assert not any(isinstance(event, ImagesDecoded) for event in events)
    assert [bad.sample for bad in report.left_out] == [BAD]
    assert report.epochs == 2


def test_a_picture_that_is_spoilt_meanwhile_ends_the_run_with_how_it_goes_on(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets")
    sound: list[bytes] = []

    def spoil_after_an_epoch(event: TrainEvent) -> None:
        if isinstance(event, EpochDone) and not sound:
            sound.append(spoil(tmp_path))

    with pytest.raises(
        ImageError, match=r"bee/1.png does not decode \(.*; put it back as it was, then the same "
    ) as heard:
        job(tmp_path).run(ALONE, print, on_progress=spoil_after_an_epoch)
    assert "--resume goes on from there" in str(heard.value)
    assert not any(
        advice in str(heard.value) for advice in ("remove", "--on-bad-image")
    )  # they would not help
    with pytest.raises(ImageError, match="put it back as it was, then the same"):
        job(tmp_path).run(ALONE, print, resume=True)
    (tmp_path / "pets" / "train" / "bee" / "1.png").write_bytes(sound[0])
    assert job(tmp_path).run(ALONE, print, resume=True)[0].left_out == ()


def test_ranks_leave_the_same_images_out(folder: Path) -> None:
    words = [*WORDS, "--epochs", "1", "--batch-size", "4", "--workers", "0", "--device", "cpu", *SKIP]
    words += ["--warmup-epochs", "0", "--json", "--out", "run"]
    (code, shown, _), (other, silent, _) = commanded(words, folder)
    assert (code, other, silent) == (0, 0, "")
    assert [bad["sample"] for bad in json.loads(shown)["runs"][0]["left_out"]] == [BAD]
    record = RunFolder(folder / "run").read_config()
    assert record["stream"]["missing"]["n"] == len(record["left_out"]) == 1


@pytest.mark.parametrize("left_out", [3, [{"sample": "x"}], [7]])
def test_a_damaged_list_is_refused(left_out: object, folder: Path) -> None:
    job(folder, epochs=1).run(ALONE, print)
    file = folder / "run" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "left_out": left_out}))
    with pytest.raises(FormatError):
        job(folder, epochs=1).run(ALONE, print, resume=True)


def bad_digits(bad: int = 25, n: int = 60) -> Pixels:
    sound = few_digits(n)
    images = Pixels("digits", "train", sound.images, sound.labels, 10, "digits")
    images.changed, images.broken = bad, True
    return images


@pytest.mark.parametrize("recipe", [RECIPE, a_recipe(*BOTH)], ids=["plain", "mixed"])
def test_no_view_is_made_of_an_image_that_does_not_decode(recipe: RecipeSpec) -> None:
    images = bad_digits()
    bad = find_bad_images(images, recipe, workers=0)
    assert [image.sample for image in bad] == [25]
    stream = Stream.plain(images, recipe, bad_images=bad, seeds=(0, 1), batch_size=10, workers=0)
    for epoch in range(2):
        shown = np.concatenate([batch.samples.numpy() for batch in stream.epoch(epoch)])
        assert 25 not in shown
        if recipe is RECIPE:
            assert sorted(shown) == [sample for sample in range(60) if sample != 25]
    assert stream.about()["missing"]["n"] == 1


def test_only_the_images_that_are_trained_on_are_looked_at() -> None:
    inputs = StreamInputs(
        StreamConfig(samples=tuple(range(20))), data=bad_digits(), recipe=RECIPE, on_bad_image="skip"
    )
    seen: list[int] = []
    found = inputs.look_for_bad_images(lambda: False, lambda done, total: seen.append(total))
    assert (found.bad_images, seen) == ((), [20])


def test_images_in_memory_are_not_looked_at() -> None:
    def never(done: int, total: int) -> None:
        raise AssertionError

    digits = few_digits(20)
    assert isinstance(digits, ArrayImages)
    assert find_bad_images(digits, RECIPE, on_decoded=never) == ()


def test_where_no_image_decodes_there_is_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="not one image decodes: "):
        find_bad_images(bad_digits(), RECIPE, [25], workers=0)


def test_a_sample_that_is_not_there_is_left_out_already() -> None:
    gone = (BadImage(99, "gone", None),)
    stream = Stream.plain(few_digits(20), RECIPE, bad_images=gone, seeds=(0,), batch_size=10, workers=0)
    assert stream.steps(0) == 2
