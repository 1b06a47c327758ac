"""The plan says before a dump what the dump then comes to."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command import on_terminal
from dumping import RECIPE, a_teacher
from small import few_digits
from typer.testing import CliRunner

from logitcache.dump.calibration import share_lost
from logitcache.dump.job import dump
from logitcache.dump.plan import Choice, Plan, PlanConfig, _choose, plan_cache
from logitcache.dump.settings import DumpConfig
from logitcache.errors import DataError, ImageError, OptionError
from logitcache.format.identity import PROFILES
from logitcache.models.build import build_model
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader
from logitcache.teacher.completion import Completion, fit_statistics
from logitcache.teacher.sparse import SparseTeacher
from logitcache.units import parse_size
from logitcache.views.datasets import ArrayImages
from logitcache.views.keyed_views import KeyedViews, check_batch
from logitcache_cli.main import app

CONFIG = PlanConfig(seeds=3, epochs=2, images=300, ks=(2, 4, 99), budget=45_000, workers=0)


@pytest.fixture(scope="module")
def found() -> Plan:
    return plan_cache(few_digits(), RECIPE, a_teacher(), CONFIG)


def test_what_is_kept_is_what_a_completed_teacher_keeps(found: Plan) -> None:
    views = KeyedViews(few_digits(), RECIPE)
    pairs = [(i, s) for s in (0, 1) for i in range(300)]
    with torch.inference_mode():
        logits = ViewModel(a_teacher()).eval()(check_batch(views.__getitems__(pairs)).views)
    held_out = torch.tensor([i % 4 == 0 for i, _ in pairs])
    choice = next(c for c in found.choices if (c.k, c.profile) == (4, "default"))
    fit = logits[~held_out][torch.arange(256) * 450 // 256]  # as many as a dump of 300 images calibrates on
    whole = Completion.of(fit_statistics(fit))
    sparse = SparseTeacher.from_logits(logits[held_out], 4, whole)
    assert choice.completed
    for number, temperature in enumerate((1.0, 2.0, 4.0)):
        p, q = (logits[held_out] / temperature).softmax(1), sparse.at(temperature).probs
        kl = (p * (p / q).log()).sum(1).mean()
        assert choice.kl[number] == pytest.approx(float(kl), rel=0.05, abs=5e-6)
        r = torch.stack([torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(p, q, strict=True)])
        assert choice.pearson[number] == pytest.approx(float(r.mean()), rel=1e-4)
    assert choice.tail_mass == pytest.approx(float(sparse.listed_at(1.0).tail_mass.mean()), rel=1e-3)
    assert 0.99 < choice.order <= 1
    even = torch.full((10,), 0.1)
    told = [
        float(((p := (logits[held_out] / t).softmax(1)) * (p / even).log()).sum(1).mean()) for t in (1, 2, 4)
    ]
    assert found.information == pytest.approx(told, rel=1e-4)
    expected = sum(t**2 * x for t, x in zip((1, 2, 4), choice.kl, strict=True)) / (
        told[0] + 4 * told[1] + 16 * told[2]
    )
    assert choice.lost == pytest.approx(expected, rel=1e-3)


class SomeBad(ArrayImages):
    """Digits of which those in `bad` do not decode."""

    bad: frozenset[int]

    def image(self, sample: int) -> torch.Tensor:
        if sample in self.bad:
            raise ImageError(f"digit {sample} does not decode (it is empty); mend or remove it")
        return super().image(sample)


def digits_without(bad: set[int], n: int) -> ArrayImages:
    whole = few_digits(n)
    images = SomeBad("digits", "train", whole.images, whole.labels, 10, "digits")
    images.bad = frozenset(bad)
    return images


def test_images_that_do_not_decode_are_left_out_where_that_is_asked_for() -> None:
    bad, n = {0, 3, 8, 50}, 64
    images = digits_without(bad, n)
    config = PlanConfig(images=n, ks=(2,), workers=0)
    with pytest.raises(DataError, match="does not decode"):
        plan_cache(images, RECIPE, a_teacher(), config)
    found = plan_cache(images, RECIPE, a_teacher(), dataclasses.replace(config, on_bad_image="skip"))
    seeds = 6  # of so few images, so that a dump's 256 views of the calibration are among them
    assert found.views == seeds * (n - len(bad))
    pairs = [(i, s) for s in range(seeds) for i in range(0, n, 4) if i not in bad]
    with torch.inference_mode():
        logits = ViewModel(a_teacher()).eval()(
            check_batch(KeyedViews(images, RECIPE).__getitems__(pairs)).views
        )
    even = torch.full((10,), 0.1)
    told = [float(((p := (logits / t).softmax(1)) * (p / even).log()).sum(1).mean()) for t in (1, 2, 4)]
    assert found.information == pytest.approx(told, rel=1e-4)
    exact = next(choice for choice in found.choices if choice.profile == "exact")
    assert max(exact.kl) < 1e-6
    few = dataclasses.replace(config, on_bad_image="skip")
    with pytest.raises(DataError, match=r"1 of the 2 images tried decode, too few .* with --images"):
        plan_cache(digits_without({0}, 2), RECIPE, a_teacher(), few)


def test_a_teacher_that_tells_little_is_not_near_because_of_that() -> None:
    quiet = a_teacher()
    with torch.no_grad():
        for parameter in quiet.module.parameters():
            parameter.mul_(0.5)
    found = plan_cache(few_digits(), RECIPE, quiet, PlanConfig(images=64, ks=(1, 2), workers=0))
    assert max(found.information) < 0.05  # so that any cache has a smaller KL than that
    one = next(c for c in found.choices if (c.k, c.profile) == (1, "default"))
    assert max(one.kl) < max(found.information) < 0.05 < 2 * one.lost
    assert found.chosen
    assert found.chosen.k > 1


def test_a_teacher_that_tells_nothing_loses_nothing() -> None:
    assert share_lost((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)) == 0
    assert share_lost((0.5, 0.25, 0.0), (1.0, 0.5, 0.25)) == 1.5 / 7


def test_more_logits_and_finer_gaps_keep_more(found: Plan) -> None:
    kinds = {(c.k, c.profile): c for c in found.choices}
    assert {k for k, _ in kinds} == {2, 4, 10}
    assert kinds[2, "default"].error > kinds[4, "default"].error > kinds[10, "exact"].error
    assert kinds[4, "compact"].order < kinds[4, "default"].order
    assert kinds[10, "exact"].order == 1
    assert kinds[10, "exact"].tail_mass == 0
    errors = [c.error for c in found.choices]
    assert errors == sorted(errors, reverse=True)


def shown(n: int, num_classes: int) -> ArrayImages:
    """Show digits again and again, in so many classes."""
    digits = few_digits(300)
    rows = np.arange(n) % 300
    labels = np.asarray(digits.labels)[rows] % num_classes
    return ArrayImages("digits", "train", digits.images[rows], labels, num_classes, "digits")


@pytest.mark.parametrize(
    ("n", "num_classes", "seeds", "within"),
    [
        (40, 10, 1, 0.01),  # mostly metadata
        (60, 300, 2, 0.01),  # mostly class statistics, of more views than two seeds have
        (300, 10, 5, 0.01),
        (1300, 100, 1, 0.01),  # several shards, the last of which is short
        (12_000, 10, 1, 0.05),  # shards of more samples than are tried
    ],
)
def test_bytes_are_those_of_the_dump_that_follows(
    n: int, num_classes: int, seeds: int, within: float, tmp_path: Path
) -> None:
    images = shown(n, num_classes)
    teacher = build_model("digits_tiny", num_classes=num_classes, view_size=8, weights="random", seed=1)
    plan = plan_cache(images, RECIPE, teacher, PlanConfig(seeds=seeds, ks=(4,), workers=0))
    for choice in plan.choices:
        out = tmp_path / f"{choice.k}-{choice.profile}"
        kind = DumpConfig(tuple(range(seeds)), choice.k, profile=choice.profile, workers=0)
        dump(out, images, RECIPE, teacher, kind)
        reader = CacheReader(out)
        assert choice.completed == reader.spec.calibrated
        size = sum(file.stat().st_size for file in out.glob("**/*") if file.is_file())
        assert choice.bytes_in_all == pytest.approx(size, rel=within)
        assert choice.bytes_per_view == pytest.approx(reader.info()["bytes_per_sample_view"], rel=2 * within)


def test_the_budget_takes_what_keeps_most_of_what_fits(found: Plan) -> None:
    fitting = [c for c in found.choices if c.bytes_in_all <= 45_000]
    assert 0 < len(fitting) < len(found.choices)
    assert found.chosen == min(fitting, key=lambda c: (c.error, c.bytes_in_all))


def test_nothing_is_beaten_that_has_anything_for_it(found: Plan) -> None:
    for c in found.choices:
        better = [
            o
            for o in found.choices
            if o.bytes_in_all <= c.bytes_in_all
            and all(a <= b for a, b in zip(o.kl, c.kl, strict=True))
            and o.order >= c.order
            and (o.bytes_in_all, o.kl, o.order) != (c.bytes_in_all, c.kl, c.order)
        ]
        assert c.beaten == bool(better), c
    assert 0 < sum(c.beaten for c in found.choices) < len(found.choices)
    assert found.chosen
    assert not found.chosen.beaten


def choice(k: int, size: int, kl: float) -> Choice:
    """A choice of a teacher that tells 2 nats."""
    return Choice(k, "default", True, size / 100, size, (kl, kl, kl), kl / 2, (1.0, 1.0, 1.0), 1.0, 0.0)


@pytest.mark.parametrize(
    ("sizes", "budget", "taken", "reason"),
    [
        ({4: (10, 0.2), 8: (20, 0.05), 16: (30, 1e-5)}, None, 8, "the smallest that loses less than 3%"),
        ({4: (10, 0.4), 8: (20, 0.08)}, None, 8, "keeps most; none loses less than 3%"),
        ({4: (10, 0.1), 8: (20, 9e-4), 16: (30, 1e-5)}, 25, 8, "keeps most of what fits 25 B"),
        ({4: (10, 0.1), 8: (20, 9e-4), 16: (30, 1e-5)}, 99, 16, "keeps most of what fits 99 B"),
        ({4: (10, 0.1)}, 9, None, "nothing fits 9 B"),
    ],
)
def test_one_is_recommended_and_why(
    sizes: dict[int, tuple[int, float]], budget: int | None, taken: int | None, reason: str
) -> None:
    chosen, why = _choose([choice(k, *kept) for k, kept in sizes.items()], budget)
    assert (chosen.k if chosen else None) == taken
    assert reason in why


@pytest.mark.parametrize(("seeds", "epochs", "runs"), [(10, 10, 2), (1, 100, 1), (300, 100, 4), (30, 20, 2)])
def test_it_pays_from_the_run_on_at_which_the_teacher_would_have_worked_longer(
    seeds: int, epochs: int, runs: int
) -> None:
    config = PlanConfig(seeds=seeds, epochs=epochs, images=8, ks=(2,), workers=0)
    found = plan_cache(few_digits(), RECIPE, a_teacher(), config)
    assert found.pays_from == runs
    rounding = 1 + 1e-12  # where both take as long
    assert runs * found.live_hours > found.cache_hours >= (runs - 1) * found.live_hours / rounding
    assert found.hours["4"] == pytest.approx(found.hours["1"] / 4)


def test_nothing_to_plan_is_refused() -> None:
    with pytest.raises(OptionError, match="at least 1"):
        plan_cache(few_digits(), RECIPE, a_teacher(), PlanConfig(ks=(0,)))


def test_the_command_fits_a_terminal_and_speaks_json(tmp_path: Path) -> None:
    words = ["plan", "--teacher", "digits_tiny", "--images", "20", "--top-k", "2,8", "--workers", "0"]
    text = "\n".join(on_terminal(*words, cwd=tmp_path))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert {c["profile"] for c in found["choices"]} >= {"default", "compact", "exact"}
    assert found["chosen"] in found["choices"]
    assert "the smallest that loses less than" in found["reason"]
    rows = [line for line in text.splitlines() if any(f" {name} " in line for name in PROFILES)]
    assert len(rows) == sum(not c["beaten"] for c in found["choices"])
    assert found["default"] is None  # all 10 logits, which --top-k leaves out
    assert f"--top-k {found['chosen']['k']} --profile {found['chosen']['profile']}" in text


def test_the_command_shows_what_a_dump_makes_without_a_word(tmp_path: Path) -> None:
    words = ["plan", "--teacher", "digits_tiny", "--images", "20", "--top-k", "4,8,10", "--workers", "0"]
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert (found["default"]["k"], found["default"]["profile"]) == (10, "default")
    text = "\n".join(on_terminal(*words, cwd=tmp_path))
    rows = [line for line in text.splitlines() if any(f" {name} " in line for name in PROFILES)]
    assert len([row for row in rows if row.split()[:2] == ["10", "default"]]) == 1
    if found["chosen"] != found["default"]:
        assert "default   --top-k 10 --profile default" in " ".join(text.split("\n"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GB", 20 * 10**9),
        ("500 MB", 500 * 10**6),
        ("1.5TiB", 3 << 39),
        ("7", 7),
        ("2kB", 2000),
        ("1KiB", 1024),
        *[(text, 100_000) for text in ("100KB", "100Kb", "100kb", "100 K", "100k")],
        *[(text, 3 << 20) for text in ("3MiB", "3mib", "3MIB", "3 Mi")],
        ("1KK", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(OptionError, match="20GB"):
            parse_size(text)
    else:
        assert parse_size(text) == size
