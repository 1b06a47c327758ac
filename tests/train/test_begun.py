"""A run goes on with the data and the loss that it was begun with, where the defaults are others."""

import json
from pathlib import Path

import pytest
from command import fails, logitcache, succeeds
from pictures import picture_folder


def rewrite(run: Path, **changes: object) -> None:
    """Change entries of a run's config.json."""
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_run_on_letters_goes_on_with_them_although_digits_are_the_default(tmp_path: Path) -> None:
    words = ("train", "--student", "resnet8", "--loss", "ce", "--epochs", 1, "--fraction", 0.05)
    succeeds(*words, "--data", "letters", "--out", "r", cwd=tmp_path)
    rewrite(tmp_path / "r", command=[], folder=None)
    done = logitcache(*words, "--out", "r", "--resume", cwd=tmp_path)
    assert done.exit_code == 0, done.output
    assert "top-1" in done.stdout


@pytest.mark.filterwarnings("ignore:cmkd compares how the classes")
def test_a_run_of_two_classes_by_cmkd_goes_on_by_it_although_kd_is_the_default_now(tmp_path: Path) -> None:
    picture_folder(tmp_path / "pets")
    dump = ("dump", "--teacher", "resnet20", "--data", "imagefolder:pets", "--recipe", "imagenet@32")
    succeeds(*dump, "--seeds", "0-1", "--out", "c.zarr", cwd=tmp_path)
    words = ("train", "--student", "resnet8", "--cache", "c.zarr", "--epochs", 1, "--out", "r")
    succeeds(*words, "--loss", "cmkd", cwd=tmp_path)
    done = logitcache(*words, "--resume", cwd=tmp_path)
    assert done.exit_code == 0, done.output
    assert "trained by kd" not in done.stderr


@pytest.mark.filterwarnings("ignore:cmkd compares how the classes")
def test_a_variant_by_cmkd_beside_the_default_of_two_classes_goes_on(tmp_path: Path) -> None:
    picture_folder(tmp_path / "pets")
    dump = ("dump", "--teacher", "resnet20", "--data", "imagefolder:pets", "--recipe", "imagenet@32")
    succeeds(*dump, "--seeds", "0-1", "--out", "c.zarr", cwd=tmp_path)
    words = ("train", "--student", "digits_tiny", "--cache", "c.zarr", "--epochs", 1, "--out", "r")
    words += ("--variant", "loss=cmkd", "--variant", "lr=0.01")
    succeeds(*words, cwd=tmp_path)
    succeeds(*words, "--resume", cwd=tmp_path)


def test_a_damaged_record_is_one_line_on_resuming(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.json").write_text('{"x": 1}')
    words = ("train", "--student", "resnet8", "--data", "digits", "--loss", "ce", "--out", "r", "--resume")
    assert len(fails(*words, cwd=tmp_path).splitlines()) == 1
