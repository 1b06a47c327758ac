"""A new cache is calibrated before it exists: the same bytes whatever was interrupted, and none where none help."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from breaking import flip
from command import fails, succeeds
from dumping import RECIPE, a_teacher, assert_same, dump_digits
from small import Pixels, few_digits
from statistics_numbers import numbers_of

from logitcache.audit.verify import verify_cache
from logitcache.dump.calibration import (
    CALIBRATION_SEED,
    LEAST_VIEWS,
    VIEWS,
    choose_count,
    sample_logits,
    try_statistics,
)
from logitcache.dump.job import dump
from logitcache.dump.late_calibration import calibrate_cache, calibrate_derived
from logitcache.dump.pipeline import Pipeline, load_pipeline
from logitcache.dump.settings import DumpConfig
from logitcache.errors import FormatError, MismatchError, NonFiniteError, OptionError
from logitcache.format.identity import PROFILES, Profile
from logitcache.store import CacheReader
from logitcache.store.derive import derive_cache
from logitcache.store.statistics import STATISTICS_FILES
from logitcache.stream.stream import Stream
from logitcache.teacher.completion import Completion, fit_statistics
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.datasets import ArrayImages
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.keys import permutation


def related(rows: int, classes: int = 60, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, 5, generator=g) @ torch.randn(5, classes, generator=g)


def test_a_dump_without_options_of_many_classes_is_calibrated_and_says_so(tmp_path: Path) -> None:
    report = dump_digits(tmp_path / "cache")
    reader = CacheReader(tmp_path / "cache")
    statistics = reader.statistics()
    assert report.calibration is not None
    assert report.calibration.kept
    assert report.calibration.views == LEAST_VIEWS
    assert statistics is not None
    assert statistics.factors.shape == (10, report.calibration.factors)
    assert reader.spec.calibrated
    assert "tail_var" not in {a.name for a in reader.spec.arrays()}
    assert all(a <= b for a, b in zip(report.calibration.completed, report.calibration.even, strict=True))


def test_statistics_are_those_of_the_sample_under_a_seed_of_its_own(tmp_path: Path) -> None:
    dump_digits(tmp_path / "cache", calibration=40)
    reader = CacheReader(tmp_path / "cache")
    logits = sample_logits(_pipeline(few_digits(300), batch_size=24), 40)
    assert logits.shape == (40, 10)
    statistics = reader.statistics()
    assert statistics is not None
    assert numbers_of(statistics) == numbers_of(fit_statistics(logits))
    assert CALIBRATION_SEED not in reader.seeds()


def test_more_views_than_images_take_more_seeds() -> None:
    pipeline = _pipeline(few_digits(9), batch_size=7)
    logits = sample_logits(pipeline, 23)
    assert len(logits) == 23
    assert len({tuple(row) for row in logits.tolist()}) > 18  # views of one image differ by their seed
    torch.testing.assert_close(sample_logits(pipeline, 9), logits[:9])


def _pipeline(images: ArrayImages, batch_size: int) -> Pipeline:
    config = DumpConfig(workers=0, batch_size=batch_size)
    return load_pipeline(KeyedViews(images, RECIPE), a_teacher(), "float32", config)


@pytest.mark.parametrize(
    ("n", "classes", "expected"),
    [
        (1000, 1000, LEAST_VIEWS),
        (10_000, 1000, 2000),
        (1_281_167, 1000, VIEWS),
        (1_281_167, 21_841, 3072),
        (10, 1 << 30, 8),
    ],
)
def test_a_sample_is_of_a_share_of_the_images(n, classes, expected) -> None:
    assert choose_count(n, classes) == expected
    assert choose_count(n, classes, asked=99) == 99


def test_statistics_that_are_lost_are_found_again_although_seeds_came(tmp_path: Path) -> None:
    path = tmp_path / "c"
    dump_digits(path, seeds=(0,))
    before = CacheReader(path).statistics()
    dump_digits(path, seeds=(0, 1, 2))
    shutil.rmtree(path / "class_statistics")
    notes: list[str] = []
    dump(
        path,
        few_digits(300),
        RECIPE,
        a_teacher(),
        DumpConfig((3,), workers=0, batch_size=24),
        on_note=notes.append,
    )
    assert any("has lost its class statistics" in note for note in notes)
    calibrate_cache(path, few_digits(300), a_teacher(), DumpConfig(workers=0, batch_size=24))
    assert numbers_of(CacheReader(path).statistics()) == numbers_of(before)


def test_no_calibration_is_asked_for_or_of_use(tmp_path: Path) -> None:
    assert dump_digits(tmp_path / "none", calibration=0).calibration is None
    assert CacheReader(tmp_path / "none").statistics() is None
    assert not CacheReader(tmp_path / "none").spec.calibrated
    assert dump_digits(tmp_path / "all", top_k=10).calibration is None
    with pytest.raises(OptionError, match="all 10 logits has nothing to complete"):
        dump_digits(tmp_path / "both", top_k=10, calibration=50)
    with pytest.raises(OptionError, match="calibration must be 0 for none, or 8 to"):
        dump_digits(tmp_path / "few", calibration=7)
    with pytest.raises(OptionError, match="or 8 to 107,374,182 views, found 1,000,000,000"):
        dump_digits(tmp_path / "few", calibration=10**9)
    assert dump_digits(tmp_path / "nine", top_k=9).calibration is None
    batch = next(
        Stream.from_cache(tmp_path / "nine", few_digits(300), batch_size=8, device="cpu", workers=0).epoch(0)
    )
    assert batch.teacher.is_whole
    assert not (tmp_path / "both").exists()
    assert not (tmp_path / "few").exists()


@pytest.mark.parametrize("profile", ["default", "compact"])
@pytest.mark.parametrize("k", [1, 8, 30])
@pytest.mark.parametrize(
    "logits",
    [
        torch.randn(400, 60, generator=torch.Generator().manual_seed(0)) * 3,
        torch.zeros(400, 60),
        torch.eye(60).repeat(7, 1)[:400] * 1e3,
        related(32),
        related(10),
        related(400) / 1000,
    ],
    ids=["unrelated", "all equal", "one-hot", "32 views", "10 views", "hardly different"],
)
def test_what_is_kept_is_never_farther_from_the_teacher_than_an_even_tail(logits, k, profile) -> None:
    """Measured on rows as a shard stores them, once more, by what the format says of rounding."""
    calibration, statistics = try_statistics(logits, k, PROFILES[profile])
    assert statistics.views == len(logits)
    held_out = torch.arange(len(logits)) % 4 == 0
    if len(logits) < 16:
        assert not calibration.kept
        return
    completion = Completion.of(fit_statistics(logits[~held_out]))
    rows = as_stored(SparseTeacher.from_logits(logits[held_out], k), PROFILES[profile])
    kl = []
    for teacher in (rows, dataclasses.replace(rows, completion=completion)):
        for temperature in (1.0, 2.0, 4.0):
            p = (logits[held_out].double() / temperature).log_softmax(1)
            q = teacher.at(temperature).log_probs.double()
            kl.append(max(0.0, float((p.exp() * (p - q)).sum(1).mean())))
    assert calibration.even == pytest.approx(kl[:3], rel=1e-3, abs=1e-6)
    assert calibration.completed == pytest.approx(kl[3:], rel=1e-3, abs=1e-6)
    assert calibration.kept == all(
        b <= a for a, b in zip(calibration.even, calibration.completed, strict=True)
    )


def as_stored(teacher: SparseTeacher, profile: Profile) -> SparseTeacher:
    """Round by hand: to 11 bits each number, gaps to float16 or to steps."""

    def scalar(x: torch.Tensor | None) -> torch.Tensor:
        assert x is not None
        mantissa, exponent = np.frexp(x.numpy().astype(np.float64))
        bits = 1 << (profile.scalar_bits + 1)
        return torch.from_numpy(np.ldexp(np.round(mantissa * bits) / bits, exponent).astype(np.float32))

    step = profile.gap_step
    most = 255 * torch.arange(teacher.k)  # of differences in 8 bits, the first being 0
    gap = teacher.gap.half().float() if step is None else (teacher.gap / step).round().minimum(most) * step
    tail = (scalar(teacher.tail_lse), scalar(teacher.tail_mean), scalar(teacher.tail_var))
    return SparseTeacher(teacher.ids, gap, scalar(teacher.top), *tail, teacher.num_classes)


def test_a_teacher_whose_logits_hardly_differ_gets_an_even_tail_where_rounding_says_more_than_they() -> None:
    few = related(400) / 1000
    assert try_statistics(few, 8, PROFILES["exact"]).calibration.kept
    assert not try_statistics(few, 8, PROFILES["compact"]).calibration.kept


def test_a_teacher_of_unrelated_classes_gets_an_even_tail() -> None:
    unrelated = torch.randn(400, 60, generator=torch.Generator().manual_seed(0)) * 3
    assert not try_statistics(unrelated, 8, PROFILES["default"]).calibration.kept
    assert try_statistics(related(400), 8, PROFILES["default"]).calibration.kept


def test_of_two_classes_what_one_logit_leaves_is_known(tmp_path: Path) -> None:
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    teacher = SparseTeacher.from_logits(x, 1)
    calibration, _ = try_statistics(x, 1, PROFILES["default"])
    assert max(calibration.completed) < 1e-6
    torch.testing.assert_close(teacher.logits, x)


class _NaN(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 10), float("nan"))


def test_logits_that_are_not_finite_leave_no_cache(tmp_path: Path) -> None:
    teacher = dataclasses.replace(a_teacher(), module=_NaN())
    with pytest.raises(NonFiniteError, match="on a view of the calibration"):
        dump_digits(tmp_path / "cache", teacher=teacher)
    assert not (tmp_path / "cache").exists()


def test_a_dump_killed_while_it_calibrates_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; sys.path[:0] = {path!r}\n"
        "from dumping import dump_digits; from logitcache.dump import calibration\n"
        "calibration.fit_statistics = lambda logits: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from pathlib import Path; dump_digits(Path({out!r}))\n"
    )
    out = tmp_path / "killed"
    text = program.format(path=[p for p in sys.path if "support" in p], out=str(out))
    killed = subprocess.run([sys.executable, "-c", text], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    dump_digits(out)
    dump_digits(tmp_path / "whole")
    assert_same(out, tmp_path / "whole")


def test_going_on_takes_the_statistics_that_are_there(tmp_path: Path) -> None:
    dump_digits(tmp_path / "cache", seeds=(0,), calibration=64)
    before = CacheReader(tmp_path / "cache").statistics()
    report = dump_digits(tmp_path / "cache", seeds=(0, 1))
    after = CacheReader(tmp_path / "cache").statistics()
    assert report.calibration is None
    assert before is not None
    assert numbers_of(before) == numbers_of(after)


# Later ----------------------------------------------------------------------------------------------------


def test_calibrating_later_changes_nothing_else_and_completes_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    dump_digits(path, calibration=0)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    found = calibrate_cache(path, few_digits(300), a_teacher(), DumpConfig(workers=0, batch_size=24))
    assert found.kept
    for file, data in before.items():
        assert file.read_bytes() == data, file
    dump_digits(tmp_path / "at once")
    late, early = CacheReader(path).statistics(), CacheReader(tmp_path / "at once").statistics()
    assert late is not None
    assert numbers_of(late) == numbers_of(early)
    stream = Stream.from_cache(path, few_digits(300), batch_size=32, device="cpu", workers=0)
    assert next(stream.epoch(0)).teacher.is_whole
    with pytest.raises(OptionError, match="has class statistics already"):
        calibrate_cache(path, few_digits(300), a_teacher(), DumpConfig(workers=0))


def test_calibrating_with_another_teacher_or_an_exact_cache_is_refused(tmp_path: Path) -> None:
    dump_digits(tmp_path / "cache", calibration=0)
    with pytest.raises(MismatchError, match="another teacher"):
        calibrate_cache(tmp_path / "cache", few_digits(300), a_teacher(1), DumpConfig(workers=0))
    assert CacheReader(tmp_path / "cache").statistics() is None
    with pytest.raises(OptionError, match="calibration of 0 views adds nothing"):
        calibrate_cache(
            tmp_path / "cache", few_digits(300), a_teacher(), DumpConfig(calibration=0, workers=0)
        )
    dump_digits(tmp_path / "exact", top_k=None, profile="exact")
    with pytest.raises(OptionError, match="keeps all 10 logits: there is nothing to complete"):
        calibrate_cache(tmp_path / "exact", few_digits(300), a_teacher(), DumpConfig(workers=0))


def test_a_cache_derived_from_all_logits_is_calibrated_by_them(tmp_path: Path) -> None:
    dump_digits(tmp_path / "exact", top_k=None, profile="exact")
    derive_cache(tmp_path / "exact", tmp_path / "small", top_k=4, profile="default")
    source = CacheReader(tmp_path / "exact")
    found = calibrate_derived(source, tmp_path / "small")
    assert found is not None
    assert found.kept
    statistics = CacheReader(tmp_path / "small").statistics()
    assert statistics is not None
    assert 0.9 * LEAST_VIEWS <= statistics.views <= LEAST_VIEWS
    assert calibrate_derived(source, tmp_path / "small") is None
    with pytest.raises(OptionError, match="keeps the top 4 logits, which tell no class statistics"):
        calibrate_derived(CacheReader(tmp_path / "small"), tmp_path / "small")


def test_of_a_handful_of_views_no_statistics_are_derived(tmp_path: Path) -> None:
    dump_digits(tmp_path / "exact", n=5, seeds=(0,), top_k=None, profile="exact")
    derive_cache(tmp_path / "exact", tmp_path / "small", top_k=4, profile="default")
    assert calibrate_derived(CacheReader(tmp_path / "exact"), tmp_path / "small") is None
    assert CacheReader(tmp_path / "small").statistics() is None


def test_the_completed_teacher_of_a_cache_is_that_of_the_live_one(tmp_path: Path) -> None:
    """Up to the rounding of what is stored, a cache completes as the unrounded row would be."""
    from logitcache.models.forward import ViewModel
    from logitcache.teacher.completion import Completion

    dump_digits(tmp_path / "cache")
    reader = CacheReader(tmp_path / "cache")
    statistics = reader.statistics()
    assert statistics is not None
    model = ViewModel(a_teacher()).eval()
    for batch in Stream.from_cache(reader, few_digits(300), batch_size=64, device="cpu", workers=0).epoch(0):
        with torch.inference_mode():
            live = SparseTeacher.from_logits(model(batch.views), 4, Completion.of(statistics))
        assert batch.teacher.logits.shape == (len(batch.views), 10)
        torch.testing.assert_close(batch.teacher.logits, live.logits, atol=0.02, rtol=0)


def test_a_loss_that_needs_an_order_says_in_one_line_that_a_cache_has_none(tmp_path: Path) -> None:
    few = ["--data", "digits", "--seeds", "0", "--workers", "0", "--top-k", "4", "--calibration", "0"]
    succeeds(
        "dump", "--teacher", "digits_small", "--weights", "random", *few, "--out", "c.zarr", cwd=tmp_path
    )
    words = ["train", "--student", "digits_tiny", "--cache", "c.zarr", "--epochs", "1", "--workers", "0"]
    command = [sys.executable, "-m", "logitcache_cli", *words, "--out", "run"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (line,) = (line for line in ended.stderr.splitlines() if "logitcache calibrate" in line)
    assert line.startswith("warning: cmkd(support=all) compares single logits of all 10 classes")
    assert "cmkd.py" not in ended.stderr


def test_the_commands(tmp_path: Path) -> None:
    words = ["--data", "digits", "--seeds", "0", "--workers", "0", "--top-k", "4", "--weights", "random"]
    dump = ["dump", "--teacher", "digits_small", *words]
    text = succeeds(*dump, "--out", "new.zarr", cwd=tmp_path)
    assert "class statistics" in text
    assert "KL, T = 1 / 2 / 4" in text
    report = json.loads(succeeds(*dump, "--out", "old.zarr", "--calibration", "0", "--json", cwd=tmp_path))
    assert report["calibration"] is None
    found = json.loads(succeeds("calibrate", "old.zarr", "--workers", "0", "--json", cwd=tmp_path))
    assert found["kept"]
    assert "has class statistics already" in fails("calibrate", "old.zarr", cwd=tmp_path)
    mine, other = (CacheReader(tmp_path / name).statistics() for name in ("old.zarr", "new.zarr"))
    assert mine is not None
    assert other is not None
    np.testing.assert_array_equal(mine.factors, other.factors)
    succeeds(*dump, "--out", "exact.zarr", "--profile", "exact", "--top-k", "10", cwd=tmp_path)
    text = succeeds("derive", "exact.zarr", "two.zarr", "--top-k", "2", "--profile", "default", cwd=tmp_path)
    assert "class statistics" in text
    assert CacheReader(tmp_path / "two.zarr").statistics() is not None


def test_statistics_are_found_again_although_an_image_did_not_decode(tmp_path: Path) -> None:
    images = few_digits(300)
    spoilt = Pixels("digits", "train", images.images, images.labels, 10, "digits")
    spoilt.changed, spoilt.broken = int(permutation(300, CALIBRATION_SEED)[0]), True  # one of the sample
    config = DumpConfig(seeds=(0,), top_k=4, workers=0, calibration=290, on_bad_image="skip", batch_size=24)
    report = dump(tmp_path / "c", spoilt, RECIPE, a_teacher(), config)
    before = CacheReader(tmp_path / "c").statistics()
    assert report.calibration is not None
    assert before is not None
    assert (report.calibration.views, before.views) == (289, 290)
    flip(tmp_path / "c" / STATISTICS_FILES[0], 0.5)
    calibrate_cache(
        tmp_path / "c",
        spoilt,
        a_teacher(),
        DumpConfig(workers=0, on_bad_image="skip", batch_size=24),
    )
    assert numbers_of(CacheReader(tmp_path / "c").statistics()) == numbers_of(before)


def test_damaged_statistics_that_would_not_be_kept_anew_are_gone_from_a_cache_that_can_do_without(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c"
    dump_digits(path, calibration=0)
    calibrate_cache(path, few_digits(300), a_teacher(), DumpConfig(workers=0))
    flip(path / STATISTICS_FILES[0], 0.5)
    with pytest.raises(FormatError):
        CacheReader(path).statistics()
    too_few_to_tell = DumpConfig(workers=0, calibration=9)
    assert not calibrate_cache(path, few_digits(300), a_teacher(), too_few_to_tell).kept
    assert CacheReader(path).statistics() is None
    assert verify_cache(CacheReader(path)).clean


def test_a_batch_below_nothing_is_refused(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c", calibration=0)
    with pytest.raises(OptionError, match="batch size must be at least 1"):
        calibrate_cache(tmp_path / "c", few_digits(300), a_teacher(), DumpConfig(batch_size=-1))
