import pytest
import torch

from logitcache.bench.truncation import (
    gradient_sizes,
    logits_of_trained,
    measure_truncation,
    truncation_table,
)
from logitcache.losses.objective import LOSSES
from logitcache.teacher.completion import Completion, fit_statistics
from logitcache.teacher.sparse import SparseTeacher


def test_errors_shrink_as_more_classes_are_listed_and_as_the_tail_is_completed():
    images = torch.eye(10).repeat(4, 1)
    labels = torch.arange(10).repeat(4)
    teacher = logits_of_trained(images, labels, 2, width=64, steps=100, batch=64)
    student = logits_of_trained(images, labels, 2, width=16, steps=20, batch=64, seed=1)
    right = [(n.logits.argmax(1) == n.target).float().mean() for n in (teacher, student)]
    assert right[0] > right[1]
    rows = measure_truncation(student.logits, teacher, {"kd": [{}], "dho": [{}], "pld": [{}]})
    for name in ("kd", "dho"):
        for temperature in (1.0, 4.0):
            found = [r for r in rows if (r.name, r.temperature) == (name, temperature)]
            assert [r.k for r in found] == [4, 8, 16]
            for cosines in ([r.even.cosine for r in found], [r.completed.cosine for r in found]):
                assert cosines == sorted(cosines)
            assert all(r.completed.cosine > r.even.cosine for r in found if r.temperature == 4.0)
    assert len([r for r in rows if r.name == "pld"]) == 2 * 3
    table = truncation_table(rows)
    assert table.count("\n") == 1 + 3 * 2
    assert f"| {rows[0].even} | {rows[0].completed} |" in table
    sizes = gradient_sizes([student.logits, teacher.logits], teacher, 4)
    assert set(sizes) == set(LOSSES)
    q, y = student.logits.softmax(1), torch.nn.functional.one_hot(teacher.target, 100)
    of_ttm = SparseTeacher.from_logits(teacher.logits, 4, Completion.of(fit_statistics(teacher.seen))).at(4.0)
    assert sizes["ttm"][0] == pytest.approx(float((q - of_ttm.probs).norm() / (q - y).norm()), rel=1e-3)
    assert sizes["ttm"][1] != sizes["ttm"][0]
