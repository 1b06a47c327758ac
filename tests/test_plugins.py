"""Your own code by name: found on the path and in the working directory, or refused in one line."""

import json
import sys
from pathlib import Path

import pytest

from logitcache.errors import NotFoundError, OptionError, UnknownNameError
from logitcache.plugins import load_callable, require_own


@pytest.fixture(autouse=True)
def path_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("plugin_"):
            del sys.modules[name]


def test_a_function_of_an_installed_module_is_found():
    assert load_callable("json:dumps") is json.dumps
    assert load_callable("os.path:join")("a", "b")


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plugin_here.py").write_text("def answer():\n    return 42\n")
    monkeypatch.chdir(tmp_path)
    assert load_callable("plugin_here:answer")() == 42


def test_the_working_directory_never_hides_an_installed_module(tmp_path: Path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("rgb_to_hsv = lambda *_: 'mine'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert load_callable("colorsys:rgb_to_hsv")(0, 0, 0) == (0.0, 0.0, 0)


def test_a_module_that_is_not_there_is_named_with_what_to_do():
    with pytest.raises(NotFoundError, match=r"cannot import 'plugin_none' for 'plugin_none:f'.*working dir"):
        load_callable("plugin_none:f")


def test_a_module_whose_own_import_fails_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plugin_needs.py").write_text("import plugin_not_installed\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match="plugin_not_installed"):
        load_callable("plugin_needs:f")


def test_a_missing_function_suggests_the_ones_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plugin_typo.py").write_text("def my_images(): ...\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match=r"callable in plugin_typo 'my_image'; did you mean my_images"):
        load_callable("plugin_typo:my_image")
    with pytest.raises(UnknownNameError, match="callable in plugin_typo 'number'"):
        load_callable("plugin_typo:number")


@pytest.mark.parametrize("reference", ["", ":", ":f", "json:", "json", ".json:f", "..a.b:f"])
def test_what_is_not_module_and_function_is_refused(reference: str):
    with pytest.raises(OptionError, match=r"expected package\.module:function, found"):
        load_callable(reference)


@pytest.mark.parametrize(
    "name", ["shutil:rmtree", "os.path:join", "builtins:exec", "torch.hub:load", "numpy:load", "pytest:main"]
)
def test_code_that_a_file_names_is_never_of_the_library_or_of_a_package(name: str):
    with pytest.raises(OptionError, match=f"a.zarr names the code {name}, .*name it yourself"):
        require_own("a.zarr", "digits", name)


def test_code_of_ones_own_folder_and_names_that_are_no_code_pass(tmp_path: Path, monkeypatch):
    (tmp_path / "plugin_mine.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    require_own("a.zarr", "plugin_mine:data", "plugin_absent:data", "logitcache.bench.glyphs:rare_glyphs")
    require_own("a.zarr", "digits", "imagefolder:/data/pets", "folder:./pets", "cifar10:", "")
