"""Several caches of the same views answer as the mixture of their teachers."""

import json
from pathlib import Path

import pytest
import torch
from command import fails, succeeds
from dumping import a_teacher
from small import few_digits

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import IncompleteError, MismatchError, OptionError
from logitcache.losses.kd import kd
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader
from logitcache.store.derive import derive_cache
from logitcache.stream.stream import Stream
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.datasets import load_digits
from logitcache.views.recipes import recipe_named

pytestmark = pytest.mark.filterwarnings("ignore:seeds 0, 3 left out")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ensemble")
    for number, seeds in enumerate([(0, 1, 2), (1, 2, 3)]):
        config = DumpConfig(seeds=seeds, profile="exact", workers=0, precision="float32")
        dump(folder / f"{number}.zarr", few_digits(100), recipe_named("digits"), a_teacher(number), config)
    return [folder / "0.zarr", folder / "1.zarr"]


def stream(caches: list[Path], **options: object) -> Stream:
    return Stream.from_caches(caches, few_digits(100), batch_size=32, device="cpu", workers=0, **options)


@pytest.mark.parametrize("space", ["probability", "logit"])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0], [0.0, 1.0]])
def test_cached_is_the_mixture_of_live_teachers(caches: list[Path], space, weights) -> None:
    a, b = [1.0, 1.0] if weights is None else weights
    models = [ViewModel(a_teacher(number)).eval() for number in (0, 1)]
    seen = 0
    for batch in stream(caches, weights=weights, space=space).epoch(0):
        with torch.inference_mode():
            p, q = (model(batch.views).log_softmax(1) for model in models)
        geometric, arithmetic = ((a * p + b * q) / (a + b)).softmax(1), (a * p.exp() + b * q.exp()) / (a + b)
        mixed = geometric if space == "logit" else arithmetic
        torch.testing.assert_close(batch.teacher.at(1.0).probs, mixed, rtol=1e-4, atol=1e-6)
        seen += len(batch.views)
    assert seen == 100


def test_the_loss_of_a_mixture_is_that_of_the_dense_one(caches: list[Path]) -> None:
    batch = next(stream(caches).epoch(0))
    student = torch.randn(32, 10, requires_grad=True)
    dense = SparseTeacher.from_logits(batch.teacher.at(1.0).log_probs, 10)
    torch.testing.assert_close(kd(student, batch.teacher), kd(student, dense))


def test_what_is_taught_does_not_depend_on_ranks_or_the_batch(caches: list[Path], tmp_path: Path) -> None:
    small = []
    for number, k in enumerate((2, 4)):
        small.append(tmp_path / f"{number}.zarr")
        derive_cache(caches[number], small[-1], top_k=k, profile="default")

    def taught(batch_size: int, ranks: int) -> dict[int, tuple[list[int], float]]:
        found = {}
        for rank in range(ranks):
            options = {"batch_size": batch_size, "rank": rank, "world_size": ranks}
            dealt = Stream.from_caches(small, few_digits(100), device="cpu", workers=0, **options)
            for batch in dealt.epoch(0):
                for row, sample in enumerate(batch.samples.tolist()):
                    teacher = batch.teacher[row : row + 1]
                    found[sample] = (teacher.ids[0].tolist(), float(kd(torch.eye(10)[:1], teacher)))
        return found

    whole = taught(32, 1)
    assert len(whole) == 100
    for other in (taught(16, 2), taught(7, 1)):
        assert len(other) >= 96  # ranks deal out what comes out even
        for sample, (ids, loss) in other.items():
            assert (ids, loss) == (whole[sample][0], pytest.approx(whole[sample][1], rel=1e-5, abs=2e-6))


