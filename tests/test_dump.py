"""Stage one: what a shard holds depends on nothing but the cache's spec."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import few_digits

from logitcache.dump import DumpConfig, DumpReport, dump
from logitcache.errors import DataError, MismatchError, NonFiniteError, OptionError
from logitcache.forward import ViewModel
from logitcache.loader import KeyedViews
from logitcache.models import Model, build
from logitcache.sparse import SparseTeacher
from logitcache.store import CacheReader
from logitcache.views import digest, recipe_named

RECIPE = recipe_named("digits")


def a_teacher(seed: int = 0) -> Model:
    return build("digits_small", num_classes=10, view_size=8, weights="random", seed=seed)


def dump_digits(out: Path, n: int = 300, teacher: Model | None = None, **options: object) -> DumpReport:
    settings = {"seeds": (0, 1), "top_k": 4, "shard_samples": 64, "batch_size": 24, "workers": 0, **options}
    return dump(out, few_digits(n), RECIPE, teacher or a_teacher(), DumpConfig(**settings))  # type: ignore[arg-type]


def arrays_of(cache: Path) -> dict[tuple[int, int, str], np.ndarray]:
    reader = CacheReader(cache)
    return {
        (seed, shard, name): values
        for seed in reader.seeds()
        for shard in range(reader.spec.shards)
        for name, values in reader.read(seed, shard).items()
    }


def assert_same(cache: Path, other: Path) -> None:
    mine, theirs = arrays_of(cache), arrays_of(other)
    assert mine.keys() == theirs.keys()
    for key, values in mine.items():
        np.testing.assert_array_equal(values, theirs[key], err_msg=str(key))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "c.zarr"
    dump_digits(out)
    return out


def test_a_cache_holds_what_the_teacher_says_of_each_view(whole: Path) -> None:
    images, reader = few_digits(), CacheReader(whole)
    views, model = KeyedViews(images, RECIPE), ViewModel(a_teacher()).eval()
    for seed in (0, 1):
        for shard in range(reader.spec.shards):
            held, rows = reader.read(seed, shard), reader.spec.shard_range(shard)
            batch = views.__getitems__([(i, seed) for i in rows])
            with torch.no_grad():
                expected = SparseTeacher.from_logits(model(batch.views), 4)
            np.testing.assert_array_equal(held["ids"], expected.ids)
            np.testing.assert_allclose(held["gap"], expected.gap, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(held["top"], expected.top, rtol=1e-4, atol=1e-5)
            assert expected.tail_lse is not None
            np.testing.assert_allclose(held["tail_lse"], expected.tail_lse, rtol=1e-4, atol=1e-5)
            canaries = [digest(batch.views[i - rows.start]) for i in reader.spec.canary_samples(shard)]
            assert held["canary"][0].tolist() == canaries


@pytest.mark.parametrize(
    "options", [{"workers": 2}, {"seeds_per_pass": 2}, {"seeds": (1, 0)}, {"workers": 1}]
)
def test_neither_workers_nor_passes_nor_order_change_what_is_stored(
    whole: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    dump_digits(tmp_path / "c.zarr", **options)
    assert_same(tmp_path / "c.zarr", whole)


def test_seeds_added_later_are_those_of_one_run(whole: Path, tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", seeds=(1,))
    second = dump_digits(tmp_path / "c.zarr", seeds=(0, 1))
    assert second.views == 300
    assert_same(tmp_path / "c.zarr", whole)


class _StopError(Exception):
    pass


@pytest.mark.parametrize("views", [24, 48, 72, 130, 301, 420])
def test_a_dump_stopped_anywhere_goes_on_to_the_same_cache(whole: Path, tmp_path: Path, views: int) -> None:
    def stop(done: int, _total: int) -> None:
        if done >= views:
            raise _StopError

    out = tmp_path / "c.zarr"
    teacher, images = a_teacher(), few_digits()
    config = DumpConfig(seeds=(0, 1), top_k=4, shard_samples=64, batch_size=24, workers=0)
    with pytest.raises(_StopError):
        dump(out, images, RECIPE, teacher, config, stop)
    committed = sum(int((CacheReader(out).commits(s) != 0).sum()) for s in CacheReader(out).seeds())
    finished = dump(out, images, RECIPE, teacher, config)
    assert finished.shards_written == 10 - committed
    assert_same(out, whole)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_dump import dump_digits
import time
from logitcache import store
write = store.SeedWriter.write
def slowly(self, shard, arrays):
    write(self, shard, arrays)
    print(shard, flush=True)
store.SeedWriter.write = slowly
dump_digits(Path({out!r}))
"""


