"""Stage one: what a shard holds depends on nothing but the cache's spec."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dumping import RECIPE, a_teacher, arrays_of, assert_same, dump_digits
from pictures import picture_folder
from small import few_digits

from logitcache.audit.checkup import CheckupConfig, check_cache
from logitcache.dump.filler import ViewsDone
from logitcache.dump.inputs import DumpInputs
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import (
    BusyError,
    DataError,
    ImageError,
    LogitCacheError,
    MismatchError,
    NonFiniteError,
    OptionError,
)
from logitcache.format.identity import StepSpec
from logitcache.models.build import build_model
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader, CacheWriter
from logitcache.stream.stream import Stream
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.datasets import ArrayImages, open_images
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.maker import digest
from logitcache.views.recipes import recipe_named


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "c.zarr"
    dump_digits(out)
    return out


def test_a_cache_holds_what_the_teacher_says_of_each_view(whole: Path) -> None:
    images, reader = few_digits(), CacheReader(whole)
    views, model = KeyedViews(images, RECIPE), ViewModel(a_teacher()).eval()
    for seed in (0, 1):
        for shard in range(reader.spec.layout.shards):
            held, rows = reader.read(seed, shard), reader.spec.layout.samples_of(shard)
            batch = views.__getitems__([(i, seed) for i in rows])
            with torch.no_grad():
                expected = SparseTeacher.from_logits(model(batch.views), 4)
            np.testing.assert_array_equal(held["ids"], expected.ids)
            np.testing.assert_allclose(held["gap"], expected.gap, rtol=2**-11, atol=1e-5)
            np.testing.assert_allclose(held["top"], expected.top, rtol=2**-11, atol=1e-5)
            assert expected.tail_lse is not None
            np.testing.assert_allclose(held["tail_lse"], expected.tail_lse, rtol=2**-11, atol=1e-5)
            canaries = [digest(batch.views[i - rows.start]) for i in reader.spec.layout.canary_samples(shard)]
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
    def stop(progress: ViewsDone) -> None:
        if progress.done >= views:
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
from dumping import dump_digits
import time
from logitcache import store
write = store.SeedWriter.write_if_missing
def slowly(self, shard, arrays):
    commit = write(self, shard, arrays)
    print(shard, flush=True)
    return commit
store.SeedWriter.write_if_missing = slowly
dump_digits(Path({out!r}))
"""


@pytest.mark.parametrize("after", [0.0, 0.004, 0.02])
def test_a_killed_dump_goes_on_to_the_same_cache(whole: Path, tmp_path: Path, after: float) -> None:
    out = tmp_path / "c.zarr"
    code = KILLED.format(tests=str(Path(__file__).parents[1] / "support"), out=str(out))
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


HOLDING = """
import sys, time
from logitcache.store import CacheReader, CacheWriter
with CacheWriter.open({out!r}, CacheReader({out!r}).spec).seed(1):
    print("holding", flush=True)
    time.sleep(600)
"""


