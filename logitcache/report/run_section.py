"""The sections of the page about runs: students side by side, their curves, what differs in their settings."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from logitcache.format.identity import join_background
from logitcache.report.cache_facts import CacheFacts
from logitcache.report.charts import Axis, ChartTable, Series, draw_points, draw_swatch
from logitcache.report.curves import Curves
from logitcache.report.html import Child, Ids, table, tag
from logitcache.report.metrics import SECTIONS, TEST_METRICS, metric_named, percent
from logitcache.report.run_facts import RunFacts, RunGroup, differing_settings, shorten
from logitcache.units import figures, span, span_unit
from logitcache.units import rate as rate_of

COLUMNS = (*TEST_METRICS, metric_named("loss"))
MANY = 6  # students, above which a table has a row for each
TEACHER = ("name", "weights", "weights_sha256")  # of `stream.teacher`, in a run's settings
TESTED_ON = ("data.name", "data.num_classes", "recipe.evaluation", "recipe.background")  # of `stream`


def find_teachers(groups: Sequence[RunGroup], caches: Sequence[CacheFacts]) -> dict[str, CacheFacts]:
    """Find the caches, by teacher, that give a teacher's accuracy on the test images of all of these runs.

    A run's settings hold no fingerprint of its test images: data name, classes, evaluation recipe and background do.
    """
    found: dict[tuple[object, ...], CacheFacts] = {}
    for cache in caches:
        known = cache.of_test_images and cache.accuracy("top1") is not None
        if known and not _differences(cache, groups):
            found.setdefault(_about(cache)[0], cache)
    names = [cache.about["teacher"]["name"] for cache in found.values()]
    return {
        f"teacher {name}" + (f", {cache.about['teacher']['weights']}" if names.count(name) > 1 else ""): cache
        for name, cache in zip(names, found.values(), strict=True)
    }


def explain_strangers(groups: Sequence[RunGroup], caches: Sequence[CacheFacts]) -> dict[str, str]:
    """Say, by its path, of each cache of test images why its teacher stands beside none of these runs."""
    strangers = {}
    for cache in caches:
        if groups and cache.of_test_images and (differences := _differences(cache, groups)):
            strangers[str(cache.about["path"])] = (
                f"its teacher is not compared with these runs: {'; '.join(differences)}"
            )
    return strangers


def _differences(cache: CacheFacts, groups: Sequence[RunGroup]) -> list[str]:
    """Say in what a cache of test images is not what runs were evaluated on, or not of a teacher of theirs."""
    runs = [run for group in groups for run in group.runs]
    tested = [run for run in runs if "top1" in run.metrics]
    if not tested:
        return ["they were not evaluated"]
    teacher, images = _about(cache)
    of_runs = list(
        dict.fromkeys(tuple(run.settings.get(f"stream.{name}") for name in TESTED_ON) for run in tested)
    )
    if len(of_runs) > 1:
        return ["they were evaluated on several kinds of views"]
    teachers = {tuple(run.settings.get(f"stream.teacher.{name}") for name in TEACHER): run for run in runs}
    differences = []
    if of_runs[0][:2] != images[:2]:
        (name, classes), (theirs, number) = images[:2], of_runs[0][:2]
        differences.append(f"expected images of {theirs}, {number} classes, found {name}, {classes}")
    if of_runs[0][2:] != images[2:]:
        expected, found = (join_background(str(views[2]), views[3]) for views in (of_runs[0], images))
        differences.append(f"expected views by {expected}, found {found}")
    if teacher not in teachers:
        named = sorted({f"{one[0]} ({one[1]})" for one in teachers if one[0] is not None})
        expected = f"the teacher {' or '.join(named)}" if named else "no teacher, as they are of labels alone"
        digest = f", SHA-256 {str(teacher[2])[:12]}…" if teacher[2] else ""
        differences.append(f"expected {expected}, found {teacher[0]} ({teacher[1]}{digest})")
    return differences


def _about(cache: CacheFacts) -> tuple[tuple[object, ...], tuple[Any, ...]]:
    """Return teacher, and images with their views, of a cache, as settings of runs have them."""
    data, about, recipe = (cache.about[part] for part in ("dataset", "teacher", "recipe"))
    images = (shorten(data["name"]), data["num_classes"], shorten(recipe["name"]), recipe.get("background"))
    return tuple(None if about[name] is None else shorten(about[name]) for name in TEACHER), images


def make_run_sections(
    ids: Ids, groups: Sequence[RunGroup], caches: Sequence[CacheFacts] = ()
) -> Iterator[tuple[str, Element]]:
    """Make the sections about runs, each with its heading; `caches` may hold the accuracy of their teachers."""
    curves, teachers = Curves(ids, groups), find_teachers(groups, caches)
    yield (
        "Students side by side",
        tag(
            "div",
            _figures_table(groups, teachers, explain_strangers(groups, caches)),
            _charts_by_cost(ids, curves),
            _runs_table(curves),
        ),
    )
    for section, (heading, note) in SECTIONS.items():
        if (charts := curves.draw_section(section)) is not None:
            yield heading, tag("div", tag("p", note), charts)
    if len(groups) > 1:
        yield "What differs between the runs", _settings(groups)


# Side by side ---------------------------------------------------------------------------------------------


def _figures_table(
    groups: Sequence[RunGroup], teachers: Mapping[str, CacheFacts], strangers: Mapping[str, str]
) -> Element:
    """A row for each group: figures of the last epoch, size, time; above them their teachers."""
    columns = [metric for metric in COLUMNS if any(group.spread(metric.name) for group in groups)]
    repeated = any(len(group.runs) > 1 for group in groups)
    copied = any(group.copies for group in groups)
    headers: list[Child] = [
        "student",
        *(["runs"] if repeated or copied else []),
        *(metric.short for metric in columns),
    ]
    tested = any("top1" in run.metrics for group in groups for run in group.runs)
    headers += [*(["best top-1"] if tested else []), "parameters", "epochs", "time", "views/s"]
    rows: list[list[Child]] = []
    for name, cache in teachers.items():
        accuracy = {key: cache.accuracy(key) for key in ("top1", "top5")}
        figures = [metric.format(accuracy.get(metric.name)) for metric in columns]
        first: list[Child] = [name, *(["–"] if repeated or copied else []), *figures]
        rows.append([*first, *["–"] * (len(headers) - len(first))])
    for number, group in enumerate(groups):
        many = len(group.runs)
        runs = f"{many} of {many + len(group.copies)}" if group.copies else str(many)
        row: list[Child] = [_label(number, group), *([runs] if repeated or copied else [])]
        row += [metric.format_spread(group.spread(metric.name), many) for metric in columns]
        best = [run.best_top1 for run in group.runs if run.best_top1 is not None]
        row += [metric_named("top1").format(max(best, default=None))] if tested else []
        row += [_range(f"{run.weights:,}" if run.weights else "–" for run in group.runs)]
        row += [_range(_epochs(run) for run in group.runs)]
        row += [span(sum(run.seconds for run in group.runs) / many)]
        rates = [rate for run in group.runs if (rate := run.rate) is not None]
        row += [rate_of(sum(rates) / len(rates)) if rates else "–"]
        rows.append(row)
    notes = ["Figures are those of the last epoch."]
    notes += ["The teacher's are its cache's of the test images."] if teachers else []
    notes += [f"Of {path}: {why}." for path, why in strangers.items()]
    notes += ["The best top-1 is chosen on the test images, and so flatters."] if tested else []
    if repeated:
        notes.append(
            "Runs that differ only in their random numbers share a row: mean ± sample standard deviation."
        )
    if copied:
        notes.append(
            "Of runs that are alike even in their random numbers, which tell nothing new, the first counts."
        )
    if not all(group.finished for group in groups):
        notes.append("A run that is unfinished is compared with none, and is a repeat of none.")
    notes.append(
        "Time and views/s are those of all epochs of a run without evaluation; runs trained side by side share it."
    )
    figures_table = table(None, headers, rows, name="Figures of the students")
    return tag("div", figures_table, tag("p", " ".join(notes), class_="note"), class_="figures")


def _charts_by_cost(ids: Ids, curves: Curves) -> Element | None:
    """Draw accuracy against size, and against time."""
    seconds, unit = span_unit(max(run.seconds for group in curves.groups for run in group.runs))
    charts = [
        _chart_by_cost(
            ids, curves, "Accuracy against size", "parameters", lambda run: float(run.weights or 0)
        ),
        _chart_by_cost(
            ids,
            curves,
            "Accuracy against training time",
            f"{unit} of its epochs",
            lambda run: run.seconds / seconds,
        ),
    ]
    if not any(chart is not None for chart in charts):
        return None
    return tag("div", charts, class_="charts")


def _chart_by_cost(
    ids: Ids, curves: Curves, title: str, label: str, cost: Callable[[RunFacts], float]
) -> Element | None:
    runs = [(number, run) for number, group in enumerate(curves.groups) for run in group.runs]
    points = [
        (n, run, cost(run), top1)
        for n, run in runs
        if (top1 := run.last("top1")) is not None and cost(run) > 0
    ]
    costs = [x for _, _, x, _ in points]
    if len(set(costs)) < 2:
        return None
    series, rows = [], []
    for number, run, x, top1 in points:
        path, text = curves.paths[run.path], f"{x:,.0f}" if x >= 999.95 else figures(x, 4)
        name = f"{curves.groups[number].name}, {path}: {percent(top1)}, {text} {label}"
        series.append(Series(name, ((x, top1),), number))
        rows.append((path, text, percent(top1)))
    note = "Top-1 of the last epoch; each mark is a run, as in the table above."
    axis = Axis(label, log=max(costs) > 8 * min(costs))
    numbers = ChartTable(("run", label, "top-1"), tuple(rows))
    return draw_points(ids, title, note, axis, Axis(percent=True), series, numbers)


def _runs_table(curves: Curves) -> Element | None:
    """A row for each run, where a group has several."""
    runs = [(group, run) for group in curves.groups for run in (*group.runs, *group.copies)]
    if len(runs) == len(curves.groups):
        return None
    columns = [metric for metric in COLUMNS if metric.name in curves.metrics]
    rows = [
        [
            curves.paths[run.path],
            group.name,
            *(metric.format(run.last(metric.name)) for metric in columns),
            _epochs(run),
            span(run.seconds),
        ]
        for group, run in runs
    ]
    headers = ["run", "student", *(metric.short for metric in columns), "epochs", "time"]
    summary = tag("summary", f"Each of the {len(runs)} runs")
    return tag("details", summary, table(None, headers, rows, name="Each run"))


# Settings -------------------------------------------------------------------------------------------------


def _settings(groups: Sequence[RunGroup]) -> Element:
    firsts = [group.runs[0] for group in groups]
    names = differing_settings(firsts)
    partial = [name for name in names if _same(name, firsts)]
    differing = [name for name in names if name not in partial]
    same = [name for name in firsts[0].settings if name not in names]
    shared = table(
        None,
        ["setting", "value"],
        [[name, _setting_text(firsts[0], name)] for name in same],
        name="Settings that all share",
    )
    return tag(
        "div",
        tag("p", "By their names in config.json; seeds of repeats are left out."),
        _settings_table(groups, differing, "Settings that differ") if differing else tag("p", "None differ."),
        partial
        and tag(
            "details",
            tag("summary", f"{len(partial)} that only some have"),
            _settings_table(groups, partial, "Settings that only some have"),
        ),
        tag("details", tag("summary", f"{len(same)} that all share"), shared),
        class_="settings",
    )


def _settings_table(groups: Sequence[RunGroup], settings: Sequence[str], name: str) -> Element:
    """A row for each setting, or for each student where they are many: tables are long, not wide."""
    students = [_label(number, group) for number, group in enumerate(groups)]
    firsts = [group.runs[0] for group in groups]
    cells = [[_setting_text(run, setting) for setting in settings] for run in firsts]
    if len(groups) > max(len(settings), MANY):
        return table(
            None,
            ["student", *settings],
            [[student, *row] for student, row in zip(students, cells, strict=True)],
            name=name,
        )
    by_setting = zip(settings, zip(*cells, strict=True), strict=True)
    return table(None, ["setting", *students], [[setting, *row] for setting, row in by_setting], name=name)


def _same(name: str, runs: Sequence[RunFacts]) -> bool:
    """Has a setting the same value in all runs that have it?"""
    return len({repr(run.settings[name]) for run in runs if name in run.settings}) == 1


def _setting_text(run: RunFacts, name: str) -> str:
    if name not in run.settings:
        return "–"
    value = run.settings[name]
    return "none" if value is None else str(value)


# Cells ----------------------------------------------------------------------------------------------------


def _label(number: int, group: RunGroup) -> Element:
    return tag("span", draw_swatch(number), group.name, class_="named")


def _epochs(run: RunFacts) -> str:
    return f"{len(run.rows)}" if run.finished else f"{len(run.rows)} of {run.planned}"


def _range(texts: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(texts))
    return distinct[0] if len(distinct) == 1 else f"{distinct[0]} … {distinct[-1]}"
