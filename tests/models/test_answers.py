"""Networks answer in many ways; the logits are found, or what there is instead is said."""

import re
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from logitcache.errors import WeightsError
from logitcache.format.identity import AdapterSpec
from logitcache.models.answers import has_other_logits, take_logits
from logitcache.models.build import Model, _check_forward
from logitcache.models.export import export_model
from logitcache.models.forward import ViewModel

LOGITS, AUXILIARY, FEATURES = torch.randn(3, 10), torch.randn(3, 10), torch.randn(3, 64)
Inception = namedtuple("Inception", ("logits", "aux_logits"))


@dataclass
class Output:
    logits: Any
    hidden: Any = None


@pytest.mark.parametrize(
    "answer",
    [
        LOGITS,
        Output(LOGITS, FEATURES),
        Inception(LOGITS, AUXILIARY),
        {"logits": LOGITS, "features": FEATURES},
        OrderedDict(loss=torch.tensor(1.0), logits=LOGITS),
        (LOGITS, FEATURES),
        (FEATURES, LOGITS),
        [LOGITS, (AUXILIARY,)],
        (LOGITS, None),
        (LOGITS, AUXILIARY),  # as by custom
    ],
)
def test_logits_are_found(answer: object) -> None:
    assert take_logits(answer, 3, 10, "net") is LOGITS


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            FEATURES,
            "found (3, 64); its class count must be the data set's; features become logits by a last layer",
        ),
        (LOGITS[:, :, None, None], "found (3, 10, 1, 1); let it flatten them"),
        (torch.tensor(1.0), "found (); one row per image"),
        (LOGITS[0], "found (10,); one row per image"),
        (torch.randn(3, 2, 10), "found (3, 2, 10); one row per image"),
        (Output(FEATURES), "found Output with logits (3, 64)"),
        (Output(None), "found Output; let it return the logits alone"),
        ({"out": LOGITS}, "found a dict of out: (3, 10)"),
        (
            (FEATURES, LOGITS, AUXILIARY),
            "found a tuple of (3, 64), (3, 10), (3, 10); elements 1 and 2 of it could",
        ),
        ((), "found a tuple of ; let it"),
        (None, "found NoneType; let it return"),
    ],
)
def test_what_holds_no_logits_is_described(answer: object, told: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(f"net: expected logits (B, 10), {told}")):
        take_logits(answer, 3, 10, "net")


@pytest.mark.parametrize("answer", [LOGITS[:1], {"logits": LOGITS[:2]}, (LOGITS.repeat(2, 1), None)])
def test_each_image_must_have_its_row(answer: object) -> None:
    with pytest.raises(
        WeightsError, match=r"net: expected a row of logits for each of 3 images, found [126];"
    ):
        take_logits(answer, 3, 10, "net")


def test_two_heads_are_taken_where_there_may_be_two() -> None:
    both = torch.randn(3, 2, 10)
    assert take_logits(both, 3, 10, "net", heads=2) is both


class Talkative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Output:
        return Output(self.last(x.flatten(1)), x)


def test_a_network_that_says_more_is_run_doubled_and_exported(tmp_path: Any) -> None:
    model = Model("talkative", Talkative(), AdapterSpec(1, 8, (0.5,), (0.5,)), 10, "own")
    views = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    expected = model.module.last((views / 255 - 0.5).flatten(1) / 0.5)
    torch.testing.assert_close(ViewModel(model)(views), expected)
    assert export_model(model, tmp_path / "net.pt", "torchscript").num_classes == 10
    assert ViewModel(model.with_two_heads())(views).shape == (2, 2, 10)


class Twins(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1)[:, :10], -x.flatten(1)[:, :10]


def test_where_others_might_be_meant_a_model_is_told_which_is_taken() -> None:
    model = Model("twins", Twins(), AdapterSpec(1, 8, (0.5,), (0.5,)), 10, "own")
    with pytest.warns(
        UserWarning, match="twins answers with several tensors of the shape of logits; the first"
    ):
        _check_forward(model)
    assert not has_other_logits(Inception(LOGITS, AUXILIARY), 10)
    assert not has_other_logits((FEATURES, LOGITS), 10)
