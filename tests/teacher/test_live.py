"""The teacher itself, held against the one that a cache names."""

import math

import pytest
import torch
from dumping import RECIPE, a_teacher, dump_digits
from small import few_digits

from logitcache.errors import MismatchError, NonFiniteError
from logitcache.models.build import build_model
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.teacher.ensemble import Ensemble
from logitcache.teacher.live import LiveTeacher, require_same_teacher


def test_another_teacher_is_refused_and_each_field_named(tmp_path):
    dump_digits(tmp_path / "c.zarr", n=32, seeds=(0,))
    cache = CacheReader(tmp_path / "c.zarr")
    require_same_teacher(cache, build_model("digits_small", num_classes=10, view_size=8, weights="random"))
    other = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    with pytest.raises(MismatchError, match="another teacher") as refused:
        require_same_teacher(cache, other)
    assert {f.field for f in refused.value.fields} == {"teacher.name", "teacher.weights_sha256"}


@pytest.mark.parametrize("together", [False, True])
def test_the_last_answers_of_an_epoch_are_looked_at(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = a_teacher()
    answers = iter([1.0, 1.0, math.nan])
    teacher.module.register_forward_hook(lambda module, views, logits: logits * next(answers))
    live = LiveTeacher(ViewModel(teacher), 60, 10, 10)
    plain = Stream.plain(few_digits(60), RECIPE, seeds=(0,), batch_size=20, workers=0, device="cpu")
    both = Ensemble([live, LiveTeacher(ViewModel(a_teacher()), 60, 10, 10)]) if together else live
    epoch, finish = Stream(plain.views, both, plain.config).epoch(0), LiveTeacher.finish
    monkeypatch.setattr(LiveTeacher, "finish", lambda self: None)  # as on a GPU
    for _ in range(3):
        next(epoch)
    monkeypatch.setattr(LiveTeacher, "finish", finish)
    with pytest.raises(NonFiniteError, match="is nan"):
        next(epoch)


def test_a_cpu_looks_at_every_answer() -> None:
    views = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    teacher = a_teacher()
    answers = iter([1.0, 1.0, math.nan])
    teacher.module.register_forward_hook(lambda module, views, logits: logits * next(answers))
    live = LiveTeacher(ViewModel(teacher), 2, 10, 10)
    for _ in range(2):
        live.answer(views, torch.arange(2), torch.zeros(2))
    with pytest.raises(NonFiniteError, match="is nan"):
        live.answer(views, torch.arange(2), torch.zeros(2))
