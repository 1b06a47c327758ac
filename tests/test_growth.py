"""Growth in place: images that came later are appended; what was committed stays where and what it is."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import few_digits
from small_caches import Faults, Killed, assert_holds, commits, fill, spec_of
from small_caches import attributes as root_of
from test_cli import fails, logitcache, succeeds
from test_dump import RECIPE, a_teacher, arrays_of, assert_same, dump_digits

from logitcache.audit.repair import repair
from logitcache.audit.rerun import rerun
from logitcache.audit.verify import verify
from logitcache.copy import copy
from logitcache.datasets import ArrayImages, Images, WrappedImages, open_images
from logitcache.derive import derive
from logitcache.dump import DumpConfig, dump
from logitcache.errors import DataError, IncompleteError, MismatchError, OptionError, StorageError
from logitcache.folders import FolderImages
from logitcache.loader import InMemory, KeyedViews, loaded, view_loader
from logitcache.models import build
from logitcache.order import OrderedImages, in_cache_order
from logitcache.replay import prove_replay
from logitcache.store import CacheReader, CacheWriter
from logitcache.stream import Stream
from logitcache.views import recipe_named

OLD, NEW = ("b", "d", "f", "h", "k"), ("a", "c", "i", "z")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the waits for the disk: power cuts are the matter of tests/store."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# In the store ---------------------------------------------------------------------------------------------

SMALL = spec_of(n=7, classes=3, profile="exact")  # shards of 4 and 3
GROWN = SMALL.grown(dataclasses.replace(SMALL.dataset, n=12, fingerprint="grown"))  # and of 4 and 1
KEYS = np.arange(100, 112, dtype=np.uint64)


def files_of(cache: Path) -> dict[str, bytes]:
    return {str(f.relative_to(cache)): f.read_bytes() for f in cache.rglob("*") if f.is_file()}


def before_growth(cache: Path) -> Path:
    """Seed 1 complete, seed 2 without its short last shard."""
    CacheWriter.open(cache, SMALL, KEYS[:7])
    fill(cache, SMALL, seeds=(1,))
    return fill(cache, SMALL, seeds=(2,), shards=[0])


def grow(cache: Path) -> None:
    CacheWriter.open(cache, GROWN, KEYS, grow=True)
    fill(cache, GROWN, seeds=(1, 2, 3))


def test_what_was_committed_keeps_its_bytes_and_its_place(tmp_path: Path) -> None:
    cache = before_growth(tmp_path / "c.zarr")
    old = files_of(cache)
    first = commits(cache)
    grow(cache)
    new = files_of(cache)
    changed = {name for name, data in old.items() if new[name] != data}
    assert {name.rsplit("/", 1)[-1] for name in changed} == {"zarr.json"}  # shapes, and the root
    reader = CacheReader(cache)
    assert (reader.spec, reader.complete()) == (GROWN, [1, 2, 3])
    assert commits(cache)[:2] == first
    for seed in (1, 2, 3):
        for shard in range(4):
            assert_holds(reader, seed, shard)
    keys = reader.keys()
    assert keys is not None
    assert keys.tolist() == KEYS.tolist()


def test_between_the_root_and_the_seeds_everything_is_readable(tmp_path: Path) -> None:
    cache = before_growth(tmp_path / "c.zarr")
    opened_before = CacheReader(cache)
    CacheWriter.open(cache, GROWN, KEYS, grow=True)
    reader = CacheReader(cache)
    assert reader.complete() == []
    assert reader.commits(1).astype(bool).tolist() == [True, True, False, False]
    assert sorted(reader.canaries(1)) == sorted(CacheReader(cache).canaries(1)) != []
    assert_holds(reader, 1, 1)
    with pytest.raises(IncompleteError, match="shard 2 of seed 1"):
        reader.read(1, 2)
    fill(cache, GROWN, seeds=(1,))
    assert_holds(opened_before, 1, 0)  # who reads the cache as it was, a long training say, reads on
    assert opened_before.complete() == [1]
    assert opened_before.keys().tolist() == KEYS[:7].tolist()  # type: ignore[union-attr]


def test_growth_that_fails_at_any_file_operation_loses_nothing_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at one operation, the disk full at another, through the growth, the lengthening and one shard."""
    base = before_growth(tmp_path / "base.zarr")
    was = {seed: [commit for commit in commits(base, seed) if commit] for seed in (1, 2)}
    allowed, finished, states = 0, False, set()
    while not finished:
        cache = Path(shutil.copytree(base, tmp_path / f"{allowed}.zarr"))
        error = Killed() if allowed % 2 else OSError(errno.ENOSPC, "No space left on device")
        with monkeypatch.context() as patch:
            faults = Faults(patch, allowed, error)
            with contextlib.suppress(Killed, StorageError):
                CacheWriter.open(cache, GROWN, KEYS, grow=True)
                fill(cache, GROWN, seeds=(1,), shards=[2])
        finished = faults.left >= 0
        reader = CacheReader(cache)
        states.add((reader.spec == GROWN, int((reader.commits(1) != 0).sum())))
        for seed, before in was.items():
            seen = commits(cache, seed)
            assert seen[: len(before)] == before
            for shard in np.flatnonzero(seen):
                assert_holds(reader, seed, int(shard))
        keys = reader.keys()
        assert keys is not None
        assert keys.tolist() == KEYS[: reader.spec.dataset.n].tolist()
        CacheWriter.open(cache, GROWN, KEYS, grow=True)
        fill(cache, GROWN)
        assert CacheReader(cache).complete() == [1]
        for shard in range(4):
            assert_holds(CacheReader(cache), 1, shard)
        assert not list(cache.rglob("*.partial"))
        shutil.rmtree(cache)
        allowed += 5
    assert {(False, 2), (True, 2), (True, 3)} == states
    assert allowed > 30


