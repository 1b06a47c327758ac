"""Names that a package hands out, each imported when it is first used.

So ``logitcache --help`` imports no torch and a loader's workers import no zarr, whatever a package offers.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def lazy(
    package: str, modules: Mapping[str, str], packages: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and the ``__dir__`` of a package.

    Args:
        package: its ``__name__``.
        modules: the names that each module below it defines, separated by spaces.
        packages: modules below it that are handed out themselves, likewise.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def get_name(name: str) -> Any:
        if name in packages.split():
            return importlib.import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    def list_names() -> list[str]:
        found = vars(sys.modules[package])
        loaded = [n for n, value in found.items() if n.startswith("__") or isinstance(value, ModuleType)]
        return sorted({*homes, *packages.split(), *loaded})

    return get_name, list_names
