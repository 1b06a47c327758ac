"""Forward: a batch that does not fit the device is run in pieces, to the same logits; devices that are not there."""

import dataclasses
from pathlib import Path

import pytest
import torch
from dumping import RECIPE, a_teacher
from small import few_digits

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import DeviceMemoryError, MismatchError, OptionError
from logitcache.models.build import Model, build_model
from logitcache.models.forward import BatchHalver, ViewModel, choose_device
from logitcache.store import CacheReader
from logitcache.teacher.cached import CachedTeacher


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
    run = BatchHalver(ViewModel(short_of_memory(most)).eval(), said.append)
    with torch.inference_mode():
        logits = run(views)
        torch.testing.assert_close(logits, ViewModel(a_teacher()).eval()(views))
        before = len(said)
        run(views[:20])
        run(views)
    assert len(said) == before  # what was learned is kept
    assert (run.limit or 50) == expected
    assert all("views at a time" in line for line in said)
    assert bool(said) == (most < 50)


def test_one_view_that_does_not_fit_is_an_error_in_one_line() -> None:
    with pytest.raises(
        DeviceMemoryError, match=r"one view of shape \(1, 8, 8\) does not fit the memory of cpu"
    ):
        BatchHalver(ViewModel(short_of_memory(0)).eval())(few_digits(4).images)


def test_a_dump_whose_batches_do_not_fit_says_so_and_stores_the_same(tmp_path: Path) -> None:
    config = DumpConfig(seeds=(0,), top_k=4, workers=0, precision="float32", calibration=0)
    said: list[str] = []
    dump(tmp_path / "short", few_digits(), RECIPE, short_of_memory(10), config, on_note=said.append)
    dump(tmp_path / "whole", few_digits(), RECIPE, a_teacher(), config)
    assert said == [f"out of memory: the model now runs on {most} views at a time" for most in (32, 16, 8)]
    short, whole = (CachedTeacher(CacheReader(tmp_path / name)) for name in ("short", "whole"))
    samples = torch.arange(300)
    mine, theirs = short.take(samples, 0), whole.take(samples, 0)
    torch.testing.assert_close(
        mine.listed_at(1.0).log_probs, theirs.listed_at(1.0).log_probs, rtol=1e-3, atol=1e-2
    )


def test_a_teacher_of_other_classes_than_the_images_is_refused(tmp_path: Path) -> None:
    teacher = build_model("digits_tiny", num_classes=7, view_size=8, weights="random")
    with pytest.raises(MismatchError, match="number of classes: expected 10, found 7"):
        dump(tmp_path / "c.zarr", few_digits(), RECIPE, teacher, DumpConfig(seeds=(0,), workers=0))
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize("name", ["meta", "vulkan", "hpu", "nonsense", "", "cuda:99", "cuda:-1"])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(OptionError, match=f"device {name!r}") as said:
        choose_device(name)
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 250


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_a_device_of_another_kind_is_taken_where_it_works(kind: str) -> None:
    if {"mps": torch.backends.mps, "xpu": torch.xpu}[kind].is_available():
        assert choose_device(kind).type == kind
    else:
        with pytest.raises(OptionError, match=f"device '{kind}' cannot be used here"):
            choose_device(kind)
