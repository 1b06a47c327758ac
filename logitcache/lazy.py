"""Names that a package hands out, each imported when it is first used.

So ``logitcache --help`` imports no torch and a loader's workers import no zarr, whatever a package offers.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package.

    Args:
        package: its ``__name__``.
        modules: the names that each module below it defines, separated by spaces.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def get_name(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get_name