def test_growth_in_several_steps_at_once(tmp_path: Path) -> None:
    twice = GROWN.grown(dataclasses.replace(GROWN.dataset, n=13, fingerprint="again"))
    cache, keys = before_growth(tmp_path / "c.zarr"), np.arange(100, 113, dtype=np.uint64)
    CacheWriter.open(cache, twice, keys, grow=True)
    fill(cache, twice, seeds=(1,))
    for shard in range(5):
        assert_holds(CacheReader(cache), 1, shard)


def test_a_growth_that_was_given_up_leaves_no_trace_in_another(tmp_path: Path) -> None:
    cache = before_growth(tmp_path / "c.zarr")
    root = (cache / "zarr.json").read_bytes()
    CacheWriter.open(cache, GROWN, KEYS, grow=True)
    (cache / "zarr.json").write_bytes(root)  # as if the machine had gone down just before
    less = SMALL.grown(dataclasses.replace(SMALL.dataset, n=9, fingerprint="less"))
    keys = np.array([*KEYS[:7], 5, 6], dtype=np.uint64)
    CacheWriter.open(cache, less, keys, grow=True)
    found = CacheReader(cache).keys()
    assert found is not None
    assert found.tolist() == keys.tolist()


def test_only_what_the_cache_was_grows(tmp_path: Path) -> None:
    cache = before_growth(tmp_path / "c.zarr")
    root = (cache / "zarr.json").read_bytes()
    other = dataclasses.replace(GROWN.dataset, n=14, fingerprint="from elsewhere")
    elsewhere = spec_of(n=8, classes=3, profile="exact", fingerprint="no").grown(other)
    with pytest.raises(MismatchError, match=r"dataset\.n: expected 14, found 7"):
        CacheWriter.open(cache, elsewhere, np.arange(14, dtype=np.uint64), grow=True)
    with pytest.raises(MismatchError, match=r"dataset\.n: expected 12, found 7"):
        CacheWriter.open(cache, GROWN, KEYS)
    with pytest.raises(OptionError, match="keys"):
        CacheWriter.open(cache, GROWN, KEYS[::-1].copy(), grow=True)
    assert (cache / "zarr.json").read_bytes() == root


def test_a_cache_behind_a_url_grows_too() -> None:
    url = "memory://growth/c.zarr"
    CacheWriter.open(url, SMALL, KEYS[:7])
    fill(url, SMALL)  # type: ignore[arg-type]
    CacheWriter.open(url, GROWN, KEYS, grow=True)
    fill(url, GROWN)  # type: ignore[arg-type]
    reader = CacheReader(url)
    assert reader.complete() == [1]
    for shard in range(4):
        assert_holds(reader, 1, shard)
    assert reader.keys().tolist() == KEYS.tolist()  # type: ignore[union-attr]


