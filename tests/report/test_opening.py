"""What the page opens with: gains in pairs, with their errors, whatever runs and caches are named."""

import dataclasses
import json
import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import a_run, rows_of

from logitcache.report.cache_facts import CacheFacts, read_cache
from logitcache.report.opening import Gain, describe_outcome
from logitcache.report.run_facts import RunFacts, group_runs, read_run
from logitcache.store import CacheReader
from logitcache.units import size

ACCURACIES = st.lists(st.floats(0, 1), min_size=2, max_size=6)


def trained(
    folder: Path,
    loss: str,
    top1: float,
    seed: int = 0,
    student: str = "net",
    data: str | None = None,
    taught_by: CacheFacts | None = None,
) -> RunFacts:
    """Write a run of that loss that comes to that accuracy, and read it."""
    rows = [{**row, "top1": top1} for row in rows_of(2)]
    path = a_run(folder / f"{student}-{loss}-{seed}", rows, student=student, seed=seed)
    config = json.loads((path / "config.json").read_text())
    config["objective"]["expression"] = loss
    config["stream"] = {"data": {"name": data}} if data else {}
    if taught_by:
        about = taught_by.about
        teacher = {**about["teacher"], "k": about["k"], "cached": {"0": "0123456789abcdef"}}
        config["stream"] = {"recipe": about["recipe"], "teacher": teacher}
    (path / "config.json").write_text(json.dumps(config))
    return read_run(path)


@given(mine=ACCURACIES, offset=st.floats(-0.3, 0.3))
def test_a_gain_in_pairs_has_no_error_where_all_gain_alike(mine: list[float], offset: float) -> None:
    gain = Gain.of_pairs([top1 + offset for top1 in mine], mine)
    assert gain.mean == pytest.approx(offset, abs=1e-9)
    assert gain.error == pytest.approx(0, abs=1e-9)


@given(mine=ACCURACIES, theirs=ACCURACIES)
def test_a_gain_of_unpaired_runs_is_the_difference_of_means_with_welchs_error(
    mine: list[float], theirs: list[float]
) -> None:
    gain = Gain.of_groups(mine, theirs)
    assert gain.mean == pytest.approx(statistics.fmean(mine) - statistics.fmean(theirs))
    error = math.sqrt(statistics.variance(mine) / len(mine) + statistics.variance(theirs) / len(theirs))
    assert gain.error == pytest.approx(error)


def test_what_was_gained_is_said_in_pairs(tmp_path: Path) -> None:
    runs = [trained(tmp_path, "ce", 0.40 + 0.1 * seed, seed) for seed in range(3)]
    runs += [trained(tmp_path, "kd:1.0", 0.50 + 0.1 * seed, seed) for seed in range(3)]
    runs += [trained(tmp_path, "dist:1.0", top1, seed) for seed, top1 in enumerate((0.41, 0.49, 0.61))]
    (told,) = describe_outcome(group_runs(runs), [])
    assert told == (
        "Labels alone bring net to 50.0 % top-1; with a teacher's answers it comes to 60.0 % by kd (+10.0 ± 0.0 "
        "points), 50.3 % by dist (+0.3 ± 0.7 points, within the noise); 3 runs of each, ± standard error."
    )


def test_one_run_of_each_is_no_proof(tmp_path: Path) -> None:
    runs = [trained(tmp_path, "ce", 0.5), trained(tmp_path, "kd:1.0", 0.48)]
    (told,) = describe_outcome(group_runs(runs), [])
    assert "48.0 % by kd (-2.0 points); 1 run of each, so it may be chance." in told


def test_students_are_compared_with_their_own_kind_alone(tmp_path: Path) -> None:
    runs = [trained(tmp_path, "ce", 0.5, student="one"), trained(tmp_path, "kd:1.0", 0.9, student="other")]
    (told,) = describe_outcome(group_runs(runs), [])
    assert told == "Highest top-1 after the last epoch: other · kd, 90.00 %."
    runs.append(trained(tmp_path, "ce", 0.8, student="other"))
    (told,) = describe_outcome(group_runs(runs), [])
    assert "other to 80.0 % top-1; with a teacher's answers it comes to 90.0 % by kd (+10.0 points)" in told
    assert "one" not in told.split()


def test_the_page_opens_with_gain_cost_and_bytes(folder: Path, tmp_path: Path) -> None:
    cache = read_cache(CacheReader(folder / "c.zarr"))
    runs = [trained(tmp_path, loss, top1, taught_by=cache) for loss, top1 in (("ce", 0.5), ("kd:1.0", 0.6))]
    cache = dataclasses.replace(cache, dump_seconds=6.0)
    gain, cost, kept = describe_outcome(group_runs(runs), [cache, cache])  # as a derived one, asked but once
    assert "(+10.0 points)" in gain
    views = 3 * cache.about["n"]
    assert cost == (
        f"That took the teacher once for each of {views:,} views, in 6.0 s, whatever the number of students; the "
        "student trained without it, 1.5 s an epoch at 100 views/s, the students that shared its pass beside it."
    )
    each = cache.about["bytes_per_sample_view"]
    assert kept.startswith(f"What was kept is the top 4 of 10 logits: {each:.1f} bytes a view, ")
    rest = cache.about["bytes_on_disk"] - views * each
    assert f" in all, {size(round(rest))} of them class statistics and metadata; every" in kept
    assert kept.endswith(f"every logit in float32 would be {40 / each:.3g} times the bytes of the views.")


def test_runs_on_other_images_are_not_compared(tmp_path: Path) -> None:
    runs = [
        trained(tmp_path / "a", "ce", 0.9, data="digits"),
        trained(tmp_path / "b", "kd:1.0", 0.2, data="letters"),
    ]
    (told,) = describe_outcome(group_runs(runs), [])
    assert told == "Highest top-1 after the last epoch: net · ce, 90.00 %."
    runs.append(trained(tmp_path / "c", "ce", 0.1, data="letters"))
    (told,) = describe_outcome(group_runs(runs), [])
    assert (
        "Labels alone bring net to 10.0 % top-1 on letters; with a teacher's answers it comes to 20.0 %"
        in told
    )
    assert "90.0" not in told


def test_caches_that_nobody_trained_from_are_no_cost(folder: Path, tmp_path: Path) -> None:
    cache = read_cache(CacheReader(folder / "c.zarr"))
    runs = [trained(tmp_path, "ce", 0.5), trained(tmp_path, "kd:1.0", 0.6)]
    assert [text[:4] for text in describe_outcome(group_runs(runs), [cache])] == ["Labe", "What"]


def test_an_unknown_time_of_the_dump_and_a_pass_of_ones_own_are_not_spoken_of(
    folder: Path, tmp_path: Path
) -> None:
    cache = read_cache(CacheReader(folder / "c.zarr"))
    run = trained(tmp_path, "kd:1.0", 0.6, taught_by=cache)
    _, cost, _ = describe_outcome(group_runs([run]), [cache])
    assert " views, whatever the number of students" in cost
    assert cost.endswith("1.5 s an epoch at 100 views/s.")
