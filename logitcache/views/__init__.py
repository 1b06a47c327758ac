"""Views: from (sample, seed) to pixels, and the proof that a cache's views can be made again.

For every wing above. A view is a pure function of image, sample and seed: whoever makes it, it is the same.

images       `Images`, the base of every data set: images in a stable order, with a fingerprint
folders      images that are files
picture_files which files below a folder are pictures, and what is left out
picture_sample what a few pictures say of all: their sizes, whether some are transparent
decoding     a picture's file to pixels
bad_images   images that do not decode: found, left out, named
own_images   a data set of your own, wrapped
items        its items, each read with care, and the labels of all
datasets     data sets by name: `open_images`; arrays in memory
recipes      recipes by name: which transforms make a view
keys         random numbers from (seed, sample) and nothing else
maker        one view: `ViewMaker`, and its digest
mixing       MixUp and CutMix by (sample, seed)
keyed_views  `KeyedViews`, a torch data set indexed by (sample, seed)
loader       batches of views, from workers or by whole batches
shared_memory where it is short, batches come through the pipe
main_module  workers that do not import your script
vectorized   whole batches of views of small images at once, the same pixels as one by one
mt19937      what torch's CPU generator draws, for thousands of views at once, in NumPy
alignment    images in a cache's order, after the data has grown
changes      which images of a cache are missing, new or changed
replay       canary views made again and compared, before anything relies on them
repeatable   a few views made twice, before a dump
"""

from typing import TYPE_CHECKING

from logitcache.lazy import lazy

if TYPE_CHECKING:
    from logitcache.views.datasets import ArrayImages, open_images
    from logitcache.views.images import Images
    from logitcache.views.keyed_views import KeyedViews
    from logitcache.views.maker import ViewMaker
    from logitcache.views.recipes import recipe_named

__all__ = ["ArrayImages", "Images", "KeyedViews", "ViewMaker", "open_images", "recipe_named"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "datasets": "ArrayImages open_images",
        "images": "Images",
        "keyed_views": "KeyedViews",
        "maker": "ViewMaker",
        "recipes": "recipe_named",
    },
)
