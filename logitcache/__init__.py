"""Offline knowledge distillation: run the teacher once, train students from its compressed logits.

The names below are the whole public surface of everyday use; `logitcache.dump.dump` and `logitcache.train.train`
are the two stages as functions; each loss is in a module of `logitcache.losses`, such as `logitcache.losses.kd.kd`,
and the errors are in `logitcache.errors`.
"""

from typing import TYPE_CHECKING

from logitcache.lazy import lazy
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

__getattr__ = lazy(
    __name__,
    {
        "errors": "LogitCacheError",
        "losses.objective": "Objective",
        "store.reader": "CacheReader",
        "stream.stream": "Stream",
        "stream.torch_dataset": "CachedViews ViewSampler",
        "teacher.cached": "CachedTeacher",
        "teacher.sparse": "SparseTeacher",
        "views.datasets": "open_images",
        "views.images": "Images",
        "views.keyed_views": "KeyedViews",
        "views.maker": "ViewMaker",
        "views.recipes": "recipe_named",
    },
)
