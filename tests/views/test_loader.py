"""Loading: what a batch holds depends on its (sample, seed) pairs and on nothing else."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask.system
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from logitcache.errors import DataError, LogitCacheError, OptionError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.views.datasets import ArrayImages, open_images
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews, Pair, ViewBatch, check_batch
from logitcache.views.loader import choose_workers, iterate_batches, report_worker_deaths, view_loader
from logitcache.views.maker import ViewMaker, digest
from logitcache.views.recipes import recipe_named

CPU = torch.device("cpu")

OWN_CODE = """
import random
import numpy as np
import torch

def noise(image):
    drawn = [random.randrange(99), np.random.randint(99), int(torch.randint(99, ()))]
    return image + torch.tensor(drawn, dtype=torch.uint8).sum().to(torch.uint8)
"""


def save(path: Path, number: int, size: tuple[int, int] = (19, 23)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Images:
    """Twelve images in a folder, 19 × 23 pixels."""
    for number in range(12):
        save(tmp_path / "pictures" / f"{number:02}.png", number)
    return open_images(f"folder:{tmp_path / 'pictures'}")


@pytest.fixture
def spoiled(pictures: Images) -> Images:
    """Of twelve images the third and the sixth do not decode."""
    for sample in (2, 5):
        Path(pictures.describe(sample)).write_bytes(b"no picture")
    return pictures


def all_pairs(images: Images, seeds: range = range(3)) -> list[Pair]:
    return [(sample, seed) for seed in seeds for sample in range(len(images))]


def cut(pairs: list[Pair], size: int = 5) -> list[list[Pair]]:
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


def digests(batches: Any) -> dict[Pair, int]:
    """Read {(sample, seed): digest of the view} from batches."""
    found: dict[Pair, int] = {}
    for batch in batches:
        check_batch(batch)
        pairs = zip(batch.samples.tolist(), batch.seeds.tolist(), strict=True)
        found |= {pair: digest(view) for pair, view in zip(pairs, batch.views, strict=True)}
    return found


def made_alone(images: Images, recipe: RecipeSpec, pairs: list[Pair]) -> dict[Pair, int]:
    maker = ViewMaker(recipe)
    return {(i, seed): digest(maker(images.image(i), i, seed)) for i, seed in pairs}


# The same views whoever makes them ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker:UserWarning")  # on fewer cores
@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("shuffled", [False, True])
def test_views_are_the_same_under_any_number_of_workers_and_any_order(
    pictures: Images, workers: int, shuffled: bool
):
    recipe, pairs = recipe_named("imagenet-ra@8"), all_pairs(pictures)
    expected = made_alone(pictures, recipe, pairs)
    assert len(set(expected.values())) > len(pairs) * 0.9
    if shuffled:
        random.Random(0).shuffle(pairs)
    torch.manual_seed(workers)
    loader = view_loader(KeyedViews(pictures, recipe), cut(pairs, 7 if shuffled else 5), workers=workers)
    assert digests(loader) == expected


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_views_are_the_same_however_workers_start_over_two_passes(
    tmp_path: Path, pictures: Images, monkeypatch: pytest.MonkeyPatch, start_method: str
):
    (tmp_path / "noise_of_mine.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "noise_of_mine", raising=False)
    steps = (*recipe_named("imagenet@8").steps, StepSpec("noise_of_mine:noise"))
    recipe = RecipeSpec("mine", 1, steps)
    pairs = all_pairs(pictures)
    expected = made_alone(pictures, recipe, pairs)
    views = KeyedViews(pictures, recipe)
    loader = view_loader(views, cut(pairs), workers=2, start_method=start_method)
    assert digests(loader) == expected
    assert digests(loader) == expected  # the workers of the first pass, with what they drew behind them


def test_batches_come_in_the_order_asked_for_and_are_iterated_anew(pictures: Images):
    class Falling:
        passes = 0

        def __iter__(self):
            Falling.passes += 1
            yield from [[(i, Falling.passes)] for i in reversed(range(12))]

    loader = view_loader(KeyedViews(pictures, recipe_named("imagenet@8")), Falling(), workers=2)
    for number in (1, 2):
        got = [(int(b.samples), int(b.seeds)) for b in loader]
        assert got == [(i, number) for i in reversed(range(12))]


def test_in_memory_images_give_the_same_views_under_workers():
    images, recipe = open_images("digits", "test"), recipe_named("digits")
    pairs = all_pairs(images, range(2))
    assert digests(view_loader(KeyedViews(images, recipe), cut(pairs, 64), workers=2)) == made_alone(
        images, recipe, pairs
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=12))
def test_pairs_of_one_sample_side_by_side_equal_those_made_singly(pairs: list[Pair]):
    images = open_images("digits")
    views = KeyedViews(images, recipe_named("digits"))
    batch = views.__getitems__(pairs)
    assert batch.error == ""
    assert batch.valid.all()
    assert list(zip(batch.samples.tolist(), batch.seeds.tolist(), strict=True)) == pairs
    assert batch.labels.tolist() == [images.labels[i] for i, _ in pairs]
    for i, pair in enumerate(pairs):
        single = views[pair]
        assert single.views.shape == (1, 1, 8, 8)
        assert torch.equal(single.views[0], batch.views[i])


def test_a_sample_under_several_seeds_side_by_side_is_decoded_once(pictures: Images, monkeypatch):
    decoded: list[int] = []
    decode = pictures.image
    monkeypatch.setattr(pictures, "image", lambda sample: (decoded.append(sample), decode(sample))[1])
    views = KeyedViews(pictures, recipe_named("imagenet@8"))
    views.__getitems__([(3, 0), (3, 1), (3, 2), (7, 0), (3, 4)])
    assert decoded == [3, 7, 3]


def test_a_worker_uses_one_thread(pictures: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = "import torch\ndef threads(image): return image * 0 + torch.get_num_threads()\n"
    (tmp_path / "threads_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    views = KeyedViews(pictures, recipe_named("threads_of_mine:threads"))
    batch = next(iter(view_loader(views, [[(0, 0)]], workers=1)))
    assert batch.views.unique().tolist() == [1]


# Images that do not decode --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_an_error_that_names_its_file(spoiled: Images, workers: int):
    views = KeyedViews(spoiled, recipe_named("imagenet@8"))
    good, bad = view_loader(views, [[(0, 0), (1, 0)], [(4, 0), (5, 0)]], workers=workers)
    assert check_batch(good) is good
    assert spoiled.describe(5) in bad.error
    assert (bad.samples.tolist(), bad.seeds.tolist(), bad.labels.tolist()) == ([4, 5], [0, 0], [-1, -1])
    assert not bad.valid.any()
    with pytest.raises(DataError) as caught:
        check_batch(bad)
    assert str(caught.value) == bad.error
    assert "\n" not in bad.error


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_skipped_image_is_invalid_and_leaves_the_other_views_untouched(
    spoiled: Images, workers: int, size: int
):
    recipe = recipe_named("imagenet@8")
    pairs = all_pairs(spoiled)
    batches = list(view_loader(KeyedViews(spoiled, recipe, "skip"), cut(pairs, size), workers=workers))
    valid = torch.cat([batch.valid for batch in batches]).tolist()
    assert valid == [sample not in (2, 5) for sample, _ in pairs]
    assert {batch.views.shape[1:] for batch in batches} == {(3, 8, 8)}
    found = digests(batches)
    good = [pair for pair in pairs if pair[0] not in (2, 5)]
    assert {pair: found[pair] for pair in good} == made_alone(spoiled, recipe, good)
    assert len({found[pair] for pair in pairs if pair not in good}) == 1  # one blank picture


def test_a_skipped_image_under_several_seeds_is_invalid_under_each(spoiled: Images):
    recipe = recipe_named("imagenet@8")
    pairs = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    batch = KeyedViews(spoiled, recipe, "skip").__getitems__(pairs)
    assert batch.valid.tolist() == [True, False, False, True, True]
    good = [pairs[0], *pairs[3:]]
    found = digests([batch])
    assert {pair: found[pair] for pair in good} == made_alone(spoiled, recipe, good)


def test_a_batch_of_bad_images_only_has_views_of_the_right_shape(spoiled: Images):
    batch = KeyedViews(spoiled, recipe_named("imagenet@8"), "skip").__getitems__([(2, 0), (5, 1), (2, 1)])
    assert batch.error == ""
    assert batch.views.shape == (3, 3, 8, 8)
    assert batch.views.dtype == torch.uint8
    assert not batch.views.any()
    assert not batch.valid.any()


def test_where_no_image_decodes_skipping_ends_in_an_error(pictures: Images):
    for sample in range(12):
        Path(pictures.describe(sample)).write_bytes(b"no picture")
    batch = KeyedViews(pictures, recipe_named("imagenet@8"), "skip")[0, 0]
    with pytest.raises(DataError, match="not one image decodes"):
        check_batch(batch)


# Batches that cannot be -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_views_of_different_sizes_name_both_images_and_what_to_do(pictures: Images, workers: int):
    save(Path(pictures.describe(4)), 4, (19, 24))
    views = KeyedViews(pictures, recipe_named("identity"))
    (batch,) = view_loader(views, [[(3, 0), (4, 0)]], workers=workers)
    for words in (pictures.describe(3), pictures.describe(4), "(3, 19, 23)", "(3, 19, 24)", "crop or resize"):
        assert words in batch.error
    with pytest.raises(DataError):
        check_batch(batch)


def test_a_skipped_image_is_not_blamed_for_sizes_that_differ(spoiled: Images):
    save(Path(spoiled.describe(4)), 4, (19, 24))
    batch = KeyedViews(spoiled, recipe_named("identity"), "skip").__getitems__([(2, 0), (3, 0), (4, 0)])
    assert spoiled.describe(3) in batch.error
    assert spoiled.describe(4) in batch.error
    assert spoiled.describe(2) not in batch.error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_recipe_that_does_not_fit_names_the_image_and_the_transform(pictures: Images, workers: int):
    views = KeyedViews(pictures, RecipeSpec("big", 1, (StepSpec("RandomCrop", {"size": 20}),)), "skip")
    (batch,) = view_loader(views, [[(3, 0)]], workers=workers)
    assert batch.error.startswith(f"{pictures.describe(3)}: transform RandomCrop")
    with pytest.raises(DataError):
        check_batch(batch)


@pytest.mark.parametrize("sample", [-1, 12, 1 << 40])
def test_a_sample_that_is_not_there_is_refused_not_counted_from_the_end(pictures: Images, sample: int):
    with pytest.raises(OptionError, match=f"has samples 0 to 11, asked for .*{sample}"):
        KeyedViews(pictures, recipe_named("imagenet@8")).__getitems__([(0, 0), (sample, 0)])


# Workers --------------------------------------------------------------------------------------------------


def in_memory() -> ArrayImages:
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    return ArrayImages("mine", "train", pixels, np.arange(2), 2, "digits")


@given(st.integers(0, 1000))
def test_as_many_workers_as_asked_for(asked: int):
    for device in (CPU, torch.device("cuda")):
        assert choose_workers(asked, in_memory(), device) == asked


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (8, 7), (17, 16), (128, 16)])
def test_left_to_choose_all_cores_but_one_and_sixteen_at_most(
    pictures: Images, monkeypatch: pytest.MonkeyPatch, cores: int, expected: int
):
    monkeypatch.setattr(dask.system, "cpu_count", lambda: cores)
    assert choose_workers(-1, pictures, CPU) == expected
    assert choose_workers(-1, in_memory(), torch.device("cuda")) == expected
    assert choose_workers(-1, in_memory(), CPU) == 0


@given(st.integers(max_value=-2))
def test_fewer_than_minus_one_worker_is_refused(asked: int):
    with pytest.raises(OptionError, match=f"found {asked}"):
        choose_workers(asked, in_memory(), CPU)


def test_a_batch_without_an_error_is_required_as_it_is():
    nothing = torch.zeros(0)
    batch = ViewBatch(nothing, nothing, nothing, nothing, nothing)
    assert check_batch(batch) is batch


# Workers that die -----------------------------------------------------------------------------------------


class Deadly(ArrayImages):
    """Digits of which one kills the worker that decodes it, as the system does where memory is short."""

    def image(self, sample: int) -> torch.Tensor:
        if sample == 30 and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(sample)


def deadly() -> Deadly:
    digits = open_images("digits")
    assert isinstance(digits, ArrayImages)
    return Deadly("few", "train", digits.images[:60], digits.labels[:60], 10, "digits")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's, torn by the signal
@pytest.mark.parametrize("pause", [0.0, 0.2], ids=["found while loading", "found between batches"])
def test_a_worker_that_is_killed_is_one_line_of_ours(pause: float):
    loader = view_loader(
        KeyedViews(deadly(), recipe_named("digits")), cut([(i, 0) for i in range(60)]), workers=1
    )

    @report_worker_deaths()
    def work() -> None:
        for _ in iterate_batches(loader):
            time.sleep(pause)

    with pytest.raises(LogitCacheError, match=r"a worker that makes views died .*--workers") as said:
        work()
    assert "\n" not in str(said.value)


class Unreachable(ArrayImages):
    def image(self, sample: int) -> torch.Tensor:
        raise ConnectionError("no route to the images")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_data_set_itself_raises_is_no_dead_worker(workers: int):
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    images = Unreachable("mine", "train", pixels, np.arange(2), 2, "digits")
    loader = view_loader(KeyedViews(images, recipe_named("digits")), [[(0, 0)]], workers=workers)
    with pytest.raises(ConnectionError, match="no route to the images"):
        list(iterate_batches(loader))


def test_other_runtime_errors_pass():
    with pytest.raises(RuntimeError, match=r"^another$"), report_worker_deaths():
        raise RuntimeError("another")


def test_a_program_that_keeps_a_loader_to_its_end_ends(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("RGB", (12, 12), (30 * number, 90, 10)).save(tmp_path / f"{number}.png")
    program = f"""
from logitcache.views.datasets import open_images
from logitcache.stream.stream import Stream
from logitcache.views.recipes import recipe_named

images, recipe = open_images("folder:{tmp_path}"), recipe_named("imagenet@8")
stream = Stream.plain(images, recipe, seeds=(0,), batch_size=4, workers=1)
batches = stream.epoch(0)
print(len(next(batches).views), flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "4\n", "")
