"""What a loss keeps in memory, and the shape of the benchmark; how fast it is, the benchmark itself says."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from logitcache.bench.losses import measure
from logitcache.losses.kd import kd
from logitcache.teacher.sparse import SparseTeacher


def saved_bytes(loss: Callable[[Tensor], Tensor], student: Tensor) -> int:
    """Bytes that a loss keeps for its backward, the student's logits not counted."""
    leaf = student.clone().requires_grad_()
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() != leaf.untyped_storage().data_ptr():
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(leaf)
    del value
    return sum(saved.values())


@pytest.mark.parametrize("tail", ["uniform", "ghost", "renorm"])
def test_kd_keeps_only_numbers_per_listed_class(tail):
    """O(B · k) beyond the student's logits: ids, log-probabilities and a few numbers per row."""
    student = torch.randn(32, 5000)
    teacher = SparseTeacher.from_logits(torch.randn(32, 5000), 10)
    assert saved_bytes(lambda s: kd(s, teacher, tail=tail), student) <= 32 * (10 * 32 + 64)


def test_the_benchmark_compares_every_loss_with_the_dense_one():
    rows = measure(batch=8, classes=(50,), ks=(4, 10), ranked=30, rounds=4)
    assert [(row.of["loss"], row.of["k"]) for row in rows] == [
        ("kd", "4"),
        ("cmkd", "4"),
        ("rank term", "4"),
        ("kd", "10"),
        ("cmkd", "10"),
        ("rank term", "10"),
        ("laplace", "30"),
        ("laplace", "30"),
    ]
