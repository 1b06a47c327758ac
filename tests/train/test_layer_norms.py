"""Students with layer norms are trained by AdamW where nobody chose; what somebody chose, or began with, stays."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import logitcache
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import VisionTransformer

from logitcache.format.identity import AdapterSpec
from logitcache.models.build import Model, build_model
from logitcache.train.config import PROTOCOLS
from logitcache.train.layer_norms import SETTINGS, describe_layer_norms, has_layer_norms, suit_layer_norms
from logitcache.train.variants import Variant, VariantInputs

ADAPTER = AdapterSpec(1, 8, (0.5,), (0.5,))


def normed(num_classes: int) -> tuple[nn.Module, AdapterSpec]:
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, num_classes)), ADAPTER


def model_of(name: str) -> Model:
    return build_model(name, num_classes=10, view_size=32, weights="random")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet20", False),
        ("mobilenet_v2", False),
        ("digits_tiny", False),
        ("convnext_tiny", True),
        ("test_layer_norms:normed", True),
    ],
)
def test_which_networks_have_them(name: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert has_layer_norms(model_of(name)) is expected


def test_a_vit_has_them() -> None:
    module = VisionTransformer(32, 16, 1, 1, 8, 8, num_classes=10)
    assert has_layer_norms(Model("vit", module, ADAPTER, 10, "own"))


@given(
    protocol=st.sampled_from(sorted(PROTOCOLS)),
    settings=st.fixed_dictionaries(
        {},
        optional={
            "lr": st.floats(1e-4, 1),
            "optimizer": st.sampled_from(["sgd", "adamw"]),
            "weight_decay": st.floats(0, 1),
            "warmup_epochs": st.floats(0, 3),
            "epochs": st.integers(250, 400),
        },
    ),
)
def test_what_somebody_gave_stays(protocol: str, settings: dict[str, Any]) -> None:
    model = Model("normed", normed(10)[0], ADAPTER, 10, "own")
    inputs = VariantInputs("ce", settings=settings)
    ((_, variant),) = inputs.pair(("normed",), PROTOCOLS[protocol].config)
    found = suit_layer_norms(model, variant).config.to_dict()
    assert found.items() >= settings.items()
    if {"lr", "optimizer"} & settings.keys():
        assert found == variant.config.to_dict()
    else:
        assert found.items() >= (SETTINGS | settings).items()
        assert found["warmup_epochs"] <= max(5, settings.get("warmup_epochs", 0))
        assert found["warmup_epochs"] <= found["epochs"] / 10
    plain = model_of("digits_tiny")
    assert suit_layer_norms(plain, variant) == variant
    assert describe_layer_norms(plain, variant) is None


def config_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "config.json").read_text())["config"]
    return found


def test_the_command_trains_them_by_adamw_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    words = [
        "train",
        "--loss",
        "ce",
        "--data",
        "small:dozen",
        "--epochs",
        2,
        "--batch-size",
        4,
        "--workers",
        0,
    ]
    net = ("--student", "nets:normed")
    done = logitcache(*words, *net, "--student", "digits_tiny", "--out", "two", cwd=tmp_path)
    assert done.exit_code == 0, done.output
    assert "note: nets:normed has layer norms, so it is trained by AdamW at 0.0005" in done.stderr
    assert (
        "adamw, lr 0.0005 cosine (nets:normed) or sgd, lr 0.05 cosine (digits_tiny), 2 epochs" in done.stderr
    )
    assert (
        config_of(tmp_path / "two" / "nets_normed-ce").items() >= {**SETTINGS, "warmup_epochs": 0.2}.items()
    )
    assert config_of(tmp_path / "two" / "digits_tiny-ce")["optimizer"] == "sgd"
    done = logitcache(*words, *net, "--protocol", "digits", "--out", "named", cwd=tmp_path)
    assert (
        "by SGD at 0.05 such networks mostly learn little; try --optimizer adamw --lr 0.0005" in done.stderr
    )
    assert config_of(tmp_path / "named")["optimizer"] == "sgd"
    done = logitcache(*words, *net, "--lr", "0.001", "--out", "given", cwd=tmp_path)
    assert "layer norms" not in done.stderr
    assert config_of(tmp_path / "given")["optimizer"] == "sgd"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_goes_on_by_the_optimizer_that_it_was_begun_by(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    words = ["train", "--student", "nets:normed", "--loss", "ce", "--data", "small:dozen", "--epochs", 2]
    words += ["--batch-size", 4, "--workers", 0, "--out", "run"]
    old = ("--protocol", "digits") if optimizer == "sgd" else ()  # as before there was a choice
    done = logitcache(*words, *old, cwd=tmp_path)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    record["command"] = [word for word in record["command"] if word not in old]
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    done = logitcache("train", "--out", "run", "--resume", cwd=tmp_path)
    assert done.exit_code == 0, done.output
    assert config_of(tmp_path / "run")["optimizer"] == optimizer


def test_a_variant_may_choose_for_itself() -> None:
    model = Model("normed", normed(10)[0], ADAPTER, 10, "own")
    config = PROTOCOLS["digits"].config
    for text, optimizer in (("lr=0.01", "sgd"), ("seed=3", "adamw"), ("optimizer=lamb", "lamb")):
        assert suit_layer_norms(model, Variant("ce", config).replace(text)).config.optimizer == optimizer
