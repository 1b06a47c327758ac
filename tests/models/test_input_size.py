"""At what size a student sees images: one rule for training, evaluating and exporting it."""

import json
from pathlib import Path

import pytest
import torch
from command import fails, succeeds
from small import few_digits

from logitcache.errors import OptionError
from logitcache.models.build import build_model, save_weights
from logitcache.train.trained import TrainedStudent

SIZES = {
    "resnet8": 32,
    "shufflenet_v2_x0_5": 64,
}  # of the views of 40 pixels: the net's own, the next multiple of 32


def pictures(split: str) -> list[tuple[torch.Tensor, int]]:
    """Twelve digits of 40 pixels in colour: `--data test_input_size:pictures`."""
    few = few_digits(12, split)
    return [
        (few.image(i).repeat_interleave(5, 1).repeat_interleave(5, 2).expand(3, -1, -1), int(few.labels[i]))
        for i in range(len(few))
    ]


DATA = ("--data", "test_input_size:pictures", "--recipe", "identity")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of each network, which does not say at what size it sees."""
    folder = tmp_path_factory.mktemp("files")
    for name in SIZES:
        module = build_model(name, num_classes=10, view_size=40, weights="random").module
        torch.save(module.state_dict(), folder / f"{name}.pth")
    return folder


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("asked", [0, 48])
def test_a_plain_file_sees_the_views_as_they_are_unless_told(folder: Path, name: str, asked: int) -> None:
    words = ("--input-size", asked) if asked else ()
    evaluated = succeeds(
        "evaluate", f"{name}.pth", "--student", name, *DATA, *words, "--workers", 0, "--json", cwd=folder
    )
    size = json.loads(evaluated)["input_size"]
    assert size == (asked or SIZES[name])
    export = ("export", f"{name}.pth", "--student", name, "--num-classes", 10, "--format", "torchscript")
    if not asked and name != "resnet8":
        assert "does not say at what size" in fails(*export, cwd=folder)
        words = ("--input-size", size)
    exported = json.loads(succeeds(*export, *words, "--json", cwd=folder))
    assert exported["input"] == [3, size, size]


def test_a_run_keeps_the_size_that_it_was_trained_at_and_goes_on_at_no_other(folder: Path) -> None:
    start = (
        "train",
        "--student",
        "resnet8",
        "--weights",
        "resnet8.pth",
        "--loss",
        "ce",
        *DATA,
        "--epochs",
        1,
    )
    words = (*start, "--batch-size", 6, "--workers", 0, "--out", "run")
    succeeds(*words, "--input-size", 16, cwd=folder)
    line = fails(*words, "--resume", cwd=folder)
    assert "student.input_size: expected 16, found 32" in line
    succeeds(*words, "--input-size", 16, "--resume", cwd=folder)
    exported = succeeds("export", "run", "--format", "torchscript", "--json", cwd=folder)
    assert json.loads(exported)["input"] == [3, 16, 16]
    assert TrainedStudent.find(folder / "run").build_model(view_size=40).adapter.size == 16
    assert TrainedStudent.find(folder / "run").build_model(view_size=40, input_size=24).adapter.size == 24


def test_files_of_ours_say_their_size_and_others_must_be_told(tmp_path: Path) -> None:
    model = build_model("resnet18", num_classes=10, view_size=40, weights="random")
    save_weights(tmp_path / "ours.safetensors", model)
    torch.save(model.module.state_dict(), tmp_path / "theirs.pth")
    settings = {"num_classes": 10, "view_size": None}
    assert build_model("resnet18", weights=str(tmp_path / "ours.safetensors"), **settings).adapter.size == 64
    with pytest.raises(OptionError, match=r"theirs\.pth does not say at what size resnet18 sees"):
        build_model("resnet18", weights=str(tmp_path / "theirs.pth"), **settings)
