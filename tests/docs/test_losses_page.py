"""docs/losses.md: the example of a new loss works as written, and every loss and default weight stands there."""

import re
from pathlib import Path

import pytest
import torch

from logitcache.losses import LOSSES, Loss, Objective
from logitcache.teacher.sparse import SparseTeacher

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")


def test_the_example_of_a_new_loss_works(monkeypatch):
    source = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def " in block)
    names = {}
    exec(source, names)
    monkeypatch.setitem(LOSSES, "hellinger", Loss(names["hellinger"]))
    objective = Objective.parse("hellinger(temperature=2.0):0.5")
    s, t = torch.randn(2, 4, 10)
    p, q = (t / 2).softmax(1), (s / 2).softmax(1)
    _, terms = objective(s, SparseTeacher.from_logits(t, 10), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(terms["hellinger"], 1 - (p * q).sqrt().sum(1).mean())


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_described_with_its_default_weight(name):
    described = [line for line in PAGE.splitlines() if re.match(rf"\|.*`{name}`", line)]
    assert len(described) >= 2
    assert any(f"| {LOSSES[name].weight:g} |" in line for line in described)
