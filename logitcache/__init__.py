"""Offline knowledge distillation: run the teacher once, train students from its compressed logits.

Stage one puts views of the images through the teacher and keeps its answers in a cache; stage two trains students on
the same views, made again, and the answers looked up. To begin, with a cache ``c.zarr`` of `logitcache dump`::

    from logitcache import Objective, Stream

    stream = Stream.from_cache("c.zarr", batch_size=64)    # batches of views, labels, the teacher's answers
    objective = Objective.parse("kd")                      # what a student minimises
    for batch in stream.epoch(0):
        logits = student(batch.views / 255)                # any module: (B, C, h, w) -> (B, classes)
        loss, terms = objective(logits, batch.teacher, batch.target)

Stream          batches by epoch, in this library's loader
CachedViews     the same as a torch data set, for a DataLoader of your own; ViewSampler walks it
Objective       cross-entropy and losses by name: "kd", "cmkd", "kd:0.5+dist:2"
SparseTeacher   a batch of answers: `logits` and `at(T)`, dense, for any loss of yours
CachedTeacher   answers by sample number, KeyedViews views by (sample, seed): without loader or loop
CacheReader     what a cache holds and of what it was made
open_images     images by name; recipe_named an augmentation by name; Images and ViewMaker are what these return
LogitCacheError the root of all errors of this library

The two stages as functions are `logitcache.dump.dump` and `logitcache.train.train`, models by name come from
`logitcache.models.build_model`; each loss is in a module of `logitcache.losses`, such as `logitcache.losses.kd.kd`,
and the errors are in `logitcache.errors`. `docs/api/index.md` has both stages in one example.
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

__getattr__, __dir__ = lazy(
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
    "audit bench dump errors losses models report store stream teacher train views",
)
