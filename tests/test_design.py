"""Nobody but the store speaks zarr."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def contract(name: str) -> Any:
    (found,) = (held for held in CONTRACTS if held["name"] == name)
    return found


def test_every_module_but_the_store_may_not_speak_zarr():
    layers = contract("the floors of the house")["layers"]
    modules = {f"logitcache.{name}" for layer in layers for name in layer.split(" | ")}
    sources = contract("only the store speaks zarr")["source_modules"]
    assert sorted(sources) == sorted(modules - {"logitcache.store"} | {"logitcache_cli"})
