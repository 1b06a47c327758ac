"""``logitcache select``, then ``train --samples``, on the digits; and what it refuses, in one line."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import fails, logitcache, succeeds
from dumping import RECIPE
from pictures import picture_folder

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.models.build import build_model
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader
from logitcache.teacher.sample_scores import score_samples
from logitcache.train.selection import keep_best, keep_farthest, keep_robust, score_need
from logitcache.train.trained import TrainedStudent
from logitcache.views.datasets import load_digits, open_images

N = 1437
OF_STUDENT = ("llkd", "coreset", "robust")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three seeds of the digits, and a student."""
    place = tmp_path_factory.mktemp("select")
    succeeds("dump", "--teacher", "digits_small", "--seeds", "0-2", "--out", "c.zarr", cwd=place)
    words = ("--student", "digits_tiny", "--cache", "c.zarr", "--loss", "ce", "--epochs", 1, "--out", "s")
    succeeds("train", *words, cwd=place)
    return place


def select(*words: object, cwd: Path) -> tuple[np.ndarray, dict]:
    found = json.loads(succeeds("select", "c.zarr", *words, "--json", cwd=cwd))
    samples = np.load(cwd / found["samples"])
    assert samples.dtype == np.int64
    assert (np.diff(samples) > 0).all()
    assert len(samples) == found["kept"]
    return samples, found


def probabilities(folder: Path) -> torch.Tensor:
    """What the student answers for the images as they are."""
    model = TrainedStudent.find(folder / "s").build_model(view_size=8)
    with torch.inference_mode():
        return ViewModel(model).eval()(load_digits("train").images).softmax(1)


def expected(way: str, folder: Path, count: int) -> np.ndarray:
    teacher = score_samples(CacheReader(folder / "c.zarr"), entropy=True)
    if way not in OF_STUDENT:
        return keep_best(getattr(teacher, way), count).samples
    probs = probabilities(folder)
    if way == "coreset":
        return keep_farthest(probs.numpy(), count).samples
    p = probs.double()
    if way == "llkd":
        return keep_best(score_need(teacher.confidence, -p.xlogy(p).sum(1).numpy()), count).samples
    first, second = p.topk(2, dim=1).values.T
    wrong = float((teacher.top != load_digits("train").labels).mean())
    return keep_robust((1 - (first - second)).numpy(), count, wrong).samples


@pytest.mark.parametrize("way", ["confidence", "entropy", "agreement", "margin", *OF_STUDENT])
def test_what_is_kept_is_what_the_way_says_and_is_trained_on(way: str, folder: Path, tmp_path: Path) -> None:
    words = ("--student", folder / "s") if way in OF_STUDENT else ()
    out = tmp_path / "kept.npy"
    samples, found = select("--by", way, "--keep", 0.1, "--out", out, *words, cwd=folder)
    assert (found["kept"], found["of"], found["left_out"], found["seeds"]) == (144, N, 0, [0, 1, 2])
    assert samples.tolist() == sorted(expected(way, folder, 144).tolist())
    if way in ("confidence", "entropy", "agreement", "margin", "llkd"):
        assert found["score_kept"] > found["score_left"]
    again, _ = select("--by", way, "--keep", 144, "--out", tmp_path / "again.npy", *words, cwd=folder)
    assert again.tolist() == samples.tolist()

    words = ("--student", "digits_tiny", "--epochs", 1, "--samples", out, "--out", tmp_path / "run")
    succeeds("train", "--cache", "c.zarr", *words, cwd=folder)
    record = json.loads((tmp_path / "run" / "config.json").read_text())["stream"]["samples"]
    assert record == {"n": 144, "sha256": hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest()}


def test_one_is_all_and_the_lowest_are_the_others(folder: Path) -> None:
    everything, found = select("--by", "margin", "--keep", "1", cwd=folder)
    assert everything.tolist() == list(range(N))
    assert found["score_left"] is None
    high, _ = select("--by", "margin", "--keep", 400, cwd=folder)
    low, _ = select("--by", "margin", "--keep", N - 400, "--lowest", cwd=folder)
    assert sorted([*high, *low]) == list(range(N))


