"""By dump: grown and finished is a fresh dump, old images are told from new ones, and nothing else grows."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dumping import RECIPE, a_teacher, dump_digits
from growing import NEW, OLD, by_key, dump_folder, folder_images, paint
from small import few_digits
from small_caches import attributes as root_of
from small_caches import files_of

from logitcache.dump.filler import ViewsDone
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import DataError, MismatchError
from logitcache.models.build import build_model
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.views.alignment import align_images
from logitcache.views.datasets import ArrayImages
from logitcache.views.folders import FolderImages
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.loader import VectorizedLoader, iterate_batches, view_loader
from logitcache.views.ordered_images import OrderedImages
from logitcache.views.own_images import WrappedImages
from logitcache.views.recipes import recipe_named
from logitcache.views.replay import prove_replay

pytestmark = pytest.mark.usefixtures("fast")

# Images ---------------------------------------------------------------------------------------------------


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
    assert isinstance(loader, VectorizedLoader)
    (batch,) = iterate_batches(loader)
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
        for shard in range(old.spec.layout.shards):
            for name, values in old.read(seed, shard).items():
                np.testing.assert_array_equal(CacheReader(grown / "c.zarr").read(seed, shard)[name], values)


def test_with_random_views_too_when_the_order_is_the_same(tmp_path: Path) -> None:
    """A view is keyed by its sample's number, so what a grown cache equals is a dump in its own order."""
    pets, out = tmp_path / "pets", tmp_path / "c.zarr"
    dump_folder(out, folder_images(paint(pets, OLD)), "imagenet@8", seeds=(3,))
    images = folder_images(paint(pets, NEW))
    dump_folder(out, images, "imagenet@8", seeds=(3,), grow=True)
    dump_folder(tmp_path / "fresh.zarr", align_images(CacheReader(out), images), "imagenet@8", seeds=(3,))
    assert by_key(out) == by_key(tmp_path / "fresh.zarr")


def test_old_views_stay_mixed_with_whom_they_were(tmp_path: Path) -> None:
    mixing = tmp_path / "mixing.toml"
    mixing.write_text('name = "m"\nversion = 1\n[[steps]]\ntransform = "MixUp"\n')
    dump_digits(tmp_path / "c.zarr", 30, recipe=recipe_named(str(mixing)))
    old = KeyedViews(few_digits(30), recipe_named(str(mixing)))
    dump_digits(tmp_path / "c.zarr", 50, recipe=recipe_named(str(mixing)), grow=True)
    held = align_images(CacheReader(tmp_path / "c.zarr"), few_digits(50))
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
    teacher = build_model("digits_small", num_classes=2, view_size=8, weights="random")
    config = DumpConfig((0, 1), 1, batch_size=1, workers=0, grow=True)

    def stop(views: ViewsDone) -> None:
        if views.done == 8:
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
    gone = r"missing images: expected none, found 1: \S+pets/train/cat/d\.png"
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
    teacher = build_model("digits_small", num_classes=3, view_size=8, weights="random")
    config = DumpConfig((0,), 1, batch_size=1, workers=0, grow=True)
    with pytest.raises(MismatchError, match=r"dataset\.num_classes: expected 2, found 3"):
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
