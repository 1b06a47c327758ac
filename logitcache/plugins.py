"""The user's own code by name: ``module:function`` as a data set, a model or a step of a recipe."""

import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
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


def require_own(where: object, *references: str) -> None:
    """Check that code which a file names, and not its user, is the user's own.

    A cache or run folder may come from a stranger, and may name ``shutil:rmtree``. Modules in folders of the user's
    own pass; those of the standard library and of installed packages do not, but for logitcache's.

    Args:
        where: what names it, for the message.
        references: names; those that are not ``module:function`` pass.

    Raises:
        OptionError: one names code that is not the user's own.
    """
    for reference in references:
        package = reference.partition(":")[0].partition(".")[0]
        if ":" in reference and package != "logitcache" and _installed(package):
            raise OptionError(
                f"{where} names the code {reference}, which is of the standard library or of an installed package, "
                "and is not run because a file says so; name it yourself by an option, or take another file"
            )


def _installed(package: str) -> bool:
    if package in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(package) if package else None
    except (ImportError, ValueError):
        return True  # whatever it is, it has no file of the user's own
    if spec is None:
        return False  # in the working directory, or nowhere
    paths = [
        Path(path).resolve()
        for path in ([spec.origin] if spec.origin else spec.submodule_search_locations or ())
    ]
    libraries = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
    return any(
        {"site-packages", "dist-packages"} & {*path.parts} or path.is_relative_to(library)
        for path in paths
        for library in libraries
    )
