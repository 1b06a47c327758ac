"""Where the samples of a cache are among images, by their names alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from specs import often
from torch import Tensor, zeros

from logitcache.errors import DataError
from logitcache.views.changes import locate, require_distinct_keys
from logitcache.views.images import Images

NAMES = st.lists(st.text("abc", max_size=3), min_size=1, max_size=30)
DISTINCT = st.lists(st.text("abc", max_size=3), min_size=1, max_size=30, unique=True)


class NamedImages(Images):
    """Images that are names."""

    fingerprint = ""

    def __init__(self, names: list[str]) -> None:
        self.name, self.split, self.names = "named", "train", names
        self.labels, self.num_classes = np.zeros(len(names), dtype=np.int64), 2

    def image(self, sample: int) -> Tensor:
        return zeros(1, 1, 1)

    def stable_name(self, sample: int) -> bytes:
        return self.names[sample].encode()


@often
@given(DISTINCT, DISTINCT)
def test_each_sample_is_where_its_name_is_and_the_others_are_new_in_their_order(
    cache: list[str], images: list[str]
):
    located = locate(NamedImages(cache).keys(), NamedImages(images))
    assert located.order.tolist() == [images.index(name) if name in images else -1 for name in cache]
    assert located.new.tolist() == [place for place, name in enumerate(images) if name not in cache]
    assert located.missing.tolist() == [i for i, name in enumerate(cache) if name not in images]


@often
@given(NAMES)
def test_two_images_of_one_name_are_refused(names: list[str]):
    images = NamedImages(names)
    if len({*names}) == len(names):
        assert (require_distinct_keys(images) == images.keys()).all()
    else:
        refused(DataError, lambda: require_distinct_keys(images), "two images have one stable name")
