"""Weights round-trip through files, as people save them; what does not fit, or is more than weights, is refused."""

import argparse
import json
import os
import pickle
import resource
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision.models
from building import refused, tiny
from small_caches import FORK

from logitcache.errors import NotFoundError, OptionError, StorageError, WeightsError
from logitcache.models.build import build_model, save_weights
from logitcache.models.weights import read_weights


@pytest.mark.parametrize("name", ["digits_tiny", "resnet8", "vit_b"])
def test_saved_weights_give_the_same_model_again(tmp_path, name):
    model = build_model(name, num_classes=6, view_size=40, seed=5)
    path = tmp_path / "new" / "w.safetensors"
    save_weights(path, model)
    assert os.listdir(path.parent) == ["w.safetensors"]
    again = build_model(name, num_classes=6, view_size=8, weights=str(path))
    assert again.weights == "file:w.safetensors"
    assert (again.weights_sha256, again.adapter) == (model.weights_sha256, model.adapter)


def test_saving_replaces_a_file_and_reports_a_disk_that_says_no(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, tiny(seed=1))
    save_weights(path, tiny(seed=2))
    assert tiny(str(path)).weights_sha256 == tiny(seed=2).weights_sha256
    with pytest.raises(StorageError, match="cannot write"):
        save_weights(path / "below-a-file", tiny())


def save_until_killed(folder: Path, most: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills whoever writes more
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    save_weights(folder / "w.safetensors", tiny(seed=2))


def test_a_writer_that_is_killed_leaves_the_file_before_and_one_that_the_next_replaces(
    tmp_path: Path,
) -> None:
    save_weights(tmp_path / "w.safetensors", tiny(seed=1))
    child = FORK.Process(target=save_until_killed, args=(tmp_path, 4096))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGXFSZ
    assert sorted(os.listdir(tmp_path)) == ["w.safetensors", "w.safetensors.part"]
    assert tiny(str(tmp_path / "w.safetensors")).weights_sha256 == tiny(seed=1).weights_sha256
    save_weights(tmp_path / "w.safetensors", tiny(seed=2))
    assert os.listdir(tmp_path) == ["w.safetensors"]


def wrapped(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "dress",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": wrapped(s, "module.")},
        lambda s: {"model_state_dict": wrapped(s, "_orig_mod.module.")},
        lambda s: {"ema": wrapped(s, "module._orig_mod.")},
        lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
)
def test_checkpoints_as_people_save_them_load(tmp_path, dress):
    model = tiny(seed=7)
    path = tmp_path / "checkpoint.pth"
    torch.save(dress(dict(model.module.state_dict())), path)
    assert tiny(str(path)).weights_sha256 == model.weights_sha256


def test_a_torchvision_vit_file_says_its_image_size(tmp_path):
    theirs = torchvision.models.vit_b_32(image_size=96, num_classes=10)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    assert tiny(str(tmp_path / "vit.pth"), name="vit_b_32").adapter.size == 96


def test_a_plain_file_sees_the_views_as_they_are_or_as_it_is_told(tmp_path):
    theirs = torchvision.models.resnet18(num_classes=10)
    path = tmp_path / "theirs.pth"
    torch.save({"model": theirs.state_dict()}, path)

    def size(view_size, **options):
        made = build_model("resnet18", num_classes=10, view_size=view_size, weights=str(path), **options)
        return made.adapter.size

    assert (size(64), size(96), size(224)) == (64, 96, 224)
    assert size(64, input_size=160) == 160
    kept = build_model("resnet18", num_classes=10, view_size=96, weights=str(path))
    save_weights(tmp_path / "kept.safetensors", kept)
    again = build_model("resnet18", num_classes=10, view_size=64, weights=str(tmp_path / "kept.safetensors"))
    assert again.adapter.size == 96  # its file says what it was made for


def test_an_input_size_that_a_network_cannot_take_is_refused():
    with pytest.raises(OptionError, match="vit_b_32 does not take 50 pixels"):
        build_model("vit_b_32", num_classes=10, view_size=64, weights="random", input_size=50)


def test_a_checkpoint_without_weights_says_what_it_has(tmp_path):
    torch.save({"net": dict(tiny().module.state_dict()), "epoch": 3}, tmp_path / "net.pth")
    refused(WeightsError, "it has 'net', 'epoch'; save", weights=str(tmp_path / "net.pth"))


def test_densenet_loads_under_its_published_names(tmp_path):
    model = tiny(name="densenet121", seed=2)
    old = {
        k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v
        for k, v in model.module.state_dict().items()
    }
    torch.save(old, tmp_path / "d.pth")
    assert any(".norm.1." in key for key in old)
    assert tiny(str(tmp_path / "d.pth"), name="densenet121").weights_sha256 == model.weights_sha256


def test_a_file_that_is_not_there(tmp_path):
    refused(NotFoundError, "absent.pth", weights=str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(tiny().module.state_dict(), path)
    else:
        save_weights(path, tiny())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    refused(WeightsError, path.name, weights=str(path))


class Intruder:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("intruded"),))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_objects_in_a_pickle_are_never_made(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"state_dict": Intruder()}, tmp_path / "w.pth")
    refused(WeightsError, "w.pth", "state dict alone", weights="w.pth")
    assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, {3: torch.ones(1)}, torch.ones(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "w.pth")
    refused(WeightsError, "no state dict", weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["digits_tiny", "resnet18", "squeezenet1_1"])