@pytest.mark.parametrize("way", ["confidence", "coreset", "robust"])
def test_balanced_keeps_the_same_share_of_each_class(way: str, folder: Path) -> None:
    words = ("--student", "s") if way in OF_STUDENT else ()
    samples, found = select("--by", way, "--keep", 0.25, "--balanced", *words, cwd=folder)
    labels = load_digits("train").labels
    kept, there = (np.bincount(x, minlength=10) for x in (labels[samples], labels))
    assert (np.abs(kept - there * len(samples) / N) < 1).all()
    assert found["labels"] is True
    told = {one["name"]: (one["kept"], one["of"]) for one in found["classes"]}
    assert told == {str(c): (int(kept[c]), int(there[c])) for c in range(10)}


def test_it_says_what_is_kept_and_which_classes_are_lost(folder: Path) -> None:
    ended = logitcache("select", "c.zarr", "--by", "confidence", "--keep", 5, cwd=folder)
    assert ended.exit_code == 0
    assert "samples.npy, 5 samples of 1,437" in ended.stdout
    assert "the highest confidence" in ended.stdout
    assert "on average of those kept" in ended.stdout
    assert "fewest kept: " in ended.stdout
    lost = [line for line in ended.stderr.splitlines() if "no sample is kept of" in line]
    assert len(lost) == 1
    assert "--balanced keeps the same share of each" in lost[0]
    assert "note: the teacher of c.zarr has random weights" in ended.stderr
    ended = logitcache("select", "c.zarr", "--by", "confidence", "--keep", 0.5, "--balanced", cwd=folder)
    assert "no sample is kept of" not in ended.stderr


def test_mistakes_are_an_option_of_the_robust_way(folder: Path) -> None:
    student = ("--by", "robust", "--student", "s", "--keep", 100)
    _, found = select(*student, cwd=folder)
    wrong = score_samples(CacheReader(folder / "c.zarr")).top != load_digits("train").labels
    assert found["mistakes"] == pytest.approx(wrong.mean())
    samples, found = select(*student, "--mistakes", 0, cwd=folder)
    assert found["mistakes"] == 0
    first, second = probabilities(folder).double().topk(2, dim=1).values.T
    assert samples.tolist() == sorted(torch.argsort(first - second)[:100].tolist())