def test_a_cache_without_keys_opens_and_does_not_grow(tmp_path: Path) -> None:
    cache = fill(tmp_path / "c.zarr", SMALL)
    assert not (cache / "sample_key").exists()
    assert CacheReader(cache).keys() is None
    assert_holds(CacheReader(cache), 1, 1)
    with pytest.raises(MismatchError):
        CacheWriter.open(cache, GROWN, KEYS, grow=True)


# Images ---------------------------------------------------------------------------------------------------


def paint(root: Path, names: tuple[str, ...], classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Write images whose pixels are a function of their path."""
    for label in classes:
        (root / "train" / label).mkdir(parents=True, exist_ok=True)
        for name in names:
            pixels = np.random.default_rng([ord(c) for c in label + name]).integers(
                0, 256, (12, 12, 3), np.uint8
            )
            Image.fromarray(pixels).save(root / "train" / label / f"{name}.png")
    return root


def folder_images(root: Path) -> Images:
    return open_images(f"imagefolder:{root}")


def test_fingerprints_of_a_part_are_those_of_the_part_alone(tmp_path: Path) -> None:
    few, more = few_digits(20), few_digits(30)
    assert more.fingerprint_of(np.arange(20)) == few.fingerprint
    pairs = [(image, int(label)) for image, label in zip(more.images, more.labels, strict=True)]
    wrapped = WrappedImages("own", "train", pairs)
    assert wrapped.fingerprint_of(np.arange(20)) == WrappedImages("own", "train", pairs[:20]).fingerprint
    old = folder_images(paint(tmp_path / "pets", OLD))
    assert isinstance(old, FolderImages)
    all_of_them = folder_images(paint(tmp_path / "pets", NEW))
    assert isinstance(all_of_them, FolderImages)
    order = np.array([all_of_them.files.index(file) for file in old.files])
    assert (
        all_of_them.fingerprint_of(order)
        == old.fingerprint
        == OrderedImages(all_of_them, order, [10]).fingerprint
    )
    assert all_of_them.fingerprint != old.fingerprint


def test_images_in_another_order_are_viewed_by_whole_batches_too() -> None:
    order = np.random.default_rng(0).permutation(100)
    views = KeyedViews(OrderedImages(few_digits(100), order, [60, 100]), recipe_named("digits"))
    pairs = [(i, seed) for i in range(100) for seed in (0, 5)]
    loader = view_loader(views, [pairs])
    assert isinstance(loader, InMemory)
    (batch,) = loaded(loader)
    assert torch.equal(batch.views, views.__getitems__(pairs).views)


def test_images_of_one_name_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Twins(ArrayImages):
        def stable_name(self, sample: int) -> bytes:
            return b"%d" % (sample // 2)

    few = few_digits(20)
    images = Twins("twins", "train", few.images, few.labels, 10, "digits")
    with pytest.raises(DataError, match="two images have one stable name"):
        dump(tmp_path / "c.zarr", images, RECIPE, a_teacher(), DumpConfig(workers=0))
    assert not (tmp_path / "c.zarr").exists()


def test_keys_are_those_of_the_names(tmp_path: Path) -> None:
    old = folder_images(paint(tmp_path / "pets", OLD))
    all_of_them = folder_images(paint(tmp_path / "pets", NEW))
    assert set(old.keys().tolist()) < set(all_of_them.keys().tolist())
    name = hashlib.blake2b(b"cat/b.png", digest_size=8).digest()
    assert int(old.keys()[0]) == int.from_bytes(name, "little")
    assert few_digits(20).keys().tolist() == few_digits(30).keys().tolist()[:20]
    assert len(set(few_digits(300).keys().tolist())) == 300


# Dumps ----------------------------------------------------------------------------------------------------


def dump_folder(out: Path, images: Images, recipe: str = "center@8", **options: Any) -> None:
    """Batches of one, so that a sample's numbers are its own whatever shard it is in."""
    teacher = build("digits_small", num_classes=2, view_size=8, weights="random")
    settings = {"seeds": (0, 1), "top_k": 1, "batch_size": 1, "shard_samples": 4, "workers": 0, **options}
    dump(out, images, recipe_named(recipe), teacher, DumpConfig(**settings))


def by_key(cache: Path) -> dict[tuple[int, int, str], bytes]:
    """Every sample's numbers by seed and key."""
    reader = CacheReader(cache)
    keys = reader.keys()
    assert keys is not None
    return {
        (seed, int(keys[sample]), name): values[row].tobytes()
        for seed in reader.seeds()
        for shard in range(reader.spec.shards)
        for name, values in reader.read(seed, shard).items()
        for row, sample in enumerate(reader.spec.shard_range(shard))
        if name != "canary"
    }


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pets/, and c.zarr of it, dumped before and grown after new images came between the old."""
    folder = tmp_path_factory.mktemp("grown")
    dump_folder(folder / "c.zarr", folder_images(paint(folder / "pets", OLD)))
    shutil.copytree(folder / "c.zarr", folder / "old.zarr")
    images = folder_images(paint(folder / "pets", NEW))
    dump_folder(folder / "c.zarr", images, grow=True)
    return folder


def test_grown_and_finished_is_a_fresh_dump(grown: Path, tmp_path: Path) -> None:
    images = folder_images(grown / "pets")
    dump_folder(tmp_path / "fresh.zarr", images)
    found = by_key(grown / "c.zarr")
    assert found == by_key(tmp_path / "fresh.zarr")
    assert len(found) == 2 * 18 * len(
        [a for a in CacheReader(grown / "c.zarr").spec.arrays() if a.name != "canary"]
    )
    old = CacheReader(grown / "old.zarr")
    for seed in (0, 1):
        for shard in range(old.spec.shards):
            for name, values in old.read(seed, shard).items():
                np.testing.assert_array_equal(CacheReader(grown / "c.zarr").read(seed, shard)[name], values)


def test_with_random_views_too_when_the_order_is_the_same(tmp_path: Path) -> None:
    """A view is keyed by its sample's number, so what a grown cache equals is a dump in its own order."""
    pets, out = tmp_path / "pets", tmp_path / "c.zarr"
    dump_folder(out, folder_images(paint(pets, OLD)), "imagenet@8", seeds=(3,))
    images = folder_images(paint(pets, NEW))
    dump_folder(out, images, "imagenet@8", seeds=(3,), grow=True)
    dump_folder(tmp_path / "fresh.zarr", in_cache_order(CacheReader(out), images), "imagenet@8", seeds=(3,))
    assert by_key(out) == by_key(tmp_path / "fresh.zarr")


def test_old_views_stay_mixed_with_whom_they_were(tmp_path: Path) -> None:
    mixing = tmp_path / "mixing.toml"
    mixing.write_text('name = "m"\nversion = 1\n[[steps]]\ntransform = "MixUp"\n')
    dump_digits(tmp_path / "c.zarr", 30, recipe=recipe_named(str(mixing)))
    old = KeyedViews(few_digits(30), recipe_named(str(mixing)))
    dump_digits(tmp_path / "c.zarr", 50, recipe=recipe_named(str(mixing)), grow=True)
    held = in_cache_order(CacheReader(tmp_path / "c.zarr"), few_digits(50))
    new = KeyedViews(held, recipe_named(str(mixing)))
    partners = []
    for sample in range(30):
        before, now = old[sample, 1], new[sample, 1]
        assert torch.equal(before.views, now.views)
        partners.append(int(now.partners[0]))  # type: ignore[index]
    assert sorted(partners) == list(range(30))
    late = [int(new[sample, 1].partners[0]) for sample in range(30, 50)]  # type: ignore[index]
    assert len(set(late)) == 20
    assert max(late) >= 30
    assert prove_replay(CacheReader(tmp_path / "c.zarr"), new, (0, 1)) > 0


def test_a_grown_cache_is_gone_on_with_without_saying_so_again(grown: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(grown / "c.zarr", tmp_path / "c.zarr"))
    images = folder_images(grown / "pets")
    dump_folder(out, images, seeds=(0, 1, 2), shard_samples=0)
    assert CacheReader(out).complete() == [0, 1, 2]
    before = files_of(out)
    dump_folder(out, images, seeds=(0, 1, 2), grow=True)
    assert files_of(out) == before


def test_a_growth_that_stopped_goes_on(grown: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(grown / "old.zarr", tmp_path / "c.zarr"))
    images = folder_images(grown / "pets")
    teacher = build("digits_small", num_classes=2, view_size=8, weights="random")
    config = DumpConfig((0, 1), 1, batch_size=1, workers=0, grow=True)

    def stop(done: int, _total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dump(out, images, recipe_named("center@8"), teacher, config, stop)
    assert CacheReader(out).complete() == []
    dump_folder(out, images)
    assert by_key(out) == by_key(grown / "c.zarr")


def test_data_that_has_grown_is_refused_unless_asked_for(grown: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MismatchError, match=r"holds 10 of these 18 images.* give --grow to append the other 8"
    ):
        dump_folder(grown / "old.zarr", folder_images(grown / "pets"))
    pets = Path(shutil.copytree(grown / "pets", tmp_path / "pets"))
    (pets / "train" / "cat" / "d.png").unlink()
    gone = r"sample 1, which came after \S+cat/b\.png: expected an image, found none"
    for cache in ("old.zarr", "c.zarr"):
        with pytest.raises(MismatchError, match=gone):
            dump_folder(grown / cache, folder_images(pets), grow=True)
    (pets / "train" / "cat" / "d.png").write_bytes(b"another size")
    with pytest.raises(MismatchError, match="fingerprint of the first 10"):
        dump_folder(grown / "old.zarr", folder_images(pets), grow=True)


def test_another_class_is_refused_by_name(grown: Path, tmp_path: Path) -> None:
    pets = paint(Path(shutil.copytree(grown / "pets", tmp_path / "pets")), NEW, ("bird",))
    with pytest.raises(MismatchError, match=r"dataset\.num_classes.*the classes of a cache cannot change"):
        Stream.from_cache(grown / "old.zarr", folder_images(pets))
    teacher = build("digits_small", num_classes=3, view_size=8, weights="random")
    config = DumpConfig((0,), 1, batch_size=1, workers=0, grow=True)
    with pytest.raises(MismatchError, match=r"dataset\.num_classes: expected 3, found 2"):
        dump(grown / "old.zarr", folder_images(pets), recipe_named("center@8"), teacher, config)


def test_images_of_your_own_say_how_to_tell_old_ones(tmp_path: Path) -> None:
    class Own(ArrayImages):
        fingerprint_of = Images.fingerprint_of

        @property
        def fingerprint(self) -> str:
            return f"{len(self)} of them"

        def __init__(self, n: int) -> None:
            few = few_digits(n)
            self.name, self.split, self.num_classes = "own", "train", 10
            self.images, self.labels = few.images, few.labels

    config = DumpConfig((0,), 2, workers=0)
    dump(tmp_path / "c.zarr", Own(20), RECIPE, a_teacher(), config)
    with pytest.raises(DataError, match=r"give Own a fingerprint_of\(samples\)"):
        dump(tmp_path / "c.zarr", Own(30), RECIPE, a_teacher(), dataclasses.replace(config, grow=True))


def test_caches_of_before_there_were_keys_open_and_say_why_they_do_not_grow(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", 30)
    shutil.rmtree(tmp_path / "c.zarr" / "sample_key")
    assert "parts" not in root_of(tmp_path / "c.zarr")
    assert dump_digits(tmp_path / "c.zarr", 30).views == 0
    with pytest.raises(MismatchError, match="it has no sample keys, so its data cannot grow"):
        dump_digits(tmp_path / "c.zarr", 40, grow=True)


# Training -------------------------------------------------------------------------------------------------


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


def test_a_grown_cache_is_verified_repaired_and_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    dump_digits(out, 70)
    dump_digits(out, 90, grow=True, seeds=(1,))  # seed 0 still has its old shape
    before = arrays_of_seed(out, 1)
    for shard in (1, 2):  # the short one of the old part, and the new one
        file = out / "seed-1" / "top" / "c" / str(shard)
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    assert {(p.seed, p.shard) for p in verify(CacheReader(out)).problems} == {(1, 1), (1, 2)}
    config = DumpConfig(batch_size=24, workers=0)
    done = repair(out, verify(CacheReader(out)), config, lambda: (few_digits(90), a_teacher()))
    assert (done.redumped, done.identical, done.after.clean) == (((1, 1), (1, 2)), 2, True)
    for key, values in arrays_of_seed(out, 1).items():
        np.testing.assert_array_equal(values, before[key])
    assert verify(CacheReader(out)).clean
    asked = rerun(CacheReader(out), few_digits(90), a_teacher(), 120)
    assert (asked.clean, asked.views, asked.top1_agreement) == (True, 120, 1.0)


def arrays_of_seed(cache: Path, seed: int) -> dict[tuple[int, str], np.ndarray]:
    reader = CacheReader(cache)
    shards = range(reader.spec.shards)
    return {(j, name): values for j in shards for name, values in reader.read(seed, j).items()}


def test_copies_follow(tmp_path: Path) -> None:
    before = before_growth(tmp_path / "c.zarr")
    copy(before, tmp_path / "d.zarr")
    CacheWriter.open(before, GROWN, KEYS, grow=True)
    copy(before, tmp_path / "e.zarr")  # the seeds have their old shape yet
    fill(before, GROWN, seeds=(1,))
    for copied in ("d.zarr", "e.zarr", "f.zarr"):
        copy(before, tmp_path / copied)
        reader = CacheReader(tmp_path / copied)
        assert (reader.spec, reader.complete()) == (GROWN, [1])
        for shard in range(4):
            assert_holds(reader, 1, shard)
        assert reader.keys().tolist() == KEYS.tolist()  # type: ignore[union-attr]


def test_what_is_derived_from_a_grown_cache_follows_it(tmp_path: Path) -> None:
    source, out = tmp_path / "c.zarr", tmp_path / "d.zarr"
    dump_digits(source, 70)
    derive(source, out, top_k=2)
    dump_digits(source, 90, grow=True)
    report = derive(source, out, top_k=2)
    assert (report.shards_there, report.shards_written) == (4, 2)
    derive(source, tmp_path / "whole.zarr", top_k=2)
    assert_same(out, tmp_path / "whole.zarr")
    assert by_key(out) == by_key(tmp_path / "whole.zarr")


def test_by_command(tmp_path: Path) -> None:
    paint(tmp_path / "pets", OLD)
    data = ("--data", "imagefolder:pets", "--out", "c.zarr")
    words = ("dump", "--teacher", "resnet20", *data, "--recipe", "center@16", "--seeds", 0, "--workers", 0)
    succeeds(*words, cwd=tmp_path)
    paint(tmp_path / "pets", NEW)
    ended = logitcache(
        *("train", "--student", "resnet20", "--cache", "c.zarr", "--epochs", 1, "--workers", 0), cwd=tmp_path
    )
    assert ended.exit_code == 0, ended.output
    assert "note: 8 images came after the cache and are left out" in ended.stderr
    assert "give --grow to append the other 8" in fails(*words, cwd=tmp_path)
    assert json.loads(succeeds(*words, "--grow", "--json", cwd=tmp_path))["views"] == 8
    assert json.loads(succeeds("info", "c.zarr", "--json", cwd=tmp_path))["n"] == 18


# Seeds side by side ---------------------------------------------------------------------------------------

DUMP = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_dump import dump_digits
sys.stdin.readline()
dump_digits(Path({out!r}), 150, seeds=({seed},))
"""


def test_two_processes_dump_two_seeds_of_one_new_cache_at_once(tmp_path: Path) -> None:
    out, tests = tmp_path / "c.zarr", str(Path(__file__).parent)
    codes = [DUMP.format(tests=tests, out=str(out), seed=seed) for seed in (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for code in codes
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")  # they read it when their imports are done, and begin the cache together
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    dump_digits(tmp_path / "whole.zarr", 150)
    assert CacheReader(out).complete() == [0, 1]
    assert_same(out, tmp_path / "whole.zarr")
    assert arrays_of(out)
