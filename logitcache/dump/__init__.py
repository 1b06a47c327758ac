"""Stage one: a teacher runs once per augmentation seed, and its compressed logits go into a cache.

`audit` (a repair dumps damaged shards again), `demo`, `bench` and the command line enter here.

- `job`: a dump in this process, from images, recipe and teacher; its settings and its report
- `filler`: views in, whole shards out, on one device
- `inputs`: teacher, data and recipe by the names of the command line
- `defaults`: what a command leaves open, from the cache that it goes on with
- `torchrun`, `dask_cluster`: one dump by several processes
- `helper`: a process that fills shards under the locks of another
- `calibration`: class statistics from a sample of views, before a cache's first shard
- `late_calibration`: the same for a cache that is there
- `plan`: what a cache will cost and keep, measured on a sample before the dump
"""

from typing import TYPE_CHECKING

from logitcache.lazy import lazy

if TYPE_CHECKING:
    from logitcache.dump.job import DumpReport, dump
    from logitcache.dump.late_calibration import calibrate_cache
    from logitcache.dump.settings import DumpConfig

__all__ = ["DumpConfig", "DumpReport", "calibrate_cache", "dump"]

__getattr__, __dir__ = lazy(
    __name__, {"job": "DumpConfig DumpReport dump", "late_calibration": "calibrate_cache"}
)
