"""A run or cache whose name is misspelt is told with the one that is there; who resumes hears how."""

from pathlib import Path

import pytest
from command import fails, succeeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run runs/teacher2 and the cache caches/emoji.zarr."""
    folder = tmp_path_factory.mktemp("near")
    plain = ("train", "--student", "digits_tiny", "--loss", "ce", "--epochs", 1, "--fraction", 0.1)
    succeeds(*plain, "--workers", 0, "--out", "runs/teacher2", cwd=folder)
    dump = ("dump", "--teacher", "digits_tiny", "--workers", 0, "--out", "caches/emoji.zarr")
    succeeds(*dump, cwd=folder)
    return folder


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("evaluate", "runs/techer2"), "runs/teacher2"),
        (("evaluate", "run/Teacher2"), "runs/teacher2"),
        (("export", "runs/techer2"), "runs/teacher2"),
        (("report", "runs/techer2"), "runs/teacher2"),
        (("train", "--out", "runs/techer2", "--resume"), "runs/teacher2"),
        (
            ("train", "--student", "digits_tiny", "--loss", "ce", "--out", "runs/techer2", "--resume"),
            "runs/teacher2",
        ),
        (("info", "caches/emojy.zarr"), "caches/emoji.zarr"),
        (("verify", "cache/emoji.zarr"), "caches/emoji.zarr"),
        (("report", "caches/emojy.zarr"), "caches/emoji.zarr"),
        (("train", "--student", "digits_tiny", "--cache", "caches/emojy.zarr"), "caches/emoji.zarr"),
        (
            ("dump", "--teacher", "digits_tiny", "--weights", "runs/teacher2"),
            "runs/teacher2/best.safetensors",
        ),
    ],
)
def test_a_name_that_is_nearly_right_is_told(words: tuple[str, ...], meant: str, folder: Path) -> None:
    assert fails(*words, cwd=folder).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("words", [("evaluate", "runs/other"), ("info", "elsewhere/none.zarr")])
def test_nothing_is_suggested_for_a_name_that_is_near_to_none(words: tuple[str, ...], folder: Path) -> None:
    assert "did you mean" not in fails(*words, cwd=folder)


def test_who_resumes_without_a_cache_hears_that_the_run_goes_on_by_its_own_options(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "table").symlink_to(folder / "runs" / "teacher2")
    resume = ("train", "--resume", "--student", "resnet8", "--out")
    told = "; `logitcache train --out table --resume` alone goes on by the run's own options"
    assert fails(*resume, "table", cwd=tmp_path).endswith(told)
    assert "alone goes on" not in fails(*resume, "none", cwd=tmp_path)
    succeeds("train", "--out", "table", "--resume", cwd=tmp_path)
