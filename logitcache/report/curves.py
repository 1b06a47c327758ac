"""Curves of what was measured epoch by epoch, a chart for each metric; long ones keep their extremes."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from logitcache.report.charts import (
    STYLES,
    Axis,
    ChartTable,
    Series,
    draw_legend,
    draw_lines,
    take_evenly,
    thin_out,
)
from logitcache.report.html import Child, Ids, tag
from logitcache.report.metrics import metric_named, percent
from logitcache.report.run_facts import RunGroup, shorten_paths

MOST_POINTS, POINTS_IN_ALL = 240, 150_000  # of a line; of the page
MOST_EPOCHS, CELLS_IN_ALL = 60, 60_000  # rows of a table; cells of the page's tables
STEEP = 30  # factor above which values that are no shares are drawn on a logarithmic scale


class Curves:
    """The charts of groups of runs on one page.

    Attributes:
        metrics: names of what was measured.
        points: most points of a line, and
        epochs: most rows of a table, so that the page stays small however many the runs are.
        paths: short names of run folders.
    """

    def __init__(self, ids: Ids, groups: Sequence[RunGroup]) -> None:
        self.ids, self.groups = ids, groups
        runs = [run for group in groups for run in group.runs]
        self.metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
        lines = sum(len(run.metrics) for run in runs) + len(groups) * len(self.metrics)
        self.points = max(8, min(MOST_POINTS, POINTS_IN_ALL // max(1, lines)))
        self.epochs = max(2, min(MOST_EPOCHS, CELLS_IN_ALL // max(1, len(runs) * len(self.metrics))))
        self.paths = shorten_paths([*runs, *(copy for group in groups for copy in group.copies)])

    def draw_section(self, section: str) -> Element | None:
        """Draw every metric that belongs to a section: the loss first, the learning rate last."""
        names = [name for name in self.metrics if metric_named(name).section == section]
        names.sort(key=lambda name: (name == "lr", name != "loss"))
        charts = [self.draw_chart(name) for name in names]
        if section == "calibration" and (chart := self.draw_reliability()) is not None:
            charts.append(chart)
        return tag("div", self._legend(names), tag("div", charts, class_="charts")) if charts else None

    def draw_chart(self, name: str) -> Element:
        """Draw one metric of all runs that have it; of repeats the mean too."""
        metric = metric_named(name)
        having = [
            (n, [run for run in group.runs if name in run.metrics]) for n, group in enumerate(self.groups)
        ]
        curves = {run.path: dict(run.curve(name)) for _, runs in having for run in runs}
        longest = max(len(curve) for curve in curves.values())
        series = []
        for number, runs in having:
            group = self.groups[number].name
            for run in runs:
                label = f"{group}, {self.paths[run.path]}: {metric.format(run.last(name))} at last"
                series.append(self._line(label, run.curve(name), number, thin=len(runs) > 1))
            if len(runs) > 1:
                mean = RunGroup(group, tuple(runs)).mean(name)
                series.append(self._line(f"{group}: mean of {len(runs)} runs", mean, number))
        values = [value for curve in curves.values() for value in curve.values()]
        wide = min(values) > 0 and max(values) > STEEP * min(values)
        steep = wide and not metric.share and name != "lr"
        notes = [metric.note]
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
            Axis(percent=metric.share, log=steep, low=0.0 if name == "lr" else None),
        )
        return draw_lines(self.ids, metric.title, " ".join(notes), x, y, series, self._numbers(name, curves))

    def draw_reliability(self) -> Element | None:
        """Draw accuracy by confidence bin after the last epoch; the bins of repeats are added up."""
        series, rows = [], []
        for number, group in enumerate(self.groups):
            if (reliability := group.reliability()) is None:
                continue
            bins = reliability.points()
            points = tuple((confidence, accuracy) for confidence, accuracy, _ in bins)
            weights = tuple(n for _, _, n in bins)
            series.append(Series(group.name, points, number, marks=True, weights=weights))
            rows += [(group.name, percent(x), percent(y), f"{n:,}") for x, y, n in bins]
        if not series:
            return None
        note = "After the last epoch, by 15 bins. Larger marks: more images. Below the line: too sure."
        share = Axis("confidence", percent=True, low=0.0, high=1.0)
        numbers = ChartTable(("student", "confidence", "accuracy", "images"), tuple(rows))
        diagonal = ((0.0, 0.0), (1.0, 1.0))
        return draw_lines(
            self.ids, "Accuracy by confidence", note, share, share, series, numbers, ideal=diagonal
        )

    def _legend(self, names: Sequence[str]) -> Element | None:
        """Draw the legend of the groups that have one of these metrics."""
        having = [
            (number, group)
            for number, group in enumerate(self.groups)
            if any(name in run.metrics for run in group.runs for name in names)
        ]
        many = {n: f" ({len(group.runs)} runs)" for n, group in having if len(group.runs) > 1}
        names_by_style: dict[int, Child] = {n: [group.name, many.get(n)] for n, group in having}
        legend = draw_legend(names_by_style)
        if len(having) <= STYLES:
            return legend if len(self.groups) > 1 else None
        summary = tag("summary", f"Which of the {len(having)} lines is which")
        return tag("details", summary, legend, class_="key")

    def _line(
        self, name: str, curve: Sequence[tuple[float, float]], number: int, *, thin: bool = False
    ) -> Series:
        return Series(name, thin_out(curve, self.points), number, thin=thin)

    def _numbers(self, name: str, curves: dict[str, dict[float, float]]) -> ChartTable:
        measured = sorted({epoch for curve in curves.values() for epoch in curve})
        epochs, metric = take_evenly(measured, self.epochs), metric_named(name)
        rows = tuple(
            (f"{epoch:.0f}", *(metric.format(curve.get(epoch)) for curve in curves.values()))
            for epoch in epochs
        )
        left_out = f"{len(epochs)} of {len(measured):,} epochs; metrics.jsonl has all."
        note = left_out if len(epochs) < len(measured) else ""
        return ChartTable(("epoch", *(self.paths[path] for path in curves)), rows, note)
