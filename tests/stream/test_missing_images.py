"""Images of a cache that are gone: named, or left out of training, and every other view keeps its own row."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from dumping import RECIPE, a_teacher
from growing import folder_images, folder_teacher, paint
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed import BOTH
from PIL import Image
from small import few_digits
from torch.utils.data import DataLoader

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import (
    DataError,
    DriftError,
    ImageError,
    MismatchError,
    OptionError,
)
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.store import CacheReader
from logitcache.stream.batch import Batch
from logitcache.stream.stream import Stream
from logitcache.stream.torch_dataset import CachedViews, ViewSampler
from logitcache.teacher.cached import CachedTeacher
from logitcache.views.alignment import align_images
from logitcache.views.datasets import open_images
from logitcache.views.images import Images, MissingImagesWarning
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.mixing import Mixer, draw_partner, find_drawer

FIRST, LATER = tuple(f"{i:02}" for i in range(9)), ("a", "05b", "z")
SEEDS = (0, 3)
CROP = StepSpec("RandomCrop", {"size": 8})
RECIPES = {
    "plain": RecipeSpec("cropped", 1, (CROP,), "center@8"),
    "mixed": RecipeSpec("mixed", 1, (CROP, *BOTH), "center@8"),
}
N = 2 * (len(FIRST) + len(LATER))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and caches of them that have grown once, one for each recipe."""
    folder = tmp_path_factory.mktemp("made")
    for names, grow in ((FIRST, False), (LATER, True)):
        paint(folder / "pets", names)
        config = DumpConfig(SEEDS, 2, batch_size=4, shard_samples=4, workers=0, grow=grow)
        for name, recipe in RECIPES.items():
            dump(folder / f"{name}.zarr", folder_images(folder / "pets"), recipe, folder_teacher(), config)
    return folder