def test_another_head_is_said_plainly(tmp_path, name):
    torch.save(tiny(name=name, num_classes=12).module.state_dict(), tmp_path / "w.pth")
    refused(
        WeightsError,
        "w.pth has a head for 12 classes, the data set has 10",
        name=name,
        weights=str(tmp_path / "w.pth"),
    )


def test_keys_that_do_not_fit_are_counted_and_the_first_three_named(tmp_path):
    torch.save(tiny(name="resnet14").module.state_dict(), tmp_path / "w.pth")
    weights = str(tmp_path / "w.pth")
    refused(WeightsError, "does not fit resnet8", "unexpected (", ", …)", name="resnet8", weights=weights)
    refused(WeightsError, "missing (", name="resnet20", weights=weights)
    refused(WeightsError, "of other shape (0.0.weight", name="resnet8x4", weights=str(small_file(tmp_path)))


def small_file(folder: Path) -> Path:
    torch.save(tiny(name="resnet8").module.state_dict(), folder / "small.pth")
    return folder / "small.pth"


def test_nan_is_refused_with_the_name_of_its_tensor(tmp_path):
    model = tiny()
    spoilt = list(dict(model.module.named_parameters()))[-1]
    with torch.no_grad():
        model.module.state_dict()[spoilt][0] = float("nan")
    save_weights(tmp_path / "w.safetensors", model)
    refused(WeightsError, "NaN", spoilt, weights=str(tmp_path / "w.safetensors"))


def test_the_header_guards_name_and_classes(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, tiny(num_classes=12))
    refused(WeightsError, "digits_tiny", "digits_small", name="digits_small", weights=str(path))
    refused(WeightsError, "a head for 12 classes", weights=str(path))


@pytest.mark.parametrize(
    "header", ["{", "[]", "{}", json.dumps({"name": "a", "num_classes": 10, "adapter": {}})]
)
def test_a_damaged_header_is_refused(tmp_path, header):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(tiny().module.state_dict(), path, metadata={"logitcache": header})
    refused(WeightsError, "damaged logitcache header", weights=str(path))


def test_safetensors_of_others_need_no_header(tmp_path):
    model = tiny(seed=3)
    safetensors.torch.save_file(model.module.state_dict(), tmp_path / "w.safetensors")
    assert tiny(str(tmp_path / "w.safetensors")).weights_sha256 == model.weights_sha256


def test_a_new_head_stands_on_the_weights_body_and_is_drawn_from_the_seed(tmp_path):
    trained = build_model("digits_small", num_classes=10, view_size=8, weights="random", seed=3)
    save_weights(tmp_path / "w.safetensors", trained)
    torch.save(trained.module.state_dict(), tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        options = {"num_classes": 7, "view_size": 8, "weights": str(tmp_path / file), "seed": 5}
        with pytest.raises(WeightsError, match="head for 10 classes"):
            build_model("digits_small", **options)
        model = build_model("digits_small", **options, new_head=True)
        assert model.weights == f"file:{file} with a new head"
        fresh = build_model(
            "digits_small", num_classes=7, view_size=8, weights="random", seed=5
        ).module.state_dict()
        old, found = trained.module.state_dict(), model.module.state_dict()
        heads = [name for name in found if found[name].shape != old[name].shape]
        assert len(heads) == 2
        for name in found:
            assert torch.equal(found[name], (fresh if name in heads else old)[name])


def test_a_new_head_makes_up_for_nothing_else(tmp_path):
    other = build_model("digits_tiny", num_classes=10, view_size=8, weights="random").module.state_dict()
    torch.save(other, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="does not fit digits_small"):
        build_model(
            "digits_small", num_classes=7, view_size=8, weights=str(tmp_path / "w.pth"), new_head=True
        )


@pytest.mark.parametrize(
    "content", [b'{"epoch": 1}\n', b"", b"\x89PNG\r\n", b"PK\x03\x04abc", pickle.dumps(os.system)]
)
def test_torchs_advice_to_unpickle_objects_is_never_passed_on(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"no file of weights.*expected safetensors, or a state dict"
    ) as told:
        read_weights(tmp_path / "metrics.jsonl")
    assert "weights_only" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_whole_module_is_named_as_what_is_never_loaded(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(
        WeightsError, match=r"holds the Python object torch\S+Linear; save the state dict alone"
    ):
        read_weights(tmp_path / "whole.pt")


def test_a_run_folder_is_told_by_its_file_of_weights(tmp_path):
    run = tmp_path / "runs" / "teacher2"
    run.mkdir(parents=True)
    (run / "best.safetensors").touch()
    for given in (
        run,
        tmp_path / "runs",
        run.with_name("techer2"),
        run.with_name("teacher3") / "best.safetensors",
    ):
        with pytest.raises(NotFoundError, match="did you mean ") as told:
            build_model("digits_tiny", num_classes=10, view_size=8, weights=str(given))
        assert str(told.value).endswith(f"; did you mean {run / 'best.safetensors'}?")
