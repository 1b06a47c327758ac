"""Lists of seeds and of numbers of logits, as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.errors import OptionError
from logitcache_cli.shared_options import parse_ks, parse_seeds

RANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 9)), min_size=1, max_size=6)
SPACES = st.sampled_from(["", " ", "  "])


@given(RANGES, SPACES, SPACES)
def test_spaces_beside_commas_and_dashes_mean_nothing(
    ranges: list[tuple[int, int]], before: str, after: str
) -> None:
    parts = [f"{first}{before}-{after}{first + more}" if more else f"{first}" for first, more in ranges]
    numbers = [first + i for first, more in ranges for i in range(more + 1)]
    text = f"{before},{after}".join(parts)
    assert parse_seeds(f"{before}{text}{after}") == parse_ks(text) == tuple(dict.fromkeys(numbers))


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=6))
def test_spaces_between_numbers_do_not_make_one_of_them(numbers: list[int]) -> None:
    advised = ",".join(map(str, numbers))
    with pytest.raises(OptionError, match=f"; did you mean {advised}\\?$"):
        parse_seeds(" ".join(map(str, numbers)))


@pytest.mark.parametrize("text", ["3 - 1", "3..1", "3-1", "0,,1", "1-2-3", "a", "", ",", "0-"])
def test_what_would_be_refused_too_is_not_advised(text: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse_seeds(text)
    assert "did you mean" not in str(refused.value)


@given(st.integers(0, 999), st.integers(1, 99))
def test_a_range_that_runs_backwards_is_called_so(first: int, more: int) -> None:
    text = f"{first + more}-{first}"
    for parse in (parse_seeds, parse_ks):
        with pytest.raises(OptionError) as refused:
            parse(f"{first},{text}")
        assert str(refused.value).endswith(f"; {text} runs backwards, write {first}-{first + more}")
