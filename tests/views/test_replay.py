"""Replay is proved: other images, another recipe or other pixels are refused before anything relies on them."""

import dataclasses
import json
import shutil

import pytest
import torch
from small import Pixels

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import DataError, DriftError, FormatError, MismatchError
from logitcache.format.identity import StepSpec
from logitcache.models.build import build_model
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.versions import cpu_kind, library_versions
from logitcache.views.alignment import align_images
from logitcache.views.datasets import ArrayImages, load_digits
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.recipes import recipe_named
from logitcache.views.replay import prove_replay

N, CANARY = 40, 20
RECIPE = recipe_named("digits")


def images_of(*, n=N, start=0, classes=10, split="train", labels_plus=0) -> Pixels:
    data = load_digits("train")
    rows = slice(start, start + n)
    return Pixels("few", split, data.images[rows], data.labels[rows] + labels_plus, classes, "digits")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CacheReader:
    path = tmp_path_factory.mktemp("replay") / "c.zarr"
    teacher = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    config = DumpConfig(seeds=(0, 1), top_k=4, device="cpu", workers=0, shard_samples=16)
    dump(path, images_of(), RECIPE, teacher, config)
    return CacheReader(path)


def opened(cache: CacheReader, images: ArrayImages, tmp_path, **options) -> Stream:
    return Stream.from_cache(cache, images, spool_folder=tmp_path, device="cpu", workers=0, **options)


@pytest.mark.parametrize(
    ("images", "fields"),
    [
        (
            {"n": 39},
            {
                "dataset.n": (40, 39),
                "dataset.fingerprint": ...,
            },
        ),
        ({"start": 1}, {"dataset.fingerprint": ...}),
        ({"labels_plus": 1, "classes": 11}, {"dataset.num_classes": (10, 11), "dataset.fingerprint": ...}),
        ({"split": "test"}, {"dataset.split": ("train", "test")}),
    ],
    ids=str,
)
def test_other_images_are_refused_and_each_field_named(images, fields, cache, tmp_path):
    with pytest.raises(MismatchError, match="other images") as refused:
        align_images(cache, images_of(**images))
    assert {f.field for f in refused.value.fields} == set(fields)
    for found in refused.value.fields:
        assert fields[found.field] in (..., (found.expected, found.found))
        assert found.field in str(refused.value)
    with pytest.raises(MismatchError, match="other images"):
        opened(cache, images_of(**images), tmp_path, allow_drift=True)  # not a matter of drift


def test_the_same_images_by_another_name_pass(cache):
    same = images_of()
    same.name = "moved:/elsewhere"
    align_images(cache, same)


@pytest.mark.parametrize("most", [1, 7, 256])
def test_the_same_views_are_proved(cache, most):
    canaries = sum(
        len(set(cache.spec.layout.canary_samples(shard))) for shard in range(cache.spec.layout.shards)
    )
    compared = prove_replay(cache, KeyedViews(images_of(), RECIPE), (0, 1), most)
    assert 2 * 2 <= compared <= max(2 * canaries, 2)
    assert compared == 2 * canaries or most < 256
    assert prove_replay(cache, KeyedViews(images_of(), RECIPE), ()) == 0


def test_changed_pixels_are_drift_that_names_image_and_seed(cache, tmp_path):
    images = images_of()
    assert CANARY in cache.canaries(0)
    images.changed = CANARY
    align_images(cache, images)  # unseen by the fingerprint
    with pytest.raises(DriftError) as refused:
        opened(cache, images, tmp_path)
    first = refused.value.fields[0]
    assert first.field == f"view of sample {CANARY} of few under seed 0"
    assert first.expected == f"CRC {cache.canaries(0)[CANARY]:08x}"
    assert first.field in str(refused.value)
    assert "\n" not in str(refused.value)


