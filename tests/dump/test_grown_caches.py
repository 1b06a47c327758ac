"""A grown cache is trained from, verified, mended, copied and derived from like any other."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import fails, logitcache, succeeds
from dumping import a_teacher, assert_same, dump_digits
from growing import GROWN, KEYS, NEW, OLD, before_growth, by_key, dump_folder, folder_images, paint
from small import few_digits
from small_caches import assert_holds, fill

from logitcache import CachedViews
from logitcache.audit.recheck import recheck_views
from logitcache.audit.repair import repair_cache
from logitcache.audit.verify import verify_cache
from logitcache.dump.settings import DumpConfig
from logitcache.errors import IncompleteError
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.copy import copy_cache
from logitcache.store.derive import derive_cache
from logitcache.stream.stream import Stream
from logitcache.views.keyed_views import KeyedViews

pytestmark = pytest.mark.usefixtures("fast")

TRAIN = (
    *("train", "--student", "resnet20", "--loss", "kd", "--cache", "c.zarr"),
    *("--epochs", 1, "--workers", 0),
)


def test_training_takes_the_cache_s_samples_in_its_order(grown: Path) -> None:
    images, numbers = folder_images(grown / "pets"), by_key(grown / "c.zarr")
    for cache, n in (("old.zarr", 10), ("c.zarr", 18)):
        stream = Stream.from_cache(grown / cache, images, batch_size=5, device="cpu", workers=0)
        held = stream.views.images
        assert (len(held), held.left_out) == (n, 18 - n)
        samples = []
        for batch in stream.epoch(0):
            assert batch.teacher is not None
            for row, sample in enumerate(batch.samples.tolist()):
                label = int("dog" in held.describe(sample))
                assert int(batch.labels[row]) == label
                assert torch.equal(
                    batch.views[row], KeyedViews(held, stream.views.maker.recipe)[sample, 0].views[0]
                )
                top = numbers[0, int(held.keys()[sample]), "top"]
                assert batch.teacher.top[row].numpy().tobytes() == top
            samples += batch.samples.tolist()
        assert sorted(samples) == list(range(n))


def test_a_seed_that_lacks_the_new_images_is_incomplete(grown: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(grown / "old.zarr", tmp_path / "c.zarr"))
    dump_folder(out, folder_images(grown / "pets"), seeds=(1,), grow=True)
    assert CacheReader(out).complete() == [1]
    with pytest.raises(IncompleteError, match="lacks seed 0; complete: seed 1"):
        Stream.from_cache(out, folder_images(grown / "pets"), seeds=(0,))
    for opened in (Stream.from_cache, lambda cache, images: CachedViews(images, cache)):
        with pytest.warns(
            UserWarning, match="seed 0 left out, as shards are missing; `logitcache dump` completes"
        ):
            data = opened(out, folder_images(grown / "pets"))
        assert (data.config.seeds if isinstance(data, Stream) else data.seeds) == (1,)


def test_a_grown_cache_is_verified_repaired_and_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    dump_digits(out, 70)
    dump_digits(out, 90, grow=True, seeds=(1,))  # seed 0 still has its old shape
    before = arrays_of_seed(out, 1)
    for shard in (1, 2):  # the short one of the old part, and the new one
        file = out / "seed-1" / "top" / "c" / str(shard)
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    assert {(p.seed, p.shard) for p in verify_cache(CacheReader(out)).problems} == {(1, 1), (1, 2)}
    config = DumpConfig(batch_size=24, workers=0)
    done = repair_cache(out, verify_cache(CacheReader(out)), config, lambda: (few_digits(90), a_teacher()))
    assert (done.redumped, done.identical, done.after.clean) == (((1, 1), (1, 2)), 2, True)
    for key, values in arrays_of_seed(out, 1).items():
        np.testing.assert_array_equal(values, before[key])
    assert verify_cache(CacheReader(out)).clean
    asked = recheck_views(CacheReader(out), few_digits(90), a_teacher(), 120)
    assert (asked.clean, asked.views, asked.top1_agreement) == (True, 120, 1.0)


def arrays_of_seed(cache: Path, seed: int) -> dict[tuple[int, str], np.ndarray]:
    reader = CacheReader(cache)
    shards = range(reader.spec.layout.shards)
    return {(j, name): values for j in shards for name, values in reader.read(seed, j).items()}


def test_copies_follow(tmp_path: Path) -> None:
    before = before_growth(tmp_path / "c.zarr")
    copy_cache(before, tmp_path / "d.zarr")
    CacheWriter.open(before, GROWN, KEYS, grow=True)
    copy_cache(before, tmp_path / "e.zarr")  # the seeds have their old shape yet
    fill(before, GROWN, seeds=(1,))
    for copied in ("d.zarr", "e.zarr", "f.zarr"):
        copy_cache(before, tmp_path / copied)
        reader = CacheReader(tmp_path / copied)
        assert (reader.spec, reader.complete()) == (GROWN, [1])
        for shard in range(4):
            assert_holds(reader, 1, shard)
        assert reader.keys().tolist() == KEYS.tolist()  # type: ignore[union-attr]


def test_what_is_derived_from_a_grown_cache_follows_it(tmp_path: Path) -> None:
    source, out = tmp_path / "c.zarr", tmp_path / "d.zarr"
    dump_digits(source, 70)
    derive_cache(source, out, top_k=2)
    dump_digits(source, 90, grow=True)
    report = derive_cache(source, out, top_k=2)
    assert (report.shards_there, report.shards_written) == (4, 2)
    derive_cache(source, tmp_path / "whole.zarr", top_k=2)
    assert_same(out, tmp_path / "whole.zarr")
    assert by_key(out) == by_key(tmp_path / "whole.zarr")


def test_by_command(tmp_path: Path) -> None:
    paint(tmp_path / "pets", OLD)
    data = ("--data", "imagefolder:pets", "--out", "c.zarr")
    words = ("dump", "--teacher", "resnet20", *data, "--recipe", "center@16", "--seeds", 0, "--workers", 0)
    succeeds(*words, cwd=tmp_path)
    paint(tmp_path / "pets", NEW)
    ended = logitcache(*TRAIN, cwd=tmp_path)
    assert ended.exit_code == 0, ended.output
    assert "note: 8 images came after the cache and are left out" in ended.stderr
    assert "give --grow to append the other 8" in fails(*words, cwd=tmp_path)
    assert json.loads(succeeds(*words, "--grow", "--json", cwd=tmp_path))["views"] == 8
    assert json.loads(succeeds("info", "c.zarr", "--json", cwd=tmp_path))["n"] == 18


def test_growth_takes_the_seeds_of_the_cache(tmp_path: Path) -> None:
    paint(tmp_path / "pets", OLD)
    words = ("dump", "--teacher", "resnet20", "--workers", 0, "--out", "c.zarr")
    first = ("--data", "imagefolder:pets", "--recipe", "center@16", "--seeds", "0-5")
    succeeds(*words, *first, cwd=tmp_path)
    paint(tmp_path / "pets", NEW)

    some = logitcache(*words, "--grow", "--seeds", "0-1", cwd=tmp_path)
    assert "seeds 2-5 of the cache will lack the new images" in some.stderr
    with pytest.warns(UserWarning, match="seeds 2-5 left out, as shards are missing"):
        succeeds(*TRAIN, cwd=tmp_path)
    assert "4 shards of seeds 2-5; `logitcache dump` goes on" in succeeds("verify", "c.zarr", cwd=tmp_path)

    grown = logitcache(*words, "--grow", "--json", cwd=tmp_path)
    assert "goes on with its own seeds 0-5" in grown.stderr
    assert json.loads(grown.stdout)["views"] == 8 * 4
    succeeds(*TRAIN, cwd=tmp_path)


def test_a_dump_that_ended_before_its_first_shard_takes_the_seeds_of_a_new_one(tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    images = folder_images(paint(tmp_path / "pets", OLD))
    dump_folder(out, images, seeds=None)
    for seed in CacheReader(out).opened_seeds():
        shutil.rmtree(out / f"seed-{seed}" / "commit" / "c")
    shutil.rmtree(out / "seed-3")
    dump_folder(out, images, seeds=None)
    assert CacheReader(out).complete() == [0, 1, 2, 3]