def test_a_member_without_class_statistics_is_named_beside_one_that_has_some(tmp_path: Path) -> None:
    for name, calibration in (("with.zarr", None), ("without.zarr", 0)):
        config = DumpConfig(seeds=(0,), top_k=4, workers=0, precision="float32", calibration=calibration)
        dump(tmp_path / name, few_digits(100), recipe_named("digits"), a_teacher(), config)
    both = [tmp_path / "with.zarr", tmp_path / "without.zarr"]
    with pytest.warns(UserWarning, match=r"without\.zarr has no class statistics, so its share .* even tail"):
        stream(both)
    stream([both[0], both[0]])  # warnings are errors
    stream([both[1], both[1]])  # a loss that needs an order will say so


def test_seeds_are_those_that_every_cache_has(caches: list[Path]) -> None:
    with pytest.warns(UserWarning, match="seeds 0, 3 left out, as not every cache"):
        assert stream(caches).config.seeds == (1, 2)
    with pytest.raises(IncompleteError, match="seed"):
        stream(caches, seeds=(0,))


def test_what_made_the_mixture_is_told(caches: list[Path]) -> None:
    plain, weighed = stream(caches).about(), stream(caches, weights=[1, 2]).about()
    assert plain["teacher"] != weighed["teacher"]
    assert len(plain["teacher"]["ensemble"]) == 2
    held = [CacheReader(cache).identity(1) for cache in caches]
    assert [member["cached"]["1"] for member in plain["teacher"]["ensemble"]] == held


def test_caches_of_other_views_are_refused(caches: list[Path], tmp_path: Path) -> None:
    config = DumpConfig(seeds=(1,), workers=0)
    dump(tmp_path / "recipe", few_digits(100), recipe_named("identity"), a_teacher(), config)
    with pytest.raises(MismatchError, match="recipe: expected digits, found identity;"):
        stream([caches[0], tmp_path / "recipe"])
    dump(tmp_path / "images", few_digits(90), recipe_named("digits"), a_teacher(), config)
    with pytest.raises(MismatchError, match="images"):
        stream([caches[0], tmp_path / "images"])


def test_no_seed_in_common_is_said(caches: list[Path], tmp_path: Path) -> None:
    config = DumpConfig(seeds=(7,), workers=0)
    dump(tmp_path / "seven", few_digits(100), recipe_named("digits"), a_teacher(), config)
    with pytest.raises(IncompleteError, match="no seed is complete in every cache"):
        stream([caches[0], tmp_path / "seven"])


def test_the_command_takes_several_caches(caches: list[Path], tmp_path: Path) -> None:
    cached = []
    for number in (0, 1):
        config = DumpConfig(seeds=(0,), workers=0, top_k=4)
        dump(
            tmp_path / f"{number}.zarr",
            load_digits("train"),
            recipe_named("digits"),
            a_teacher(number),
            config,
        )
        cached += ["--cache", f"{number}.zarr"]
    words = ["train", "--student", "digits_tiny", "--epochs", "1"]
    mixed = ["--mix-weights", "3,1", "--mix-space", "logit", "--out", "run"]
    succeeds(*words, *cached, *mixed, cwd=tmp_path)
    taught = json.loads((tmp_path / "run" / "config.json").read_text())["stream"]["teacher"]
    assert (taught["weights"], taught["space"], len(taught["ensemble"])) == ([3, 1], "logit", 2)
    assert "as many weights" in fails(*words, *cached, "--mix-weights", "3,1,2", cwd=tmp_path)
    line = fails(*words, *cached, "--mix-weights", "three", cwd=tmp_path)
    assert "weights of an ensemble read like 2,1; found 'three'" in line
    assert "of other views" in fails(*words, *cached, "--cache", caches[0], cwd=tmp_path)


@pytest.mark.parametrize(
    "options", [{"weights": [1.0]}, {"weights": [-1.0, 1.0]}, {"weights": [0, 0]}, {"space": "x"}]
)
def test_weights_that_cannot_be_honoured(caches: list[Path], options) -> None:
    with pytest.raises(OptionError):
        stream(caches, **options)
