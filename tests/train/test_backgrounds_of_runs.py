"""A run keeps the background and the recipe that it was begun with: in evaluation, export, and when it goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import fails, logitcache, succeeds
from PIL import Image

from logitcache.store import CacheReader
from logitcache.train.trained import TrainedStudent
from logitcache.views.recipes import recipe_named


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes that differ on white alone: what is clear hides the other's colour."""
    root = tmp_path_factory.mktemp("clear")
    for split, n in (("train", 12), ("val", 8)):
        for name, shown, hidden in (("ink", 0, 250), ("snow", 250, 0)):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = np.full((40, 40, 4), hidden, dtype=np.uint8)
                pixels[..., 3] = 0
                pixels[10:30, 10 : 20 + i] = [shown, shown, shown, 255]
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def trained(root: Path, folder: Path, *words: object) -> None:
    options = [
        "--student",
        "resnet8",
        "--loss",
        "ce",
        "--data",
        f"imagefolder:{root}",
        "--epochs",
        2,
        "--workers",
        0,
    ]
    succeeds("train", *options, "--batch-size", 8, "--out", "run", *words, cwd=folder)


def test_evaluation_export_and_weights_alone_go_by_the_background_of_the_run(root: Path, tmp_path: Path):
    trained(root, tmp_path, "--background", "white")
    student = TrainedStudent.find(tmp_path / "run")
    assert student.recipe
    assert (student.recipe.name, student.recipe.background) == ("imagenet@32", "#ffffff")
    weights = tmp_path / "run" / "last.safetensors"
    alone = TrainedStudent.find(weights)
    assert alone.evaluation
    assert alone.evaluation.background == "#ffffff"
    words = ["--workers", 0, "--json", "--weights", "last"]
    by_run = json.loads(succeeds("evaluate", "run", *words, cwd=tmp_path))
    by_file = json.loads(succeeds("evaluate", weights, "--data", f"imagefolder:{root}", *words, cwd=tmp_path))
    named = json.loads(succeeds("evaluate", "run", "--recipe", "center@32", *words, cwd=tmp_path))
    other = json.loads(succeeds("evaluate", "run", "--background", "none", *words, cwd=tmp_path))
    assert by_run["recipe"] == by_file["recipe"] == named["recipe"] == "center@32 on #ffffff"
    assert by_run["nll"] == by_file["nll"] == named["nll"]
    assert other["recipe"] == "center@32"
    assert other["nll"] != by_run["nll"]
    text = succeeds("export", "run", "--format", "torchscript", cwd=tmp_path)
    assert "pictures upright, on #ffffff, by center@32, resized to 32" in " ".join(text.split())
    epoch = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert epoch["top1"] == by_run["top1"]


def test_a_run_goes_on_by_its_own_recipe_where_another_would_be_chosen_by_now(root: Path, tmp_path: Path):
    trained(root, tmp_path)
    config = tmp_path / "run" / "config.json"
    record = json.loads(config.read_text())
    assert record["stream"]["recipe"]["name"] == "imagenet@32"
    assert "background" not in record["stream"]["recipe"]
    other = recipe_named("imagenet@40")  # as an earlier version would have chosen
    record["stream"]["recipe"] = other.to_dict()
    config.write_text(json.dumps(record))
    succeeds("train", "--out", "run", "--resume", "--workers", 0, cwd=tmp_path)
    ended = logitcache(
        "train", "--out", "run", "--resume", "--background", "white", "--workers", 0, cwd=tmp_path
    )
    assert ended.exit_code == 1
    assert "stream.recipe.background: expected None, found #ffffff" in ended.stderr


def dump_by_the_weights(root: Path) -> tuple[str | int, ...]:
    teacher = ("--teacher", "resnet8", "--weights", "run/last.safetensors")
    return (
        "dump",
        *teacher,
        "--data",
        f"imagefolder:{root}",
        "--recipe",
        "imagenet@32",
        "--seeds",
        0,
        "--workers",
        0,
    )


def test_a_named_recipe_is_on_the_background_of_the_teachers_weights(root: Path, tmp_path: Path):
    trained(root, tmp_path, "--background", "white")
    dump = dump_by_the_weights(root)
    done = logitcache(*dump, "--split", "test", "--out", "test.zarr", cwd=tmp_path)
    assert done.exit_code == 0, done.output
    told = (
        "views are on #ffffff, as the teacher's weights were trained on such; --background none leaves it out"
    )
    assert told in done.stderr
    assert "alpha is dropped" not in done.stderr
    assert CacheReader(tmp_path / "test.zarr").spec.recipe.title == "center@32 on #ffffff"
    succeeds("evaluate", "run", "--teacher-cache", "test.zarr", "--workers", 0, cwd=tmp_path)
    for words, title in (["none"], "imagenet@32"), (["black"], "imagenet@32 on #000000"):
        done = logitcache(*dump, "--background", *words, "--out", f"{words[0]}.zarr", cwd=tmp_path)
        assert "trained on such" not in done.stderr
        assert CacheReader(tmp_path / f"{words[0]}.zarr").spec.recipe.title == title
    succeeds(*dump, "--seeds", "0-1", "--out", "none.zarr", cwd=tmp_path)  # goes on as it was begun
    assert CacheReader(tmp_path / "none.zarr").complete() == [0, 1]


def test_a_cache_on_another_background_is_refused_with_the_option_and_told_in_a_report(
    root: Path, tmp_path: Path
):
    trained(root, tmp_path, "--background", "white")
    dump = (*dump_by_the_weights(root), "--split", "test")
    succeeds(*dump, "--background", "none", "--out", "t.zarr", cwd=tmp_path)
    line = fails("evaluate", "run", "--teacher-cache", "t.zarr", "--workers", 0, cwd=tmp_path)
    assert "recipe: expected center@32 on #ffffff, found center@32" in line
    assert "make one by the command that made this, but with `--background white --out ANOTHER`" in line
    page = logitcache("report", "run", "t.zarr", cwd=tmp_path)
    assert page.exit_code == 0, page.output
    views = "expected views by center@32 on #ffffff, found center@32"
    told = f"t.zarr: its teacher is not compared with these runs: {views}"
    assert told in page.stderr
    assert f"Of {told}" in (tmp_path / "report.html").read_text()
    succeeds(*dump, "--background", "white", "--out", "u.zarr", cwd=tmp_path)
    succeeds("evaluate", "run", "--teacher-cache", "u.zarr", "--workers", 0, cwd=tmp_path)
