"""Offline knowledge distillation: run the teacher once, train students from its compressed logits.

The names below are the whole public surface of everyday use; `logitcache.dump.dump` and `logitcache.train.train`
are the two stages as functions, `logitcache.losses` and `logitcache.errors` the two families.
"""

import importlib
from typing import TYPE_CHECKING, Any

from logitcache.versions import __version__

if TYPE_CHECKING:
    from logitcache.errors import LogitCacheError
    from logitcache.losses import Objective
    from logitcache.store import CacheReader
    from logitcache.stream.stream import Stream
    from logitcache.stream.torch_dataset import CachedViews, ViewSampler
    from logitcache.teacher.cached import CachedTeacher
    from logitcache.teacher.sparse import SparseTeacher
    from logitcache.views.datasets import open_images
    from logitcache.views.images import Images
    from logitcache.views.keyed_views import KeyedViews
    from logitcache.views.maker import ViewMaker
    from logitcache.views.recipes import recipe_named

__all__ = [
    "CacheReader",
    "CachedTeacher",
    "CachedViews",
    "Images",
    "KeyedViews",
    "LogitCacheError",
    "Objective",
    "SparseTeacher",
    "Stream",
    "ViewMaker",
    "ViewSampler",
    "__version__",
    "open_images",
    "recipe_named",
]

_HOMES = {
    "CacheReader": "store.reader",
    "CachedTeacher": "teacher.cached",
    "CachedViews": "stream.torch_dataset",
    "Images": "views.images",
    "KeyedViews": "views.keyed_views",
    "LogitCacheError": "errors",
    "Objective": "losses.objective",
    "SparseTeacher": "teacher.sparse",
    "Stream": "stream.stream",
    "ViewMaker": "views.maker",
    "ViewSampler": "stream.torch_dataset",
    "open_images": "views.datasets",
    "recipe_named": "views.recipes",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import logitcache`` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'logitcache' has no attribute {name!r}")
    return getattr(importlib.import_module(f"logitcache.{_HOMES[name]}"), name)