@pytest.mark.parametrize("after", [0.0, 0.004, 0.02])
def test_a_killed_dump_goes_on_to_the_same_cache(whole: Path, tmp_path: Path, after: float) -> None:
    out = tmp_path / "c.zarr"
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        first = process.stdout.readline()
        time.sleep(after)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert first.strip() == "0"
    committed = sum(int((CacheReader(out).commits(s) != 0).sum()) for s in CacheReader(out).seeds())
    assert committed >= 1
    finished = dump_digits(out)
    assert finished.shards_written == 10 - committed
    assert_same(out, whole)


def test_a_finished_dump_does_nothing_more(whole: Path) -> None:
    again = dump_digits(whole)
    assert (again.views, again.shards_written, again.views_in_cache) == (0, 0, 600)


@pytest.mark.parametrize(
    ("field", "n", "options", "teacher"),
    [
        ("k", 300, {"top_k": 5}, 0),
        ("teacher.weights_sha256", 300, {}, 1),
        ("dataset.n", 299, {}, 0),
        ("profile.name", 300, {"profile": "compact"}, 0),
        ("shard_samples", 300, {"shard_samples": 32}, 0),
        ("teacher.precision", 300, {"precision": "bfloat16"}, 0),
    ],
)
def test_going_on_with_something_else_is_refused(
    whole: Path, field: str, n: int, options: dict[str, object], teacher: int
) -> None:
    before = arrays_of(whole)
    with pytest.raises(MismatchError) as refusal:
        dump_digits(whole, n, a_teacher(teacher), **options)
    assert field in [f.field for f in refusal.value.fields]
    assert arrays_of(whole).keys() == before.keys()


def test_going_on_with_another_recipe_is_refused(whole: Path) -> None:
    config = DumpConfig(seeds=(0,), top_k=4, shard_samples=64, workers=0)
    with pytest.raises(MismatchError, match="recipe_sha256"):
        dump(whole, few_digits(), recipe_named("identity"), a_teacher(), config)


def test_logits_that_are_not_finite_stop_the_run_and_name_the_image(tmp_path: Path) -> None:
    teacher = a_teacher()
    last = next(m for m in reversed(list(teacher.module.modules())) if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        last.bias[3] = float("inf")
    with pytest.raises(NonFiniteError, match="sample 0 of digits under seed 0"):
        dump_digits(tmp_path / "c.zarr", teacher=teacher)
    assert CacheReader(tmp_path / "c.zarr").complete() == []
    assert not CacheReader(tmp_path / "c.zarr").commits(0).any()


def picture_folder(root: Path, bad: int | None = None) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.jpg")
    if bad is not None:
        (root / "train" / "cat" / f"{bad}.jpg").write_bytes(b"no picture")
    return root


def test_a_bad_image_stops_the_run_or_is_marked(tmp_path: Path) -> None:
    from logitcache.datasets import open_images

    images = open_images(f"imagefolder:{picture_folder(tmp_path / 'pets', bad=3)}")
    teacher = build("resnet20", num_classes=2, view_size=32, weights="random")
    out, recipe = tmp_path / "c.zarr", recipe_named("imagenet@32")
    config = DumpConfig(seeds=(0,), top_k=2, batch_size=4, workers=0)
    with pytest.raises(DataError, match=r"cat/3\.jpg does not decode"):
        dump(out, images, recipe, teacher, config)
    report = dump(out, images, recipe, teacher, DumpConfig(**{**config.to_dict(), "on_bad_image": "skip"}))
    assert report.bad_images == 1
    held = CacheReader(out).read(0, 0)
    assert np.flatnonzero(np.isnan(held["top"])).tolist() == [3]


@pytest.mark.parametrize("options", [{"seeds": ()}, {"seeds": (-1,)}, {"batch_size": -1}, {"top_k": 0}])
def test_options_that_cannot_be_honoured(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        dump_digits(tmp_path / "c.zarr", **options)
