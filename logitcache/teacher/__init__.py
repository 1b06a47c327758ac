"""Teacher: what a teacher said of a view, as logits of all classes; from a cache, or live.

For `losses` and the wings above. A teacher answers for a batch of (sample, seed) pairs with a `SparseTeacher`, whose
`logits` are (B, C), and whose `at(T)` is the distribution at temperature T.

sparse      `SparseTeacher` and `SoftTargets`: from the k largest logits and the tail's numbers to all of them
completion  `Completion`: the tail by how classes vary together; `fit_statistics` finds that out
protocol    `Teacher`, what every kind of teacher can do
sample_scores  `score_samples`: how sure a cache's teacher is of each sample, over its seeds
cached      `CachedTeacher`: answers looked up in a cache
live        `LiveTeacher`: the model itself, run on every batch; is a model the cache's teacher?
ensemble    several teachers averaged into one
spool       one seed of a cache, decoded into a packed file that all processes map
spool_file  the checksum of that file
"""

from typing import TYPE_CHECKING

from logitcache.lazy import lazy

if TYPE_CHECKING:
    from logitcache.teacher.cached import CachedTeacher
    from logitcache.teacher.completion import Completion, fit_statistics
    from logitcache.teacher.ensemble import Ensemble
    from logitcache.teacher.live import LiveTeacher
    from logitcache.teacher.protocol import Teacher
    from logitcache.teacher.sparse import SoftTargets, SparseTeacher

__all__ = [
    "CachedTeacher",
    "Completion",
    "Ensemble",
    "LiveTeacher",
    "SoftTargets",
    "SparseTeacher",
    "Teacher",
    "fit_statistics",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "cached": "CachedTeacher",
        "completion": "Completion fit_statistics",
        "ensemble": "Ensemble",
        "live": "LiveTeacher",
        "protocol": "Teacher",
        "sparse": "SoftTargets SparseTeacher",
    },
)
