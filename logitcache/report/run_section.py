"""The half of the page about runs: students side by side, their curves, what differs in their settings."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from xml.etree.ElementTree import Element

from logitcache.report.cache_facts import CacheFacts
from logitcache.report.charts import Axis, Numbers, Series, points, swatch
from logitcache.report.curves import Curves
from logitcache.report.html import Child, Ids, table, tag
from logitcache.report.metrics import JUDGED, SECTIONS, measure, percent
from logitcache.report.run_facts import Group, RunFacts, brief, differences
from logitcache.units import span, span_unit

COLUMNS = (*JUDGED, measure("loss"))
MANY = 6  # students
DATA, TEACHER = ("data.name", "data.num_classes"), ("name", "weights", "weights_sha256")


def teachers(groups: Sequence[Group], caches: Sequence[CacheFacts]) -> dict[str, CacheFacts]:
    """Find caches, by teacher, that say how often a teacher of these runs is right on what all of them are judged on.

    A run names its data, not its test images: name, classes and recipe of evaluation stand for these.
    """
    runs = [run for group in groups for run in group.runs]
    judged = {
        tuple(run.settings.get(f"stream.{name}") for name in (*DATA, "recipe.evaluation"))
        for run in runs
        if "top1" in run.names
    }
    taught = {tuple(run.settings.get(f"stream.teacher.{name}") for name in TEACHER) for run in runs}
    found: dict[tuple[object, ...], CacheFacts] = {}
    for cache in caches:
        data, teacher, recipe = (cache.about[part] for part in ("dataset", "teacher", "recipe"))
        told = (brief(data["name"]), data["num_classes"], brief(recipe["name"]))
        who = tuple(None if teacher[name] is None else brief(teacher[name]) for name in TEACHER)
        known = cache.tests and cache.right("top1") is not None
        if known and judged == {told} and who in taught:
            found.setdefault(who, cache)
    names = [cache.about["teacher"]["name"] for cache in found.values()]
    return {
        f"teacher {name}" + (f", {cache.about['teacher']['weights']}" if names.count(name) > 1 else ""): cache
        for name, cache in zip(names, found.values(), strict=True)
    }


def about_runs(
    ids: Ids, groups: Sequence[Group], caches: Sequence[CacheFacts] = ()
) -> Iterator[tuple[str, Element]]:
    """Write the sections about runs, each with its heading; `caches` may say what their teachers come to."""
    curves, beside = Curves(ids, groups), teachers(groups, caches)
    yield (
        "Students side by side",
        tag("div", _standings(groups, beside), _trades(ids, curves), _each_run(curves)),
    )
    for section, (heading, lede) in SECTIONS.items():
        if (charts := curves.section(section)) is not None:
            yield heading, tag("div", tag("p", lede), charts)
    if len(groups) > 1:
        yield "What differs between the runs", _differing(groups)


# Side by side ---------------------------------------------------------------------------------------------


def _standings(groups: Sequence[Group], beside: Mapping[str, CacheFacts]) -> Element:
    """A row for each group: figures of the last epoch, size, time; above them their teachers."""
    told = [what for what in COLUMNS if any(group.spread(what.name) for group in groups)]
    repeated = any(len(group.runs) > 1 for group in groups)
    copied = any(group.copies for group in groups)
    heads: list[Child] = [
        "student",
        *(["runs"] if repeated or copied else []),
        *(what.short for what in told),
    ]
    judged = any("top1" in run.names for group in groups for run in group.runs)
    heads += [*(["best top-1"] if judged else []), "parameters", "epochs", "time", "views/s"]
    rows: list[list[Child]] = []
    for name, cache in beside.items():
        right = {what.name: cache.right(what.name) for what in JUDGED if what.name in ("top1", "top5")}
        figures = [what.text(right.get(what.name)) for what in told]
        before: list[Child] = [name, *(["–"] if repeated or copied else []), *figures]
        rows.append([*before, *["–"] * (len(heads) - len(before))])
    for number, group in enumerate(groups):
        many = len(group.runs)
        runs = f"{many} of {many + len(group.copies)}" if group.copies else str(many)
        row: list[Child] = [_named(number, group), *([runs] if repeated or copied else [])]
        row += [what.spread(group.spread(what.name), many) for what in told]
        best = [run.best_top1 for run in group.runs if run.best_top1 is not None]
        row += [measure("top1").text(max(best, default=None))] if judged else []
        row += [_range(f"{run.weights:,}" if run.weights else "–" for run in group.runs)]
        row += [_range(_epochs(run) for run in group.runs)]
        row += [span(sum(run.seconds for run in group.runs) / many)]
        rates = [rate for run in group.runs if (rate := run.rate) is not None]
        row += [f"{sum(rates) / len(rates):,.0f}" if rates else "–"]
        rows.append(row)
    notes = ["Figures are those of the last epoch."]
    notes += ["The teacher's are its cache's of the test images."] if beside else []
    notes += ["The best top-1 is chosen on the test images, and so flatters."] if judged else []
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
    frame = table(None, heads, rows, name="Figures of the students")
    return tag("div", frame, tag("p", " ".join(notes), class_="note"))


def _trades(ids: Ids, curves: Curves) -> Element | None:
    """Draw accuracy against size, and against time."""
    each, unit = span_unit(max(run.seconds for group in curves.groups for run in group.runs))
    charts = [
        _against(ids, curves, "Accuracy against size", "parameters", lambda run: float(run.weights or 0)),
        _against(
            ids,
            curves,
            "Accuracy against training time",
            f"{unit} of its epochs",
            lambda run: run.seconds / each,
        ),
    ]
    if not any(chart is not None for chart in charts):
        return None
    return tag("div", charts, class_="charts")


def _against(
    ids: Ids, curves: Curves, title: str, label: str, cost: Callable[[RunFacts], float]
) -> Element | None:
    runs = [(number, run) for number, group in enumerate(curves.groups) for run in group.runs]
    found = [
        (n, run, cost(run), top1)
        for n, run in runs
        if (top1 := run.last("top1")) is not None and cost(run) > 0
    ]
    costs = [at for _, _, at, _ in found]
    if len(set(costs)) < 2:
        return None
    series, rows = [], []
    for number, run, at, top1 in found:
        path, told = curves.paths[run.path], f"{at:,.0f}" if at >= 1000 else f"{at:.4g}"
        name = f"{curves.groups[number].name}, {path}: {percent(top1)}, {told} {label}"
        series.append(Series(name, ((at, top1),), number))
        rows.append((path, told, percent(top1)))
    note = "Top-1 of the last epoch; each mark is a run, as in the table above."
    x = Axis(label, log=max(costs) > 8 * min(costs))
    return points(
        ids, title, note, x, Axis(percent=True), series, Numbers(("run", label, "top-1"), tuple(rows))
    )


def _each_run(curves: Curves) -> Element | None:
    runs = [(group, run) for group in curves.groups for run in (*group.runs, *group.copies)]
    if len(runs) == len(curves.groups):
        return None
    told = [what for what in COLUMNS if what.name in curves.measured]
    rows = [
        [
            curves.paths[run.path],
            group.name,
            *(what.text(run.last(what.name)) for what in told),
            _epochs(run),
            span(run.seconds),
        ]
        for group, run in runs
    ]
    heads = ["run", "student", *(what.short for what in told), "epochs", "time"]
    frame = table(None, heads, rows, name="Each run")
    return tag("details", tag("summary", f"Each of the {len(runs)} runs"), frame)


# Settings -------------------------------------------------------------------------------------------------


def _differing(groups: Sequence[Group]) -> Element:
    firsts = [group.runs[0] for group in groups]
    names = differences(firsts)
    partial = [name for name in names if _agree(name, firsts)]
    differing = [name for name in names if name not in partial]
    same = [name for name in firsts[0].settings if name not in names]
    shared = table(
        None,
        ["setting", "value"],
        [[name, _setting(firsts[0], name)] for name in same],
        name="Settings that all share",
    )
    return tag(
        "div",
        tag("p", "By their names in config.json; seeds of repeats are left out."),
        _compared(groups, differing, "Settings that differ") if differing else tag("p", "None differ."),
        partial
        and tag(
            "details",
            tag("summary", f"{len(partial)} that only some have"),
            _compared(groups, partial, "Settings that only some have"),
        ),
        tag("details", tag("summary", f"{len(same)} that all share"), shared),
        class_="settings",
    )


def _compared(groups: Sequence[Group], settings: Sequence[str], name: str) -> Element:
    """A row for each setting, or for each student where they are many: a table is to be long, not wide."""
    students = [_named(number, group) for number, group in enumerate(groups)]
    firsts = [group.runs[0] for group in groups]
    cells = [[_setting(run, setting) for setting in settings] for run in firsts]
    if len(groups) > max(len(settings), MANY):
        return table(
            None,
            ["student", *settings],
            [[one, *row] for one, row in zip(students, cells, strict=True)],
            name=name,
        )
    by_setting = zip(settings, zip(*cells, strict=True), strict=True)
    return table(None, ["setting", *students], [[setting, *row] for setting, row in by_setting], name=name)


def _agree(name: str, runs: Sequence[RunFacts]) -> bool:
    """Do all that have a setting have the same?"""
    return len({repr(run.settings[name]) for run in runs if name in run.settings}) == 1


def _setting(run: RunFacts, name: str) -> str:
    if name not in run.settings:
        return "–"
    value = run.settings[name]
    return "none" if value is None else str(value)


# Words ----------------------------------------------------------------------------------------------------


def _named(number: int, group: Group) -> Element:
    return tag("span", swatch(number), group.name, class_="named")


def _epochs(run: RunFacts) -> str:
    return f"{len(run.rows)}" if run.finished else f"{len(run.rows)} of {run.planned}"


def _range(texts: Iterable[str]) -> str:
    found = list(dict.fromkeys(texts))
    return found[0] if len(found) == 1 else f"{found[0]} … {found[-1]}"