def test_a_busy_seed_is_left_out_and_its_owner_named_until_it_is_killed(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.zarr"
    dump_digits(out, seeds=(0,))
    code = HOLDING.format(out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "holding\n"
        owner = rf"seed 1 of .* is being written by process {process.pid} on "
        with pytest.raises(BusyError, match=owner):
            dump_digits(out, seeds=(1,))
        told: list[str] = []
        config = DumpConfig(seeds=(1, 2), top_k=4, shard_samples=64, batch_size=24, workers=0)
        report = dump(out, few_digits(), RECIPE, a_teacher(), config, on_note=told.append)
        assert (report.seeds, report.skipped, report.views) == ((2,), (1,), 300)
        (line,) = told
        assert re.search(owner, line)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    number = (out / "seed-1" / "commit" / ".owner").read_text(encoding="utf-8")
    left = (out / "sample_key" / f".lock-{number}").read_text(encoding="utf-8")
    assert left.startswith(f"{process.pid}\n")  # not its lock
    assert dump_digits(out, seeds=(1,)).skipped == ()
    shutil.rmtree(out / "seed-2")
    assert_same(out, whole)


def test_only_the_shards_asked_for_are_filled(tmp_path: Path) -> None:
    config = DumpConfig(seeds=(0, 1), top_k=4, shard_samples=64, batch_size=24, workers=0)
    report = dump(
        tmp_path / "c.zarr", few_digits(), RECIPE, a_teacher(), config, only={0: [1, 4], 1: [], 7: [2]}
    )
    assert report.shards_written == 2
    found = CacheReader(tmp_path / "c.zarr")
    assert [np.flatnonzero(found.commits(s)).tolist() for s in (0, 1)] == [[1, 4], []]


def test_a_compiled_teacher_says_the_same(whole: Path, tmp_path: Path) -> None:
    with torch.compiler.set_stance("force_eager"):  # what it is compiled to is torch's affair; names are ours
        dump_digits(tmp_path / "c", compile=True)
    assert_same(tmp_path / "c", whole)


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


def test_weights_that_were_drawn_otherwise_are_not_advised_to_be_drawn_again(whole: Path) -> None:
    teacher = a_teacher()
    with torch.no_grad():
        next(teacher.module.parameters()).mul_(1 + 2**-20)  # as another kind of CPU rounds
    with pytest.raises(MismatchError, match="; weights that are drawn come out otherwise"):
        dump_digits(whole, teacher=teacher)


def test_weights_of_your_own_that_differ_may_be_from_a_changed_file_or_drawn(tmp_path: Path) -> None:
    teacher = dataclasses.replace(a_teacher(), weights="own")
    dump_digits(tmp_path / "c.zarr", 32, teacher, seeds=(0,))
    with torch.no_grad():
        next(teacher.module.parameters()).mul_(2)
    with pytest.raises(MismatchError, match=r"read from a file that has changed, or drawn"):
        dump_digits(tmp_path / "c.zarr", 32, teacher, seeds=(0,))


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
        dump_digits(tmp_path / "c.zarr", teacher=teacher, calibration=0)
    assert CacheReader(tmp_path / "c.zarr").complete() == []
    assert not CacheReader(tmp_path / "c.zarr").commits(0).any()


def test_a_bad_image_stops_the_run_or_is_marked(tmp_path: Path) -> None:
    images = open_images(f"imagefolder:{picture_folder(tmp_path / 'pets', bad=3)}")
    teacher = build_model("resnet20", num_classes=2, view_size=32, weights="random")
    out, recipe = tmp_path / "c.zarr", recipe_named("imagenet@32")
    config = DumpConfig(seeds=(0,), top_k=2, batch_size=4, workers=0)
    with pytest.raises(DataError, match=r"cat/3\.jpg does not decode"):
        dump(out, images, recipe, teacher, config)
    report = dump(out, images, recipe, teacher, DumpConfig(**{**config.to_dict(), "on_bad_image": "skip"}))
    assert report.bad_images == 1
    held = CacheReader(out).read(0, 0)
    assert np.flatnonzero(np.isnan(held["top"])).tolist() == [3]


@pytest.mark.parametrize(
    ("bad", "workers"), [(range(4), 0), (range(4, 8), 1), (range(1, 16), 0), ([0, 3, 4, 15], 0)], ids=str
)
def test_bad_images_anywhere_are_marked_and_change_no_other_sample(bad, workers: int, tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "pets")
    images = open_images(f"imagefolder:{root}")
    teacher = build_model("resnet20", num_classes=2, view_size=32, weights="random")
    recipe = recipe_named("imagenet@32")
    settings: dict[str, object] = {"seeds": (0, 1), "top_k": 1, "batch_size": 4, "shard_samples": 4}
    settings |= {"workers": workers, "seeds_per_pass": 2, "on_bad_image": "skip"}
    dump(tmp_path / "good.zarr", images, recipe, teacher, DumpConfig(**settings))  # type: ignore[arg-type]
    for sample in bad:
        file = Path(images.describe(sample))
        file.write_bytes(bytes(file.stat().st_size))
    report = dump(tmp_path / "c.zarr", images, recipe, teacher, DumpConfig(**settings))  # type: ignore[arg-type]
    assert (report.bad_images, report.views) == (len(bad), 32)
    found, good = arrays_of(tmp_path / "c.zarr"), arrays_of(tmp_path / "good.zarr")
    spec = CacheReader(tmp_path / "c.zarr").spec
    for (seed, shard, name), values in found.items():
        samples = (
            spec.layout.canary_samples(shard) if name == "canary" else list(spec.layout.samples_of(shard))
        )
        is_bad = np.isin(samples, list(bad))
        rows = values[0] if name == "canary" else values
        # a blank picture in the batch may change how the others' float sums are rounded, and no more
        expected = good[seed, shard, name][0] if name == "canary" else good[seed, shard, name]
        np.testing.assert_allclose(rows[~is_bad], expected[~is_bad], rtol=1e-3, atol=1e-3, err_msg=name)
        assert np.isnan(rows[is_bad]).all() if name == "top" else not rows[is_bad].any()
    again = dump(tmp_path / "c.zarr", images, recipe, teacher, DumpConfig(**settings))  # type: ignore[arg-type]
    assert again.views == 0


class _NanOfBlank(torch.nn.Module):
    """A teacher that divides by its picture's spread, which a blank one has not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True))[:, :10]


@pytest.mark.parametrize("profile", ["default", "compact", "exact"])
def test_what_the_teacher_says_of_a_blank_picture_does_not_matter(profile: str, tmp_path: Path) -> None:
    class OneBad(ArrayImages):
        def image(self, sample: int) -> torch.Tensor:
            if sample == 0:
                raise ImageError("sample 0 does not decode")
            return super().image(sample)

    few = few_digits(9)
    images = OneBad("digits", "train", few.images, few.labels, 10, "digits")
    teacher = dataclasses.replace(a_teacher(), module=_NanOfBlank())
    config = DumpConfig((0,), 3, profile, workers=0, on_bad_image="skip", device="cpu")
    dump(tmp_path / "c.zarr", images, recipe_named("identity"), teacher, config)
    held = CacheReader(tmp_path / "c.zarr").read(0, 0)
    assert np.isnan(held["top"]).tolist() == [True] + [False] * 8
    assert all(np.isfinite(values).all() for name, values in held.items() if name != "top")


# Seeds of one pass, small data ----------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "workers"), [(7, 0), (16, 2)])
def test_seeds_of_one_pass_that_lack_different_shards(tmp_path: Path, batch_size: int, workers: int) -> None:
    settings = {"seeds": (0, 1, 2), "batch_size": batch_size, "workers": workers}
    dump_digits(tmp_path / "whole.zarr", n=70, **settings, seeds_per_pass=1, shard_samples=16)
    whole = CacheReader(tmp_path / "whole.zarr")
    out = tmp_path / "c.zarr"
    writer = CacheWriter.open(out, whole.spec, statistics=whole.statistics())
    for seed, there in ((0, (0, 3)), (1, (1, 2, 3)), (2, (4,))):
        with writer.seed(seed) as own:
            for shard in there:
                held = whole.read(seed, shard)
                own.write(shard, {**held, "gap": held["gap"].astype(np.float32)})
    report = dump_digits(out, n=70, **settings, seeds_per_pass=3, shard_samples=16)
    assert report.shards_written == 15 - 6
    assert_same(out, tmp_path / "whole.zarr")


@pytest.mark.parametrize("profile", ["default", "compact", "exact"])
@pytest.mark.parametrize(("n", "shard_samples", "batch_size"), [(1, 0, 64), (1, 1, 1), (3, 2, 5), (11, 3, 2)])
def test_small_and_odd_numbers_of_samples(
    tmp_path: Path, profile: str, n: int, shard_samples: int, batch_size: int
) -> None:
    sizes = {"shard_samples": shard_samples, "batch_size": batch_size}
    out = tmp_path / "c.zarr"
    dump_digits(out, n=n, top_k=10, profile=profile, **sizes)  # k = C in every profile: there is no tail
    images, model = few_digits(n), ViewModel(a_teacher()).eval()
    stream = Stream.from_cache(out, images, batch_size=4, device="cpu", workers=0)
    for epoch in (0, 1):
        batches = list(stream.epoch(epoch))
        assert sorted(i for batch in batches for i in batch.samples.tolist()) == list(range(n))
        for batch in batches:
            assert batch.teacher is not None
            assert batch.teacher.tail_lse is None
            with torch.no_grad():
                dense = model(batch.views)
            kept = batch.teacher.logits
            step = {"default": 0.01, "compact": 0.07, "exact": 1e-4}[profile]
            near = dense > dense.max(1, keepdim=True).values - 12.7
            torch.testing.assert_close(kept[near], dense[near], rtol=0, atol=step)


def test_no_gap_is_larger_than_that_of_a_masked_class(tmp_path: Path) -> None:
    class Steep(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :1] * 0 + torch.tensor([0.0, -1_000.0, -65_520.0, -1e9, -3e38, -torch.inf])

    teacher = dataclasses.replace(a_teacher(), module=Steep(), num_classes=6)
    few = few_digits(4)
    images = ArrayImages("few", "train", few.images, few.labels.clip(max=5), 6, "digits")
    for k in (5, 6):
        dump(tmp_path / f"{k}.zarr", images, RECIPE, teacher, DumpConfig((0,), k, workers=0, device="cpu"))
        held = CacheReader(tmp_path / f"{k}.zarr").read(0, 0)
        assert held["gap"].tolist() == [[0.0, *[1_000.0] * (k - 1)]] * 4


def test_classes_past_65536_keep_their_numbers(tmp_path: Path) -> None:
    class Wide(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(x), 70_000)
            logits[:, 69_999], logits[:, 65_536], logits[:, 4463] = 9.0, 8.0, 7.0  # 69,999 mod 65,536 = 4,463
            return logits

    teacher = dataclasses.replace(a_teacher(), module=Wide(), num_classes=70_000)
    few = few_digits(5)
    images = ArrayImages("few", "train", few.images, few.labels, 70_000, "digits")
    dump(
        tmp_path / "c.zarr",
        images,
        RECIPE,
        teacher,
        DumpConfig((0,), 3, calibration=0, workers=0, device="cpu"),
    )
    stream = Stream.from_cache(tmp_path / "c.zarr", images, batch_size=1, device="cpu", workers=0)
    for batch in stream.epoch(0):
        assert batch.teacher is not None
        assert batch.teacher.ids.tolist() == [[69_999, 65_536, 4463]]
        torch.testing.assert_close(batch.teacher.listed, torch.tensor([[9.0, 8.0, 7.0]]))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's, torn by the signal
def test_a_worker_that_is_killed_ends_a_dump_in_one_line_and_it_goes_on(tmp_path: Path) -> None:
    class Deadly(ArrayImages):
        def image(self, sample: int) -> torch.Tensor:
            if sample == 70 and torch.utils.data.get_worker_info():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().image(sample)

    few = few_digits(100)
    images = Deadly("digits", "train", few.images, few.labels, 10, "digits")
    config = DumpConfig((0,), 4, batch_size=8, shard_samples=16, workers=1, start_method="fork")
    with pytest.raises(LogitCacheError, match="a worker that makes views died") as said:
        dump(tmp_path / "c.zarr", images, RECIPE, a_teacher(), config)
    assert "\n" not in str(said.value)
    dump(tmp_path / "c.zarr", images, RECIPE, a_teacher(), dataclasses.replace(config, workers=0))
    assert CacheReader(tmp_path / "c.zarr").complete() == [0]


@pytest.mark.parametrize(
    "options", [{"seeds": ()}, {"seeds": (-1,)}, {"seeds": (0, 1 << 63)}, {"batch_size": -1}, {"top_k": 0}]
)
def test_options_that_cannot_be_honoured(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        dump_digits(tmp_path / "c.zarr", **options)


def test_a_dump_says_how_often_the_teacher_is_right(tmp_path: Path) -> None:
    report = dump_digits(tmp_path / "c.zarr", 100)
    reader, labels = CacheReader(tmp_path / "c.zarr"), few_digits(100).labels
    first = {
        seed: np.concatenate([reader.read(seed, j)["ids"][:, 0] for j in range(reader.spec.layout.shards)])
        for seed in (0, 1)
    }
    assert report.teacher_top1 == np.mean([first[seed] == labels for seed in (0, 1)])
    assert dump_digits(tmp_path / "c.zarr", 100).teacher_top1 is None  # nothing was left to do


def test_the_test_split_is_viewed_by_what_the_recipe_evaluates_by() -> None:
    opened = DumpInputs("digits_small", weights="random", recipe="cifar", split="test").open()
    assert opened.recipe == recipe_named(recipe_named("cifar").evaluation)


def test_views_that_are_resized_for_the_teacher_are_told() -> None:
    notes: list[str] = []
    inputs = DumpInputs("resnet18", weights="random", data="digits", input_size=48)
    assert inputs.open(notes.append).teacher.adapter.size == 48
    assert "sees views of 8 pixels resized to 48" in notes[1]


def test_of_mixed_views_nobody_says_how_often_the_teacher_is_right(tmp_path: Path) -> None:
    mixed = dataclasses.replace(RECIPE, steps=(*RECIPE.steps, StepSpec("MixUp", {"alpha": 1.0})))
    assert dump_digits(tmp_path / "c.zarr", 100, recipe=mixed).teacher_top1 is None


def test_a_cache_of_another_input_size_says_how_to_go_on(tmp_path: Path) -> None:
    small, large = (
        build_model("resnet18", num_classes=10, view_size=8, weights="random", input_size=size)
        for size in (32, 48)
    )
    dump_digits(tmp_path / "c.zarr", 20, small)
    with pytest.raises(MismatchError, match="give --input-size 32 to go on with it"):
        dump_digits(tmp_path / "c.zarr", 20, large)


@pytest.mark.parametrize("weapon", ["images", "recipe"])
def test_a_cache_that_names_weapons_runs_none(tmp_path: Path, weapon: str) -> None:
    few, recipe = few_digits(20), RECIPE
    if weapon == "images":
        few = ArrayImages("shutil:rmtree", few.split, few.images, few.labels, 10, few.recipe)
    else:
        recipe = dataclasses.replace(recipe, evaluation="shutil:rmtree")
    dump(tmp_path / "c.zarr", few, recipe, a_teacher(), DumpConfig(seeds=(0,), top_k=4, workers=0))
    with pytest.raises(OptionError, match="names the code shutil:rmtree"):
        Stream.from_cache(tmp_path / "c.zarr")
    with pytest.raises(OptionError, match="names the code shutil:rmtree"):
        check_cache(str(tmp_path / "c.zarr"), CheckupConfig(replay=2))
