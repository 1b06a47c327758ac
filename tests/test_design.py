"""The floors that docs/design.md tells are those that import-linter holds; and nobody but the store speaks zarr."""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def contract(name: str) -> Any:
    (found,) = (held for held in CONTRACTS if held["name"] == name)
    return found


def test_the_table_of_floors_is_the_contract():
    told: dict[int, set[str]] = {}
    for floor, modules in re.findall(r"^\| (\d+) \| (.+?) \|", (ROOT / "docs/design.md").read_text(), re.M):
        told.setdefault(int(floor), set()).update(re.findall(r"`(\w+)/?`", modules))
    held = [set(layer.split(" | ")) for layer in reversed(contract("the floors of the house")["layers"])]
    command_line, *below = contract("the command line stands on the library")["layers"]
    assert below == ["logitcache"]
    assert told == dict(enumerate([*held, {"cli", command_line}]))


def test_every_module_but_the_store_may_not_speak_zarr():
    layers = contract("the floors of the house")["layers"]
    modules = {f"logitcache.{name}" for layer in layers for name in layer.split(" | ")}
    sources = contract("only the store speaks zarr")["source_modules"]
    assert sorted(sources) == sorted(modules - {"logitcache.store"} | {"logitcache_cli"})
