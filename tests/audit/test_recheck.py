"""The teacher asked again says what the cache holds, to the rounding of its profile; another one is found out."""

from pathlib import Path

import numpy as np
import pytest
from breaking import N, rewrite
from dumping import a_teacher, dump_digits
from small import few_digits

from logitcache.audit.recheck import recheck_views
from logitcache.errors import MismatchError
from logitcache.store import CacheReader


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"profile": "compact"},
        {"profile": "archive"},
        {"profile": "exact"},
        {"precision": "bfloat16"},
        {"top_k": 1},
    ],
    ids=str,
)
def test_the_teacher_still_says_what_every_profile_holds(options: dict[str, object], tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr", 100, **options)
    report = recheck_views(
        CacheReader(tmp_path / "c.zarr"), few_digits(100), a_teacher(), 60, seed=5, batch_size=7
    )
    assert report.clean
    assert (report.views, report.off, report.drift) == (60, 0, None)
    assert report.mean_error <= report.max_error < (0.06 if options else 1e-3)


def test_more_than_there_is_asks_for_every_view_once(whole: Path) -> None:
    report = recheck_views(CacheReader(whole), few_digits(N), a_teacher(), 10_000)
    assert (report.views, report.top1_agreement) == (2 * N + 86, 1.0)
    again = [
        recheck_views(CacheReader(whole), few_digits(N), a_teacher(), 9, seed=s).to_dict() for s in (3, 3, 4)
    ]
    assert again[0] == again[1] != again[2]


def test_answers_of_another_teacher_are_found(cache: Path) -> None:
    rewrite(cache, 1, 2, lambda a: a["top"].__setitem__(slice(8, 11), a["top"][8:11] + np.float32([1, 3, 2])))
    report = recheck_views(CacheReader(cache), few_digits(N), a_teacher(), 10_000)
    assert not report.clean
    assert (report.off, report.worst) == (3, (2 * 64 + 9, 1))
    assert report.worst_image == few_digits(N).describe(2 * 64 + 9)
    assert report.max_error == pytest.approx(3, abs=1e-2)


def test_a_class_that_rose_from_the_tail_is_found(cache: Path) -> None:
    def swapped(arrays) -> None:
        absent = next(c for c in range(10) if c not in arrays["ids"][4])
        gap = arrays["gap"][4].astype(np.float32)
        arrays["gap"][4, 1:], arrays["ids"][4, 1:] = (
            [*gap[2:].tolist(), gap[3]],
            [*arrays["ids"][4, 2:], absent],
        )

    rewrite(cache, 0, 0, swapped)
    assert recheck_views(CacheReader(cache), few_digits(N), a_teacher(), 10_000).off == 1


def test_the_teacher_is_not_asked_with_other_weights_or_images(whole: Path) -> None:
    with pytest.raises(MismatchError, match=r"another teacher.*teacher\.weights_sha256"):
        recheck_views(CacheReader(whole), few_digits(N), a_teacher(1), 5)
    with pytest.raises(MismatchError, match="other images"):
        recheck_views(CacheReader(whole), few_digits(N - 1), a_teacher(), 5)


def test_drift_of_the_views_is_told(cache: Path) -> None:
    for seed in (0, 1, 2):
        rewrite(cache, seed, 0, lambda a: a["canary"].__iadd__(1))
    report = recheck_views(CacheReader(cache), few_digits(N), a_teacher(), 200)
    assert not report.clean
    assert report.off == 0
    assert report.drift is not None
    assert report.drift.differing == 3 * 8 < report.drift.compared
    assert "sample 0 of digits under seed 0" in str(report.drift)