def test_images_that_do_not_decode_are_not_kept_and_classes_are_the_teachers_without_labels(
    tmp_path: Path,
) -> None:
    name = f"imagefolder:{picture_folder(tmp_path / 'pictures', bad=3)}"
    images = open_images(name)
    teacher = build_model("digits_tiny", num_classes=2, view_size=8, weights="random")
    config = DumpConfig(seeds=(0, 1), top_k=2, workers=0, precision="float32", on_bad_image="skip")
    dump(tmp_path / "c.zarr", images, RECIPE, teacher, config)
    told = logitcache("select", "c.zarr", "--by", "margin", "--keep", 1, cwd=tmp_path)
    assert "note: classes are those that the teacher says: only data sets that you name" in told.stderr
    assert "1 sample without a teacher or an image" in told.stdout
    samples, found = select("--by", "margin", "--keep", 1, "--data", name, "--balanced", cwd=tmp_path)
    assert samples.tolist() == [i for i in range(len(images)) if i != 3]
    assert {one["name"]: one["of"] for one in found["classes"]} == {"cat": 7, "dog": 8}
    words = ("--student", "digits_tiny", "--cache", "c.zarr", "--epochs", 1, "--batch-size", 4)
    succeeds("train", *words, "--loss", "kd", "--out", "run", "--on-bad-image", "skip", cwd=tmp_path)
    samples, found = select("--by", "coreset", "--keep", 1, "--student", "run", cwd=tmp_path)
    assert samples.tolist() == [i for i in range(len(images)) if i != 3]
    (tmp_path / "pictures" / "train" / "dog" / "2.jpg").unlink()
    line = fails("select", "c.zarr", "--by", "llkd", "--keep", 1, "--student", "run", cwd=tmp_path)
    assert "--missing skip" in line
    words = ("--by", "llkd", "--keep", 1, "--student", "run", "--missing", "skip")
    samples, found = select(*words, cwd=tmp_path)
    assert samples.tolist() == [i for i in range(len(images)) if i not in (3, 10)]
    assert found["left_out"] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--by margin --keep 0", "keep takes a share such as 0.3, or a number such as 5000, found 0"),
        ("--by margin --keep 1.5", "found 1.5"),
        ("--by margin --keep nan", "found nan"),
        ("--by margin --keep most", "found 'most'"),
        ("--by margin --keep 2000", "2,000 samples cannot be kept of 1,437"),
        ("--by margin --keep 0.0001", "is less than one; keep more"),
        ("--by margin --keep 0.3 --out kept.txt", "a list of samples is an .npy file, found --out kept.txt"),
        ("--by margin --keep 0.3 --out s", "s is a folder; name the file to write, such as s/samples.npy"),
        ("--by margin --keep 0.3 --student s", "margin asks the teacher alone; leave out --student"),
        ("--by llkd --keep 0.3", "name its run folder with --student"),
        ("--by coreset --keep 0.3 --student nowhere", "no run folder or weights file at nowhere"),
        ("--by coreset --keep 0.3 --student c.zarr", "is a cache; name a run folder"),
        ("--by coreset --keep 0.3 --student s --lowest", "coreset has no lowest end"),
        ("--by robust --keep 0.3 --student s --mistakes 2", "--mistakes is a share from 0 to 1, found 2"),
        ("--by margin --keep 0.3 --mistakes 0.1", "--mistakes is of --by robust, found margin"),
        ("--by agreement --keep 0.3 --seeds 1", "agreement compares seeds, of which c.zarr has one here, 1"),
        ("--by margin --keep 0.3 --seeds 9", "lacks seed 9"),
        ("--by margin --keep 0.3 --data letters", "other images"),
        (
            "--by llkd --keep 0.3 --student other",
            "cannot answer for the samples of c.zarr: number of classes",
        ),
        ("--by llkd --keep 0.3 --student bare.safetensors", "does not say what it holds the weights of"),
    ],
)
def test_what_is_refused(words: str, says: str, folder: Path) -> None:
    if "other" in words:
        letters = ("--student", "letters_small", "--data", "letters", "--loss", "ce", "--epochs", 1)
        if not (folder / "other").exists():
            succeeds("train", *letters, "--fraction", 0.05, "--out", "other", cwd=folder)
    if "bare" in words:
        from safetensors.torch import load_file, save_file

        save_file(load_file(folder / "s" / "best.safetensors"), folder / "bare.safetensors")
    assert says in fails("select", "c.zarr", *words.split(), cwd=folder)
    assert not (folder / "kept.txt").exists()


def test_a_refusal_leaves_the_list_that_was_there(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "s" / "config.json", tmp_path / "samples.npy")
    fails("select", "c.zarr", "--by", "margin", "--keep", 9999, "--out", tmp_path / "samples.npy", cwd=folder)
    assert (tmp_path / "samples.npy").read_bytes() == (folder / "s" / "config.json").read_bytes()


def test_a_disk_without_room_for_the_answers_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, offset: int, length: int) -> None:
        assert length == 4 * 10 * N
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    line = fails("select", "c.zarr", "--by", "coreset", "--keep", 5, "--student", "s", cwd=folder)
    assert "cannot keep the student's answers, 57.5 kB, in " in line
    assert "No space left on device; name a folder of a larger disk in $TMPDIR" in line
