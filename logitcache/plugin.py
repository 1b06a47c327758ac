"""Your own code by name: ``module:function`` as a data set, a model or a step of a recipe."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from logitcache.errors import NotFoundError, OptionError, UnknownNameError


def load_callable(reference: str) -> Callable[..., Any]:
    """Import ``package.module:function``, looking in the working directory too.

    Raises:
        OptionError: it is not of that form.
        NotFoundError: the module cannot be imported.
        UnknownNameError: the module has no such callable.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name or module_name.startswith("."):
        raise OptionError(f"expected package.module:function, found {reference!r}")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise NotFoundError(
            f"cannot import {module_name!r} for {reference!r}: {error}; "
            "expected a module on PYTHONPATH or in the working directory"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UnknownNameError(f"callable in {module_name}", name, known)
    return function  # type: ignore[no-any-return]
