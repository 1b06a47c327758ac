"""The contest of losses tunes on one set and scores on another; letters are drawn in typefaces that are there."""

import dataclasses
import sys
from pathlib import Path

import pytest

from logitcache.bench import anchors, closeness
from logitcache.bench.contest import (
    Contest,
    ContestConfig,
    Entry,
    Standing,
    hold_contest,
    standings_table,
)
from logitcache.bench.tasks import digits_task, split_images
from logitcache.errors import OptionError
from logitcache.views.datasets import load_digits


def test_a_contest_tunes_on_held_out_training_digits_and_scores_on_test_digits(tmp_path: Path) -> None:
    config = ContestConfig(
        losses=("kd", "dho"),
        weights=(1.0,),
        rates=(0.2, 0.4),
        epochs=1,
        teacher_epochs=1,
        cached=1,
        heat_seeds=1,
        finalists=1,
        tuning_seeds=2,
        seeds=2,
    )
    standings, teacher = hold_contest(tmp_path, None, config)
    assert teacher * 360 == pytest.approx(round(teacher * 360))
    assert [s.entry.loss for s in standings] == ["ce", "kd", "dho"]
    assert all(len(s.test) == 2 for s in standings)
    assert all(s.validation * 2 * 288 == pytest.approx(round(s.validation * 2 * 288)) for s in standings)
    assert all(x * 360 == pytest.approx(round(x * 360)) for s in standings for x in s.test)
    tuned, _ = hold_contest(tmp_path / "tuned", None, dataclasses.replace(config, losses=("kd",), seeds=0))
    assert [s.test for s in tuned] == [(), ()]
    assert not (tmp_path / "tuned" / "final").exists()
    fit, held = split_images(load_digits("train"))
    assert (len(fit), len(held)) == (1149, 288)
    pixels = {image.numpy().tobytes() for image in load_digits("test").images}
    assert not pixels & {image.numpy().tobytes() for image in held.images}


def test_a_student_whose_loss_explodes_scores_nothing_and_stops_no_other(tmp_path: Path) -> None:
    config = ContestConfig(epochs=1, teacher_epochs=1, cached=1)
    held = split_images(load_digits("train"))[1]
    entries = [Entry("ce", 0.0, 0.2), Entry("mse", 1e30, 1e30), Entry("kd", 1.0, 0.2)]
    scores = Contest(tmp_path, digits_task(), held, held, config).top1(entries, 0)
    assert scores[1] == 0.0
    assert min(scores[0], scores[2]) > 0.05


def test_with_every_logit_cached_and_with_the_teacher_live_students_are_the_same(tmp_path: Path) -> None:
    held = split_images(load_digits("train"))[1]
    contest = Contest(
        tmp_path, digits_task(), held, held, ContestConfig(epochs=1, teacher_epochs=2, cached=1)
    )
    entries = [Entry("kd", 1.0, 0.2), Entry("cmkd(difficulty=fixed)", 1.0, 0.2)]
    assert contest.top1(entries, 0, k=10) == contest.top1(entries, 0, k=0)


def test_the_table_compares_seed_by_seed() -> None:
    standings = [
        Standing(Entry("ce", 0.0, 0.8), 0.9, (0.90, 0.92)),
        Standing(Entry("kd", 1.0, 0.4), 0.93, (0.91, 0.95)),
    ]
    lines = standings_table(standings).splitlines()
    assert lines[2] == "| `kd` | 1 | 0.4 | 93.0 | 93.0 ± 2.8 | +2.0 ± 1.0 | – |"
    assert lines[3] == "| `ce` | – | 0.8 | 90.0 | 91.0 ± 1.4 | – | -2.0 ± 1.0 |"
    untested = [dataclasses.replace(one, test=()) for one in standings]
    assert standings_table(untested).splitlines()[2:] == [
        "| `kd` | 1 | 0.4 | 93.0 |",
        "| `ce` | – | 0.8 | 90.0 |",
    ]
    kd = dataclasses.replace(standings[1], others={"0": (0.9, 0.92), "8": (0.8, 0.82)})
    lines = standings_table([standings[0], kd]).splitlines()
    assert lines[0].endswith("| minus KD | live | k = 8 |")
    assert lines[2].endswith("| – | 91.0 ± 1.4 | 81.0 ± 1.4 |")
    assert lines[3].endswith("| -2.0 ± 1.0 | – | – |")


@pytest.mark.filterwarnings("ignore:kd at T = 4 reads:UserWarning")  # an even tail is what is measured
def test_what_a_cache_loses_stands_beside_what_students_make_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchors, "VIEWS", 200)
    config = ContestConfig(losses=(), epochs=1, teacher_epochs=3, cached=1)
    kinds = ((4, True), (1, False))
    entries = [Entry("kd", 1.0, 0.4)]
    table = closeness.closeness_table(tmp_path, digits_task(), entries, 2, config, kinds)
    _, _, whole, four, one = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    assert (whole[0], four[0], one[0]) == ("all logits", "top 4, completed", "top 1, even tail")
    assert whole[1:5] == ["0.000", "0.000", "0.000", "0.0 %"]
    lost = [float(row[4].removesuffix(" %")) for row in (whole, four, one)]
    assert 0 == lost[0] < lost[1] < lost[2] < 100
    assert all(0 < float(row[5].split(" ± ")[0]) < 100 for row in (whole, four, one))
    assert whole[6] == "–"
    assert " ± " in four[6]


def test_glyphs_without_their_typefaces(monkeypatch: pytest.MonkeyPatch) -> None:
    from logitcache.bench import glyphs

    glyphs.choose_letters.cache_clear()
    for package in ("matplotlib", "fontTools", "fontTools.ttLib"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptionError, match=r"pip install 'logitcache\[pictures\]'"):
        glyphs.rare_glyphs()
