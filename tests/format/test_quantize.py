"""Rounding and coding: within the bounds that docs/format.md gives, the same however often, and back again."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcache.errors import OptionError
from logitcache.format.identity import PROFILES, Profile
from logitcache.format.quantize import code_gaps, decode_gaps, round_mantissa
from logitcache.teacher.sparse import SparseTeacher

any_float = st.floats(width=32) | st.floats(-40, 40, width=32)
gap_lists = st.lists(st.floats(0, 2.0**127, width=32) | st.floats(0, 40, width=32), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(st.lists(any_float, min_size=1, max_size=20), st.integers(1, 23))
def test_rounding_keeps_its_bound_its_bits_and_what_is_rounded(values, bits):
    values = np.array(values, np.float32)
    found = round_mantissa(values, bits)
    assert found.tobytes() == round_mantissa(found, bits).tobytes()
    assert (np.isnan(found) == np.isnan(values)).all()
    finite = np.isfinite(values)
    assert np.isfinite(found[finite]).all()
    normal = finite & (np.abs(values) > 2.0**-126)
    exact, error = values[normal].astype(float), found[normal].astype(float) - values[normal]
    assert (np.abs(error) <= np.abs(exact) * 2.0 ** -(bits + 1)).all()
    ordinary = found[np.abs(values) < 2.0**127]
    assert not (ordinary.view(np.uint32) & np.uint32((1 << (23 - bits)) - 1)).any()


def test_all_bits_of_float32_are_kept_where_the_profile_is_exact():
    values = np.random.default_rng(0).integers(0, 1 << 32, 1000, np.uint32).view(np.float32)
    assert round_mantissa(values, PROFILES["exact"].scalar_bits).tobytes() == values.tobytes()


def test_ties_go_to_even_as_float16_does_it():
    values = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
    values = values[(np.abs(values) > 2.0**-14) & (np.abs(values) < 65_504)]
    values = np.concatenate([values, np.arange(2048, 4096, 1, np.float32)])
    np.testing.assert_array_equal(round_mantissa(values, 10), values.astype(np.float16).astype(np.float32))


# Gaps -----------------------------------------------------------------------------------------------------

MOST = {"default": 65_504.0, "archive": 65_504.0, "exact": math.inf}


@settings(max_examples=200, deadline=None)
@given(gap_lists, st.sampled_from(sorted(PROFILES)))
def test_a_gap_is_within_half_a_unit_of_what_it_is_rounded_to_or_clipped(gaps, name):
    gap, profile = np.sort(np.array(gaps, np.float32))[None], PROFILES[name]
    stored = code_gaps(gap, profile)
    assert stored.dtype == profile.stored_gap
    found = decode_gaps(stored, profile)
    assert (np.diff(found) >= 0).all()
    if profile.gap_step is None:
        wanted = np.minimum(gap.astype(float), MOST[name])
        error = np.maximum(wanted * 2**-11, 2**-25) if profile.gap_dtype == "float16" else 0
    else:  # no rank is further from the one before it than 255 steps
        wanted, held, before = gap.astype(float), found[0].astype(float), 0.0
        for rank in range(gap.shape[1]):
            wanted[0, rank] = min(wanted[0, rank], before + 255 * profile.gap_step)
            before = held[rank]
        error = profile.gap_step / 2 * (1 + 1e-5)
    assert (np.abs(found - wanted) <= error).all()


@settings(max_examples=100, deadline=None)
@given(gap_lists, st.sampled_from(sorted(PROFILES)))
def test_coding_what_was_decoded_gives_the_same_bytes(gaps, name):
    profile = PROFILES[name]
    stored = code_gaps(np.sort(np.array(gaps, np.float32))[None], profile)
    assert code_gaps(decode_gaps(stored, profile), profile).tobytes() == stored.tobytes()


@settings(max_examples=100, deadline=None)
@given(gap_lists)
def test_archive_gaps_are_those_of_default_bit_for_bit(gaps):
    gap = np.sort(np.array(gaps, np.float32))[None]
    default, archive = (PROFILES[name] for name in ("default", "archive"))
    assert (
        decode_gaps(code_gaps(gap, default), default) == decode_gaps(code_gaps(gap, archive), archive)
    ).all()
    assert archive.scalar_bits == default.scalar_bits


@pytest.mark.parametrize("coding", ["values", "differences"])
def test_a_profile_of_ones_own_codes_whole_steps_either_way(coding):
    profile = Profile("mine", "uint8", coding, 23, "blosc", 0.5)
    gap = np.array([[0, 0.6, 127.4, 127.6, 300.0]], np.float32)
    far = 300.0 if coding == "differences" else 127.5
    found = decode_gaps(code_gaps(gap, profile), profile)
    np.testing.assert_array_equal(
        found, [[0, 0.5, 127.5, min(127.5, far), min(300.0, far) if far < 300 else 255.0]]
    )


@pytest.mark.parametrize("name", ["compact", "archive"])
def test_gaps_that_fall_have_no_differences(name):
    with pytest.raises(OptionError, match="one that falls"):
        code_gaps(np.array([[0, 2.0, 1.0]], np.float32), PROFILES[name])


# What the rounding costs ----------------------------------------------------------------------------------


def teachers(name: str, classes: int, k: int) -> tuple[SparseTeacher, SparseTeacher]:
    """A teacher of 400 confident and unsure views, and the same after storing."""
    generator = torch.Generator().manual_seed(classes)
    x = torch.randn(400, classes, generator=generator) * 2
    x = x + 12 * torch.rand(400, classes, generator=generator) ** 30
    teacher, profile = SparseTeacher.from_logits(x, k), PROFILES[name]
    gap = torch.from_numpy(decode_gaps(code_gaps(teacher.gap.numpy(), profile), profile))
    scalars = (teacher.top, teacher.tail_lse, teacher.tail_mean, teacher.tail_var)
    top, *tail = (
        s if s is None else torch.from_numpy(round_mantissa(s.numpy(), profile.scalar_bits)) for s in scalars
    )
    return teacher, SparseTeacher(teacher.ids, gap, top, *tail, classes)


def divergence(p: SparseTeacher, q: SparseTeacher, temperature: float) -> float:
    """Mean KL of two teachers of the same support, over its classes and the tail as one."""
    a, b = p.listed_at(temperature), q.listed_at(temperature)
    kl = (a.log_probs.exp() * (a.log_probs - b.log_probs)).sum(1)
    if p.tail_size:
        kl = kl + a.log_tail_mass.exp() * (a.log_tail_mass - b.log_tail_mass)
    return float(kl.mean())


@pytest.mark.parametrize(("name", "most"), [("default", 1e-6), ("archive", 1e-6), ("compact", 1e-4)])
@pytest.mark.parametrize(("classes", "k"), [(1000, 16), (10, 3), (16, 16), (21, 20)])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_what_a_profile_rounds_away_is_within_its_promise(name, most, classes, k, temperature):
    teacher, stored = teachers(name, classes, k)
    assert -1e-6 < divergence(teacher, stored, temperature) <= most
    tolerance = {1e-6: 2e-3, 1e-4: 2e-2}[most]
    found, expected = stored.listed_at(temperature).entropy(), teacher.listed_at(temperature).entropy()
    torch.testing.assert_close(found, expected, rtol=0, atol=5 * tolerance)
    torch.testing.assert_close(stored.listed, teacher.listed, rtol=0, atol=30 * tolerance)


@pytest.mark.parametrize("name", sorted(PROFILES))
@pytest.mark.parametrize("shape", ["equal", "one in the tail", "far"])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0, 50.0])
def test_rounded_tails_stay_distributions_where_the_bounds_meet(name, shape, temperature):
    """With one class in the tail, or equal ones, Jensen's bounds are one number, and rounding may cross them."""
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * 5
    if shape == "equal":
        x[:, 4:] = x[:, :4].amin(1, keepdim=True) - 1.7
    if shape == "far":
        x[:, 4:] -= 1000.0
    k = 11 if shape == "one in the tail" else 4
    profile, teacher = PROFILES[name], SparseTeacher.from_logits(x, k)
    gap = torch.from_numpy(decode_gaps(code_gaps(teacher.gap.numpy(), profile), profile))
    lse, mean, var, top = (
        torch.from_numpy(round_mantissa(getattr(teacher, n).numpy(), profile.scalar_bits))
        for n in ("tail_lse", "tail_mean", "tail_var", "top")
    )
    stored = SparseTeacher(teacher.ids, gap, top, lse, mean, var, 12)
    soft = stored.listed_at(temperature)
    torch.testing.assert_close(soft.probs.sum(1) + soft.tail_mass, torch.ones(200))
    assert soft.entropy().isfinite().all()
    bound = 1e-6 if profile.scalar_bits > 10 else 0.05 / min(1.0, temperature)
    assert (soft.tail_mass - teacher.listed_at(temperature).tail_mass).abs().max() <= bound
