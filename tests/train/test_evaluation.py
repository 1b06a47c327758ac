"""Evaluation: scores that other implementations agree with, against labels and against a teacher's cache."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from command import fails, logitcache, succeeds
from dumping import IDENTITY, RECIPE, a_teacher, dump_digits, taught
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import picture_folder
from safetensors.torch import load_file, save_file
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from small import few_digits
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error

from logitcache.errors import DataError, IncompleteError, MismatchError, NonFiniteError
from logitcache.models.build import Model, build_model
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.teacher.completion import Completion
from logitcache.teacher.sparse import SparseTeacher
from logitcache.train.cost import count_flops
from logitcache.train.evaluation import Evaluation, evaluate
from logitcache.views.datasets import ArrayImages
from logitcache.views.own_images import wrap_images


class Numbered(nn.Module):
    """Answers each image, whose pixel is its number, with a row of a table."""

    dtype = torch.float32

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits)

    def forward(self, views: Tensor) -> Tensor:
        return self.table[views[:, 0, 0, 0].long()]


def numbered_images(labels: np.ndarray, classes: int) -> ArrayImages:
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    return ArrayImages("numbers", "test", pixels, labels.astype(np.int64), classes, "identity")


def by_confidence(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and count of each bin that is not empty, image by image (Guo et al. 2017)."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, label in zip(probabilities, labels, strict=True):
        bins.setdefault(math.ceil(p.max() * 15), []).append((p.max(), p.argmax() == label))
    told = [np.array(bins[number]) for number in sorted(bins)]
    return [(sure, right, len(bin_)) for bin_ in told for sure, right in [bin_.mean(0)]]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 30), n=st.integers(2, 200), classes=st.integers(6, 20), scale=st.floats(0.1, 8)
)
def test_scores_are_those_of_other_implementations(seed: int, n: int, classes: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)).astype(np.float32) * np.float32(scale)
    labels = rng.integers(0, classes, n)
    unlabelled = rng.random(n) < 0.2
    unlabelled[0] = False
    images = numbered_images(np.where(unlabelled, -1, labels), classes)
    model: Any = Numbered(torch.from_numpy(logits))
    (meter,) = Evaluation(images, IDENTITY, batch_size=32).run([model])
    scores, reliability = meter.scores(), meter.reliability()

    known, labels = logits[~unlabelled].astype(np.float64), labels[~unlabelled]
    probabilities = np.exp(known - np.logaddexp.reduce(known, axis=1)[:, None])
    every = np.arange(classes)
    assert scores.keys() == {"top1", "top5", "nll", "ece"}
    for name, k in (("top1", 1), ("top5", 5)):
        assert scores[name] == pytest.approx(top_k_accuracy_score(labels, known, k=k, labels=every))
    surprise = nn.functional.cross_entropy(torch.from_numpy(known), torch.from_numpy(labels))
    assert scores["nll"] == pytest.approx(float(surprise), rel=1e-6)
    bins = by_confidence(probabilities, labels)
    error = sum(n * abs(right - sure) for sure, right, n in bins) / len(labels)  # equation 3 there
    assert scores["ece"] == pytest.approx(error, abs=1e-9)
    theirs = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), classes, 15
    )
    assert scores["ece"] == pytest.approx(float(theirs), abs=1e-6)

    assert reliability is not None
    assert reliability.points() == [pytest.approx(point) for point in bins]
    assert reliability.ece == scores["ece"]


def test_a_sure_and_right_model_is_calibrated_and_a_sure_and_wrong_one_is_not() -> None:
    labels = np.arange(40) % 7
    images, sure = numbered_images(labels, 7), 50 * torch.eye(7)[labels]
    right: Any = Numbered(sure)
    wrong: Any = Numbered(sure.roll(1, dims=1))
    good, bad = (meter.scores() for meter in Evaluation(images, IDENTITY).run([right, wrong]))
    assert (good["top1"], good["ece"]) == (1.0, pytest.approx(0.0))
    assert (bad["top1"], bad["ece"]) == (0.0, pytest.approx(1.0))


def test_a_report_says_what_a_model_costs_and_confuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitcache.train.evaluation.time_forward", lambda model, views: 0.25)
    images = few_digits(70, "test")
    evaluation = Evaluation(images, IDENTITY, batch_size=32)
    student = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    report = evaluate(ViewModel(student), evaluation, 10)
    assert report.parameters == sum(p.numel() for p in student.module.parameters())
    with torch.no_grad():
        predicted = ViewModel(student).eval()(images.images).argmax(1)
    expected = confusion_matrix(images.labels, predicted, labels=range(10))
    matrix = np.zeros((10, 10), int)
    matrix[list(report.confusion.label), list(report.confusion.predicted)] = report.confusion.count
    np.testing.assert_array_equal(matrix, expected)
    label, named, count = report.confusion.most(1)[0]
    assert count == expected[label, named] == (expected * (1 - np.eye(10))).max()
    assert report.images_per_second == 32 / 0.25
    assert report == type(report).from_dict(json.loads(json.dumps(report.to_dict())))


def test_operations_of_a_linear_layer_are_two_for_each_weight() -> None:
    linear = Model("own", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), a_teacher().adapter, 10, "own")
    report = evaluate(ViewModel(linear), Evaluation(few_digits(5, "test"), IDENTITY), 10)
    assert report.flops == 2 * 64 * 10


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "vit_b_16", "vit_b_32", "swin_t"]
)
def test_operations_are_those_that_torchvision_states(name: str) -> None:
    student = ViewModel(build_model(name, num_classes=1000, view_size=224, weights="random")).eval()
    stated = torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]
    counted = count_flops(student, torch.zeros(1, 3, 224, 224, dtype=torch.uint8)) / 2e9
    assert counted == pytest.approx(stated, abs=0.001)  # 1e9 multiplications and additions, to three digits


class Attention(nn.Module):
    """Sees a grey image of 8 by 8 pixels as 8 tokens of 8 numbers."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        attended: Tensor = self.block(images[:, 0])
        return attended.mean(1)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_operations_of_attention_are_those_of_its_matrix_products(mode: Any, fast: bool) -> None:
    tokens, width, hidden = 8, 8, 32
    attended = 4 * width * width * tokens  # to queries, keys, values, and out of them
    attended += 2 * width * tokens * tokens  # queries by keys, and their shares by values
    fused, plain = (vision_transformer.Attention(width, num_heads=2) for _ in range(2))
    fused.fused_attn, plain.fused_attn = True, False
    blocks = {
        nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True): 2 * tokens * width * hidden,
        fused: 0,
        plain: 0,
    }
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        for block, more in blocks.items():
            model = ViewModel(Model("own", Attention(block), a_teacher().adapter, 8, "own")).eval()
            with mode():
                assert count_flops(model, torch.zeros(1, 1, 8, 8, dtype=torch.uint8)) == 2 * (attended + more)
        assert torch.backends.mha.get_fastpath_enabled() == fast
        assert torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_what_cannot_be_evaluated_is_refused() -> None:
    images = few_digits(20, "test")
    blank = ArrayImages("blank", "test", images.images, np.full(20, -1), 10, "digits")
    with pytest.raises(DataError, match="no image of its test split has a label"):
        Evaluation(blank, IDENTITY)
    with pytest.raises(DataError, match="none is left to evaluate on"):
        Evaluation.for_stream(Stream.plain(images, RECIPE, seeds=(0,), workers=0))
    other = build_model("digits_tiny", num_classes=7, view_size=8, weights="random")
    with pytest.raises(MismatchError, match="number of classes: expected 7, found 10"):
        evaluate(ViewModel(other), Evaluation(images, IDENTITY), 7)
    with pytest.raises(MismatchError, match="number of classes: expected 7, found 10"):
        Evaluation(images, IDENTITY).run([ViewModel(other)])
    larger = build_model("digits_tiny", num_classes=12, view_size=8, weights="random")
    with pytest.raises(MismatchError, match="number of classes: expected 12, found 10"):
        evaluate(ViewModel(larger), Evaluation(images, IDENTITY), 12)
    bare = wrap_images(
        TensorDataset(images.images, torch.from_numpy(images.labels.clip(max=8))), "own", "test"
    )
    ten = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    assert evaluate(ViewModel(ten), Evaluation(bare, IDENTITY), 10).images == 20
    spoilt = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    with torch.no_grad():
        next(spoilt.module.parameters()).fill_(math.nan)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        evaluate(ViewModel(spoilt), Evaluation(images, IDENTITY), 10)


