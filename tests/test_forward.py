"""Forward: a batch that does not fit the device is run in pieces, to the same logits."""

import dataclasses

import pytest
import torch
from small import few_digits
from test_dump import a_teacher

from logitcache.errors import DeviceMemoryError
from logitcache.forward import InPieces, ViewModel
from logitcache.models import Model


def short_of_memory(most: int) -> Model:
    """A teacher on a device that has room for so many images at once."""
    teacher = a_teacher()

    class Short(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = teacher.module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.inner(x)

    return dataclasses.replace(teacher, module=Short())


@pytest.mark.parametrize(("most", "expected"), [(50, 50), (49, 25), (7, 7), (1, 1)])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(most: int, expected: int) -> None:
    views = few_digits(50).images
    said: list[str] = []
    run = InPieces(ViewModel(short_of_memory(most)).eval(), said.append)
    with torch.inference_mode():
        logits = run(views)
        torch.testing.assert_close(logits, ViewModel(a_teacher()).eval()(views))
        before = len(said)
        run(views[:20])
        run(views)
    assert len(said) == before  # what was learned is kept
    assert (run.most or 50) == expected
    assert all("views at a time" in line for line in said)
    assert bool(said) == (most < 50)


def test_one_view_that_does_not_fit_is_an_error_in_one_line() -> None:
    with pytest.raises(
        DeviceMemoryError, match=r"one view of shape \(1, 8, 8\) does not fit the memory of cpu"
    ):
        InPieces(ViewModel(short_of_memory(0)).eval())(few_digits(4).images)
