"""The wings are as docs/design.md tells, one meaning has one name, and only the store speaks Zarr."""

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
LIBRARY = ROOT / "logitcache"
WINGS = {folder.name for folder in LIBRARY.iterdir() if (folder / "__init__.py").exists()}
TOP = {file.stem for file in LIBRARY.glob("*.py")} - {"__init__"}


def contract(name: str) -> Any:
    (found,) = (one for one in CONTRACTS if one["name"] == name)
    return found


def modules(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.py")} - {"__init__", "__main__"}


def test_the_table_of_wings_is_the_contract():
    layers = [set(layer.split(" | ")) for layer in contract("wings stand on those below them")["layers"]]
    table = DESIGN.partition("## Wings")[2].partition("| (no wing)")[0]
    wings = re.findall(r"^\| `(\w+)/?` \|", table, re.MULTILINE)
    assert set(wings) == WINGS | {"demo"}
    floor = {wing: number for number, layer in enumerate(layers) for wing in layer}
    assert [floor[wing] for wing in wings] == sorted(floor[wing] for wing in wings)
    assert len(layers) <= 13


def test_the_table_of_wings_names_every_module():
    for wing in WINGS:
        (row,) = re.findall(rf"^\| `{wing}/` \|.*", DESIGN, re.MULTILINE)
        assert modules(LIBRARY / wing) <= set(re.findall(r"`(\w+)`", row)), wing
    (row,) = re.findall(r"^\| \(no wing\) \|.*", DESIGN, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) | {"demo"} == TOP
    assert modules(ROOT / "cli") <= set(re.findall(r"`(\w+)`", DESIGN))


def test_module_paths_of_the_page_are_there():
    named = set(re.findall(r"`((?:cli|tests|\w+)/\w+(?:\.py)?)`", DESIGN))
    there = {str(file.relative_to(ROOT)) for file in ROOT.glob("*/**/*.py")}
    for name in named:
        path = name if name.startswith(("cli/", "tests/")) else f"logitcache/{name}"
        assert f"{path.removesuffix('.py')}.py" in there, name


def test_tests_mirror_the_wings():
    folders = {folder.name for folder in (ROOT / "tests").iterdir() if any(folder.glob("test_*.py"))}
    assert WINGS | {"cli", "docs"} == folders


def test_no_test_imports_another():
    for file in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) test_", file.read_text(), re.MULTILINE), file


def test_two_modules_share_a_name_only_where_they_share_a_meaning():
    """A command and a suite of the bench are named after what they run; nothing else is named twice."""
    count = Counter(name for wing in WINGS - {"bench"} for name in modules(LIBRARY / wing))
    assert [name for name, times in count.items() if times > 1] == []
    assert set(count) & (TOP | WINGS) <= {"stream"}


def test_no_two_classes_share_a_name():
    defined = Counter(
        node.name
        for folder in (LIBRARY, ROOT / "cli")
        for file in folder.rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, times in defined.items() if times > 1] == []


@pytest.mark.parametrize("wing", sorted(WINGS))
def test_a_wing_hands_out_what_it_says_and_nothing_by_the_name_of_a_module(wing: str):
    face = __import__(f"logitcache.{wing}", fromlist=["__all__"])
    names = getattr(face, "__all__", [])
    assert not set(names) & modules(LIBRARY / wing)
    for name in names:
        assert getattr(face, name) is not None
    source = (LIBRARY / wing / "__init__.py").read_text()
    typed = {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"logitcache.{wing}.")
        for alias in node.names
    }
    assert typed == set(names)


def test_every_wing_but_the_store_may_not_speak_zarr():
    layers = contract("wings stand on those below them")["layers"]
    wings = {f"logitcache.{name}" for layer in layers for name in layer.split(" | ")}
    sources = contract("only the store speaks zarr")["source_modules"]
    assert sorted(sources) == sorted(wings - {"logitcache.store"} | {"logitcache_cli"})


def test_text_is_read_and_written_as_utf_8_whatever_the_locale():
    for file in [*LIBRARY.rglob("*.py"), *(ROOT / "cli").glob("*.py")]:
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute | ast.Name)):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
            modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            text = name in ("read_text", "write_text") or (name == "open" and isinstance(call.func, ast.Name))
            if text and not any("b" in mode for mode in modes if len(mode) < 4):
                assert "encoding" in {keyword.arg for keyword in call.keywords}, f"{file}, line {call.lineno}"
