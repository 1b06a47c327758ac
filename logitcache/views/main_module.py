"""Workers that do not import the user's script.

Where workers are started by spawn or forkserver (macOS, Windows, Linux from Python 3.14 on) each imports the main
module again, so a script that is not below `if __name__ == "__main__":` would start workers of workers, which Python
refuses. A worker that makes views needs nothing of the script, unless images, a transform or a recipe's step are
defined in it. A script that has that line is imported as ever: it may register what decoders need.
"""

import ast
import io
import multiprocessing.context
import multiprocessing.process
import multiprocessing.spawn
import pickle
import sys
import threading
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from logitcache.views.keyed_views import KeyedViews

MAIN = "__main__"
_lock = threading.Lock()


def spare_main_module() -> None:
    """Have DataLoader workers that make our views, and take nothing from the main module, not import it."""
    for name in ("SpawnProcess", "ForkServerProcess"):
        kind: Any = getattr(multiprocessing.context, name, None)  # Windows has the first only
        start = getattr(kind, "_Popen", None)
        if start is not None and not hasattr(start, "__wrapped__"):
            kind._Popen = staticmethod(_without_main(start))


def is_imported_by_worker() -> bool:
    """Is this process a worker that imports the main module of the program that started it?"""
    return bool(getattr(multiprocessing.process.current_process(), "_inheriting", False))


def needs_main(*objects: object) -> bool:
    """Would a process need the main module to unpickle these?"""
    scan = _Scan()
    try:
        scan.dump(objects)
    except Exception:  # it does not pickle: let that be said where it matters
        return True
    return scan.main


def _without_main(start: Any) -> Any:
    @wraps(start)
    def started(process: Any) -> Any:
        if not _makes_our_views(process):
            return start(process)
        prepare = multiprocessing.spawn.get_preparation_data

        def prepare_without_main(name: str) -> dict[str, Any]:
            return {key: value for key, value in prepare(name).items() if not key.startswith("init_main")}

        with _lock:
            multiprocessing.spawn.get_preparation_data = prepare_without_main
            try:
                return start(process)
            finally:
                multiprocessing.spawn.get_preparation_data = prepare

    return started


def _makes_our_views(process: Any) -> bool:
    """Is this a DataLoader's worker, for our views, that needs nothing of the main module?"""
    target = getattr(process, "_target", None)
    if not getattr(target, "__module__", "").startswith("torch.utils.data.") or _is_guarded():
        return False
    scan = _Scan()
    try:
        scan.dump((process._args, process._kwargs))
    except Exception:
        return False
    return scan.ours and not scan.main


def _is_guarded() -> bool:
    """Does the main module ask whether it is the main one, so that workers may import it? True if nobody can say."""
    try:
        tree = ast.parse(Path(str(sys.modules[MAIN].__file__)).read_bytes())
    except (AttributeError, KeyError, OSError, SyntaxError, ValueError):
        return True
    return any(
        isinstance(node, ast.Compare) and MAIN in ast.dump(node) and "__name__" in ast.dump(node)
        for node in ast.walk(tree)
    )


class _Scan(pickle.Pickler):
    """A pickler that writes nothing of use, but sees whether views of ours, and the main module, are in an object."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.main = self.ours = False

    def persistent_id(self, item: Any) -> Any:
        """See each object as it comes; numbers are passed over, and what only a starting process can pickle."""
        if isinstance(item, str):
            self.main |= item.startswith(f"{MAIN}:")  # a step of a recipe
            return None
        kind = type(item)
        self.ours |= isinstance(item, KeyedViews)
        self.main |= MAIN in (kind.__module__, getattr(item, "__module__", None))
        numbers = kind is Tensor or (isinstance(item, np.ndarray) and not item.dtype.hasobject)
        return "" if numbers or kind.__module__.startswith("multiprocessing.") else None
