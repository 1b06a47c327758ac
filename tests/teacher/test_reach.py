"""Teachers that mask classes, or whose answers are no logits."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dumping import RECIPE, a_teacher, dump_digits
from small import few_digits
from torch import Tensor, nn

from logitcache.audit.recheck import recheck_views
from logitcache.audit.stats import compute_stats
from logitcache.audit.verify import verify_cache
from logitcache.dump.job import dump
from logitcache.dump.plan import PlanConfig, plan_cache
from logitcache.dump.settings import DumpConfig
from logitcache.errors import NonFiniteError
from logitcache.losses import Objective
from logitcache.losses.objective import LOSSES
from logitcache.models.build import Model
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.teacher.live import LiveTeacher
from logitcache.teacher.reach import MASKED
from logitcache_cli.calibrate import calibration_rows

HIDDEN = range(6, 10)
MASKS = (-math.inf, torch.finfo(torch.float32).min, -1e9)


class Answering(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.change = a_teacher().module, change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.body(images))


def answering(change: Callable[[Tensor], Tensor]) -> Model:
    return dataclasses.replace(a_teacher(), module=Answering(change))


def masking(value: float) -> Model:
    return answering(lambda y: y.index_fill(1, torch.tensor(HIDDEN), value))


@pytest.mark.filterwarnings("ignore:.*that the teacher lists")
@pytest.mark.filterwarnings("ignore:.*compares single logits")
@pytest.mark.parametrize("value", MASKS)
@pytest.mark.parametrize(("k", "profile"), [(1, "default"), (4, "default"), (8, "compact"), (10, "exact")])
def test_masked_classes_have_no_mass_in_a_sound_cache(
    value: float, k: int, profile: str, tmp_path: Path
) -> None:
    out, teacher = tmp_path / "c.zarr", masking(value)
    dump_digits(out, 128, teacher, seeds=(0,), top_k=k, profile=profile)
    reader = CacheReader(out)
    assert verify_cache(reader).clean
    assert recheck_views(reader, few_digits(128), teacher, 40).clean
    json.dumps(compute_stats(reader, few_digits(128)).to_dict(), allow_nan=False)
    stream = Stream.from_cache(out, few_digits(128), batch_size=64, device="cpu", workers=0)
    batch = next(iter(stream.epoch(0)))
    assert batch.teacher is not None
    with torch.no_grad():
        dense = ViewModel(teacher).eval()(batch.views)
    for temperature in (1.0, 4.0):
        p, kept = (dense / temperature).softmax(1), batch.teacher.at(temperature).probs
        coarse = {1: 0.1, 4: 0.02, 8: 0.03, 10: 2e-3}[k]  # compact gaps end 16 below the rank before
        torch.testing.assert_close(kept, p, rtol=0, atol=coarse)
        assert k == 8 or float(kept[:, HIDDEN.start :].max()) < 1e-6
    student = torch.randn(len(batch.views), 10, requires_grad=True)
    for name in LOSSES:
        objective = Objective.parse(name)
        if objective.heads == 1:
            loss, _ = objective(student, batch.teacher, batch.target, progress=0.5)
            assert loss.isfinite(), name
            assert torch.autograd.grad(loss, student)[0].isfinite().all(), name


def masking_per_image() -> Model:
    return answering(
        lambda y: y.masked_fill((1000 * y).frac().abs() < 0.5, -math.inf).index_fill(1, torch.tensor([0]), 0)
    )


@pytest.mark.parametrize(
    ("teacher", "k", "calibration", "noted"),
    [
        (masking(-math.inf), 4, 0, True),
        (masking(-math.inf), 4, None, False),  # completed: no mass there, as above
        (masking(-math.inf), 6, 0, False),  # all of the tail is masked, and has no mass
        (masking_per_image(), 2, None, True),
        (a_teacher(), 4, 0, False),
    ],
)
def test_an_even_tail_that_gives_masked_classes_mass_is_told_once(
    teacher: Model, k: int, calibration: int | None, noted: bool, tmp_path: Path
) -> None:
    notes: list[str] = []
    config = DumpConfig((0, 1), k, workers=0, batch_size=16, calibration=calibration)
    report = dump(tmp_path / "c.zarr", few_digits(64), RECIPE, teacher, config, on_note=notes.append)
    told = [note for note in notes if "masks classes" in note]
    assert len(told) == noted
    if noted:
        most = int(told[0].split("--top-k ")[1].split()[0])
        assert most == 6 or most in range(3, 10)
    if noted and report.calibration is not None:
        assert report.calibration.unmasked > k
        assert "--top-k" in dict(calibration_rows(report.calibration))["masked classes"]
    if k == 6:
        taught = Stream.from_cache(
            tmp_path / "c.zarr", few_digits(64), batch_size=64, device="cpu", workers=0
        )
        answer = next(iter(taught.epoch(0))).teacher
        assert float(answer.at(4.0).probs[:, HIDDEN.start :].max()) < 1e-6


def test_a_plan_for_a_teacher_that_masks_is_of_numbers(tmp_path: Path) -> None:
    found = plan_cache(few_digits(64), RECIPE, masking(-math.inf), PlanConfig(images=64, ks=(4,), workers=0))
    assert all(math.isfinite(choice.lost) for choice in found.choices)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda y: y * 1e6, r"expected a number within ±10,000; .*not scaled"),
        (lambda y: y * 1e19, r"\(class \d\), expected .*not scaled"),
        (lambda y: y.index_fill(1, torch.tensor([3]), math.nan), r"is nan .*check the weights"),
        (lambda y: y.index_fill(1, torch.tensor([3]), math.inf), r"is inf \(class 3\).*check the weights"),
        (lambda y: torch.full_like(y, -math.inf), r"is -inf .*left unmasked"),
    ],
)
def test_answers_that_are_no_logits_are_refused_at_the_first_batch(
    change: Callable[[Tensor], Tensor], told: str, tmp_path: Path
) -> None:
    teacher, images = answering(change), few_digits(64)
    for calibration in (None, 0):
        with pytest.raises(NonFiniteError, match=told):
            dump_digits(tmp_path / "c.zarr", 64, teacher, calibration=calibration)
    live = LiveTeacher(ViewModel(teacher).eval(), 64, 4, 10)
    views = torch.stack([images.image(i) for i in range(8)])
    with pytest.raises(NonFiniteError, match="of the last 50 batches"):
        live.answer(views, torch.arange(8), torch.zeros(8))


def test_a_teacher_gone_wrong_is_no_clean_recheck(tmp_path: Path) -> None:
    teacher = a_teacher()
    dump_digits(tmp_path / "c.zarr", 64, teacher, seeds=(0,))
    teacher.module.register_forward_hook(lambda *_: torch.full((len(_[2]), 10), math.nan))
    with pytest.raises(NonFiniteError, match="under seed 0"):
        recheck_views(CacheReader(tmp_path / "c.zarr"), few_digits(64), teacher, 8)


def test_a_live_teacher_masks_as_a_cache_does() -> None:
    views = torch.stack([few_digits(8).image(i) for i in range(8)])
    live = LiveTeacher(ViewModel(masking(-math.inf)).eval(), 8, 10, 10)
    answer = live.answer(views, torch.arange(8), torch.zeros(8))
    assert float(answer.gap.max()) == MASKED
    assert answer.logits.isfinite().all()


@pytest.mark.parametrize(
    ("change", "noted"), [(lambda y: y.softmax(1), True), (lambda y: y.log_softmax(1), False)]
)
@pytest.mark.parametrize("k", [4, 10])
def test_answers_that_look_like_probabilities_are_told(
    change: Callable[[Tensor], Tensor], noted: bool, k: int, tmp_path: Path
) -> None:
    notes: list[str] = []
    config = DumpConfig((0,), k, workers=0, calibration=None if k == 10 else 0)
    dump(tmp_path / "c.zarr", few_digits(64), RECIPE, answering(change), config, on_note=notes.append)
    assert any("look like probabilities" in note for note in notes) == noted
