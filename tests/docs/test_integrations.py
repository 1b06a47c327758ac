"""The scripts of docs/integrations run as they stand, each in a loop that is not ours, and the student learns."""

import importlib.util
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import succeeds

from logitcache import ViewSampler

FOLDER = Path(__file__).parents[2] / "docs" / "integrations"
NEEDED = {
    "plain": [],
    "timm_loop": ["timm"],
    "torchvision_reference": [],
    "lightning_module": ["lightning"],
    "huggingface_trainer": ["transformers", "accelerate"],
}
FEW = "import small\n\n\ndef digits(split):\n    return small.few_digits(600, split)\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 600 digits, which it names so that a script can open them."""
    folder = tmp_path_factory.mktemp("integrations")
    (folder / "few.py").write_text(FEW)
    words = ("--data", "few:digits", "--out")
    succeeds(
        "train",
        "--student",
        "digits_small",
        "--loss",
        "ce",
        "--epochs",
        6,
        "--lr",
        0.4,
        *words,
        "t",
        cwd=folder,
    )
    weights = ("--weights", "t/best.safetensors", "--seeds", "0-1", "--top-k", 4)
    succeeds("dump", "--teacher", "digits_small", *weights, *words, "c.zarr", cwd=folder)
    return folder / "c.zarr"


def test_every_script_is_listed_and_tried() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(NEEDED)
    listed = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert set(listed) == set(NEEDED)
    assert len((FOLDER / "plain.py").read_text().splitlines()) <= 40


@pytest.mark.filterwarnings("ignore")  # of the libraries that are shown
@pytest.mark.parametrize("script", NEEDED)
def test_a_student_learns(
    script: str, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if missing := [name for name in NEEDED[script] if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    monkeypatch.syspath_prepend(cache.parent)
    monkeypatch.setattr(sys, "argv", [script, str(cache)])
    epochs, walk = [], ViewSampler.__iter__

    def told(sampler: ViewSampler) -> Iterator[tuple[int, int]]:
        epochs.append(sampler.epoch)
        return walk(sampler)

    monkeypatch.setattr(ViewSampler, "__iter__", told)
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    losses = [
        float(loss)
        for loss in re.findall(r"^epoch \d+: loss ([\d.]+)$", capfd.readouterr().out, re.MULTILINE)
    ]
    assert len(losses) >= 3
    assert epochs == list(range(len(losses)))
    assert losses[-1] < 0.9 * losses[0]
