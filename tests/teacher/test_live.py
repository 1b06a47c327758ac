"""The teacher itself, held against the one that a cache names."""

import math

import pytest
import torch
from dumping import a_teacher, dump_digits

from logitcache.errors import MismatchError, NonFiniteError
from logitcache.models.build import build_model
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader
from logitcache.teacher.live import LiveTeacher, require_same_teacher


def test_another_teacher_is_refused_and_each_field_named(tmp_path):
    dump_digits(tmp_path / "c.zarr", n=32, seeds=(0,))
    cache = CacheReader(tmp_path / "c.zarr")
    require_same_teacher(cache, build_model("digits_small", num_classes=10, view_size=8, weights="random"))
    other = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    with pytest.raises(MismatchError, match="another teacher") as refused:
        require_same_teacher(cache, other)
    assert {f.field for f in refused.value.fields} == {"teacher.name", "teacher.weights_sha256"}


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
