"""Figures as people read them: no power of ten where a unit is, and the unit that the rounded number has."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.bench.compare import Comparison
from logitcache.errors import OptionError
from logitcache.report.metrics import Metric
from logitcache.units import count, figures, operations, parse_size, rate, share, size, span
from logitcache_cli.plan import _small

amounts = st.floats(0, 1e15) | st.floats(0.9, 1.1).flatmap(
    lambda near: st.integers(0, 15).map(lambda power: near * 10.0**power)
)


def number(text: str) -> float:
    return float(text.replace(",", "").split()[0])


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (size, 999, "999 B"), (size, 999.6, "1 kB"), (size, 999_499, "999 kB"), (size, 999_600, "1 MB"),
        (size, 999_600_000, "1 GB"), (size, 999_600_000_000, "1.0 TB"), (size, 12_345_000, "12.3 MB"),
        (span, 119.94, "119.9 s"), (span, 119.96, "2.0 min"), (span, 7196, "119.9 min"), (span, 7199, "2.0 h"),
        (span, -1, "0.0 s"), (share, 0.00949, "0.9 %"), (share, 0.00951, "1.0 %"), (share, 0.41, "41.0 %"),
        (share, 2e-6, "0.0002 %"), (share, 9e-7, "0 %"), (rate, 9.94, "9.9"), (rate, 9.96, "10"),
        (rate, 0.31, "0.31"), (rate, 0.996, "1"), (rate, 1234.5, "1,234"), (operations, 500, "0.5 k"),
        (operations, 999_600, "1 M"), (operations, 999_600_000, "1 G"), (operations, 2.5e15, "2,500 T"),
        (figures, 999.6, "1,000"), (figures, 12_345.6, "12,346"), (figures, 0.0123456, "0.0123"),
        (_small, 9.96e-4, "1.0e-3"), (_small, 0.996, "1"), (_small, 1.26, "1.3"), (_small, 150, "150"),
        (_small, 1e-13, "0"), (Metric("loss", "loss", "Loss", "loss", "").format, 9999.96, "10,000"),
    ],
)  # fmt: skip
def test_figures_at_their_rounding_edges(write, value, expected):
    assert write(value) == expected


@given(amounts)
def test_a_size_has_the_unit_of_its_rounded_number_and_reads_back(count):
    text = size(count)
    assert "e" not in text.replace("e-", "")
    assert number(text) < 1000 or text.endswith(" TB")
    if count >= 1:
        assert number(text) >= 1
        assert parse_size(text.replace(",", "")) == pytest.approx(
            count, rel=0.06 if "TB" in text else 0.006, abs=1
        )


@given(amounts)
def test_spans_rates_and_operations_have_no_power_of_ten_and_are_near(value):
    for text in (span(value), rate(value), operations(value), figures(value)):
        assert "e+" not in text
    factors = {"s": 1, "min": 60, "h": 3600}
    shown, unit = number(span(value)), span(value).split()[1]
    assert shown < 120 or unit == "h"
    assert shown * factors[unit] == pytest.approx(value, rel=0.03, abs=0.051)
    assert number(rate(value)) == pytest.approx(value, rel=0.06, abs=1e-300)
    assert number(figures(value)) == pytest.approx(value, rel=0.006)
    shown, unit = number(operations(value)), operations(value)[-1]
    assert shown < 1000 or unit == "T"
    assert shown * {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit] == pytest.approx(value, rel=0.006)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_is_never_shown_as_the_smaller(one, other):
    low, high = (number(share(part)) for part in sorted((one, other)))
    assert low <= high
    assert re.fullmatch(r"[\d.]+ %", share(one))


@given(st.floats(1e-4, 1e5), st.sampled_from([None, 100]))
def test_a_row_of_a_benchmark_fits_its_columns(seconds, views):
    import numpy as np

    cells = Comparison.between({"x": "y"}, "z", np.array([seconds]), np.array([0.01]), None, views).cells()
    assert "e+" not in " ".join(cells.values())
    assert len(cells["ratio, quartiles"]) <= len("0.010 (0.010–0.010)") or seconds / 0.01 >= 999.5
    assert math.isclose(number(cells["ratio, quartiles"]), seconds / 0.01, rel_tol=0.01, abs_tol=0.005)


def test_one_of_something_has_no_plural() -> None:
    assert [count(n, "epoch") for n in (0, 1, 2, 1200)] == [
        "0 epochs",
        "1 epoch",
        "2 epochs",
        "1,200 epochs",
    ]
    assert [count(n, "view is", "views are") for n in (1, 2)] == ["1 view is", "2 views are"]


@pytest.mark.parametrize(
    "text", ["", "0", "0GB", "0.5B", "-1GB", "1e9", "nan", "inf", "9" * 400, "1 EB", "20 G B"]
)
def test_what_is_no_size_or_none_at_all_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="a size reads like 20GB or 500MiB, found"):
        parse_size(text)
