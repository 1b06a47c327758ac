"""What `info` says of a cache, `verify` by command, and the teacher built again from its spec."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from breaking import flip
from command import fails, logitcache, succeeds
from dumping import a_teacher, dump_digits
from small_caches import files_of, fill, spec_of, statistics_of

from logitcache.audit.checkup import CheckupConfig, check_cache, open_teacher
from logitcache.audit.summary import summarize, view_size
from logitcache.audit.verify import Problem
from logitcache.errors import OptionError, UnknownNameError
from logitcache.models.build import build_model, save_weights
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.local import LocalPlace
from logitcache.store.shards import metadata_files, shard_files
from logitcache.store.statistics import STATISTICS_FILES
from logitcache.views.recipes import recipe_named

# The teacher by the spec ----------------------------------------------------------------------------------


def test_the_teacher_is_built_again_from_what_the_cache_says(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", a_teacher(5))
    for weights, seed, named in (
        ("random", 3, None),
        (tmp_path / "w.safetensors", 0, tmp_path / "w.safetensors"),
    ):
        out = tmp_path / f"{seed}.zarr"
        made = build_model("digits_small", num_classes=10, view_size=8, weights=str(weights), seed=seed)
        dump_digits(out, 40, made, seeds=(0,))
        spec = CacheReader(out).spec
        spec = dataclasses.replace(spec, dataset=dataclasses.replace(spec.dataset, name="digits"))
        images, teacher = open_teacher(spec, weights=named and str(named))
        assert teacher.weights_sha256 == made.weights_sha256
        assert images.name == "digits"
    with pytest.raises(OptionError, match=r"came from the file w\.safetensors; name it with --weights"):
        open_teacher(spec)


# In short -------------------------------------------------------------------------------------------------


def test_a_summary_has_the_means_of_the_distribution_that_the_cache_describes(cache: Path) -> None:
    reader = CacheReader(cache)
    found = summarize(reader)
    assert found["complete"] == "seeds 0-1"
    assert found["view_size"] == 8
    assert found["other_versions"] == {}
    top1, mass = [], []
    for seed in (0, 1, 2):
        held = reader.read(seed, 0)
        own = np.exp(-held["gap"].astype(np.float64))
        tail = np.exp(held["tail_lse"].astype(np.float64))
        top1 += (own[:, 0] / (own.sum(1) + tail)).tolist()
        mass += (tail / (own.sum(1) + tail)).tolist()
    told = found["confidence"]
    assert told["views"] == 3 * 64
    assert told["mean_top1_probability"] == pytest.approx(np.mean(top1), rel=1e-5)
    assert told["mean_tail_mass"]["1"] == pytest.approx(np.mean(mass), rel=1e-5)
    assert told["mean_tail_mass"]["1"] < told["mean_tail_mass"]["4"] < 0.6


def test_the_summary_of_a_damaged_or_empty_cache_says_so(cache: Path, tmp_path: Path) -> None:
    flip(cache / "seed-0/gap/c/0/0", 0.4)
    assert "seed 0, shard 0: damaged" in summarize(CacheReader(cache))["damaged"]
    spec = CacheReader(cache).spec
    CacheWriter.open(tmp_path / "empty.zarr", spec, statistics=statistics_of(spec))
    found = summarize(CacheReader(tmp_path / "empty.zarr"))
    assert (found["confidence"], found["damaged"], found["complete"]) == (None, None, "no seed")


def test_a_summary_fetches_the_files_of_a_seed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(n=11)
    fetched: list[str] = []
    fetch = LocalPlace.fetch

    def count(place: LocalPlace, files: Iterable[str], *most: int) -> dict[str, bytes]:
        names = list(files)
        fetched.extend(f"{place.path.name}/{name}" for name in names)
        return fetch(place, names, *most)

    monkeypatch.setattr(LocalPlace, "fetch", count)
    lengths = {}
    for seeds in (3, 6, 9):
        path = fill(tmp_path / f"{seeds}.zarr", spec, range(seeds))
        fetched.clear()
        assert summarize(CacheReader(path))["complete"] == f"seeds 0-{seeds - 1}"
        read = {
            f"seed-{seed}/{file}" for seed in range(0, seeds, seeds // 3) for file in shard_files(spec, 0)
        }
        twice = {file for file, times in Counter(fetched).items() if times > 1}
        assert twice <= read  # a shard of three seeds; of the others of one seed the top logits alone
        assert not {f"seed-0/{file}" for file in shard_files(spec, 1) if file.startswith("gap/")} & {*fetched}
        lengths[seeds] = len(fetched)
    each = len(metadata_files(spec)) + spec.layout.shards  # a commit entry per shard
    assert lengths[6] - lengths[3] == lengths[9] - lengths[6] == 3 * each


@pytest.mark.parametrize(
    ("recipe", "size"),
    [("digits", 8), ("imagenet@64", 64), ("imagenet", 224), ("cifar", 32), ("identity", None)],
)
def test_the_size_of_views_is_read_off_the_recipe(recipe: str, size: int | None) -> None:
    assert view_size(recipe_named(recipe)) == size


# By command -----------------------------------------------------------------------------------------------


def test_verify_by_command_says_clean_or_not_by_its_exit_code(tmp_path: Path) -> None:
    words = ("dump", "--teacher", "digits_tiny", "--seeds", "0-1", "--top-k", 3, "--shard-samples", 512)
    succeeds(*words, "--out", "c.zarr", cwd=tmp_path)
    assert "clean" in succeeds("verify", "c.zarr", "--replay", 20, cwd=tmp_path)
    before = files_of(tmp_path / "c.zarr")
    flip(tmp_path / "c.zarr/seed-1/ids/c/1/0", 0.4)
    ended = logitcache("verify", "c.zarr", "--json", "--replay", 20, cwd=tmp_path)
    assert ended.exit_code == 1
    told = json.loads(ended.stdout)
    assert (told["clean"], told["repair"], told["replay"]) == (False, None, None)
    assert Problem.from_dict(told["found"]["problems"][0]).shard == 1
    assert "seed 1, shard 1: its data is damaged" in " ".join(
        logitcache("verify", "c.zarr", cwd=tmp_path).stdout.split()
    )
    text = succeeds("verify", "c.zarr", "--repair", cwd=tmp_path)
    assert "1 shard dumped again, 1 of them to the digest they had" in " ".join(text.split())
    assert files_of(tmp_path / "c.zarr") == before
    assert json.loads(succeeds("verify", "c.zarr", "--repair", "--json", cwd=tmp_path))["repair"] is None


def test_class_statistics_by_command(tmp_path: Path) -> None:
    words = ("dump", "--teacher", "digits_tiny", "--seeds", "0", "--top-k", 3, "--out")
    succeeds(*words, "even.zarr", "--calibration", 0, cwd=tmp_path)
    assert "class statistics" not in succeeds("info", "even.zarr", cwd=tmp_path)
    succeeds(*words, "c.zarr", cwd=tmp_path)
    text = succeeds("info", "c.zarr", cwd=tmp_path)
    assert re.search(r"^class statistics +of 287 views, \d factors?$", text, re.MULTILINE)
    assert json.loads(succeeds("info", "c.zarr", "--json", cwd=tmp_path))["class_statistics"]["views"] == 287
    assert "clean" in succeeds("verify", "c.zarr", cwd=tmp_path)
    before = files_of(tmp_path / "c.zarr")
    flip(tmp_path / "c.zarr" / STATISTICS_FILES[0], 0.5)
    assert "class_statistics: damaged" in fails("info", "c.zarr", cwd=tmp_path)
    ended = logitcache("verify", "c.zarr", cwd=tmp_path)
    assert ended.exit_code == 1
    assert "the class statistics are damaged" in ended.stdout
    assert ended.stdout.rstrip().endswith("not clean")
    text = succeeds("verify", "c.zarr", "--repair", "--workers", 0, cwd=tmp_path)
    assert re.search(r"^mended +class statistics, estimated by the teacher again$", text, re.MULTILINE)
    assert "shards dumped again" not in text
    assert files_of(tmp_path / "c.zarr") == before


def test_a_checkup_refuses_options_that_cannot_be(whole: Path) -> None:
    for wrong in (CheckupConfig(replay=-1), CheckupConfig(batch_size=-1), CheckupConfig(workers=-2)):
        with pytest.raises(OptionError, match="found"):
            check_cache(str(whole), wrong)
    with pytest.raises(UnknownNameError, match="unknown model 'nobody'"):
        check_cache(str(whole), CheckupConfig(teacher="nobody", replay=1))