def open_some(made: Path, folder: Path, gone: set[int], name: str = "plain") -> Images:
    """Copy the images but for some samples of a cache."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made / "pets", folder)
    whole = align_images(CacheReader(made / f"{name}.zarr"), folder_images(made / "pets"))
    for sample in gone:
        (folder / "train" / whole.stable_name(sample).decode()).unlink()
    return folder_images(folder)


def batches(stream: Stream) -> Iterator[Batch]:
    for epoch in range(2):
        yield from stream.epoch(epoch)


def same(mine: object, theirs: object) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    assert isinstance(mine, torch.Tensor)
    assert isinstance(theirs, torch.Tensor)
    return torch.equal(mine, theirs)


@given(gone=st.sets(st.integers(0, N - 1), min_size=1, max_size=N // 2 - 1))
@settings(max_examples=12, deadline=None)
@pytest.mark.filterwarnings("ignore:.*are missing and left out")
def test_batches_without_missing_images_are_those_of_the_others(
    gone: set[int], made: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    images = open_some(made, tmp_path_factory.getbasetemp() / "some", gone)
    left = tuple(sorted(set(range(N)) - gone))
    options = {"seeds": SEEDS, "batch_size": 4, "workers": 0, "device": "cpu"}
    stream = Stream.from_cache(made / "plain.zarr", images, missing="skip", **options)
    whole = Stream.from_cache(made / "plain.zarr", folder_images(made / "pets"), samples=left, **options)
    assert stream.views.images.missing.tolist() == sorted(gone)
    pairs = list(zip(batches(stream), batches(whole), strict=True))
    assert sorted({i for batch, _ in pairs for i in batch.samples.tolist()}) == list(left)
    for mine, theirs in pairs:
        for part in ("views", "labels", "samples", "seeds"):
            assert same(getattr(mine, part), getattr(theirs, part))
        assert mine.teacher is not None
        assert theirs.teacher is not None
        for part in ("ids", "gap", "top"):
            assert same(getattr(mine.teacher, part), getattr(theirs.teacher, part))


@given(gone=st.sets(st.integers(0, N - 1), min_size=1, max_size=4))
@settings(max_examples=12, deadline=None)
@pytest.mark.filterwarnings("ignore:.*are missing and left out")
def test_views_that_a_missing_image_is_mixed_into_are_left_out_and_no_others(
    gone: set[int], made: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache, recipe = CacheReader(made / "mixed.zarr"), RECIPES["mixed"]
    images = open_some(made, tmp_path_factory.getbasetemp() / "some", gone, "mixed")
    stream = Stream.from_cache(
        cache, images, missing="skip", seeds=SEEDS, batch_size=3, workers=0, device="cpu"
    )
    whole = KeyedViews(align_images(cache, folder_images(made / "pets")), recipe)
    teacher, mixer = CachedTeacher(cache), Mixer.from_recipe(recipe)
    seen = set()
    for batch in batches(stream):
        pairs = list(zip(batch.samples.tolist(), batch.seeds.tolist(), strict=True))
        seen.update(pairs)
        expected = whole.__getitems__(pairs)
        assert same(batch.views, expected.views)
        assert same(batch.partners, expected.partners)
        assert batch.mixed is not None
        assert expected.partners is not None
        assert same(batch.mixed.other, torch.from_numpy(whole.images.labels[expected.partners.numpy()]))
        assert batch.teacher is not None
        assert same(batch.teacher.top, teacher.take(batch.samples, batch.seeds).top)

    def is_possible(sample: int, seed: int) -> bool:
        mix = mixer.draw(sample, seed, whole.images.population(sample))
        return sample not in gone and (mix is None or mix.partner not in gone)

    assert seen == {(i, seed) for i in range(N) for seed in SEEDS if is_possible(i, seed)}


@given(n=st.integers(1, 5000), seed=st.integers(0, 1 << 40), data=st.data())
def test_who_draws_a_partner_is_found_from_the_partner(n: int, seed: int, data: st.DataObject) -> None:
    sample = data.draw(st.integers(0, n - 1))
    assert find_drawer(draw_partner(sample, seed, n), seed, n) == sample


def test_a_loader_of_your_own_goes_without_them_too(made: Path, tmp_path: Path) -> None:
    images = open_some(made, tmp_path / "some", {2, 20})
    with pytest.warns(
        UserWarning, match=r"2 of 24 images of .*plain\.zarr are missing and left out: \S+cat/02"
    ):
        data = CachedViews(images, made / "plain.zarr", missing="skip")
    sampler = ViewSampler(data)
    expected = CachedViews(folder_images(made / "pets"), made / "plain.zarr")
    found = []
    for views, labels, rows in DataLoader(data, 5, sampler=sampler):
        found += list(zip(views, labels, rows, strict=True))
    sampler.set_epoch(0)
    pairs = list(sampler)
    assert {sample for sample, _ in pairs} == set(range(N)) - {2, 20}
    for pair, item in zip(pairs, found, strict=True):
        view, label, row = expected[pair]
        assert same(item[0], view)
        assert int(item[1]) == label
        assert same(item[2], row)
    with pytest.raises(
        DataError, match=r"is missing, so no view of it can be made; .* Subset of data\.usable"
    ):
        data[2, 0]
    with pytest.raises(ImageError, match="sample 20 of"):
        data.views.images.image(20)


@pytest.mark.filterwarnings("ignore:.*are missing and left out")
def test_a_missing_image_has_no_name_and_no_digest(made: Path, tmp_path: Path) -> None:
    cache, whole = CacheReader(made / "plain.zarr"), folder_images(made / "pets")
    whole = align_images(cache, whole)
    images = align_images(cache, open_some(made, tmp_path / "some", {2, N - 1}), missing="skip")
    for i in range(N):
        if i in (2, N - 1):
            for ask in (
                lambda i=i: images.stable_name(i),
                lambda i=i: images.fingerprint_of(np.array([0, i])),
            ):
                with pytest.raises(ImageError, match=f"sample {i} of .* is missing"):
                    ask()
        else:
            assert images.stable_name(i) == whole.stable_name(i)
            assert images.fingerprint_of(np.array([i])) == whole.fingerprint_of(np.array([i]))
    with pytest.raises(ImageError):
        images.fingerprint_of(slice(None))
    assert images.fingerprint == whole.fingerprint
    assert align_images(cache, images).missing.tolist() == [2, N - 1]


def test_an_ensemble_warns_of_them_once(made: Path, tmp_path: Path) -> None:
    images = open_some(made, tmp_path / "some", {3})
    shutil.copytree(made / "plain.zarr", tmp_path / "other.zarr")
    caches = [made / "plain.zarr", tmp_path / "other.zarr"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream = Stream.from_caches(caches, images, missing="skip", batch_size=4, workers=0, device="cpu")
    assert [str(one.message) for one in caught if one.category is MissingImagesWarning] == [
        stream.views.images.missing_note
    ]


# What is said ---------------------------------------------------------------------------------------------


def refusal(cache: Path, images: Images, missing: str = "error") -> MismatchError:
    with pytest.raises(MismatchError) as refused:
        align_images(CacheReader(cache), images, missing=missing)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    return refused.value


def found_of(refused: MismatchError, field: str) -> object:
    (difference,) = [f for f in refused.fields if f.field == field]
    assert difference.expected == "none"
    return difference.found


@pytest.mark.parametrize(
    ("gone", "names"),
    [
        ({3}, "1: TRAIN/cat/03.png"),
        ({0, 17}, "2: TRAIN/cat/00.png and TRAIN/dog/08.png"),
        ({4, 5, 6, 7}, "4: TRAIN/cat/04.png, TRAIN/cat/05.png, TRAIN/cat/06.png and 1 other"),
        ({19}, "1: TRAIN/cat/a.png"),  # as there is a dog/a.png
    ],
)
def test_missing_images_are_named(gone: set[int], names: str, made: Path, tmp_path: Path) -> None:
    refused = refusal(made / "plain.zarr", open_some(made, tmp_path / "some", gone))
    assert found_of(refused, "missing images") == names.replace("TRAIN", f"{tmp_path}/some/train")
    assert "--missing skip" in str(refused)
    assert f"dataset.n: expected {N}, found {N - len(gone)}" in str(refused)


@pytest.mark.parametrize("name", ["cat/03.JPG.png", "cat/three.png", "dog/03b.png", "cat/03.bmp"])
def test_a_renamed_image_is_missing_and_new(name: str, made: Path, tmp_path: Path) -> None:
    open_some(made, tmp_path / "some", set())
    train = tmp_path / "some" / "train"
    (train / "cat" / "03.png").rename(train / name)
    refused = refusal(made / "plain.zarr", folder_images(tmp_path / "some"))
    assert found_of(refused, "missing images") == f"1: {train}/cat/03.png"
    assert found_of(refused, "new images") == f"1: {train}/{name}"


@pytest.mark.parametrize("name", ["cat/02.avif", "dog/odd.avif"])
def test_an_image_that_pillow_no_longer_reads_is_named_with_why(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = tmp_path / "pets" / "train"
    shutil.copytree(made / "pets", tmp_path / "pets")
    (train / "cat" / "02.png").rename(train / name)
    config = DumpConfig((0,), 2, batch_size=4, shard_samples=4, workers=0)
    monkeypatch.setattr("logitcache.views.picture_files._read_later", lambda: frozenset({".avif"}))
    dump(tmp_path / "c.zarr", folder_images(tmp_path / "pets"), RECIPES["plain"], folder_teacher(), config)
    monkeypatch.setattr("logitcache.views.picture_files._read_later", frozenset)
    refused = refusal(tmp_path / "c.zarr", folder_images(tmp_path / "pets"))
    assert found_of(refused, "missing images") == f"1: {train}/{name}"
    assert f"not read here: 1 .avif, first {train}/{name}" in str(refused)
    assert "install a Pillow that reads them" in str(refused)


@pytest.mark.parametrize("suffix", [".tga", ".jfif"])
def test_an_image_of_another_kind_than_its_neighbours_is_named(
    suffix: str, made: Path, tmp_path: Path
) -> None:
    train = tmp_path / "pets" / "train"
    shutil.copytree(made / "pets", tmp_path / "pets")
    (train / "cat" / "03.png").rename(train / "cat" / f"03{suffix}")
    config = DumpConfig((0,), 2, batch_size=4, shard_samples=4, workers=0)
    dump(tmp_path / "c.zarr", folder_images(tmp_path / "pets"), RECIPES["plain"], folder_teacher(), config)
    (train / "cat" / f"03{suffix}").unlink()
    refused = refusal(tmp_path / "c.zarr", folder_images(tmp_path / "pets"))
    assert found_of(refused, "missing images") == f"1: {train}/cat/03{suffix}"


def test_an_image_whose_name_nothing_tells_is_placed(made: Path, tmp_path: Path) -> None:
    names = ("b1f8", "quince", "zebra")
    config = DumpConfig((0,), 2, batch_size=4, shard_samples=4, workers=0)
    paint(tmp_path / "pets", (*names[:1], "k"), ("cat",))
    paint(tmp_path / "pets", names[1:], ("dog",))
    dump(tmp_path / "c.zarr", folder_images(tmp_path / "pets"), RECIPES["plain"], folder_teacher(), config)
    train = tmp_path / "pets" / "train"
    (train / "dog" / "quince.png").unlink()
    refused = refusal(tmp_path / "c.zarr", folder_images(tmp_path / "pets"))
    assert found_of(refused, "missing images") == (
        f"1: one whose name is not known, after {train}/cat/k.png and before {train}/dog/zebra.png"
    )


def test_a_changed_image_is_named_by_its_time(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "pets", tmp_path / "pets")
    config = DumpConfig((0,), 2, batch_size=4, shard_samples=4, workers=0)
    images = folder_images(tmp_path / "pets")
    dump(tmp_path / "c.zarr", images, RECIPES["plain"], folder_teacher(), config)
    file = tmp_path / "pets" / "train" / "dog" / "04.png"
    file.write_bytes(file.read_bytes() + b"more")
    for missing in ("error", "skip"):  # which leaves out only what is gone
        refused = refusal(tmp_path / "c.zarr", folder_images(tmp_path / "pets"), missing)
        assert str(found_of(refused, "changed images")).startswith(f"{file}, the only one changed since")
    assert "put back what was changed" in str(refused)


def test_images_whose_views_differ_are_named(made: Path, tmp_path: Path) -> None:
    cache = CacheReader(made / "plain.zarr")
    canaries = sorted(cache.canaries(0))[:4]
    images = open_some(made, tmp_path / "some", set())
    names = [align_images(cache, images).describe(sample) for sample in canaries]
    for name in names:
        paint_other(Path(name))
    with pytest.raises(MismatchError) as refused:
        Stream.from_cache(cache, folder_images(tmp_path / "some"), workers=0)
    listed = f"{', '.join(names[:3])} and 1 other"
    assert found_of(refused.value, "images with other views") == f"4 of {N}: {listed}"


def paint_other(file: Path) -> None:
    """Replace a picture by another of the same size on disk."""
    size = file.stat().st_size
    pixels = np.asarray(Image.open(file))
    Image.fromarray(255 - pixels).save(file)
    assert file.stat().st_size <= size
    file.write_bytes(file.read_bytes() + bytes(size - file.stat().st_size))


def test_a_class_folder_of_another_name_moves_labels_and_is_refused(made: Path, tmp_path: Path) -> None:
    open_some(made, tmp_path / "some", set())
    train = tmp_path / "some" / "train"
    (train / "cat").rename(train / "zebra")
    refused = refusal(made / "plain.zarr", folder_images(tmp_path / "some"), "skip")
    assert "class zebra: expected one at least, found none" in str(refused)
    (train / "zebra" / "00.png").unlink()
    (train / "zebra").rename(train / "cat")
    unlabelled = open_images(f"folder:{train}")
    assert "kind of data: expected imagefolder, found folder" in str(
        refusal(made / "plain.zarr", unlabelled, "skip")
    )


def test_other_data_altogether_is_not_missing_images(made: Path, tmp_path: Path) -> None:
    other = folder_images(paint(tmp_path / "other", ("q", "r")))
    for missing in ("error", "skip"):
        refused = refusal(made / "plain.zarr", other, missing)
        assert f"images of the cache: expected {N}, found none" in str(refused)
        assert "--missing" not in str(refused)


def test_what_nothing_tells_apart_is_not_left_out(made: Path, tmp_path: Path) -> None:
    dump(tmp_path / "d.zarr", few_digits(20), RECIPE, a_teacher(), DumpConfig((0,), 2, workers=0))
    assert "these images have no names" in str(refusal(tmp_path / "d.zarr", few_digits(19), "skip"))
    shutil.copytree(made / "plain.zarr", tmp_path / "old.zarr")
    shutil.rmtree(tmp_path / "old.zarr" / "sample_key")
    some = open_some(made, tmp_path / "some", {1})
    assert "no sample keys, so its data cannot grow, and nothing tells which images are missing" in str(
        refusal(tmp_path / "old.zarr", some, "skip")
    )
    with pytest.raises(OptionError, match="missing must be error or skip, found 'ignore'"):
        align_images(CacheReader(made / "plain.zarr"), some, missing="ignore")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*are missing and left out")
def test_canaries_that_are_there_are_compared_and_one_must_be(made: Path, tmp_path: Path) -> None:
    paint(tmp_path / "pets", tuple(f"{i:02}" for i in range(30)))
    config = DumpConfig((0,), 2, workers=0)
    images = folder_images(tmp_path / "pets")
    dump(tmp_path / "c.zarr", images, RECIPES["plain"], folder_teacher(), config)
    cache = CacheReader(tmp_path / "c.zarr")
    *gone, last = cache.canaries(0)
    assert len(gone) + 1 < len(images)
    for sample in gone:
        Path(images.describe(sample)).unlink()
    some = folder_images(tmp_path / "pets")
    assert len(Stream.from_cache(cache, some, missing="skip", workers=0).views.images.missing) == len(gone)
    paint_other(Path(images.describe(last)))
    with pytest.raises(DriftError, match=f"view of {images.describe(last)} under seed 0"):
        Stream.from_cache(cache, some, missing="skip", workers=0)
    Path(images.describe(last)).unlink()
    with pytest.raises(DataError, match="nothing proves the views of"):
        Stream.from_cache(cache, folder_images(tmp_path / "pets"), missing="skip", workers=0)
