"""Exported students answer as the student does, elsewhere and at any batch size, or there is no file."""

import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from command import fails, logitcache, succeeds
from pictures import picture_folder
from torch import Tensor, nn

from logitcache.errors import FormatError, MismatchError, OptionError, StorageError
from logitcache.format.identity import AdapterSpec
from logitcache.models.build import Model, build_model, save_weights
from logitcache.models.export import export_model
from logitcache.models.forward import ViewModel
from logitcache.models.nets import HeadMixing
from logitcache.models.weights import WeightsHeader, read_header
from logitcache.views.recipes import recipe_named

FORMATS = ("onnx", "torchscript")


def a_student(heads: int = 1) -> Model:
    model = build_model("digits_tiny", num_classes=10, view_size=8, weights="random", heads=heads)
    if heads == 2:
        model.module.mixing = HeadMixing(0.3, 0.7)
    return model


def some_views(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def read_onnx(file: Path, views: Tensor) -> tuple[np.ndarray, str]:
    onnx.checker.check_model(file, full_check=True)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map["logitcache"]
    return session.run(["logits"], {"views": views.numpy()})[0], about


def read_torchscript(file: Path, views: Tensor) -> tuple[np.ndarray, str]:
    held = {"logitcache.json": ""}
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        loaded = torch.jit.load(str(file), _extra_files=held)
    return loaded(views).detach().numpy(), held["logitcache.json"]


READ = {"onnx": read_onnx, "torchscript": read_torchscript}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("heads", [1, 2])
def test_a_file_answers_as_the_student_does_at_any_batch_size(
    tmp_path: Path, format: str, heads: int
) -> None:
    student, file = a_student(heads), tmp_path / "new" / "student"
    report = export_model(student, file, format)
    assert student.module.training
    assert (report.input, report.num_classes, report.bytes) == ((1, 8, 8), 10, file.stat().st_size)
    for n in (1, 2, 9):
        found, about = READ[format](file, some_views(n))
        with torch.no_grad():
            expected = ViewModel(student).eval()(some_views(n))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    said = json.loads(about)
    assert (said["name"], said["num_classes"]) == ("digits_tiny", 10)
    assert said["input"] == {"dtype": "uint8", "shape": ["batch", 1, 8, 8]}
    assert [path.name for path in file.parent.iterdir()] == ["student"]


class Counting(nn.Module):
    """Answers by the number of images: a Python value, which neither exporter follows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1)) * float(np.array(images.shape[0]))


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_would_answer_otherwise_is_not_kept(tmp_path: Path, format: str) -> None:
    model = Model("own", Counting(), AdapterSpec(1, 8, (0.5,), (0.5,)), 10, "own")
    (tmp_path / "file").write_bytes(b"the one before")
    with pytest.raises((MismatchError, OptionError), match=r"not answer as the student|cannot be exported"):
        export_model(model, tmp_path / "file", format)
    assert (tmp_path / "file").read_bytes() == b"the one before"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_keeps_an_export_from_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="formats are onnx, torchscript"):
        export_model(a_student(), tmp_path / "f", "tflite")  # type: ignore[arg-type]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        export_model(a_student(), tmp_path / "file" / "f", "torchscript")
    with pytest.raises(OptionError, match="is a folder; name the file to write"):
        export_model(a_student(), tmp_path, "torchscript")
    for name, format in (("f.onnx", "torchscript"), ("f.pt", "onnx"), ("f.torchscript", "onnx")):
        with pytest.raises(OptionError, match="is named as a file of"):
            export_model(a_student(), tmp_path / name, format)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(OptionError, match=r"pip install 'logitcache\[onnx\]'"):
        export_model(a_student(), tmp_path / "f")


def test_export_by_command(tmp_path: Path) -> None:
    words = ("train", "--student", "digits_tiny", "--loss", "ce", "--epochs", 1, "--out", "run")
    succeeds(*words, cwd=tmp_path)
    report = json.loads(succeeds("export", "run", "--format", "torchscript", "--json", cwd=tmp_path))
    assert report["path"] == "run/best.torchscript"
    assert (tmp_path / report["path"]).stat().st_size == report["bytes"]
    assert "off by" in succeeds(
        "export", "run/last.safetensors", "--format", "torchscript", "--out", "x.pt", cwd=tmp_path
    )
    assert "no run folder or weights file" in fails("export", "none", cwd=tmp_path)
    said = fails("export", "run", "--num-classes", 7, cwd=tmp_path)
    assert "run/best.safetensors tells 10 classes apart, --num-classes says 7; leave it out" in said
    succeeds("export", "run", "--num-classes", 10, "--format", "torchscript", cwd=tmp_path)


def test_training_exports_the_best_weights(tmp_path: Path) -> None:
    words = ("train", "--student", "digits_tiny", "--loss", "ce", "--epochs", 1, "--out", "run", "--json")
    (report,) = json.loads(succeeds(*words, "--export", "torchscript", cwd=tmp_path))["runs"]
    assert report["exported"] == ["run/best.torchscript"]
    found, about = read_torchscript(tmp_path / "run" / "best.torchscript", some_views(3))
    weights = str(tmp_path / "run" / "best.safetensors")
    student = ViewModel(build_model("digits_tiny", num_classes=10, view_size=8, weights=weights)).eval()
    np.testing.assert_allclose(found, student(some_views(3)).detach(), rtol=1e-4, atol=1e-5)
    assert json.loads(about)["name"] == "digits_tiny"
    assert "formats are onnx, torchscript, found 'tflite'" in fails(
        "train",
        "--student",
        "digits_tiny",
        "--loss",
        "ce",
        "--out",
        "none",
        "--export",
        "tflite",
        cwd=tmp_path,
    )
    assert not (tmp_path / "none").exists()


def test_a_student_that_cannot_be_exported_is_named_and_the_others_are(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(
        "from test_export import AdapterSpec, Counting\n"
        "def net(num_classes):\n    return Counting(), AdapterSpec(1, 8, (0.5,), (0.5,))\n"
    )
    words = ("train", "--student", "counting:net", "--student", "digits_tiny", "--loss", "ce", "--epochs", 1)
    words += ("--data", "digits", "--out", "runs")
    ended = logitcache(*words, "--export", "torchscript", cwd=tmp_path)
    assert ended.exit_code == 1
    last = ended.stderr.splitlines()[-1]
    assert (
        "1 of 2 students ended early, or were not exported: runs/counting_net-ce: the exported file" in last
    )
    assert ended.stdout.count("runs/counting_net-ce") == ended.stdout.count(" runs/digits_tiny-ce\n") == 1
    assert [path.parent.name for path in tmp_path.glob("runs/*/best.torchscript")] == ["digits_tiny-ce"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_student_says_its_classes_and_what_it_is_to_be_shown(tmp_path: Path, format: str) -> None:
    folder = picture_folder(tmp_path / "pets")
    classes = sorted(path.name for path in (folder / "train").iterdir())
    words = ("--student", "resnet8", "--loss", "ce", "--data", "imagefolder:pets", "--recipe", "imagenet@32")
    succeeds("train", *words, "--epochs", 1, "--export", format, "--out", "run", cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["class_names"] == classes
    header = read_header(tmp_path / "run" / "best.safetensors")
    assert header.class_names == tuple(classes)
    assert header.evaluation == recipe_named("center@32")
    about = json.loads(READ[format](tmp_path / "run" / f"best.{format}", some_colours())[1])
    assert about["class_names"] == classes
    assert about["views"]["name"] == "center@32"
    assert [step["transform"] for step in about["views"]["steps"]] == ["Resize", "CenterCrop"]

    weights = str(tmp_path / "run" / "best.safetensors")
    again = build_model("resnet8", num_classes=len(classes), view_size=32, weights=weights)
    assert (again.class_names, again.evaluation) == (tuple(classes), recipe_named("center@32"))


def test_an_earlier_run_says_what_it_is_to_be_shown_by_its_record(tmp_path: Path) -> None:
    succeeds("train", "--student", "digits_tiny", "--loss", "ce", "--epochs", 1, "--out", "run", cwd=tmp_path)
    weights = tmp_path / "run" / "best.safetensors"
    model = build_model("digits_tiny", num_classes=10, view_size=8, weights=str(weights))
    save_weights(weights, replace(model, evaluation=None))
    succeeds("export", "run", "--format", "torchscript", cwd=tmp_path)
    about = json.loads(read_torchscript(tmp_path / "run" / "best.torchscript", some_views(2))[1])
    assert about["views"]["name"] == model.evaluation.name
    config = tmp_path / "run" / "config.json"
    config.write_text(re.sub(r'"evaluation": "\w+"', '"evaluation": "gone.toml"', config.read_text()))
    succeeds("export", "run", "--format", "torchscript", cwd=tmp_path)
    about = json.loads(read_torchscript(tmp_path / "run" / "best.torchscript", some_views(2))[1])
    assert about["views"] is None
    assert about["pictures"]["background"] is None  # as the file says that it was trained
    save_weights(weights, replace(model, evaluation=None, training=None))  # as an earlier one
    record = json.loads(config.read_text())
    record["stream"]["recipe"]["background"] = "#ffffff"
    config.write_text(json.dumps(record))
    assert "pictures upright, on #ffffff, resized to 8" in " ".join(
        succeeds("export", "run", "--format", "torchscript", cwd=tmp_path).split()
    )
    about = json.loads(read_torchscript(tmp_path / "run" / "best.torchscript", some_views(2))[1])
    assert about["views"] is None
    assert about["pictures"]["background"] == "#ffffff"


@pytest.mark.parametrize("count", [1, 11])
def test_names_of_other_classes_are_no_header(count: int) -> None:
    with pytest.raises(FormatError, match=f"class_names must be of 10 classes, or of none; found {count}"):
        WeightsHeader("net", 10, AdapterSpec(1, 8, (0.5,), (0.5,)), class_names=("a",) * count)


def some_colours() -> Tensor:
    return torch.zeros((2, 3, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize(("background", "said"), [(None, "alpha is dropped"), ("white", "put on #ffffff")])
def test_a_file_says_what_is_done_to_a_picture_before_its_views(
    tmp_path: Path, background: str | None, said: str
) -> None:
    recipe = replace(recipe_named("center@8"), background=background)
    export_model(replace(a_student(), evaluation=recipe), tmp_path / "s.pt", "torchscript")
    about = json.loads(read_torchscript(tmp_path / "s.pt", some_views(1))[1])
    assert about["pictures"]["transparency"] == said
    assert about["pictures"]["background"] == recipe.background == about["views"].get("background")
    assert about["pictures"]["orientation"].startswith("upright")
    export_model(a_student(), tmp_path / "s.pt", "torchscript")
    assert json.loads(read_torchscript(tmp_path / "s.pt", some_views(1))[1])["pictures"] is None
