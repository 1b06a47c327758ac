"""Curves of what was measured epoch by epoch, one chart per measure, drawn honestly however long the runs are."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from logitcache.report.charts import STYLES, Axis, Numbers, Series, legend, lines, spaced, thinned
from logitcache.report.html import Child, Ids, tag
from logitcache.report.metrics import measure, percent
from logitcache.report.run_facts import Group, short_paths

MOST_POINTS, POINTS_IN_ALL = 240, 150_000  # of a line; of the page
MOST_EPOCHS, CELLS_IN_ALL = 60, 60_000  # of a table; of the page
STEEP = 30  # what is no share and varies by more is drawn on a logarithmic scale


class Curves:
    """Charts of groups of runs that share a page, and so what it may weigh."""

    def __init__(self, ids: Ids, groups: Sequence[Group]) -> None:
        self.ids, self.groups = ids, groups
        runs = [run for group in groups for run in group.runs]
        self.measured = list(dict.fromkeys(name for run in runs for name in run.names))
        lines = sum(len(run.names) for run in runs) + len(groups) * len(self.measured)
        self.points = max(8, min(MOST_POINTS, POINTS_IN_ALL // max(1, lines)))
        self.epochs = max(2, min(MOST_EPOCHS, CELLS_IN_ALL // max(1, len(runs) * len(self.measured))))
        self.paths = short_paths([*runs, *(copy for group in groups for copy in group.copies)])

    def section(self, section: str) -> Element | None:
        """Draw every measure that belongs to a section: the loss first, the learning rate last."""
        names = [name for name in self.measured if measure(name).section == section]
        names.sort(key=lambda name: (name == "lr", name != "loss"))
        charts = [self.chart(name) for name in names]
        if section == "calibration" and (reliability := self.reliability()) is not None:
            charts.append(reliability)
        return tag("div", self._legend(names), tag("div", charts, class_="charts")) if charts else None

    def chart(self, name: str) -> Element:
        """Draw one measure of all runs that have it; of repeats the mean too."""
        what = measure(name)
        having = [
            (n, [run for run in group.runs if name in run.names]) for n, group in enumerate(self.groups)
        ]
        curves = {run.path: dict(run.curve(name)) for _, runs in having for run in runs}
        longest = max(len(curve) for curve in curves.values())
        series = []
        for number, runs in having:
            group = self.groups[number].name
            for run in runs:
                told = f"{group}, {self.paths[run.path]}: {what.text(run.last(name))} at last"
                series.append(self._line(told, run.curve(name), number, thin=len(runs) > 1))
            if len(runs) > 1:
                mean = Group(group, tuple(runs)).mean(name)
                series.append(self._line(f"{group}: mean of {len(runs)} runs", mean, number))
        values = [value for curve in curves.values() for value in curve.values()]
        wide = min(values) > 0 and max(values) > STEEP * min(values)
        steep = wide and not what.share and name != "lr"
        notes = [what.note]
        notes += ["Fine: each run; bold: their mean."] if any(one.thin for one in series) else []
        notes += ["Logarithmic scale."] if steep else []
        if longest > self.points:
            notes.append(
                f"Of each stretch the lowest and highest are drawn: at most {self.points} points a line."
            )
        ends = (1.0, max(epoch for curve in curves.values() for epoch in curve))
        low, high = ends if ends[0] < ends[1] else (None, None)
        x, y = (
            Axis("epoch", whole=True, low=low, high=high),
            Axis(percent=what.share, log=steep, low=0.0 if name == "lr" else None),
        )
        return lines(self.ids, what.title, " ".join(notes), x, y, series, self._numbers(name, curves))

    def reliability(self) -> Element | None:
        """Draw accuracy against confidence after the last epoch; repeats of a run are taken together."""
        series, rows = [], []
        for number, group in enumerate(self.groups):
            if (told := group.reliability()) is None:
                continue
            bins = told.points()
            where, weights = tuple((sure, right) for sure, right, _ in bins), tuple(n for _, _, n in bins)
            series.append(Series(group.name, where, number, marks=True, weights=weights))
            rows += [(group.name, percent(sure), percent(right), f"{n:,}") for sure, right, n in bins]
        if not series:
            return None
        note = "After the last epoch, by 15 bins. Larger marks: more images. Below the line: too sure."
        share = Axis("confidence", percent=True, low=0.0, high=1.0)
        numbers = Numbers(("student", "confidence", "accuracy", "images"), tuple(rows))
        straight = ((0.0, 0.0), (1.0, 1.0))
        return lines(self.ids, "Accuracy by confidence", note, share, share, series, numbers, ideal=straight)

    def _legend(self, names: Sequence[str]) -> Element | None:
        """Say which line stands for which group, of those that have one of these measures."""
        having = [
            (number, group)
            for number, group in enumerate(self.groups)
            if any(name in run.names for run in group.runs for name in names)
        ]
        many = {n: f" ({len(group.runs)} runs)" for n, group in having if len(group.runs) > 1}
        told: dict[int, Child] = {n: [group.name, many.get(n)] for n, group in having}
        if len(told) <= STYLES:
            return legend(told) if len(self.groups) > 1 else None
        return tag(
            "details", tag("summary", f"Which of the {len(told)} lines is which"), legend(told), class_="key"
        )

    def _line(
        self, name: str, curve: Sequence[tuple[float, float]], number: int, *, thin: bool = False
    ) -> Series:
        return Series(name, thinned(curve, self.points), number, thin=thin)

    def _numbers(self, name: str, curves: dict[str, dict[float, float]]) -> Numbers:
        every = sorted({epoch for curve in curves.values() for epoch in curve})
        epochs, text = spaced(every, self.epochs), measure(name).text
        rows = tuple(
            (f"{epoch:.0f}", *(text(curve.get(epoch)) for curve in curves.values())) for epoch in epochs
        )
        note = (
            f"{len(epochs)} of {len(every):,} epochs; metrics.jsonl has all."
            if len(epochs) < len(every)
            else ""
        )
        return Numbers(("epoch", *(self.paths[path] for path in curves)), rows, note)