# Against the teacher --------------------------------------------------------------------------------------


def test_agreement_and_kl_are_those_with_the_teacher_itself(tmp_path: Path) -> None:
    images, student = few_digits(70, "test"), ViewModel(a_teacher(seed=3)).eval()
    with torch.no_grad():
        logits = ViewModel(a_teacher()).eval()(images.images).double()
        p = logits.log_softmax(1)
        q = student(images.images).double().log_softmax(1)
    whole = nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    exact = (
        Evaluation(images, IDENTITY, taught(tmp_path / "c.zarr", images), batch_size=32)
        .run([student])[0]
        .scores()
    )
    assert exact["agreement"] == (p.argmax(1) == q.argmax(1)).double().mean()
    assert exact["kl"] == pytest.approx(float(whole), rel=1e-5)

    for name, calibration in (("even", 0), ("completed", 40)):
        few = taught(tmp_path / name, images, profile="default", top_k=3, calibration=calibration)
        scores = Evaluation(images, IDENTITY, few, batch_size=32).run([student])[0].scores()
        statistics = few.statistics()
        assert (statistics is None) == (name == "even")
        completion = statistics and Completion.of(statistics).to("cpu", torch.float64)
        told = SparseTeacher.from_logits(logits, 3, completion).at(1.0).log_probs
        expected = nn.functional.kl_div(q, told, reduction="batchmean", log_target=True)
        assert scores["kl"] == pytest.approx(float(expected), rel=0.02)  # gaps are rounded to float16
        assert {**scores, "kl": 0} == {**exact, "kl": 0}

    unlabelled = ArrayImages("digits", "test", images.images, np.full(70, -1), 10, "digits")
    alone = taught(tmp_path / "unlabelled.zarr", unlabelled)
    assert Evaluation(unlabelled, IDENTITY, alone).run([student])[0].scores().keys() == {"agreement", "kl"}


