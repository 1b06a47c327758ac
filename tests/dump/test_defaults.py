"""A dump into a cache that is there: what is left open is as the cache has it, what is said must agree."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import fails, logitcache, succeeds
from dumping import RECIPE, a_teacher, assert_same, dump_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import picture_folder
from small import few_digits

from logitcache.distributed import World
from logitcache.dump.defaults import adopt_defaults
from logitcache.dump.inputs import DumpInputs
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.dump.torchrun import dump_under_torchrun
from logitcache.errors import LogitCacheError, OptionError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.format.schema import CacheSpec
from logitcache.models.build import build_model, save_weights
from logitcache.store import CacheReader, CacheWriter
from logitcache.views.datasets import open_images

SAID: dict[str, Any] = {
    "weights": "random",
    "data": "small:dozen",
    "split": "test",
    "recipe": "cifar",
    "input_size": 16,
    "top_k": 3,
    "profile": "archive",
    "precision": "float32",
}
OTHERS: dict[str, Any] = {
    "data": "digits",
    "split": "train",
    "recipe": "center@8",
    "input_size": 32,
    "top_k": 4,
    "profile": "default",
    "precision": "bfloat16",
}
NAMED = {  # by the field in which the caches then differ
    "data": "dataset.",
    "split": "dataset.split",
    "recipe": r"recipe_sha256: expected identity \(\w+…\), found center@8 \(",
    "input_size": "teacher.adapter.size",
    "top_k": "k: expected 3, found 4",
    "profile": "profile.name: expected archive, found default",
    "precision": "teacher.precision: expected float32, found bfloat16",
}


def ask(out: Path, seed: int, notes: list[str] | None = None, **said: Any) -> CacheSpec:
    """Dump a seed as the command does that says so much."""
    of_inputs = {name: value for name, value in said.items() if name in DumpInputs.__dataclass_fields__}
    settings = {name: value for name, value in said.items() if name not in of_inputs}
    config = DumpConfig(seeds=(seed,), workers=0, batch_size=6, **settings)
    on_note = None if notes is None else notes.append
    dump_under_torchrun(World(), out, DumpInputs("digits_tiny", **of_inputs), config, on_note=on_note)
    return CacheReader(out).spec


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "c.zarr"
    for seed in range(2):
        ask(out, seed, **SAID)
    return out


@settings(max_examples=8, deadline=None)
@given(st.sets(st.sampled_from(sorted(SAID))))
def test_whatever_is_left_open_a_dump_goes_on_to_the_same_cache(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, left_open: set[str]
) -> None:
    out, notes = tmp_path_factory.mktemp("c") / "c.zarr", list[str]()
    shutil.copytree(whole, out, ignore=lambda _, names: {"seed-1"} & set(names))
    spec = CacheReader(out).spec
    assert ask(out, 1, notes, **{name: v for name, v in SAID.items() if name not in left_open}) == spec
    assert_same(out, whole)
    lines = [note for note in notes if "is there" in note]
    assert len(lines) == bool(left_open)
    for name in left_open:
        shown = "identity" if name == "recipe" else SAID[name]
        assert f"--{name.replace('_', '-')} {shown}" in lines[0]


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("begun", [False, True])
def test_a_dump_reads_the_root_of_its_cache_twice(
    begun: bool, seeds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before teacher and data are opened, and once more when they are: another process may have been quicker."""
    out, reads = tmp_path / "c.zarr", list[Path]()
    inputs, config = DumpInputs("digits_tiny", data="small:dozen"), DumpConfig(tuple(range(seeds)), workers=0)
    if begun:
        dump_under_torchrun(World(), out, inputs, dataclasses.replace(config, seeds=(0,)))
    read_bytes = Path.read_bytes

    def count(path: Path) -> bytes:
        data = read_bytes(path)
        reads.append(path)
        return data

    monkeypatch.setattr(Path, "read_bytes", count)
    dump_under_torchrun(World(), out, inputs, config)
    assert reads.count(out / "zarr.json") == 2


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_what_is_said_and_differs_is_refused_by_name(whole: Path, name: str) -> None:
    with pytest.raises(LogitCacheError, match=NAMED[name]):
        ask(whole, 2, **{name: OTHERS[name]})
    assert CacheReader(whole).complete() == [0, 1]


