"""Keys and permutations are functions of their parts alone, and digests of every pixel."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import disturb, global_states, picture

from logitcache.views.keys import key, permutation
from logitcache.views.maker import digest

# Keys -----------------------------------------------------------------------------------------------------


def test_keys_of_a_grid_do_not_collide_nor_do_their_low_halves_often():
    keys = [key(seed, sample) for seed in range(64) for sample in range(1024)]
    assert len(set(keys)) == len(keys)
    # 65,536 draws out of 2^32 meet about 0.5 times by chance.
    assert len({k & 0xFFFF_FFFF for k in keys}) >= len(keys) - 6


parts = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(parts, st.data())
def test_every_bit_of_every_part_changes_about_half_the_bits_of_the_key(
    parts: list[int], data: st.DataObject
):
    where = data.draw(st.integers(0, len(parts) - 1))
    changed = [
        (key(*parts) ^ key(*parts[:where], parts[where] ^ (1 << bit), *parts[where + 1 :])).bit_count()
        for bit in range(64)
    ]
    assert min(changed) > 8
    assert 27 < sum(changed) / 64 < 37


@settings(max_examples=60, deadline=None)
@given(parts)
def test_a_key_is_64_bits_and_depends_on_order_and_length(parts: list[int]):
    assert 0 <= key(*parts) < 1 << 64
    assert key(*parts) == key(*parts)
    assert key(*parts, 0) != key(*parts)
    if parts != parts[::-1]:
        assert key(*parts) != key(*parts[::-1])


def test_keys_stay_what_they_are():
    # A cache is worth its keys: another mixing would make every cache ever written unusable.
    assert key(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 from 0, as published
    assert [key(0, 0), key(7, 12345)] == [0xA706DD2F4D197E6F, 0x729FCBE5B63CA5A]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), parts)
def test_a_permutation_holds_each_number_once_and_depends_on_its_parts_alone(n: int, parts: list[int]):
    order = permutation(n, *parts)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    disturb(parts[0] % 1000)
    before = global_states()
    assert (permutation(n, *parts) == order).all()
    assert global_states() == before
    if n > 50:
        assert (permutation(n, *parts, 1) != order).any()


# Digests --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.data())
def test_a_digest_differs_when_one_pixel_differs(seed: int, change: int, data: st.DataObject):
    view = picture(3, 5, 7, seed)
    other = view.clone()
    at = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 6)))
    other[at] = (int(other[at]) + change) % 256
    assert digest(other) != digest(view)
    assert digest(view.clone()) == digest(view)


def test_a_digest_differs_when_the_shape_differs():
    pixels = torch.zeros(12, dtype=torch.uint8)
    shapes = [s for s in itertools.product(range(1, 13), repeat=3) if s[0] * s[1] * s[2] == 12]
    assert len({digest(pixels.reshape(shape)) for shape in shapes}) == len(shapes)


def test_a_digest_reads_pixels_and_not_memory():
    view = picture(3, 6, 6)
    turned = view.transpose(1, 2)
    assert not turned.is_contiguous()
    assert digest(turned) == digest(turned.contiguous())
    assert digest(turned) != digest(view)


def test_a_digest_is_never_zero_and_fits_32_bits():
    assert all(0 < digest(picture(1, 2, 2, seed)) < 1 << 32 for seed in range(200))
    # CRC-32 of "(1, 1, 4)" followed by these four bytes is 0.
    import zlib

    start = zlib.crc32(b"(1, 1, 4)")
    low = next(_bytes_that_give_zero(start))
    view = torch.tensor(list(low), dtype=torch.uint8).reshape(1, 1, 4)
    assert zlib.crc32(low, start) == 0
    assert digest(view) == 1


def _bytes_that_give_zero(start: int):
    """Yield the four bytes that take CRC-32 from `start` to 0: CRC is linear over GF(2) in its message."""
    import zlib

    base = zlib.crc32(bytes(4), start)
    effects = [zlib.crc32((1 << bit).to_bytes(4, "little"), start) ^ base for bit in range(32)]
    rows = [(effect, 1 << bit) for bit, effect in enumerate(effects)]
    target, message = base, 0
    for bit in reversed(range(32)):
        pivot = next(i for i, (effect, _) in enumerate(rows) if effect >> bit & 1)
        effect, source = rows.pop(pivot)
        rows = [(e ^ effect, s ^ source) if e >> bit & 1 else (e, s) for e, s in rows]
        if target >> bit & 1:
            target, message = target ^ effect, message ^ source
    yield message.to_bytes(4, "little")