def test_a_teacher_agrees_with_itself(tmp_path: Path) -> None:
    images = few_digits(40, "test")
    scores = (
        Evaluation(images, IDENTITY, taught(tmp_path / "c.zarr", images))
        .run([ViewModel(a_teacher())])[0]
        .scores()
    )
    assert scores["agreement"] == 1.0
    assert scores["kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_cache_of_other_views_is_refused(tmp_path: Path) -> None:
    images = few_digits(40, "test")
    dump_digits(tmp_path / "training.zarr", n=40)
    with pytest.raises(MismatchError, match="recipe: expected identity, found digits"):
        Evaluation(images, IDENTITY, CacheReader(tmp_path / "training.zarr"))
    cache = taught(tmp_path / "c.zarr", images)
    with pytest.raises(MismatchError, match=r"dataset\.n: expected 40, found 41"):
        Evaluation(few_digits(41, "train"), IDENTITY, cache)
    altered = dataclasses.replace(IDENTITY, version=99)
    with pytest.raises(MismatchError, match="another of its name"):
        Evaluation(images, altered, cache)
    other = ViewModel(build_model("digits_tiny", num_classes=7, view_size=8, weights="random"))
    with pytest.raises(MismatchError, match="number of classes: expected 7, found 10"):
        Evaluation(images, IDENTITY, cache).run([other])
    with pytest.raises(IncompleteError):
        Evaluation(images, IDENTITY, taught(tmp_path / "late.zarr", images, seeds=(1,)))


# The command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    words = ("train", "--student", "digits_small", "--loss", "ce", "--epochs", 2, "--out", "run")
    succeeds(*words, cwd=folder)
    return folder


def test_a_run_folder_says_all_that_evaluating_it_takes(folder: Path) -> None:
    found = json.loads(succeeds("evaluate", "run", "--json", cwd=folder))
    row = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    last = json.loads(succeeds("evaluate", "run", "--weights", "last", "--json", cwd=folder))
    assert (last["top1"], last["top5"]) == (row["top1"], row["top5"])
    assert (found["student"], found["data"], found["recipe"]) == ("digits_small", "digits", "identity")
    assert (sum(found["confusion"]["count"]), found["parameters"]) == (360, 3022)
    alone = ("evaluate", "run/best.safetensors", "--data", "digits", "--json")
    assert json.loads(succeeds(*alone, cwd=folder))["nll"] == found["nll"]
    assert "top-1" in succeeds("evaluate", "run", cwd=folder)


def test_a_strangers_file_is_evaluated_by_what_the_command_says_of_it(folder: Path) -> None:
    save_file(load_file(folder / "run" / "best.safetensors"), folder / "plain.safetensors")
    words = ("evaluate", "plain.safetensors", "--student", "digits_small", "--data", "digits", "--json")
    ours = json.loads(succeeds("evaluate", "run", "--json", cwd=folder))
    for classes in ((), ("--num-classes", 10)):
        assert json.loads(succeeds(*words, *classes, cwd=folder))["nll"] == ours["nll"]
    assert "has a head for 10 classes" in fails(*words, "--num-classes", 12, cwd=folder)
    said = fails("evaluate", "run", "--num-classes", 7, cwd=folder)
    assert "run/best.safetensors tells 10 classes apart, --num-classes says 7; leave it out" in said


def test_evaluate_compares_with_the_teacher_by_a_cache_of_test_images(folder: Path) -> None:
    weights = ("--weights", "run/last.safetensors")
    succeeds("dump", "--teacher", "digits_small", *weights, "--split", "test", cwd=folder)
    cache = "caches/digits_small-digits.test.zarr"
    words = ("evaluate", "run", "--weights", "last", "--teacher-cache", cache, "--json")
    found = json.loads(succeeds(*words, cwd=folder))
    assert (found["teacher"], found["agreement"]) == ("digits_small", 1.0)
    assert found["teacher_top1"] == found["top1"]  # the student is the teacher
    assert "no cache in ./caches" in fails("train", "--student", "digits_tiny", cwd=folder)
    training = ("train", "--student", "digits_tiny", "--loss", "ce", "--epochs", 2, "--teacher-cache")
    succeeds(*training, cache, "--out", "compared", cwd=folder)
    rows = [json.loads(line) for line in (folder / "compared" / "metrics.jsonl").read_text().splitlines()]
    again = json.loads(succeeds("evaluate", "compared", "--weights", "last", *words[4:], cwd=folder))
    assert (rows[-1]["agreement"], rows[-1]["kl"]) == (again["agreement"], pytest.approx(again["kl"]))
    assert "no cache at none.zarr" in fails(*training, "none.zarr", "--out", "other", cwd=folder)


def test_evaluating_what_is_not_there_is_one_line(folder: Path, tmp_path: Path) -> None:
    assert "no run folder or weights file" in fails("evaluate", "nothing", cwd=folder)
    assert fails("evaluate", str(tmp_path), cwd=folder).rstrip().endswith("config.json is not there")
    for name, hint in (("b", "runs/b?"), ("a", "runs/a, or another of the 2 runs there?")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text('{"config": {}, "student": {}, "stream": {}}')
        for command in ("evaluate", "export"):
            assert f"config.json is not there; did you mean {hint}" in fails(command, "runs", cwd=tmp_path)
    alone = "run/best.safetensors"
    assert "name images with --data" in fails("evaluate", alone, cwd=folder)
    assert "not of resnet18" in fails(
        "evaluate", alone, "--data", "digits", "--student", "resnet18", cwd=folder
    )
    (tmp_path / "config.json").write_text((folder / "run" / "config.json").read_text())
    assert "no epoch of this run is done" in fails("evaluate", str(tmp_path), cwd=folder)
    (tmp_path / "best.safetensors").write_bytes(b"spoilt")
    assert "no readable safetensors file" in fails("evaluate", str(tmp_path), cwd=folder)
    (tmp_path / "config.json").write_text("{}")
    assert "does not say what was trained" in fails("evaluate", str(tmp_path), cwd=folder)
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    foreign = str(tmp_path / "foreign.safetensors")
    assert "name it with --student" in fails("evaluate", foreign, "--data", "digits", cwd=folder)
    (folder / "pairs.py").write_text(
        "from logitcache.views.datasets import ArrayImages, load_digits\n"
        "def two(split):\n    these = load_digits(split)\n"
        "    return ArrayImages('two', split, these.images, these.labels % 2, 2, 'digits')\n"
    )
    assert "expected 10, found 2" in fails("evaluate", "run", "--data", "pairs:two", cwd=folder)


def test_test_images_that_the_teachers_cache_leaves_out_are_told(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures")
    data = ("--data", "imagefolder:pictures")
    succeeds("train", "--student", "resnet8", "--loss", "ce", *data, "--recipe", "center@32", "--epochs", 1,
             "--batch-size", 8, "--workers", 0, "--out", "run", cwd=tmp_path)  # fmt: skip
    succeeds("dump", "--teacher", "resnet8", *data, "--split", "test", "--recipe", "center@32", "--seeds", 0,
             "--out", "t.zarr", cwd=tmp_path)  # fmt: skip
    first = next((pictures / "val" / "dog").iterdir())
    later = first.with_name("later.jfif")
    later.write_bytes(first.read_bytes())
    words = ("evaluate", "run", "--workers", 0)
    assert "left out" not in logitcache(*words, cwd=tmp_path).stderr
    told = logitcache(*words, "--teacher-cache", "t.zarr", cwd=tmp_path).stderr
    assert (
        "note: left out, as the cache was made without files of their kind: pictures/val/dog/later.jfif"
        in told
    )