def test_drift_may_be_allowed_and_is_measured_and_told(cache, tmp_path):
    images = images_of()
    images.changed = CANARY
    made = opened(cache, images, tmp_path, allow_drift=True)
    assert sorted(int(s) for batch in made.epoch(0) for s in batch.samples) == list(range(N))
    assert made.drift is not None
    assert (made.drift.differing, made.drift.compared) == (2, 2 * len(cache.canaries(0)))
    assert f"2 of {made.drift.compared} views are not" in str(made.drift)
    assert f"view of sample {CANARY} of few under seed 0: expected CRC" in str(made.drift)
    told = json.loads(json.dumps(made.about()))["drift"]
    assert told["fields"][0][0] == f"view of sample {CANARY} of few under seed 0"


def test_no_drift_is_told_where_there_is_none(cache, tmp_path):
    made = opened(cache, images_of(), tmp_path, allow_drift=True)
    assert made.drift is None
    assert made.about()["drift"] is None


def test_shards_left_out_of_the_proof_are_not_read(cache, tmp_path):
    damaged = shutil.copytree(cache.path, tmp_path / "c.zarr")
    (damaged / "seed-0" / "canary" / "c" / "1" / "0").write_bytes(b"damaged")
    (damaged / "seed-0" / "commit" / "c" / "1").write_bytes(b"damaged")
    views = KeyedViews(images_of(), RECIPE)
    with pytest.raises(FormatError):
        prove_replay(CacheReader(damaged), views, (0, 1))
    whole = prove_replay(cache, views, (0, 1))
    left = prove_replay(CacheReader(damaged), views, (0, 1), without={0: [1]})
    assert left == whole - len(set(cache.spec.layout.canary_samples(1)))


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (StepSpec("RandomCrop", {"size": 8, "padding": 2}),),
        (*RECIPE.steps, StepSpec("RandomHorizontalFlip")),
    ],
    ids=["none", "other padding", "one more"],
)
def test_another_recipe_is_drift(steps, cache):
    views = KeyedViews(images_of(), dataclasses.replace(RECIPE, steps=steps))
    with pytest.raises(DriftError, match=r"view of sample \d+ of few under seed"):
        prove_replay(cache, views, (0, 1))


def test_drift_names_the_libraries_whose_versions_differ(cache):
    images = images_of()
    images.changed = CANARY
    elsewhere = CacheReader(cache.path)
    elsewhere.spec = dataclasses.replace(cache.spec, versions={**cache.spec.versions, "torchvision": "0.1"})
    with pytest.raises(DriftError) as refused:
        prove_replay(elsewhere, KeyedViews(images, RECIPE), (1,))
    assert [f.field for f in refused.value.fields[1:]] == ["version of torchvision"]
    assert refused.value.fields[1].expected == "0.1"
    assert "library versions" in str(refused.value)


@pytest.mark.parametrize(
    ("cpu", "fields", "told"),
    [
        ("riscv64 DEFAULT", ["kind of CPU"], "files have changed, or .* otherwise on a CPU without AVX2"),
        ("x86_64 NO AVX", ["kind of CPU"], "files have changed, or .* otherwise on a CPU without AVX2"),
        (cpu_kind(), [], "the libraries are those that it was made with, so files have changed"),
        (
            None,
            [],
            "files have changed, .* does not say on what kind of CPU, .* by one level .* --allow-drift",
        ),
    ],
)
def test_drift_names_another_kind_of_cpu_where_it_is_known(cpu, fields, told, cache):
    images = images_of()
    images.changed = CANARY
    elsewhere = CacheReader(cache.path)
    versions = {**library_versions(), **({} if cpu is None else {"cpu": cpu})}
    elsewhere.spec = dataclasses.replace(cache.spec, versions=versions)
    with pytest.raises(DriftError, match=told) as refused:
        prove_replay(elsewhere, KeyedViews(images, RECIPE), (1,))
    assert [f.field for f in refused.value.fields[1:]] == fields


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("AVX2", "AVX512", "the libraries are those .* so files have changed"),
        ("AVX2", "DEFAULT", "files have changed, or .* otherwise on a CPU without AVX2"),
    ],
)
def test_the_kind_of_cpu_is_a_reason_only_where_one_lacks_avx2(was, now, told, cache, monkeypatch):
    images = images_of()
    images.changed = CANARY
    elsewhere = CacheReader(cache.path)
    elsewhere.spec = dataclasses.replace(cache.spec, versions={**library_versions(), "cpu": f"x86_64 {was}"})
    monkeypatch.setattr("logitcache.views.replay.cpu_kind", lambda: f"x86_64 {now}")
    with pytest.raises(DriftError, match=told) as refused:
        prove_replay(elsewhere, KeyedViews(images, RECIPE), (1,))
    assert [f.field for f in refused.value.fields[1:]] == ["kind of CPU"]


