"""Names that a package hands out, each imported when it is first used.

So ``logitcache --help`` imports no torch and a loader's workers import no zarr, whatever a package's face offers.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package.

    Args:
        package: its ``__name__``.
        homes: each name it hands out, and the module below it that defines the name.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807  (it becomes the package's)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return __getattr__
