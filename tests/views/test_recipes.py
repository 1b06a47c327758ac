"""Recipes survive JSON and TOML; what is no recipe, or does not fit the image, is refused by name."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from making import RANDOM_RECIPES, SIZES, picture, steps
from refusals import refused

from logitcache.errors import DataError, FormatError, NotFoundError, OptionError, UnknownNameError
from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.versions import cpu_kind, library_versions
from logitcache.views.jpeg import name_jpeg_decoder
from logitcache.views.maker import ViewMaker, _resize_in_integers, digest
from logitcache.views.recipes import recipe_named
from logitcache.views.replay import view_conditions

# Recipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SIZES, "identity", "imagenet", "imagenet-ra", "imagenet@8", "center@4096"])
def test_a_named_recipe_survives_json_and_names_an_evaluation_recipe(name: str):
    recipe = recipe_named(name)
    assert recipe.name == name
    read = RecipeSpec.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert read == recipe
    assert read.sha256 == recipe.sha256
    evaluation = recipe_named(recipe.evaluation)
    assert evaluation.evaluation == evaluation.name
    image = picture(height=32, width=32)
    if name not in ("identity", "digits"):
        made = (ViewMaker(r)(image, 0, 0).shape for r in (recipe, evaluation))
        assert len(set(made)) == 1


def toml_of(recipe: RecipeSpec) -> str:
    lines = [f"name = {json.dumps(recipe.name)}", f"version = {recipe.version}"]
    lines.append(f"evaluation = {json.dumps(recipe.evaluation)}")
    for step in recipe.steps:
        lines += ["[[steps]]", f"transform = {json.dumps(step.transform)}"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in step.args.items()]
    return "\n".join(lines)


@pytest.mark.parametrize("name", [*RANDOM_RECIPES, "center@16"])
def test_a_recipe_survives_toml_and_makes_the_same_views(name: str, tmp_path: Path):
    recipe = recipe_named(name)
    path = tmp_path / "mine.toml"
    path.write_text(toml_of(recipe))
    read = recipe_named(str(path))
    assert read == recipe
    assert torch.equal(ViewMaker(read)(picture(), 1, 2), ViewMaker(recipe)(picture(), 1, 2))


def test_a_toml_file_may_leave_name_version_and_evaluation_out(tmp_path: Path):
    path = tmp_path / "flips.toml"
    path.write_text('[[steps]]\ntransform = "RandomHorizontalFlip"\np = 1.0\n')
    recipe = recipe_named(str(path))
    assert (recipe.name, recipe.version, recipe.evaluation) == ("flips", 1, "center")
    assert torch.equal(ViewMaker(recipe)(picture(), 0, 0), picture().flip(2))


def test_a_toml_file_is_utf8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "r.toml"
    path.write_bytes('name = "Würfel"\n'.encode())
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1")
    assert recipe_named(str(path)).name == "Würfel"


def test_own_code_is_a_recipe_of_one_step(own: str):
    recipe = recipe_named(f"{own}:draw_torch")
    assert recipe.steps == (StepSpec(f"{own}:draw_torch"),)


def test_arguments_reach_own_code(own: str):
    view = ViewMaker(steps(f"{own}:in_place", by=3))(torch.zeros(1, 2, 2, dtype=torch.uint8), 0, 0)
    assert (view == 3).all()


def test_interpolation_is_given_by_its_name():
    image = picture()
    sharp, soft = (
        ViewMaker(steps("Resize", size=[20, 20], interpolation=mode))(image, 0, 0)
        for mode in ("nearest", "bicubic")
    )
    assert not torch.equal(sharp, soft)


def test_a_torchvision_that_chooses_its_kernel_elsewhere_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    from torchvision.transforms.v2.functional import _geometry

    expected = ViewMaker(steps("Resize", size=[20, 20]))(picture(), 0, 0)
    choose = _geometry._do_native_uint8_resize_on_cpu
    wrapped = type(choose)(lambda interpolation, *, antialias: antialias)
    assert wrapped("other", antialias=True)  # what a later one may ask besides
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2.functional._geometry", None)
    monkeypatch.delattr("torchvision.transforms.v2.functional._geometry", raising=False)
    _resize_in_integers.cache_clear()
    assert torch.equal(ViewMaker(steps("Resize", size=[20, 20]))(picture(), 0, 0), expected)


def test_versions_name_all_that_views_depend_on():
    versions = library_versions()
    assert set(versions) == {"logitcache", "torch", "torchvision", "pillow"}
    assert all(versions.values())
    assert view_conditions() == {**versions, "jpeg": name_jpeg_decoder(), "cpu": cpu_kind()}


def test_resizing_is_the_same_on_every_kind_of_cpu():
    program = (
        "import torch; from logitcache.views.maker import *; from logitcache.views.recipes import recipe_named\n"
        "image = torch.arange(3 * 90 * 70).mul(7919).remainder(251).byte().view(3, 90, 70)\n"
        "print(torch.backends.cpu.get_cpu_capability())\n"
        "for name in ('imagenet@48', 'center@48'):\n"
        "    print(*(digest(ViewMaker(recipe_named(name))(image, i, 0)) for i in range(4)))\n"
    )
    found = {}
    for kind in ("default", "avx2"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "ATEN_CPU_CAPABILITY": kind},
            capture_output=True,
            text=True,
            check=True,
        )
        capability, *views = run.stdout.splitlines()
        found[capability] = views
    if len(found) < 2:
        pytest.skip("this CPU has one kind of kernels")
    default, other = found.values()
    assert default == other


# Refusals -------------------------------------------------------------------------------------------------


def test_an_unknown_transform_suggests_near_ones():
    refused(UnknownNameError, lambda: ViewMaker(steps("RandomCropp")), "RandomCrop", "module:function")
    refused(UnknownNameError, lambda: ViewMaker(steps("functional")), "unknown transform 'functional'")
    refused(UnknownNameError, lambda: ViewMaker(steps("InterpolationMode")), "unknown transform")


@pytest.mark.parametrize(
    ("transform", "args"),
    [
        ("RandomCrop", {}),
        ("RandomCrop", {"size": None}),
        ("RandomCrop", {"size": 8, "colour": 1}),
        ("Resize", {"size": 8, "interpolation": "sharpest"}),
        ("Pad", {"padding": [1, 2, 3]}),
        ("ColorJitter", {"brightness": {}}),
        ("ToDtype", {"dtype": "float32"}),
        ("AutoAugment", {"policy": "mine"}),
    ],
    ids=str,
)
def test_arguments_that_a_transform_does_not_take_are_named(transform: str, args: dict[str, Any]):
    recipe = RecipeSpec("mine", 1, (StepSpec(transform, args),))
    refused(OptionError, lambda: ViewMaker(recipe), f"transform {transform} does not take {args}")


@pytest.mark.parametrize(
    ("function", "found"), [("as_float", "(3, 37, 45) float32"), ("as_list", "found list")]
)
def test_a_recipe_that_gives_no_uint8_image_is_told_so(own: str, function: str, found: str):
    maker = ViewMaker(recipe_named(f"{own}:{function}"))
    refused(DataError, lambda: maker(picture(), 0, 0), f"{own}:{function}", found, "ToDtype and Normalize")


@pytest.mark.parametrize(
    ("transform", "args"),
    [
        ("RandomCrop", {"size": 99}),
        ("RandomCrop", {"size": "a"}),
        ("Resize", {"size": 0}),
        ("Normalize", {"mean": [0.5], "std": [0.5]}),
        ("Transform", {}),
    ],
)
def test_a_transform_that_does_not_fit_the_image_is_named_with_both(transform: str, args: dict[str, Any]):
    maker = ViewMaker(RecipeSpec("mine", 1, (StepSpec(transform, args),)))
    refused(DataError, lambda: maker(picture(), 0, 0), f"transform {transform}", "(3, 37, 45) uint8")


def test_an_unknown_recipe_suggests_near_ones():
    refused(UnknownNameError, lambda: recipe_named("imagnet"), "did you mean", "imagenet", ".toml")
    refused(UnknownNameError, lambda: recipe_named("cifar@64"), "unknown recipe 'cifar@64'")
    refused(UnknownNameError, lambda: recipe_named(""), "known: center, cifar, digits")


@pytest.mark.parametrize("size", ["", "0", "-1", "x", "4097", "2.5", "²", "224@224", " 8"])
def test_a_size_that_is_none_is_refused(size: str):
    for base in ("imagenet", "imagenet-ra", "center"):
        refused(OptionError, lambda base=base: recipe_named(f"{base}@{size}"), "pixels after @", repr(size))


def test_a_recipe_file_that_is_not_there_is_named(tmp_path: Path):
    refused(NotFoundError, lambda: recipe_named("none.toml"), "none.toml", "[[steps]]")
    (tmp_path / "folder.toml").mkdir()
    refused(NotFoundError, lambda: recipe_named(str(tmp_path / "folder.toml")), "folder.toml")


@pytest.mark.parametrize(
    "text",
    [
        b"steps = [",
        b"\xff\xfe",
        b"steps = 5",
        b'steps = ["RandomCrop"]',
        b'[steps]\ntransform = "RandomCrop"',
        b"[[steps]]\nsize = 8",
        b"[[steps]]\ntransform = 8",
        b'version = "1"',
        b"colour = 1",
        b'[[steps]]\ntransform = "Pad"\npadding = nan',
        b'[[steps]]\ntransform = "Pad"\npadding = 2020-01-01',
    ],
)
def test_a_file_that_is_no_recipe_is_named_with_what_was_expected(text: bytes, tmp_path: Path):
    path = tmp_path / "broken.toml"
    path.write_bytes(text)
    refused(FormatError, lambda: recipe_named(str(path)), str(path), "[[steps]] tables")


def test_own_code_that_is_not_there_is_refused_by_name(own: str):
    refused(NotFoundError, lambda: recipe_named("views_of_nobody:f"), "views_of_nobody")
    refused(UnknownNameError, lambda: recipe_named(f"{own}:draw_touch"), "draw_torch")
    refused(NotFoundError, lambda: ViewMaker(steps("views_of_nobody:f")), "views_of_nobody")


def test_a_recipe_that_differs_in_an_argument_makes_other_views():
    recipe = recipe_named("digits")
    wider = dataclasses.replace(recipe, steps=(StepSpec("RandomCrop", {"size": 8, "padding": 3}),))
    image = picture(1, 8, 8)
    assert wider.sha256 != recipe.sha256
    views = ([digest(ViewMaker(r)(image, 0, seed)) for seed in range(8)] for r in (recipe, wider))
    assert next(views) != next(views)