def test_fewer_logits_than_an_exact_cache_has_are_not_taken_for_all(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", 20, profile="exact")
    with pytest.raises(LogitCacheError, match="k: expected 10, found 4"):
        dump_digits(tmp_path / "c.zarr", 20, top_k=4)
    dump_digits(tmp_path / "c.zarr", 20, seeds=(7,), top_k=None)
    dump_digits(tmp_path / "c.zarr", 20, seeds=(8,), top_k=10)
    assert CacheReader(tmp_path / "c.zarr").complete() == [0, 1, 7, 8]


def test_another_teacher_is_told_by_its_name(whole: Path) -> None:
    with pytest.raises(LogitCacheError, match=r"teacher\.name: expected digits_tiny, found digits_small"):
        dump_under_torchrun(World(), whole, DumpInputs("digits_small"), DumpConfig(workers=0))


def test_a_cache_runs_no_strangers_code_because_something_is_left_open(tmp_path: Path) -> None:
    few = few_digits(20)
    few.name = "shutil:rmtree"
    config = DumpConfig(seeds=(0,), top_k=4, workers=0)
    dump(tmp_path / "a.zarr", few, RECIPE, a_teacher(), config)
    armed = dataclasses.replace(RECIPE, evaluation="shutil:rmtree")
    dump(tmp_path / "b.zarr", few_digits(20), armed, a_teacher(), config)
    for name in ("a.zarr", "b.zarr"):
        with pytest.raises(OptionError, match="names the code shutil:rmtree"):
            adopt_defaults(CacheWriter.find(tmp_path / name), DumpInputs("digits_small"), config)


def test_a_new_cache_has_sixteen_logits_and_the_default_profile(tmp_path: Path) -> None:
    inputs, config = DumpInputs("digits_small"), DumpConfig()
    assert adopt_defaults(None, inputs, config) == (inputs, config)
    spec = dump_under_torchrun(World(), tmp_path / "c.zarr", inputs, DumpConfig(workers=0)) and (
        CacheReader(tmp_path / "c.zarr").spec
    )
    assert spec
    assert (spec.k, spec.profile.name, spec.dataset.name) == (10, "default", "digits")
    assert CacheReader(tmp_path / "c.zarr").complete() == [0, 1, 2, 3]


def test_seeds_are_added_by_a_command_that_says_nothing_else(tmp_path: Path) -> None:
    words = ("dump", "--teacher", "digits_tiny", "--out", "c.zarr")
    succeeds(*words, "--top-k", 3, "--profile", "compact", "--seeds", 0, cwd=tmp_path)
    ended = logitcache(*words, "--seeds", "1-2", cwd=tmp_path)
    assert ended.exit_code == 0, ended.output
    (line,) = [line for line in ended.stderr.splitlines() if "is there" in line]
    assert line.startswith("note: c.zarr is there, and goes on with its own --weights random --data digits")
    assert "--top-k 3 --profile compact --precision float32" in line
    assert CacheReader(tmp_path / "c.zarr").complete() == [0, 1, 2]
    assert "k: expected 3, found 4" in fails(*words, "--top-k", 4, cwd=tmp_path)


def test_weights_from_a_file_have_to_be_named(tmp_path: Path) -> None:
    succeeds("train", "--student", "digits_tiny", "--loss", "ce", "--epochs", 1, "--out", "t", cwd=tmp_path)
    words, weights = ("dump", "--teacher", "digits_tiny", "--out", "c.zarr"), "t/best.safetensors"
    succeeds(*words, "--weights", weights, "--seeds", 0, cwd=tmp_path)
    assert "came from the file best.safetensors; name it with --weights" in fails(*words, cwd=tmp_path)
    succeeds(*words, "--weights", weights, "--seeds", 1, cwd=tmp_path)
    assert CacheWriter.find(tmp_path / "c.zarr").complete() == [0, 1]


def test_weights_say_the_views_that_they_were_trained_on(tmp_path: Path) -> None:
    picture_folder(tmp_path / "pets")
    data, words = ("--data", "imagefolder:pets"), ("--student", "resnet8", "--loss", "ce", "--epochs", 1)
    views = ("--recipe", "imagenet-ra@32", "--background", "white")
    succeeds("train", *words, *data, *views, "--out", "t", cwd=tmp_path)
    dump = ("dump", "--teacher", "resnet8", "--weights", "t/last.safetensors", *data, "--seeds", 0)
    done = logitcache(*dump, "--out", "c.zarr", cwd=tmp_path)
    assert done.exit_code == 0, done.output
    assert "imagenet-ra@32's, 32 pixels a side, as the teacher's weights were trained on such" in done.stderr
    recipe = CacheReader(tmp_path / "c.zarr").spec.recipe
    assert (recipe.name, recipe.background) == ("imagenet-ra@32", "#ffffff")
    succeeds(*dump, "--recipe", "imagenet@32", "--out", "d.zarr", cwd=tmp_path)
    assert CacheReader(tmp_path / "d.zarr").spec.recipe.title == "imagenet@32 on #ffffff"
    succeeds(*dump, "--background", "black", "--out", "e.zarr", cwd=tmp_path)
    assert CacheReader(tmp_path / "e.zarr").spec.recipe.title == "imagenet-ra@32 on #000000"


def test_weights_that_name_code_say_no_views(tmp_path: Path) -> None:
    picture_folder(tmp_path / "pets")
    images = open_images(f"imagefolder:{tmp_path / 'pets'}")
    own = RecipeSpec("mine", 1, (StepSpec("nowhere:step"),), "identity")
    model = build_model("resnet8", num_classes=2, view_size=32, weights="random")
    named = dataclasses.replace(model, class_names=tuple(images.class_names), training=own)
    save_weights(tmp_path / "w.safetensors", named)
    inputs = DumpInputs("resnet8", weights=str(tmp_path / "w.safetensors"), data=images.name)
    assert inputs.open().recipe.name != "mine"


def test_a_dump_that_has_nothing_to_do_speaks_of_no_pace(tmp_path: Path) -> None:
    words = ("dump", "--teacher", "digits_tiny", "--seeds", 0, "--workers", 0, "--out", "c.zarr")
    assert "views/s" in succeeds(*words, cwd=tmp_path)
    again = succeeds(*words, cwd=tmp_path)
    assert "0 now" in again
    assert "views/s" not in again
