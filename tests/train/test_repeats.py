"""Each student and variant trained several times in one pass: seeds of their own, and mean ± deviation at the end."""

import json
import statistics
from pathlib import Path

import pytest
from command import fails, logitcache, succeeds

from logitcache.errors import OptionError
from logitcache.train.config import TrainConfig
from logitcache.train.variants import VariantInputs

WORDS = (
    "train",
    "--student",
    "digits_tiny",
    "--loss",
    "ce",
    "--epochs",
    1,
    "--fraction",
    0.2,
    "--workers",
    0,
)
BOTH = ("--variant", "lr=0.1", "--variant", "lr=0.2")


def test_each_is_paired_with_seeds_of_its_own() -> None:
    inputs = VariantInputs("kd", settings={"seed": 5}, texts=("lr=0.1", "loss=dkd"), repeats=2)
    pairs = inputs.pair(["a", "b"], TrainConfig())
    assert [(student, variant.config.seed) for student, variant in pairs] == [
        (student, seed) for student in "ab" for _ in range(2) for seed in (5, 6)
    ]
    names = ["lr=0.1,seed=5", "lr=0.1,seed=6", "dkd,seed=5", "dkd,seed=6"]
    assert [variant.name for _, variant in pairs] == 2 * names


@pytest.mark.parametrize(("texts", "repeats"), [((), 0), (("seed=3",), 2)])
def test_what_cannot_be_repeated_is_refused(texts: tuple[str, ...], repeats: int) -> None:
    with pytest.raises(OptionError, match="repeats"):
        VariantInputs("ce", texts=texts, repeats=repeats).pair(["a"], TrainConfig())


def test_mean_deviation_and_gain_are_those_of_the_runs(tmp_path: Path) -> None:
    said = json.loads(succeeds(*WORDS, *BOTH, "--repeats", 3, "--out", "r", "--json", cwd=tmp_path))
    top1 = [[run["top1"] for run in said["runs"][first : first + 3]] for first in (0, 3)]
    for found, values in zip(said["repeats"], top1, strict=True):
        assert found["runs"] == 3
        assert found["top1"] == pytest.approx(statistics.fmean(values))
        assert found["top1_deviation"] == pytest.approx(statistics.stdev(values))
    first, second = said["repeats"]
    pairs = [b - a for a, b in zip(*top1, strict=True)]
    assert first["gain"] is None
    assert second["gain"] == pytest.approx(statistics.fmean(pairs))
    assert second["gain_error"] == pytest.approx(statistics.stdev(pairs) / 3**0.5)
    assert "holds a run already" in fails(*WORDS, *BOTH, "--repeats", 3, "--out", "r", cwd=tmp_path)
    again = json.loads(succeeds("train", "--out", "r", "--resume", "--json", cwd=tmp_path))
    assert again["repeats"] == said["repeats"]


def test_a_repeat_is_the_run_of_its_seed_and_the_table_ends_with_all(tmp_path: Path) -> None:
    ended = logitcache(*WORDS, "--repeats", 2, "--out", "r", cwd=tmp_path)
    assert "repeats share their batches" in ended.stderr
    last = ended.stdout.splitlines()[-1]
    assert last.split()[:4] == ["digits_tiny", "·", "ce", "2"]
    assert " ± " in last
    succeeds(*WORDS, "--out", "alone", cwd=tmp_path)
    weights = [
        (tmp_path / run / "last.safetensors").read_bytes() for run in ("r/digits_tiny-ce_seed=0", "alone")
    ]
    assert weights[0] == weights[1]
