"""The teacher itself, held against the one that a cache names."""

import pytest
from dumping import dump_digits

from logitcache.errors import MismatchError
from logitcache.models.build import build_model
from logitcache.store import CacheReader
from logitcache.teacher.live import require_same_teacher


def test_another_teacher_is_refused_and_each_field_named(tmp_path):
    dump_digits(tmp_path / "c.zarr", n=32, seeds=(0,))
    cache = CacheReader(tmp_path / "c.zarr")
    require_same_teacher(cache, build_model("digits_small", num_classes=10, view_size=8, weights="random"))
    other = build_model("digits_tiny", num_classes=10, view_size=8, weights="random")
    with pytest.raises(MismatchError, match="another teacher") as refused:
        require_same_teacher(cache, other)
    assert {f.field for f in refused.value.fields} == {"teacher.name", "teacher.weights_sha256"}