def test_an_earlier_cache_of_other_versions_is_told_of_resizing_too(cache):
    images = images_of()
    images.changed = CANARY
    elsewhere = CacheReader(cache.path)
    elsewhere.spec = dataclasses.replace(cache.spec, versions={**library_versions(), "torchvision": "0.1"})
    with pytest.raises(DriftError, match=r"library versions and files .* earlier logitcache"):
        prove_replay(elsewhere, KeyedViews(images, RECIPE), (1,))


@pytest.mark.parametrize("changed", [False, True])
def test_another_decoder_of_jpeg_files_is_told_only_where_views_differ(changed: bool, cache):
    images = images_of()
    elsewhere = CacheReader(cache.path)
    elsewhere.spec = dataclasses.replace(cache.spec, versions={**cache.spec.versions, "jpeg": "another 1.0"})
    if not changed:
        assert prove_replay(elsewhere, KeyedViews(images, RECIPE), (1,))
        return
    images.changed = CANARY
    with pytest.raises(DriftError) as refused:
        prove_replay(elsewhere, KeyedViews(images, RECIPE), (1,))
    (field,) = refused.value.fields[1:]
    assert (field.field, field.expected) == ("decoder of JPEG files", "another 1.0")
    assert field.found == cache.spec.versions["jpeg"]


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_an_image_that_no_longer_decodes_is_named(on_bad_image, cache):
    images = images_of()
    images.changed, images.broken = CANARY, True
    named = rf"sample {CANARY} of few does not decode, and did when .*c\.zarr"
    with pytest.raises(DataError, match=named) as said:
        prove_replay(cache, KeyedViews(images, RECIPE, on_bad_image), (0,))
    assert "skip" not in str(said.value)  # that does not help here


@pytest.mark.parametrize("seeds", [(0, 1), (2,)], ids=["going on", "another seed"])
def test_a_dump_into_a_cache_whose_images_broke_or_changed_names_them(seeds, cache):
    teacher = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    config = DumpConfig(seeds, 4, device="cpu", workers=0, shard_samples=16, on_bad_image="skip")
    images = images_of()
    images.changed = CANARY
    with pytest.raises(DriftError, match=f"view of sample {CANARY} of few under seed 0"):
        dump(cache.path, images, RECIPE, teacher, config)
    images.broken = True
    with pytest.raises(DataError, match=f"sample {CANARY} of few does not decode"):
        dump(cache.path, images, RECIPE, teacher, config)
    assert cache.complete() == [0, 1]


def test_images_that_did_not_decode_when_dumped_are_not_compared(tmp_path):
    images = images_of()
    images.changed, images.broken = 0, True  # the first canary
    teacher = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    config = DumpConfig(seeds=(0,), device="cpu", workers=0, shard_samples=40, on_bad_image="skip")
    dump(tmp_path / "c.zarr", images, RECIPE, teacher, config)
    reader = CacheReader(tmp_path / "c.zarr")
    assert reader.canaries(0)[0] == 0
    assert prove_replay(reader, KeyedViews(images, RECIPE), (0,)) == reader.spec.canaries - 1


def test_the_proof_leaves_the_global_generator_alone(cache):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    prove_replay(cache, KeyedViews(images_of(), RECIPE), (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
