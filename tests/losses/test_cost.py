"""What a loss keeps in memory, and the shape of the benchmark; how fast it is, the benchmark itself says."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from logitcache.bench.losses import measure
from logitcache.losses import Objective
from logitcache.losses.objective import LOSSES
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


@pytest.mark.parametrize(("text", "most"), [("kd", 2), ("ttm", 2), ("cmkd", 3), ("dist", 3), ("dkd", 4)])
def test_a_loss_keeps_few_numbers_per_class(text, most):
    """What is made on the way to the value and its gradient is not all kept: at most so many (B, C) tensors are."""
    student, logits = torch.randn(2, 32, 5000)
    teacher = SparseTeacher.from_logits(logits, 5000)
    term = Objective.parse(text).terms[0][0]
    label = torch.zeros(32, dtype=torch.int64)
    assert saved_bytes(lambda s: term(s, teacher, label), student) <= (most + 0.01) * student.nbytes


def test_the_benchmark_compares_every_loss_with_the_dense_one():
    rows = measure(batch=8, classes=(50,), ks=(4, 10), ranked=30, rounds=4)
    found = [(row.of["loss"], row.against) for row in rows]
    assert found[:-2] == [(name, "dense kd") for name in (*LOSSES, "logits at k = 4", "logits at k = 10")]
    assert found[-2:] == [("laplace", "plain laplace"), ("laplace", "blondel")]
