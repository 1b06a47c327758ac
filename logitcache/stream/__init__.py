"""Stream: batches of (views, labels, teacher) for training.

For `train`, `demo`, `bench`, the command line and your own training loops. A `Stream` is what `logitcache
train` takes; `CachedViews` with `ViewSampler` is the same for the DataLoader of any other loop.

stream          `Stream`: an epoch's batches, the teacher from caches, live, or none
batch           `Batch`, what a step takes; `StreamConfig`, how batches are made
stream_inputs   caches, images and recipe by the names of the command line, opened as a stream
sampler         which (sample, seed) pairs each batch of an epoch holds
torch_dataset   `CachedViews`, a cache as a torch data set; `ViewSampler`, which walks it
worker_dataset  what a DataLoader worker needs of it, without Zarr
shared_epoch    the epoch at hand, which workers see change
"""

from typing import TYPE_CHECKING

from logitcache.lazy import lazy

if TYPE_CHECKING:
    from logitcache.stream.batch import Batch, StreamConfig
    from logitcache.stream.stream import Stream
    from logitcache.stream.torch_dataset import CachedViews, ViewSampler

__all__ = ["Batch", "CachedViews", "Stream", "StreamConfig", "ViewSampler"]

__getattr__, __dir__ = lazy(
    __name__,
    {"batch": "Batch StreamConfig", "stream": "Stream", "torch_dataset": "CachedViews ViewSampler"},
)
